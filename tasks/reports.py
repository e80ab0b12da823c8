"""A sweep in one table, one page and the published figures, from the run files in a folder."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from stablebptt.data import run_file, storage
from stablebptt.data.run_file import Content
from stablebptt.data.storage import FileFormatError, Group, Variable
from stablebptt.tasks.pictures import curves
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.registry import title as title_of

VARIANTS, CLIPS = ("R", "M", "C", "S", "N", "schedule"), ("none", "value", "norm")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Family:
    """Runs that differ only in the seed.

    Attributes
    ----------
    task, title, variant, clip : what they have in common
    rest : what else distinguishes them from the other families of the task
    runs : content of their files
    """

    task: str
    title: str
    variant: str
    clip: str
    rest: str
    runs: tuple[Content, ...]

    def last(self) -> np.ndarray:
        return np.array([run.history["test_loss"][-1] if len(run.history["epoch"]) else np.nan for run in self.runs])

    def best(self) -> np.ndarray:
        return np.array([run_file.best(run.history)[1] for run in self.runs])

    def diverged(self) -> int:
        return sum(run.status.startswith("diverged") for run in self.runs)

    def solved(self) -> int:
        return int(np.sum(self.best() < threshold(self.runs[0])))


def threshold(run: Content) -> float:
    """The test loss below which a run has solved its task; NaN where none is known."""
    task = TASKS.get(run.config["task"])
    return float("nan") if task is None or task.solved is None else task.solved(**run.config["options"])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for fewer than two finite values."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    half = stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2) * known.std(ddof=1) / np.sqrt(len(known))
    return float(known.mean() - half), float(known.mean() + half)


def load_runs(folder: Path) -> tuple[list[Content], list[str]]:
    """All run files in a folder, and one line about each file that could not be read."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    runs, problems = [], []
    for path in sorted(folder.glob("*.h5")):
        try:
            if run_file.kind(path) == run_file.RUN_FORMAT:
                runs.append(_load(path))
        except FileFormatError as error:
            problems.append(str(error))
    problems += [f"{path.name}: {path.read_text('utf-8')}" for path in sorted(folder.glob("*.error.txt")) if path.is_file()]
    return runs, problems


def _load(path: Path) -> Content:
    """A run file, if its configuration says which problem it is a run of."""
    content = run_file.load(path)
    try:
        title_of(content.config), threshold(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: the configuration makes no problem ({error})") from None
    return content


def families(runs: Iterable[Content]) -> list[Family]:
    """Runs by what they have in common besides the seed: by task, difficulty, clipping and variant."""
    runs = list(runs)
    found = []
    for title in sorted({title_of(run.config) for run in runs}, key=lambda t: (t.split(",")[0], _natural(t))):
        alike = [run for run in runs if title_of(run.config) == title]
        for name, members in curves.families(alike).items():
            first = members[0].config
            rest = ", ".join(part for part in name.split(", ")[1:] if not part.startswith("clip "))
            members = sorted(members, key=lambda run: run.config["seed"])
            found.append(Family(first["task"], title, curves.variant_name(members[0]), first["clip"], rest, tuple(members)))
    return sorted(found, key=lambda f: (f.task, _natural(f.title), CLIPS.index(f.clip), VARIANTS.index(f.variant), f.rest))


def _natural(title: str) -> list[Any]:
    """Sort key that compares numbers as numbers."""
    return [(1, float(word), "") if word.replace(".", "", 1).isdecimal() else (0, 0.0, word) for word in title.split()]


HEADINGS = ("variant", "clip", "seeds", "last test loss: mean", "median", "95 % of the mean", "best: mean", "solved", "diverged")


def rows(found: list[Family]) -> list[tuple[str, ...]]:
    """Cells of the table of one difficulty, in the order of `HEADINGS`."""
    table: list[tuple[str, ...]] = []
    for family in found:
        last, best = family.last(), family.best()
        low, high = interval(last)
        seeds = len(family.runs)
        table.append(
            (
                family.variant + (f" ({family.rest})" if family.rest else ""),
                family.clip,
                str(seeds),
                _number(np.nanmean(last) if np.isfinite(last).any() else np.nan),
                _number(np.nanmedian(last) if np.isfinite(last).any() else np.nan),
                f"{_number(low)} .. {_number(high)}" if np.isfinite(low) else "-",
                _number(np.nanmean(best) if np.isfinite(best).any() else np.nan),
                f"{family.solved()}/{seeds}",
                f"{family.diverged()}/{seeds}",
            )
        )
    return table


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"


def draw(found: list[Family], task: str) -> Any:
    """The published figure of a task: a column per difficulty, a row per clipping, a line with its 95 % band per variant."""
    chosen = [family for family in found if family.task == task]
    titles = list(dict.fromkeys(family.title for family in chosen))
    clips = [clip for clip in CLIPS if any(family.clip == clip for family in chosen)]
    figure = curves.new_figure(3.4 * len(titles) + 0.6, 2.7 * len(clips) + 0.5)
    grid = figure.subplots(len(clips), len(titles), squeeze=False, sharex=True, sharey="col")
    for clip, line in zip(clips, grid):
        for title, axes in zip(titles, line):
            for family in (f for f in chosen if (f.title, f.clip) == (title, clip)):
                _band(axes, family)
            axes.grid(True, alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"test loss, clip {clip}")
    for title, axes in zip(titles, grid[0]):
        axes.set_title(title.partition(", ")[2] or title, fontsize="medium")
    for title, axes in zip(titles, grid[-1]):
        axes.set_xlabel("epoch")
        if curves.log_helps([a for line in grid for a, t in zip(line, titles) if t == title]):
            curves.log_axis(axes)
    handles = {label: handle for axes in grid.ravel() for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False, title=task)
    return figure


def _band(axes: Any, family: Family) -> None:
    columns = [run.history["test_loss"] for run in family.runs]
    longest = max(len(values) for values in columns)
    if not longest:
        return
    values = np.full((len(columns), longest), np.nan)
    for row, known in zip(values, columns):
        row[: len(known)] = known
    values = values[:, np.isfinite(values).any(axis=0)]
    epochs, mean = np.arange(1, values.shape[1] + 1), np.nanmean(values, axis=0)
    colour = curves.COLOURS.get(family.variant, curves.PALETTE[-1])
    axes.plot(epochs, mean, color=colour, linewidth=1.3, label=family.variant)
    if len(columns) > 1:
        low, high = np.array([interval(column) for column in values.T]).T
        axes.fill_between(epochs, np.maximum(low, np.nanmin(values, axis=0)), high, color=colour, alpha=0.18, linewidth=0)


def table(found: list[Family]) -> dict[str, Group]:
    """All runs as columns of one HDF5 group; words are stored as numbers that attributes explain."""
    runs = [(family, run) for family in found for run in family.runs]
    titles = list(dict.fromkeys(family.title for family in found))

    def words(name: str, long_name: str, values: list[str], meanings: list[str]) -> Variable:
        flags = [meaning.replace(" ", "_") for meaning in meanings]
        attributes = {"flag_values": list(range(len(flags))), "flag_meanings": " ".join(flags)}
        return Variable(np.array([meanings.index(value) for value in values], np.int32), ("run",), "1", long_name, attributes)

    def numbers(long_name: str, values: list[float], units: str = "1") -> Variable:
        return Variable(np.array(values), ("run",), units, long_name)

    last = [values for family in found for values in family.last()]
    best = [values for family in found for values in family.best()]
    return {
        "runs": {
            "difficulty": words("difficulty", "task and its difficulty", [f.title for f, _ in runs], titles),
            "variant": words("variant", "gradient variant", [f.variant for f, _ in runs], list(VARIANTS)),
            "clip": words("clip", "clipping", [f.clip for f, _ in runs], list(CLIPS)),
            "seed": numbers("seed", [run.config["seed"] for _, run in runs]),
            "epochs": numbers("epochs done", [len(run.history["epoch"]) for _, run in runs]),
            "last_test_loss": numbers("test loss after the last epoch", last),
            "best_test_loss": numbers("lowest test loss", best),
            "solved_below": numbers("best test loss below which the task counts as solved", [threshold(run) for _, run in runs]),
            "diverged": numbers("1 if the run diverged", [int(run.status.startswith("diverged")) for _, run in runs]),
            "complete": numbers("1 if the run is complete", [int(run.status == "complete") for _, run in runs]),
            "seconds": numbers("wall time of all epochs", [float(run.history["seconds"].sum()) for _, run in runs], "s"),
        }
    }


def write(folder: Path) -> dict[str, Any]:
    """Write report.h5, report.md, report.html and a figure per task into the subfolder `report` of a folder of run files.

    Returns the report's path and the counts of runs by outcome.
    """
    runs, problems = load_runs(folder)
    if not runs:
        raise FileFormatError(f"{folder} holds no run file")
    found = families(runs)
    tasks = list(dict.fromkeys(family.task for family in found))
    place = folder / "report"
    place.mkdir(exist_ok=True)
    attributes: dict[str, str | int | float] = {"format": run_file.TABLE_FORMAT, "format_version": run_file.FORMAT_VERSION}
    storage.write(place / "report.h5", storage.encode(attributes, table(found)))
    pictures = {task: f"{task}.png" for task in tasks}
    for task, picture in pictures.items():
        curves.save(partial(draw, found, task), place / picture)
    storage.write(place / "report.md", _markdown(found, pictures, problems).encode())
    storage.write(place / "report.html", _page(found, pictures, problems).encode())
    unfinished = sum(run.status not in ("complete",) and not run.status.startswith("diverged") for run in runs)
    return {
        "report": str(place / "report.html"),
        "runs": len(runs),
        "unfinished": unfinished,
        "diverged": sum(family.diverged() for family in found),
        "solved": sum(family.solved() for family in found),
        "unreadable_or_failed": len(problems),
    }


def _sections(found: list[Family]) -> Iterable[tuple[str, str, list[Family]]]:
    for title in dict.fromkeys(family.title for family in found):
        alike = [family for family in found if family.title == title]
        limit = threshold(alike[0].runs[0])
        epochs = sorted({run.config["epochs"] for family in alike for run in family.runs})
        text = f"Epochs planned: {', '.join(map(str, epochs))}."
        text += f" Solved: best test loss below {limit:g}." if np.isfinite(limit) else ""
        yield title, text, alike


def _markdown(found: list[Family], pictures: dict[str, str], problems: list[str]) -> str:
    lines = ["# Report", ""]
    for task, picture in pictures.items():
        lines += [f"![{task}: mean test loss, bands are 95 % intervals of the mean]({picture})", ""]
    for title, text, alike in _sections(found):
        lines += [f"## {title}", "", text, "", f"| {' | '.join(HEADINGS)} |", "| --- " * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows(alike)] + [""]
    if problems:
        lines += ["## Failed or unreadable", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(lines)


def _page(found: list[Family], pictures: dict[str, str], problems: list[str]) -> str:
    style = "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}img{max-width:100%}"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Report</title><style>{style}</style>"
    parts = [head, "<h1>Report</h1>"]
    parts += [f"<img src='{html.escape(name)}' alt='{html.escape(task)}'>" for task, name in pictures.items()]
    for title, text, alike in _sections(found):
        heads = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows(alike))
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p><table><tr>{heads}</tr>{body}</table>")
    if problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
        parts.append(f"<h2>Failed or unreadable</h2><ul>{items}</ul>")
    return "\n".join([*parts, "</html>\n"])
