"""What `inspect` says of a file: true, complete, and fit for a mail."""

import csv
import io
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt import cli
from stablebptt.data import run_file, storage, summary
from stablebptt.data.storage import Variable


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    problem = sb.problem("cartpole", poles=2, steps=5, hidden=(4,))
    sb.train(problem, epochs=6, out=path, train_count=16, test_count=8)
    return path


def test_the_summary_is_true(run_path):
    run, facts = sb.load(run_path), summary.summarize(run_path)
    assert facts["status"] == "complete" and facts["config"] == run.config
    assert facts["losses"]["last_test_loss"] == run.history["test_loss"][-1]
    assert facts["losses"]["best_test_loss"] == run.history["test_loss"].min()
    assert facts["test_loss"] == run.history["test_loss"].tolist()
    with h5py.File(run_path) as file:
        for name, dataset in facts["datasets"].items():
            assert dataset["shape"] == list(file[name].shape) and dataset["units"] == file[name].attrs["units"]
    assert json.loads(json.dumps(facts)) == facts


def fits(text):
    """Whether a text fits a screen of 80 x 24, with a line left for the prompt."""
    return text.isascii() and max(map(len, text.splitlines())) < 80 and len(text.splitlines()) < 24


def test_the_text_fits_one_screen(run_path):
    text = summary.text(summary.summarize(run_path))
    assert fits(text)
    for words in ("status      complete", "poles 2", "variant C", "numba", "6 of 6 in", "test loss   last", "epoch (test loss"):
        assert words in text, words
    assert "--datasets, --trajectory K, --csv" in text and "[s] time" not in text


def test_long_content_fits_too(run_path):
    facts = summary.summarize(run_path)
    facts["config"] = {**facts["config"], "options": {f"option_{k}": k for k in range(99)} | {"hidden": [100] * 99}}
    facts["status"] = "diverged: " + "so it is " * 50
    facts["test_loss"], facts["evaluated"] = np.geomspace(1e9, 1e-9, 5000).tolist(), [1] * 5000
    assert fits(summary.text(facts)) and " .." in summary.text(facts)


def test_what_is_random_or_seen_is_told(run_path):
    facts = summary.summarize(run_path)
    facts["config"]["options"] |= {"vary": {"pole_mass": [0.05, 0.2]}, "observe": {"kind": "Clock", "dt": 0.1}, "disturb": {}}
    text = summary.text(facts)
    assert fits(text) and "disturb" not in text
    assert "with        vary (pole_mass [0.05, 0.2]), observe (kind Clock, dt 0.1)" in text


def test_all_datasets(run_path):
    facts = summary.summarize(run_path)
    lines = summary.datasets_text(facts).splitlines()
    assert [line.split()[0] for line in lines] == list(facts["datasets"])
    (line,) = [line for line in lines if line.startswith("/trajectories/time ")]
    assert line.endswith("float64 (time 6) [s] time")


def test_a_trajectory_as_a_table(run_path):
    run, found = sb.load(run_path), run_file.load_trajectories(run_path)
    first, names, *rows = [line for line in summary.trajectory_text(run_path, 2).splitlines()]
    assert "trajectory 2" in first and f"after training {found.arrays['loss'][1, 2]:.6g}" in first
    assert names.split("  ")[-1] == "force" and "body 0 position" in names and len(rows) == 2 * 6
    words = rows[7].split()
    assert words[:2] == ["after", "training"]
    numbers = [run.trajectories["time"][1], *run.trajectories["states"][1, 2, 1].ravel(), *run.trajectories["controls"][1, 2, 1]]
    np.testing.assert_allclose(np.array(words[2:], float), numbers, rtol=1e-5)
    assert len(rows[-1].split()) == len(words) - 1  # no control acts from the last time on
    for read in (summary.summarize, summary.trajectory_text, summary.csv_text):
        with pytest.raises(ValueError, match=r"trajectory is 4; .* has 4"):
            read(run_path, 4)


def test_names_of_columns():
    def scale(name, places):
        return Variable(np.arange(len(places)), (name,), "1", name), tuple(places)

    kinds = [scale("object", ["driver", "driver", "evader"]), scale("axis", "xy")]
    assert list(summary._column_names(kinds)) == [f"{o} {a}" for o in ("driver 0", "driver 1", "evader 0") for a in "xy"]
    assert list(summary._column_names([scale("position", [0.25, 0.5])])) == ["position 0.25", "position 0.5"]
    assert list(summary._column_names([scale("force", [0])])) == ["force"]


def test_numbers_for_spreadsheets(run_path, capsys):
    run = sb.load(run_path)
    names, *rows = csv.reader(io.StringIO(summary.csv_text(run_path)))
    assert names == list(run_file.HISTORY) and [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row[names.index("test_loss")]) for row in rows] == run.history["test_loss"].tolist()
    names, *rows = csv.reader(io.StringIO(summary.csv_text(run_path, 1)))
    assert names[:3] == ["controller", "time", "body 0 position"] and {len(row) for row in rows} == {len(names)}
    assert np.float32(rows[0][2]) == run.trajectories["states"][0, 1, 0, 0, 0]
    assert call("inspect", run_path, "--csv") == 0 and capsys.readouterr().out == summary.csv_text(run_path) + "\n"
    assert call("inspect", run_path, "--csv", "--json") == 2


def test_a_file_of_rollouts_tells_its_weights(run_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = sb.load(run_path)
    for option, word, theta, epoch in (([], "last", run.theta, 6), (["--best"], "best", run.best_theta, None)):
        assert call("cartpole", "simulate", run_path, "--count", 2, "--out", "p.h5", "--force", *option) == 0
        epoch = epoch or run_file.best(run.history)[0]
        attributes, groups = run_file.read_any("p.h5")
        found = [attributes[name] for name in ("run_file", "weights", "weights_epoch")]
        assert found == ["run.h5", word, epoch] and f"the {word} weights (epoch {epoch}) of run.h5" in attributes["history"]
        x0 = groups["trajectories"]["states"].values[0, :, 0]
        assert np.array_equal(groups["trajectories"]["states"].values[0], run.problem.rollout(theta, x0).states)
        text = summary.text(summary.summarize("p.h5"))
        assert f"the {word} ones (epoch {epoch}) of run.h5" in text and "drawn with seed 1" in text and fits(text)
        assert summary.summarize("p.h5")["unknown_attributes"] == []
    with pytest.raises(ValueError, match="has no history; give --trajectory K"):
        summary.csv_text("p.h5")


def test_a_table_of_runs(tmp_path):
    flags = run_file.flags(["a, b", "c"])
    letters = np.array([list(b"x.h5\0"), list(b"yy.h5")], np.uint8)
    columns = {"kind": Variable(np.array([1, 0], np.int32), ("run",), "1", "which kind", flags)}
    columns["file"] = Variable(letters, ("run", "file_letter"), "1", "file")
    columns |= {f"loss_{k}": Variable(np.array([0.5, np.nan]), ("run",), "1", f"loss {k}") for k in range(30)}
    path = tmp_path / "report.h5"
    storage.write(path, storage.encode(run_file.table_attributes("of all"), {"runs": columns}))
    text = summary.text(summary.summarize(path))
    assert fits(text) and "which kind" in text and "more columns" in text
    names, first, second = csv.reader(io.StringIO(summary.csv_text(path)))
    assert names[:3] == ["kind", "file", "loss_0"]
    assert first[:3] == ["c", "x.h5", "0.5"] and second[:3] == ["a, b", "yy.h5", "nan"]


@pytest.mark.parametrize(
    ("values", "top", "bottom", "log"),
    [
        ([8.0, 4.0, 2.0, 1.0], "8", "1", True),
        ([1.0, 0.9, 0.8, 0.7], "1", "0.7", False),
        ([2.0, 0.0, None, -1.0], "2", "-1", False),
    ],
)
def test_the_text_plot(values, top, bottom, log):
    lines = summary.text_plot(values)
    assert lines[0].split("|")[0].strip() == top and lines[-3].split("|")[0].strip() == bottom
    assert lines[0].split("|")[1].startswith("*") and lines[-3].endswith("*")
    assert sum(line.count("*") for line in lines) == sum(value is not None for value in values)
    assert ("logarithmic" in lines[-1]) == log


def test_the_text_plot_of_little():
    assert summary.text_plot([]) == [] and summary.text_plot([None]) == []
    assert "*" in summary.text_plot([3.0])[0]
    assert max(map(len, summary.text_plot(np.linspace(5, 1, 1234).tolist()))) < 110


def hostile_files(folder):
    with h5py.File(folder / "external.h5", "w") as file:
        file.attrs["format"] = run_file.RUN_FORMAT
        file["x"] = h5py.ExternalLink("/etc/passwd", "/")
    with h5py.File(folder / "bomb.h5", "w") as file:
        file.attrs["format"] = run_file.RUN_FORMAT
        file.create_dataset("x", (1 << 40,), "f8", chunks=(1 << 20,), compression="gzip")
    with h5py.File(folder / "compound.h5", "w") as file:
        file.attrs["format"] = run_file.RUN_FORMAT
        file.create_dataset("x", (1 << 30,), np.dtype([("a", "f8", (1 << 10,))]), chunks=(1,), compression="gzip")
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    (folder / "noise.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(9000))
    with open(folder / "sparse.h5", "wb") as file:
        file.truncate(2 << 30)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "fifo.h5")


def test_hostile_files_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *a: None)
    hostile_files(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", str(path)])
        told = capsys.readouterr()
        assert ended.value.code == 4 and told.out == "", path
        assert told.err.count("\n") == 1 and path.name in told.err


@pytest.mark.slow
def test_hostile_files_hang_no_process(tmp_path):
    hostile_files(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        command = [sys.executable, "-m", "stablebptt", "inspect", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)  # none hangs
        assert result.returncode == 4 and result.stdout == "", (path, result)
        assert result.stderr.count("\n") == 1 and path.name in result.stderr
