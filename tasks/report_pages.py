"""A report as Markdown, and as one HTML page that needs nothing else; tables are sorted by a click on a heading."""

from dataclasses import dataclass
from html import escape
from urllib.parse import quote

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
STYLE = """
:root{color-scheme:light dark}
body{font-family:system-ui,sans-serif;margin:0 auto;padding:1em;max-width:90em;line-height:1.4}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em}dt{font-weight:bold}dd{margin:0;overflow-wrap:anywhere}
img{max-width:100%;height:auto}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
td,th{padding:.25em .5em;text-align:right;vertical-align:bottom;border-bottom:1px solid #8886}td{white-space:nowrap}
td:first-child,th:first-child{text-align:left}
th button{all:unset;cursor:pointer;font-weight:bold}th button:focus-visible{outline:2px solid}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
li{overflow-wrap:anywhere}
@media(max-width:40em){dl{display:block}dd{margin-bottom:.4em}
td a{display:inline-block;max-width:11em;white-space:normal;overflow-wrap:anywhere}}
"""
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const x = parseFloat(key(a)), y = parseFloat(key(b));
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    const order = Number.isNaN(x) ? key(a).localeCompare(key(b), "en", {numeric: true}) : x - y;
    return down ? -order : order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
});
"""


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes
    ----------
    title : of the page
    about : plan, date, versions and the like, by name
    pictures : file of the figure of every task
    sections : of every difficulty its title, a few words, the table of its kinds of runs, and that of its runs (files first)
    incomplete, problems : a line about every run that is not complete, and about every file that is none
    """

    title: str
    about: dict[str, str]
    pictures: dict[str, str]
    sections: list[tuple[str, str, Table, Table]]
    incomplete: list[str]
    problems: list[str]

    @property
    def failures(self) -> dict[str, list[str]]:
        named = {"Diverged or unfinished": self.incomplete, "Failed or unreadable": self.problems}
        return {heading: lines for heading, lines in named.items() if lines}


def markdown(page: Page) -> str:
    lines = [f"# {page.title}", "", *(f"- {name}: {text}" for name, text in page.about.items()), ""]
    for task, picture in page.pictures.items():
        lines += [f"![{task}: mean test loss, bands are 95 % intervals of the mean]({picture})", ""]
    for title, text, (headings, rows), _ in page.sections:
        lines += [f"## {title}", "", text, "", f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows] + [""]
    for heading, problems in page.failures.items():
        lines += [f"## {heading}", "", *(f"- {' '.join(problem.split())}" for problem in problems), ""]
    return "\n".join(lines)


def html(page: Page) -> str:
    title = escape(page.title)
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{title}</title>",
        '<link rel="icon" href="data:,">', f"<style>{STYLE}</style>", "</head>", "<body>", f"<h1>{title}</h1>", "<dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in page.about.items()), "</dl>",
    ]  # fmt: skip
    for task, picture in page.pictures.items():
        words = escape(f"{task}: mean test loss, bands are 95 % intervals of the mean")
        parts.append(f'<p><a href="{quote(picture)}"><img src="{quote(picture)}" alt="{words}"></a></p>')
    for heading, text, kinds, runs in page.sections:
        parts += [f"<h2>{escape(heading)}</h2>", f"<p>{escape(text)}</p>", _table(kinds)]
        parts += ["<details>", f"<summary>{len(runs[1])} runs</summary>", _table(runs, links=True), "</details>"]
    for heading, problems in page.failures.items():
        parts += [f"<h2>{heading}</h2>", "<ul>", *(f"<li>{escape(problem)}</li>" for problem in problems), "</ul>"]
    return "\n".join([*parts, f"<script>{SCRIPT}</script>", "</body>", "</html>", ""])


def _table(table: Table, *, links: bool = False) -> str:
    """A table in a box that scrolls; with `links`, the first cells are names of files beside the report's folder."""
    headings, rows = table
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    body = []
    for cells in rows:
        texts = [escape(cell) for cell in cells]
        if links:
            texts[0] = f'<a href="../{quote(cells[0])}">{texts[0]}</a>'
        body.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    rows_text = "\n".join(body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows_text}\n</tbody></table></div>'
