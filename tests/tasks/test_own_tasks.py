"""A module of the user's that holds the record of a task is a command like ours, and a file imports nothing."""

import json
import os
import sys

import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.tasks import custom, sweeps
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.pictures import films
from stablebptt.tasks.pictures import rollouts as rollout_pictures
from stablebptt.tasks.rollouts import load_rollouts

# Parts that are compiled anyhow; the option is a number of the loss, so that it decides what is computed.
MODULE = """
import stablebptt as sb
from stablebptt.tasks.pictures import rollouts as drawing

def make(*, pull, layers, steps, rough, dtype):
    parts = sb.problem("guidance", steps=4, hidden=(4,), drivers=1, evaders=1, target=(pull, 0), dtype=dtype)
    return sb.problem(
        system=parts.system, controller=layers, loss=parts.loss_function, steps=steps, dt=0.1, dtype=dtype,
        title=f"herd {pull:g}", state_shape=(2, 2, 2), control_shape=(1, 2),
        sample=lambda random, count: random.standard_normal((count, 2, 2, 2)),
    )

def picture(rollouts, sample):
    figure, grid = drawing.columns(rollouts, sample, [1], 3, 3)
    pull = rollouts.problem.loss_function.target_x
    drawing.over_time(grid[0], rollouts, rollouts.states[:, sample, :, 0, 0], f"pull {pull:g}", [""])
    return figure

def film(panels, rollouts, sample):
    panels[0].set_ylabel("own film")
    return []

TASK = sb.Task(
    name="herd",
    summary="Drive one evader.",
    options=(
        sb.Option("pull", "real", 1.0, "Where to.", least=0),
        sb.Option("layers", "sizes", (4,), "Hidden layers."),
        sb.Option("steps", "whole", 4, "Time steps.", least=1),
        sb.Option("rough", "flag", False, "Whether it is rough."),
        sb.Option("dtype", "dtype", "float32", "Precision.", choices=("float32", "float64")),
    ),
    make=make,
    picture=picture,
    film=film,
)
"""
COUNTS = ["--train-count", "4", "--test-count", "4", "--epochs", "1"]


@pytest.fixture(autouse=True)
def herd(monkeypatch, tmp_path):
    """The module, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "herding.py").write_text(MODULE)


def refused(result, code, *words):
    assert result.code == code and result.err.count("\n") == 1 and "Traceback" not in result.err, result
    for word in words:
        assert word in result.err, result


@pytest.mark.slow
def test_a_record_is_a_command(run, tmp_path):
    source = "herding:TASK"
    help_text = run(source, "train", "--help").out
    assert "--pull" in help_text and "Where to." in help_text and "[default: 4]" in help_text and "--no-rough" in help_text
    assert "Drive one evader." in run(source, "--help").out
    done = run(source, "train", "--pull", 3, "--layers", "3,2", "--rough", *COUNTS, "--out", "h.h5")
    assert done.code == 0, done.err
    kept = sb.load("h.h5").config
    assert kept["task"] == "custom" and kept["options"]["source"] == source and kept["options"]["title"] == "herd 3"
    arguments = {"pull": 3.0, "layers": [3, 2], "steps": 4, "rough": True, "dtype": "float32"}
    assert kept["options"]["arguments"] == arguments
    assert run(source, "train", "--pull", 3, "--layers", "3,2", *COUNTS, "--epochs", 2, "--resume", "--out", "h.h5").code == 0
    assert run(source, "train", "--resume", "--out", "h.h5").code == 0  # all else is in the file
    assert sb.load("h.h5").config["options"]["arguments"] == arguments
    other = run(source, "train", "--pull", 2, "--layers", "3,2", *COUNTS, "--resume", "--out", "h.h5")
    refused(other, 2, "resumed: pull: 3.0 in the file, 2.0 given; give")
    simulated = run(source, "simulate", "h.h5", "--count", 3, "--json", "--out", "paths.h5")
    assert simulated.code == 0 and json.loads(simulated.out)["count"] == 3, simulated.err
    checked = run(source, "check", "--pull", 2)
    assert checked.code == 0 and "whole rollout" in checked.out, checked.err
    assert run("check", source).code == 0
    # Python and a file's name
    same = sb.problem(custom.find("./herding.py:TASK"), pull=3, layers=[3, 2])
    again = sb.load("h.h5", problem=same)
    assert again.problem.loss(again.theta, same.sample(2)).total > 0 and len(again.history["epoch"]) == 2
    assert run("./herding.py:TASK", "simulate", "h.h5", "--out", "more.h5").code == 0
    runs = sweeps.make_plan({"task": source, "options": {"pull": [1, 2], "layers": [3, 2]}})  # a list is one value of `layers`
    assert [planned.config["options"]["arguments"]["layers"] for planned in runs] == [[3, 2]] * 2


@pytest.mark.slow
def test_pictures_are_its_own_where_the_module_is_named(run, monkeypatch):
    assert run("herding:TASK", "train", "--pull", 3, *COUNTS, "--out", "h.h5").code == 0
    drawn = []
    draw, film = rollout_pictures.draw, films.film
    monkeypatch.setattr(rollout_pictures, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(films, "film", lambda *given: drawn.append(film(*given)[0]) or (drawn[-1], lambda step: None))
    for number, words in enumerate((["herding:TASK"], [])):
        assert run(*words, "plot", "h.h5", "--trajectory", 0, "--out", f"{number}.png").code == 0
        assert run(*words, "animate", "h.h5", "--dpi", 30, "--fps", 2, "--out", f"{number}.gif").code == 0
    own, own_film, general, general_film = (figure.axes[0].get_ylabel() for figure in drawn)
    assert (own, own_film) == ("pull 3", "own film") and general.startswith("state [1]") and general_film.startswith("state [1]")
    assert run("herding:TASK", "plot", "h.h5", "--out", "curves.png").code == 0


def test_a_file_does_not_name_the_code(run, tmp_path):
    assert run("herding:TASK", "train", *COUNTS, "--out", "h.h5").code == 0
    (tmp_path / "herding.py").write_text("raise SystemExit('imported')\n")
    del sys.modules["herding"]
    assert run("plot", "h.h5", "--trajectory", 0, "--out", "p.png").code == 0 and "herding" not in sys.modules
    assert run("inspect", "h.h5").code == 0 and "herding" not in sys.modules


def test_files_of_other_problems(run):
    assert run("cartpole", "train", "--steps", 4, "--hidden", 4, *COUNTS, "--out", "c.h5").code == 0
    assert run("herding:TASK", "train", "--steps", 3, *COUNTS, "--out", "h.h5").code == 0
    changed = MODULE.replace("steps=steps", "steps=steps + 1")
    with open("other.py", "w") as file:
        file.write(changed)
    for words in (["simulate", "h.h5", "--out", "p.h5"], ["plot", "h.h5", "--trajectory", 0, "--out", "p.png"]):
        refused(run("other:TASK", *words), 2, "h.h5 is a run of another problem", "steps: 3 in the file, 4 given")
    other = run("herding:TASK", "simulate", "c.h5", "--out", "p.h5")
    refused(other, 2, "c.h5 is a run of another problem", "task: 'cartpole' in the file")


def test_settings_go_by_the_name_in_the_record(run, monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("[herd.train]\npull = 2.5\nlayers = [3]\nrough = true\n[cartpole.train]\nepochs = 3\n")
    monkeypatch.setenv("STABLEBPTT_HERD_TRAIN_STEPS", "5")
    assert run("herding:TASK", "train", *COUNTS, "--config", "c.toml", "--out", "h.h5").code == 0
    kept = sb.load("h.h5").config["options"]["arguments"]
    assert kept == {"pull": 2.5, "layers": [3], "steps": 5, "rough": True, "dtype": "float32"}
    (tmp_path / "c.toml").write_text("[herd.train]\npush = 2.5\n")
    refused(run("herding:TASK", "train", "--config", "c.toml", "--out", "x.h5"), 2, "herd train has no option 'push'", "pull")
    refused(run("info", "--config", "c.toml"), 2, "[herd] belongs to no command")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["herding:TASK", "train", "--pull", "-1", "--out", "x.h5"], 2, "pull is -1.0; it must be at least 0"),
        (["herding:TASK", "train", "--push", "1", "--out", "x.h5"], 2, "--push"),
        (["herding:TASK", "fly"], 2, "fly"),
        (["herding:make", "train", "--out", "x.h5"], 2, "not a task; for a function that makes a problem: stablebptt custom"),
        (["herding:nothing", "train"], 2, "the module herding has no nothing"),
        (["absent:TASK", "train"], 2, "No module named 'absent'"),
        (["failing.py:TASK", "train"], 1, "ZeroDivisionError: division by zero (", ),
        (["taken.py:TASK", "train"], 2, "there is a command or option 'seed' already"),
        (["named.py:TASK", "train"], 2, "there is a command or option 'cartpole' already"),
    ],
)
def test_what_does_not_work_is_named(run, words, code, said):
    for name, text in (
        ("failing", "1 / 0\n"), ("taken", MODULE.replace('"pull", "real"', '"seed", "real"')),
        ("named", MODULE.replace('"herd"', '"cartpole"')),
    ):  # fmt: skip
        with open(f"{name}.py", "w") as file:
            file.write(text)
    refused(run(*words), code, said)
    assert not os.path.exists("x.h5")


def test_a_picture_that_fails_is_shown_as_it_failed(run, tmp_path):
    assert run("herding:TASK", "train", *COUNTS, "--out", "h.h5").code == 0
    (tmp_path / "bad.py").write_text(MODULE.replace("figure, grid = ", "1 / 0\n    figure, grid = "))
    refused(run("bad:TASK", "plot", "h.h5", "--trajectory", 0, "--out", "p.png"), 1, "ZeroDivisionError", "bad.py:")
    refused(run("bad:TASK", "plot", "h.h5", "--trajectory", 9, "--out", "p.png"), 2, "trajectory is 9; it must be at most 3")
    assert not os.path.exists("p.png")


def test_a_record_of_ones_own_in_python():
    task = custom.find("herding:TASK")
    with pytest.raises(ArgumentError, match="herd has no option 'push'; choose from pull, layers, steps, rough, dtype"):
        sb.problem(task, push=1)
    problem = sb.problem(task, pull=2, dtype=np.float64)
    assert problem.dtype is np.float64 and problem.options["source"] is None
    assert problem.options["arguments"]["dtype"] == "float64"
    sb.train(problem, epochs=1, train_count=4, test_count=4, out="h.h5")
    assert load_rollouts("h.h5", task).problem.loss_function.target_x == 2
    assert call("herding:TASK", "simulate", "h.h5", "--out", "p.h5", "--quiet") == 0
