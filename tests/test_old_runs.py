"""Runs of version 0.1 are loaded and looked at: `old_runs` holds two epochs of each, and the weights after four."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call

import stablebptt as sb

FOLDER = Path(__file__).parent / "old_runs"
AFTER = json.loads((FOLDER / "after_4_epochs.json").read_text())
TRAIN = {
    "cartpole": "--steps 5 --hidden 4 --poles 2 --variant C --clip norm",
    "guidance": "--steps 5 --hidden 4 --drivers 1 --evaders 2 --variant M --optimizer rmsprop",
    "quantum": "--steps 4 --points 8 --width 3 --variant R --shuffle",
    "spring": "spring:make --set stiffness=3 --variant C",
}


LONG = ("guidance", "quantum")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in AFTER])
def name(request, tmp_path, monkeypatch):
    """An old run, copied to the working folder."""
    for file in FOLDER.glob("*.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return request.param


@pytest.mark.slow
def test_it_is_loaded_and_looked_at(name):
    run = sb.load(f"{name}.h5")
    assert run.status == "complete" and run.history["epoch"].tolist() == [1, 2] and np.all(np.isfinite(run.history["test_loss"]))
    assert call("inspect", f"{name}.h5") == 0
    for command, picture in (("plot", "picture.png"), ("animate", "film.gif")):
        assert call(command, f"{name}.h5", "--out", picture) == 0
        assert Path(picture).stat().st_size > 1000
    if name != "spring":
        assert call(name, "simulate", f"{name}.h5", "--count", "2", "--out", "paths.h5") == 0


def test_its_last_bits_differ_so_it_is_not_resumed(name, capsys):
    options = TRAIN[name].split()
    counts = ["--train-count", "16", "--test-count", "8", "--out", f"{name}.h5", "--resume", "--quiet"]
    command = ["custom" if name == "spring" else name, "train", *options, *counts]
    before = Path(f"{name}.h5").read_bytes()
    assert call(*command, "--epochs", "4") == 2
    assert f"{name}.h5 cannot be resumed: version 0.1 made it" in capsys.readouterr().err
    assert Path(f"{name}.h5").read_bytes() == before
    assert call(*command, "--epochs", "2") == 0  # nothing is left to do


@pytest.mark.slow
def test_training_anew_gives_the_same_but_for_the_last_bits(name):
    options = TRAIN[name].split()
    counts = ["--train-count", "16", "--test-count", "8", "--epochs", "4", "--out", "new.h5", "--quiet"]
    assert call("custom" if name == "spring" else name, "train", *options, *counts) == 0
    np.testing.assert_allclose(sb.load("new.h5").theta, AFTER[name], rtol=1e-4, atol=1e-6)
