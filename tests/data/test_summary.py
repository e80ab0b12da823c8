"""What `inspect` says of a file: true, complete, and fit for a mail."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import stablebptt as sb
from stablebptt import cli
from stablebptt.data import run_file, summary


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


def test_the_text_fits_into_a_mail(run_path):
    text = summary.text(summary.summarize(run_path))
    assert text.isascii() and max(map(len, text.splitlines())) < 150
    for words in ("status      complete", "poles 2", "variant C", "numba", "test loss   last", "epoch (test loss", "[s] time"):
        assert words in text, words
    assert "trajectory" not in text.split("datasets")[0]


def test_the_numbers_of_a_trajectory(run_path):
    facts, run = summary.summarize(run_path, 2), sb.load(run_path)
    found = facts["trajectory"]["controllers"]["after training"]
    assert np.array_equal(found["states"], run.trajectories["states"][1, 2])
    assert np.array_equal(found["controls"], run.trajectories["controls"][1, 2])
    assert facts["trajectory"]["time"] == run.trajectories["time"].tolist()
    lines = summary.text(facts).splitlines()
    start = next(i for i, line in enumerate(lines) if "trajectory 2, after training" in line)
    time, states, controls = (np.array(part.split(), float) for part in lines[start + 3].split("|"))
    np.testing.assert_allclose(time, run.trajectories["time"][1], rtol=1e-6)
    np.testing.assert_allclose(states, run.trajectories["states"][1, 2, 1].ravel(), rtol=1e-6)
    np.testing.assert_allclose(controls, run.trajectories["controls"][1, 2, 1], rtol=1e-6)
    assert lines[-1].endswith("| ")  # no control acts from the last time on
    with pytest.raises(ValueError, match=r"trajectory is 4; .* has 4"):
        summary.summarize(run_path, 4)


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
