"""Reports: the numbers of the runs, nothing else; and what is drawn."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from scipy import stats

import stablebptt as sb
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import reports, runs, sweeps

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
    cells = dict(zip(reports.HEADINGS, reports.rows(found)[1]))
    last = found[1].last()
    assert cells["variant"] == "C" and cells["seeds"] == "3" and cells["diverged"] == "0/3"
    assert cells["last test loss: mean"] == f"{last.mean():.4g}" and cells["median"] == f"{np.median(last):.4g}"
    low, high = stats.t.interval(0.95, 2, last.mean(), stats.sem(last))
    assert cells["95 % of the mean"] == f"{low:.4g} .. {high:.4g}"


def test_what_counts_as_solved_or_diverged(loaded):
    first = reports.families(loaded[0])[0]
    changed = []
    for run, loss, status in zip(first.runs, ([1.0, 0.04, 0.5], [1.0, 0.06], []), ("complete", "diverged: x", "diverged: y")):
        history = {name: np.resize(values, len(loss)) for name, values in run.history.items()} | {"test_loss": np.array(loss)}
        changed.append(dataclasses.replace(run, history=history, status=status))
    family = dataclasses.replace(first, runs=tuple(changed))
    assert family.solved() == 1 and family.diverged() == 2
    np.testing.assert_array_equal(family.last(), [0.5, 0.06, np.nan])
    assert reports.rows([family])[0][3] == f"{0.28:.4g}"
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
        assert {len(column) for column in table.values()} == {24}
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
