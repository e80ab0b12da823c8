"""Reports: the numbers of the runs, nothing else; and what is drawn."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from scipy import stats
from synthetic import fake

import stablebptt as sb
from stablebptt.data import columns, storage
from stablebptt.data.run_file import Content
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import report_pages, reports, runs, sweeps

PLAN = {"task": "cartpole", "options": {"steps": 6, "hidden": [5], "poles": [1, 2]}}
PLAN["train"] = {"variant": ["R", "C"], "clip": ["none", "norm"], "seed": "0:3", "epochs": 4, "train_count": 16, "test_count": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for planned in sweeps.make_plan(PLAN):
        sweeps.run_one(planned, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return reports.load_runs(folder)


@pytest.fixture(scope="module")
def reported(folder, tmp_path_factory):
    """A sweep with two files that are no runs, and the counts of its report."""
    place = tmp_path_factory.mktemp("reported") / "sweep"
    shutil.copytree(folder, place)
    (place / "broken.h5").write_bytes(b"no HDF5")
    (place / "some.error.txt").write_text("RuntimeError: <out> of luck")
    return place, reports.write(place)


@pytest.mark.slow
def test_families_and_their_numbers(loaded):
    runs, problems = loaded
    found = reports.families(runs)
    assert len(runs) == 24 and problems == [] and len(found) == 8
    assert [(f.title, f.clip, f.variant) for f in found[:4]] == [
        ("cartpole, 1 pole", "none", "R"),
        ("cartpole, 1 pole", "none", "C"),
        ("cartpole, 1 pole", "norm", "R"),
        ("cartpole, 1 pole", "norm", "C"),
    ]
    for family in found:
        assert [run.config["seed"] for run in family.runs] == [0, 1, 2]
        np.testing.assert_array_equal(family.last(), [run.history["test_loss"][-1] for run in family.runs])
        np.testing.assert_array_equal(family.best(), [run.history["test_loss"].min() for run in family.runs])
    cells = dict(zip(reports.headings(found), reports.rows(found)[1]))
    last = found[1].last()
    assert cells["variant"] == "C" and cells["seeds"] == "3" and cells["diverged"] == cells["unfinished"] == "0/3"
    assert cells["last test loss: mean"] == f"{last.mean():.4g}" and cells["median"] == f"{np.median(last):.4g}"
    low, high = np.exp(stats.t.interval(0.95, 2, np.log(last.mean()), stats.sem(last) / last.mean()))
    assert cells["95 % of the mean"] == f"{low:.4g} .. {high:.4g}"


def test_what_counts_as_solved_or_diverged(loaded):
    first = reports.families(loaded[0])[0]
    changed = []
    for run, loss, status in zip(first.runs, ([1.0, 0.04, 0.5], [1.0, 0.06], []), ("complete", "diverged: x", "diverged: y")):
        history = {name: np.resize(values, len(loss)) for name, values in run.history.items()} | {"test_loss": np.array(loss)}
        changed.append(dataclasses.replace(run, history=history, status=status))
    family = dataclasses.replace(first, runs=tuple(changed))
    assert family.solved() == 1 and family.count("diverged") == 2
    np.testing.assert_array_equal(family.last(), [0.5, 0.06, np.nan])
    assert dict(zip(reports.headings([family]), reports.rows([family])[0]))["last test loss: mean"] == f"{0.28:.4g}"
    assert reports.threshold(sb_run("quantum")) == pytest.approx(0.25 * 128)
    assert np.isnan(reports.interval(np.array([1.0, np.nan])))[0]


def sb_run(task):
    problem = sb.problem(task)
    return runs.Run({"task": task, "options": problem.options}, {}, np.zeros(1), np.zeros(1), problem, {}, "complete")


def test_the_report(loaded, reported):
    place, counts = reported
    assert counts["runs"] == 24 and counts["unreadable_or_failed"] == 2 and counts["unfinished"] == 0
    report = place / "report"
    page, markdown = (report / "report.html").read_text(), (report / "report.md").read_text()
    for text in (page, markdown):
        assert "cartpole, 2 poles" in text and "cartpole.png" in text and "broken.h5" in text
        assert "best test loss below 0.05" in text
    assert "&lt;out&gt;" in page and markdown.count("| C | norm |") == 2
    assert (report / "cartpole.png").read_bytes().startswith(b"\x89PNG")
    with h5py.File(report / "report.h5") as file:
        table = file["runs"]
        assert {len(column) for name, column in table.items() if name != "file_letter"} == {24}
        names = table["variant"].attrs["flag_meanings"].split()
        chosen = (table["variant"][:] == names.index("C")) & (table["seed"][:] == 2)
        assert chosen.sum() == 4 and table["seconds"].attrs["units"] == "s"
        losses = {run.history["test_loss"][-1] for run in loaded[0]}
        assert set(table["last_test_loss"][:]) == losses


def test_the_table_opens_with_xarray(reported):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    with xarray.open_dataset(reported[0] / "report" / "report.h5", group="runs") as table:
        assert table.best_test_loss.dims == ("run",) and table.sizes["run"] == 24


def test_the_figure(loaded):
    found = reports.families(loaded[0])
    figure = reports.draw(found, "cartpole")
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["1 pole", "2 poles"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["test loss, clip none", "test loss, clip norm"]
    for axes, (title, clip) in zip(figure.axes, [(t, c) for c in ("none", "norm") for t in ("1 pole", "2 poles")]):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert list(lines) == ["R", "C"] and len(axes.collections) == 2
        family = next(f for f in found if f.title.endswith(title) and f.clip == clip and f.variant == "C")
        mean = np.mean([run.history["test_loss"] for run in family.runs], axis=0)
        np.testing.assert_allclose(lines["C"].get_ydata(), mean)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["R", "C"]


def test_folders_without_runs(tmp_path):
    with pytest.raises(FileFormatError, match="holds no run file"):
        reports.write(tmp_path)
    with pytest.raises(NotADirectoryError):
        reports.write(tmp_path / "absent")


@pytest.mark.slow
def test_the_command(reported, capsys, monkeypatch):
    """Once more, beside a table of its own, which is no run."""
    from stablebptt import cli

    place, counts = reported
    monkeypatch.setattr(cli.signal, "signal", lambda *a: None)
    cli.main(["report", str(place), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["report"].endswith("report.html") and counts.items() <= told.items()
    cli.main(["inspect", str(place / "report" / "report.h5")])
    assert "/runs/best_test_loss" in capsys.readouterr().out


def content(name="run.h5", **given):
    """A run file's content that nobody trained."""
    run, nothing = fake(**given), np.zeros(1)
    return Content(run.config, {}, run.history, nothing, nothing, {}, {}, run.status, path=f"folder/{name}")


@pytest.fixture(scope="module")
def varied():
    """Two learning rates and two numbers of epochs, three seeds each; some came to no end."""
    found = [
        content(f"{rate}-{epochs}-{seed} <&>.h5", learning_rate=rate, epochs=epochs, seed=seed)
        for rate in (0.01, 0.001) for epochs in (4, 8) for seed in range(3)
    ]  # fmt: skip
    found[1] = dataclasses.replace(found[1], status="diverged: the <loss> is NaN")
    found[5] = dataclasses.replace(found[5], status="interrupted")
    return found


def test_everything_but_the_seed_tells_runs_apart(varied):
    found = reports.families(varied)
    wanted = [{"epochs": epochs, "learning_rate": rate} for epochs in "48" for rate in ("0.001", "0.01")]
    assert [family.others for family in found] == wanted and {family.seeds() for family in found} == {3}
    assert reports.headings(found)[:4] == ("variant", "epochs", "learning rate", "clip")
    cells = [dict(zip(reports.headings(found), row)) for row in reports.rows(found)]
    assert [row["diverged"] for row in cells] == ["0/3", "1/3", "0/3", "0/3"]
    assert [row["unfinished"] for row in cells] == ["0/3", "0/3", "0/3", "1/3"]
    figure = reports.draw(found, "cartpole")
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    labels = [family.name for family in found]
    labels[1], labels[3] = f"{labels[1]} (1 diverged)", f"{labels[3]} (1 unfinished)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels


@pytest.mark.parametrize("values", [[1e-3, 2e-3, 10.0], [5.0, 5.1], [1e-30, 1.0]])
def test_intervals_of_positive_losses_are_positive(values):
    low, high = reports.interval(np.array(values))
    assert 0 < low < np.mean(values) < high < np.inf
    assert low * high == pytest.approx(np.mean(values) ** 2)


def test_intervals_of_other_numbers_are_students():
    values = np.array([-1.0, 2.0, 4.0])
    assert reports.interval(values) == pytest.approx(stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))


def test_a_column_for_all_that_was_varied(varied):
    other = content("other.h5", clip="norm", optimizer=sb.optimizers.sgd(0.5))
    groups = reports.table(reports.families([*varied, other]))["runs"]
    names = [bytes(row).rstrip(b"\0").decode() for row in groups["file"].values]
    place = names.index("0.001-8-2 <&>.h5")
    assert set(names) == {*(run.path[7:] for run in varied), "other.h5"}
    assert groups["learning_rate"].values[place] == 0.001 and groups["epochs_planned"].values[place] == 8
    assert groups["optimizer"].attributes["flag_meanings"].split()[groups["optimizer"].values[names.index("other.h5")]] == "sgd"
    assert set(groups) > {"seed", "clip", "variant", "difficulty", "complete"} and "steps" not in groups


def test_columns_of_whole_numbers_and_of_schedules():
    gates = [[0.5, 1.0], [0.25, 1.0]]
    many = [content(f"{k}.h5", variant=tuple(pair), options={"poles": k + 1}) for k, pair in enumerate(gates)]
    groups = reports.table(reports.families([*many, content("r.h5", variant="R")]))["runs"]
    poles, told = groups["poles"], groups["schedule"]
    assert poles.values.dtype.kind == "i" and groups["epochs_planned"].values.dtype.kind == "i"
    words = [json.loads(told.attributes["names"])[k] for k in told.values]
    files = [bytes(row).rstrip(b"\0").decode() for row in groups["file"].values]
    assert dict(zip(files, words)) == {"0.h5": json.dumps(gates[0]), "1.h5": json.dumps(gates[1]), "r.h5": "none"}


def test_names_of_columns_are_all_different():
    options = {"a.b": 1, "a b": 2, "a/b": 3, "seed": 4, "run": 5}
    taken = []
    for name in options:
        taken.append(columns.name_of(name, ["seed", *taken]))
    assert taken == ["a_b", "a_b_", "a_b__", "seed_", "run_"]


def test_a_file_is_read_once_and_a_copy_counts_once(folder, tmp_path, monkeypatch):
    for k, file in enumerate(sorted(folder.glob("*.h5"))[:2]):
        shutil.copy(file, tmp_path / file.name)
        shutil.copy(file, tmp_path / f"copy_{k}.h5")
    seen, read = [], storage.read
    monkeypatch.setattr(storage, "read", lambda path, formats: seen.append(path) or read(path, formats))
    counts = reports.write(tmp_path)
    assert len(seen) == len(set(seen)) == 4 and counts["runs"] == 2


def test_columns_of_many_long_words():
    many = [content(f"{k}.h5", variant=(0.5, 1.0), options={"hidden": [5] * k}) for k in range(1, 300, 150)]
    groups = reports.table(reports.families(many))["runs"]
    assert json.loads(groups["hidden"].attributes["names"])[0] == json.dumps([5] * 151)
    values = [str(k).ljust(200) for k in range(300)]
    column = columns.anything("words", values, "words")
    assert bytes(column.values[7]).decode() == values[7] and column.dims == ("run", "words_letter")


class Reader(HTMLParser):
    """Complains of tags that do not fit, and keeps links, ids and texts."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.seen = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page(reported):
    place, _ = reported
    text = (place / "report" / "report.html").read_text()
    read = Reader(text)
    tags = [tag for tag, _ in read.seen]
    assert text.startswith("<!doctype html>") and ("html", {"lang": "en"}) in read.seen and tags.count("h1") == 1
    assert any(attributes.get("name") == "viewport" for _, attributes in read.seen)
    assert "<title>Report of sweep</title>" in text and "24 (24 complete, 0 diverged, 0 unfinished)" in text
    assert "poles 1, 2" in text and "variant R, C" in text and "<dt>seeds</dt><dd>0, 1, 2</dd>" in text and "steps 6" in text
    assert re.search(r"<dt>date</dt><dd>20\d\d-\d\d-\d\d \d\d:", text) and f"stablebptt {sb.__version__}" in text
    files = [link for link in read.links if link.endswith(".h5")]
    assert len(set(files)) == 24 and all((place / "report" / link).is_file() for link in files)
    assert (place / "report" / next(link for link in read.links if link.endswith(".png"))).is_file()
    assert "RuntimeError: &lt;out&gt; of luck" in text and "broken.h5 is not an HDF5 file" in text
    assert tags.count("table") == 4 == text.count('<div class="wide"><table>')
    assert not re.search(r"https?://", text)  # it needs nothing else


def test_reasons_and_odd_names_on_the_page(varied, tmp_path):
    page = reports.page_of(tmp_path, reports.families(varied), [], {"cartpole": "cartpole.png"})
    text = report_pages.html(page)
    read = Reader(text)
    assert "0.01-4-1 &lt;&amp;&gt;.h5: diverged: the &lt;loss&gt; is NaN" in text
    assert "../0.01-4-1%20%3C%26%3E.h5" in read.links
    assert "12 (10 complete, 1 diverged, 1 unfinished)" in text
    markdown = report_pages.markdown(page)
    assert "## Diverged or unfinished" in markdown and "- varied: epochs 4, 8; learning rate 0.001, 0.01" in markdown


DOM = """
const row = texts => ({cells: texts.map(textContent => ({textContent}))});
const body = {rows: [row(["b", "10"]), row(["a", "9.5"]), row(["c", "-"])], append(...rows) { this.rows = rows; }};
const table = {tBodies: [body]}, clicks = [];
const head = k => { const a = {}; return {cellIndex: k, closest: () => table,
  getAttribute: n => a[n] ?? null, setAttribute: (n, v) => a[n] = v, removeAttribute: n => delete a[n]}; };
const heads = [head(0), head(1)];
heads.forEach(h => h.parentElement = {cells: heads});
const document = {querySelectorAll: () => heads.map(h => ({parentElement: h, addEventListener: (n, f) => clicks.push(f)}))};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_tables_are_sorted_by_a_click():
    told = "console.log(JSON.stringify(body.rows.map(r => r.cells[0].textContent)));"
    script = DOM + report_pages.SCRIPT + "".join(f"clicks[{k}](); {told}" for k in (1, 1, 0))
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [["a", "b", "c"], ["b", "a", "c"], ["a", "b", "c"]]


def test_many_difficulties_take_several_rows():
    many = [content(f"{p}.h5", options={"poles": p}, clip=c) for p in range(1, 7) for c in ("none", "norm")][:-1]
    many.append(content("slow.h5", learning_rate=1e-4))
    figure = reports.draw(reports.families(many), "cartpole")
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(figure.axes) == 16 and len(shown) == 12 and figure.get_size_inches()[0] < 16
    assert [axes.get_title() for axes in figure.axes[8:10]] == ["5 poles", "6 poles"]
    assert figure.axes[0].get_ylim() == figure.axes[4].get_ylim() and figure.axes[13].texts[0].get_text() == "no run"
    named = [text.get_text() for text in figure.legends[0].get_texts()]  # also where a difficulty has one rate only
    assert named == ["C, learning rate 0.0001", "C, learning rate 0.001"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SEEN = """<script>
addEventListener("load", () => {
  const table = document.querySelectorAll("table")[1], told = [], head = document.documentElement;
  for (const k of [6, 6, 0]) {
    table.querySelectorAll("th button")[k].click();
    told.push([...table.tBodies[0].rows].map(row => row.cells[k].textContent));
  }
  const fits = head.scrollWidth <= innerWidth, scrolls = getComputedStyle(table.parentElement).overflowX;
  const picture = document.querySelector("img").naturalWidth;
  head.innerHTML = "<pre>" + JSON.stringify({told, fits, scrolls, picture, width: innerWidth}) + "</pre>";
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width, height", [(1280, 1000), (500, 844)])  # the narrowest window it has
def test_the_page_in_a_browser(reported, tmp_path, width, height):
    """Its tables sort, it is no wider than the window, its pictures are found, and the console holds no error."""
    page = reported[0] / "report" / "seen.html"
    page.write_text((reported[0] / "report" / "report.html").read_text().replace("</body>", SEEN))
    told = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    told += ["disable-component-update", "disable-sync", f"user-data-dir={tmp_path}", "enable-logging=stderr", "v=0"]
    command = [CHROMIUM, *(f"--{word}" for word in told), f"--window-size={width},{height}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(done.stdout.partition("<pre>")[2].partition("</pre>")[0])
    up, down, files = seen.pop("told")
    assert up == sorted(up, key=float) and down == sorted(up, key=float, reverse=True) and len(set(up)) > 1
    assert files == sorted(files) and seen.pop("picture") > 500
    assert seen == {"fits": True, "scrolls": "auto", "width": width}
