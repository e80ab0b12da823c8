"""The command line as users type it: outputs, exit codes, one-line errors, nothing destroyed."""

import json
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import stablebptt as sb
from stablebptt import cli

SMALL = "--steps 12 --hidden 9,8 --train-count 16 --test-count 8 --epochs 2".split()


def train(run, *more, out="run.h5"):
    return run("cartpole", "train", *SMALL, "--out", out, *more)


def assert_error(result, code, *words):
    assert result.code == code, result.err
    assert result.err.count("\n") == 1 and "Traceback" not in result.err
    for word in words:
        assert word in result.err, result.err


def test_train_writes_a_run_and_says_so(run):
    result = train(run)
    assert result.code == 0, result.err
    assert "test loss: " in result.out and "file: run.h5" in result.out
    assert "epoch 2/2" in result.err and "\x1b" not in result.err
    assert len(sb.load("run.h5").history["epoch"]) == 2


def test_options_reach_the_run(run):
    result = train(
        run, "--poles", 3, "--variant", "M", "--clip", "norm", "--clip-at", 0.5, "--seed", 7, "--optimizer", "sgd",
        "--lr", 0.02, "--momentum", 0.8, "--shuffle", "--loss", "continuous", "--dtype", "float64", "--duration", 0.5,
        "--output-init", "glorot", "--batch-size", 4,
    )  # fmt: skip
    assert result.code == 0, result.err
    config = sb.load("run.h5").config
    assert config["options"] == {
        "poles": 3, "steps": 12, "duration": 0.5, "loss": "continuous", "hidden": [9, 8], "dtype": "float64",
        "output_init": "glorot",
    }  # fmt: skip
    assert config["optimizer"] == {"name": "sgd", "learning_rate": 0.02, "momentum": 0.8}
    chosen = {key: config[key] for key in ("variant", "clip", "clip_at", "seed", "shuffle", "batch_size")}
    assert chosen == {"variant": "M", "clip": "norm", "clip_at": 0.5, "seed": 7, "shuffle": True, "batch_size": 4}


def test_json_is_one_object_per_line(run):
    result = train(run, "--json", "--quiet", "--variant", "R")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [record["epoch"] for record in records[:2]] == [1, 2]
    assert [record["event"] for record in records] == ["epoch", "epoch", "finished"]
    assert records[0]["cosine"] is None and records[-1]["file"] == "run.h5"
    for record in records:
        counts = {name: value for name, value in record.items() if name in ("epoch", "skipped", "epochs", "best_epoch")}
        assert len(counts) == 2 and all(type(value) is int for value in counts.values())
    assert result.err == ""


def test_quiet(run):
    assert train(run, "--quiet").err == ""


def test_environment_and_config_file(run, monkeypatch, tmp_path):
    (tmp_path / "some.toml").write_text('[cartpole.train]\npoles = 2\nseed = 3\nclip = "value"\nhidden = [5, 4]\n')
    command = ["--steps", 5, "--train-count", 8, "--test-count", 8, "--epochs", 1, "--config", "some.toml"]
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_SEED", "4")
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_CLIP", "norm")
    result = run("cartpole", "train", *command, "--clip", "none", "--out", "run.h5")
    assert result.code == 0, result.err
    config = sb.load("run.h5").config
    assert (config["options"]["poles"], config["options"]["hidden"]) == (2, [5, 4])  # the file
    assert config["seed"] == 4  # the environment wins over the file
    assert config["clip"] == "none"  # the command line wins over both


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[cartpole.train]\npole = 2\n", ["no option 'pole'", "poles"]),
        ("[cartpole.train]\npoles = 'two'\n", ["'two'"]),
        ("[cartpole]\ntrain = 3\n", ["must be a table"]),
        ("not toml", ["not a TOML file"]),
    ],
)
def test_bad_config_files(run, tmp_path, content, words):
    (tmp_path / "bad.toml").write_text(content)
    assert_error(train(run, "--config", "bad.toml"), 2, *words)
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--variant", "X"], ["unknown variant 'X'", "R, M, S, N, C"]),
        (["--poles", "-1"], ["poles is -1", "at least 1"]),
        (["--steps", "0"], ["steps is 0"]),
        (["--poles", "two"], ["'two' is not a valid integer"]),
        (["--hidden", "9,a"], ["100,100"]),
        (["--hidden", "0"], ["hidden[0] is 0"]),
        (["--clip", "both"], ["none, value, norm"]),
        (["--optimizer", "lbfgs"], ["adam, sgd"]),
        (["--lr", "0"], ["learning_rate is 0"]),
        (["--lr", "nan"], ["learning_rate is nan"]),
        (["--momentum", "0.9"], ["momentum"]),
        (["--epochs", "0"], ["epochs is 0"]),
        (["--duration", "inf"], ["duration is inf"]),
        (["--bogus", "1"], ["--bogus"]),
    ],
)
def test_wrong_usage(run, tmp_path, options, words):
    assert_error(train(run, *options), 2, *words)
    assert not (tmp_path / "run.h5").exists()


def test_unknown_commands(run):
    assert_error(run("cartpool"), 2, "cartpool")
    assert_error(run("cartpole", "fly"), 2, "fly")
    assert run("--help").code == 0 and "cartpole" in run("--help").out
    assert run("--version").out.startswith("stablebptt")


def test_places_that_cannot_be_written(run, tmp_path):
    assert_error(train(run, out="nowhere/run.h5"), 5, "nowhere", "does not exist")
    (tmp_path / "folder").mkdir()
    assert_error(train(run, "--force", out="folder"), 5, "is a folder")
    (tmp_path / "run.h5").write_text("precious")
    assert_error(train(run), 5, "run.h5 exists", "force")
    assert (tmp_path / "run.h5").read_text() == "precious"


def test_files_that_are_no_runs(run, tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.arange(3)
    for name in ("text.h5", "foreign.h5"):
        before = (tmp_path / name).read_bytes()
        assert_error(run("inspect", name), 4, name)
        assert_error(run("plot", name, "--out", "p.png"), 4, name)
        assert_error(run("cartpole", "simulate", name, "--out", "paths.h5"), 4, name)
        assert_error(train(run, "--resume", out=name), 4, name)
        assert (tmp_path / name).read_bytes() == before
    assert_error(run("inspect", "absent.h5"), 5, "absent.h5")
    assert not (tmp_path / "p.png").exists() and not (tmp_path / "paths.h5").exists()


def test_divergence(run):
    options = ["--lr", "1e6", "--clip", "none", "--optimizer", "sgd", "--duration", "40", "--epochs", "60"]
    result = train(run, "--quiet", *options, "--output-init", "glorot", "--variant", "R")
    assert_error(result, 3, "cartpole diverged in epoch")
    epochs = len(sb.load("run.h5").history["epoch"])
    assert f"epoch {epochs + 1}, batch" in result.err or f"epoch {epochs + 1}, after" in result.err


def test_simulate_inspect_plot(run, tmp_path):
    train(run, "--poles", 2)
    train(run, "--poles", 2, "--seed", 1, out="other.h5")
    result = run("cartpole", "simulate", "run.h5", "--count", 5, "--seed", 2, "--out", "paths.h5")
    assert result.code == 0, result.err
    trained = sb.load("run.h5")
    with h5py.File("paths.h5") as file:
        states = file["trajectories/states"][0]
    expected = trained.problem.rollout(trained.theta, trained.problem.sample(5, 2)).states
    assert np.array_equal(states, expected)
    for name in ("run.h5", "paths.h5"):
        text = run("inspect", name)
        assert text.code == 0 and "poles 2" in text.out
        assert "/trajectories/states" in run("inspect", name, "--datasets").out
        facts = json.loads(run("inspect", name, "--json").out)
        assert facts["config"]["options"]["poles"] == 2 and facts["datasets"]["/trajectories/time"]["units"] == "s"
    assert json.loads(run("inspect", "run.h5", "--json").out)["losses"]["epochs"] == 2
    for kind in ("png", "pdf", "svg"):
        assert run("plot", "run.h5", "other.h5", "--out", f"curves.{kind}").code == 0
        assert (tmp_path / f"curves.{kind}").stat().st_size > 1000
    assert_error(run("plot", "run.h5", "--out", "curves.png"), 5, "exists")
    assert_error(run("plot", "run.h5", "--out", "curves.bmp"), 2, ".png, .pdf, .svg")
    assert_error(run("cartpole", "simulate", "run.h5", "--count", 0, "--out", "q.h5"), 2, "count is 0")


def test_simulate_takes_the_best_weights_if_told_so(run):
    assert train(run, "--lr", 0.3, "--epochs", 6).code == 0
    trained = sb.load("run.h5")
    assert not np.array_equal(trained.theta, trained.best_theta)
    x0 = trained.problem.sample(4, 1)
    for more, theta in (([], trained.theta), (["--best"], trained.best_theta)):
        result = run("cartpole", "simulate", "run.h5", *more, "--count", 4, "--seed", 1, "--out", "paths.h5", "--force")
        assert result.code == 0, result.err
        with h5py.File("paths.h5") as file:
            assert np.array_equal(file["trajectories/states"][0], trained.problem.rollout(theta, x0).states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("guidance", "--drivers 1 --evaders 2 --regularization 0.1 --target 1,-2 --hidden 6 --steps 6 --duration 0.5".split(),
         {"drivers": 1, "evaders": 2, "regularization": 0.1, "target": [1.0, -2.0], "duration": 0.5}),
        ("quantum", "--target 4 --points 9 --dt 0.05 --weights 3,1 --width 5 --steps 6".split(),
         {"target": 4, "points": 9, "dt": 0.05, "weights": [3.0, 1.0], "width": 5}),
    ],
)  # fmt: skip
def test_the_other_tasks(run, task, options, expected):
    counts = ["--train-count", 16, "--test-count", 8, "--epochs", 2, "--clip", "norm"]
    result = run(task, "train", *options, *counts, "--out", "run.h5")
    assert result.code == 0, result.err
    assert expected.items() <= sb.load("run.h5").config["options"].items()
    assert run(task, "simulate", "run.h5", "--count", 3, "--out", "paths.h5").code == 0
    assert "/trajectories/states" in run("inspect", "paths.h5", "--datasets").out
    assert run("plot", "run.h5", "--out", "curves.png").code == 0
    assert_error(run("cartpole", "simulate", "run.h5", "--out", "q.h5"), 2, f"is a run of {task}")
    checked = run(task, "check", *options)
    assert checked.code == 0, checked.out + checked.err
    assert_error(run(task, "train", *options, "--target", "a", "--out", "x.h5"), 2, "'a'")


def test_check_and_info(run):
    result = run("cartpole", "check", "--poles", 2, "--steps", 8, "--hidden", "7")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert len(lines) >= 9 and all(line.endswith("ok") for line in lines[1:])
    records = [json.loads(line) for line in run("cartpole", "check", "--steps", 5, "--json").out.splitlines()]
    assert {r["function"] for r in records} >= {"step", "cost", "control", "whole rollout"}
    facts = json.loads(run("info", "--json").out)
    assert facts["stablebptt"] == sb.__version__ and "cache_folder" in facts


def test_check_fails_on_a_wrong_rule(run, monkeypatch):
    from stablebptt.tasks import adjoint_check

    right = adjoint_check.cost_rule

    def wrong(problem):
        rule = right(problem)
        return adjoint_check.Rule(rule.name, rule.forward, lambda i, b: {k: 1.01 * v for k, v in rule.vjp(i, b).items()})

    monkeypatch.setattr(adjoint_check, "cost_rule", wrong)
    result = run("cartpole", "check", "--steps", 5)
    assert_error(result, 1, "cost (state)")
    assert "WRONG" in result.out


@pytest.mark.thinned(2)
@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_complete_file(tmp_path, number):
    command = [sys.executable, "-m", "stablebptt", "cartpole", "train", "--epochs", "100000", "--json", "--out", "run.h5"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell lets what it runs beside it ignore Ctrl-C
    )  # fmt: skip
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    run = sb.load(tmp_path / "run.h5")
    told = f"stablebptt: interrupted; run.h5 holds {len(run.history['epoch'])} epochs; go on with --resume"
    assert err.splitlines()[-1] == told and "Traceback" not in err
    done = len(lines) + len(out.splitlines())
    assert run.status == "interrupted" and abs(len(run.history["epoch"]) - done) <= 1


def test_debug_shows_the_traceback(run):
    result = run("inspect", "absent.h5", "--debug")
    assert result.code == 5 and "Traceback" in result.err


def test_every_option_has_a_help_text():
    def commands(group, path=()):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]

    found = dict(commands(cli.stablebptt))
    assert ("cartpole", "train") in found
    for path, command in found.items():
        assert command.help, path
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (path, parameter.name)
        assert CliRunner().invoke(cli.stablebptt, [*path, "--help"]).exit_code == 0


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    script = (
        "from numba.core import event\n"
        "from stablebptt import cli\n"
        "with event.install_recorder('numba:compile') as compiled:\n"
        "    cli.main('cartpole train --epochs 1 --quiet --out run.h5 --force'.split())\n"
        "print(sum(entry.is_start for _, entry in compiled.buffer))\n"
    )
    for first in (True, False):
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert first or done.stdout.splitlines()[-1] == "0"


@pytest.mark.slow
def test_landscape(run, tmp_path):
    result = run("landscape", "rotation", "--out", "r.svg", "--json")
    losses = json.loads(result.out)
    assert result.code == 0 and list(losses) == ["divergence", "with rotation", "combined"]
    assert losses["divergence"] < 1e-5 < losses["combined"] < 0.1 < 5 < losses["with rotation"]
    assert run("landscape", "fields", "--resolution", 21, "--out", "f.pdf").code == 0
    assert (tmp_path / "r.svg").read_text().startswith("<?xml") and (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert_error(run("landscape", "fields", "--out", "f.pdf"), 5, "exists")
    assert_error(run("landscape", "fields", "--resolution", 1, "--out", "g.pdf"), 2, "resolution is 1")
    assert_error(run("landscape", "fields", "--out", "g.jpg"), 2, ".png, .pdf, .svg")


@pytest.mark.slow
def test_trajectories_in_pictures_films_and_numbers(run, tmp_path):
    train(run)
    run("cartpole", "simulate", "run.h5", "--count", 3, "--out", "paths.h5")
    assert run("plot", "run.h5", "--trajectory", 1, "--out", "a.png").code == 0
    assert run("plot", "paths.h5", "--out", "b.png").code == 0  # has no curves: its trajectories are drawn
    assert_error(run("plot", "paths.h5", "--trajectory", 3, "--out", "c.png"), 2, "trajectory is 3", "at most 2")
    assert_error(run("plot", "run.h5", "paths.h5", "--trajectory", 0, "--out", "c.png"), 2, "one file")
    assert_error(run("plot", "run.h5", "paths.h5", "--out", "c.png"), 4, "paths.h5")
    assert_error(run("plot", "run.h5", "--smooth", 0, "--out", "c.png"), 2, "smooth is 0")
    assert_error(run("plot", "run.h5", "--curve", "speed", "--out", "c.png"), 2, "'speed'")
    assert run("plot", "run.h5", "--curve", "train", "--curve", "cosine", "--smooth", 2, "--out", "c.png").code == 0
    result = run("animate", "run.h5", "--every", 4, "--fps", 5, "--dpi", 40, "--out", "film.gif")
    assert result.code == 0 and "9 pictures" in result.err and (tmp_path / "film.gif").read_bytes().startswith(b"GIF8")
    assert run("animate", "paths.h5", "--every", 6, "--fps", 5, "--dpi", 40, "--quiet", "--out", "other.gif").err == ""
    assert_error(run("animate", "run.h5", "--out", "film.gif"), 5, "exists")
    assert_error(run("animate", "run.h5", "--out", "film.avi"), 2, ".gif, .mp4")
    assert_error(run("animate", "run.h5", "--trajectory", 9, "--out", "x.gif"), 2, "trajectory is 9")
    shown = run("inspect", "run.h5", "--trajectory", 0)
    assert shown.code == 0 and "trajectory 0 of run.h5" in shown.out and "after training" in shown.out
    assert len(json.loads(run("inspect", "paths.h5", "--trajectory", 2, "--json").out)["trajectory"]["time"]) == 13
    assert_error(run("inspect", "run.h5", "--trajectory", 9), 2, "trajectory is 9")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run.h5", "paths.h5", "a.png", "b.png", "c.png", "film.gif", "other.gif"}
