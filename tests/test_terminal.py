"""What a person sees at the terminal, and what a script reads: going on, closed pipes, help, bars."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks import sweeps, training

SMALL = "--steps 4 --hidden 4 --train-count 8 --test-count 5 --variant R".split()
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and pipes are those of POSIX")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def told(result):
    return result.err.splitlines()[-1].removeprefix("stablebptt: ")


def stop_after(monkeypatch, epoch):
    """Ctrl-C in the middle of the epoch after this one."""
    begin = training.ActiveRun.begin_epoch

    def stopped(run):
        if run.progress.epoch == epoch:
            raise KeyboardInterrupt
        begin(run)

    monkeypatch.setattr(training.ActiveRun, "begin_epoch", stopped)


# --- going on -----------------------------------------------------------------------------------------------------


def test_resume_takes_what_is_not_given_from_the_file(run, monkeypatch, tmp_path):
    rule = ["--optimizer", "sgd", "--lr", 0.02, "--momentum", 0.5]
    given = [*SMALL, "--poles", 2, "--seed", 3, "--shuffle", "--clip", "norm", "--clip-at", 0.5, *rule, "--output-init", "glorot"]
    assert run("cartpole", "train", *given, "--epochs", 2, "--out", "run.h5").code == 0
    before = sb.load("run.h5").config
    assert run("cartpole", "train", "--resume", "--out", "run.h5").code == 0  # nothing to do
    result = run("cartpole", "train", "--resume", "--epochs", 3, "--out", "run.h5")
    assert result.code == 0, result.err
    assert sb.load("run.h5").config == {**before, "epochs": 3}
    for option, value, words in (
        ("--poles", 3, "poles: 2 in the file, 3 given"),
        ("--momentum", 0.1, "optimizer.momentum: 0.5 in the file, 0.1 given"),
        ("--optimizer", "adam", "optimizer.name: 'sgd' in the file, 'adam' given"),
    ):
        result = run("cartpole", "train", "--resume", option, value, "--out", "run.h5")
        assert result.code == 2 and words in result.err and result.err.count("\n") == 1
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_SEED", "4")
    assert "seed: 3 in the file, 4 given" in run("cartpole", "train", "--resume", "--out", "run.h5").err
    monkeypatch.delenv("STABLEBPTT_CARTPOLE_TRAIN_SEED")
    (tmp_path / "some.toml").write_text("[cartpole.train]\nclip = 'none'\n")
    result = run("cartpole", "train", "--resume", "--config", "some.toml", "--out", "run.h5")
    assert "clip: 'norm' in the file, 'none' given" in result.err
    other = run("guidance", "train", "--resume", "--out", "run.h5")
    assert other.code == 2 and "task: 'cartpole' in the file, 'guidance' given" in other.err


def test_resume_takes_what_the_command_line_cannot_say(run):
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    rule, gates = sb.optimizers.adam(0.01, beta1=0.8), (np.array([1.0, 1, 0, 1]), np.zeros(4))
    sb.train(problem, gates, epochs=1, out="run.h5", optimizer=rule, train_count=8, test_count=5)
    result = run("cartpole", "train", "--resume", "--epochs", 2, "--out", "run.h5")
    assert result.code == 0, result.err
    config = sb.load("run.h5").config
    assert config["optimizer"]["beta1"] == 0.8 and config["variant"][0] == [1.0, 1, 0, 1]


def test_many_seeds_resume_with_the_options_of_their_files(run):
    assert run("cartpole", "train", *SMALL, "--epochs", 1, "--seeds", "0:2", "--lr", 0.1, "--out", "runs").code == 0
    result = run("cartpole", "train", "--resume", "--epochs", 2, "--seeds", "0:3", "--out", "runs")
    assert result.code == 0, result.err
    for seed in range(3):
        config = sb.load(f"runs/seed_{seed}.h5").config
        assert (config["seed"], config["optimizer"]["learning_rate"], config["options"]["steps"]) == (seed, 0.1, 4)


def test_resume_takes_the_arguments_of_a_function(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import stablebptt as sb\n\n\ndef make(poles=1, steps=4):\n"
        "    made = sb.problem('cartpole', poles=poles, steps=steps, hidden=(4,))\n"
        "    return sb.problem(system=made.system, controller=(4,), loss=made.loss_function, sample=made.draw, steps=steps,\n"
        "                      dt=made.dt, state_shape=made.state_shape, control_shape=made.control_shape)\n"
    )
    words = ["custom", "train", "mine.py:make", "--out", "run.h5"]
    sizes = ["--train-count", 8, "--test-count", 5]
    result = run(*words, "--set", "poles=2", "--set", "steps=3", *sizes, "--epochs", 1)
    assert result.code == 0, result.err
    assert run(*words, "--resume", "--epochs", 2, "--set", "poles=2").code == 0
    assert sb.load("run.h5").config["options"]["arguments"] == {"poles": 2, "steps": 3}
    assert "steps: 3 in the file, 5 given" in run(*words, "--resume", "--set", "steps=5").err


def test_force_with_resume_is_refused(run):
    result = run("cartpole", "train", *SMALL, "--resume", "--force", "--out", "run.h5")
    assert result.code == 2 and told(result).startswith("--force replaces a file, --resume goes on with it; give one of them")
    with pytest.raises(ValueError, match="force=True replaces a file, resume=True goes on"):
        sb.train(sb.problem("cartpole"), out="run.h5", resume=True, force=True)


@pytest.mark.parametrize("epoch, holds", [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs")])
def test_an_interrupt_says_what_is_saved(run, monkeypatch, epoch, holds):
    words = ["cartpole", "train", *SMALL, "--epochs", 3, "--out", "run.h5"]
    with monkeypatch.context() as patch:
        stop_after(patch, epoch)
        result = run(*words, "--quiet")
    assert result.code == 130 and told(result) == f"interrupted; run.h5 holds {holds}; go on with --resume"
    assert len(sb.load("run.h5").history["epoch"]) == epoch
    assert run(*words, "--resume").code == 0


def test_an_interrupt_before_the_first_epoch_keeps_the_old_file(run, monkeypatch):
    words = ["cartpole", "train", *SMALL, "--epochs", 1, "--out", "run.h5"]
    assert run(*words).code == 0
    stop_after(monkeypatch, 0)
    assert told(run(*words, "--force")) == "interrupted; no epoch was done, and nothing is changed"


def test_an_interrupt_of_many_seeds(run, monkeypatch):
    stop_after(monkeypatch, 1)
    result = run("cartpole", "train", *SMALL, "--epochs", 2, "--seeds", "0:2", "--out", "runs")
    assert result.code == 130 and told(result).startswith("interrupted; 2 of 2 files in runs hold")
    assert told(result).endswith("go on with --resume")


def test_a_python_user_reads_the_same_in_pythons_words(tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    with pytest.raises(KeyboardInterrupt) as stop:
        sb.train(problem, "R", epochs=2, out=tmp_path / "run.h5", train_count=8, test_count=5)
    assert stop.value.__notes__ == [f"{tmp_path / 'run.h5'} holds 1 epoch; go on with resume=True"]


def test_an_interrupted_sweep(run, monkeypatch, tmp_path):
    def stopped(runs, out, report, **how):
        ended = sweeps.Outcome("a", "complete")
        report(sweeps.SweepProgress(3, (ended,), 1, float("nan"), ended))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "sweep", stopped)
    (tmp_path / "plan.toml").write_text("task = 'cartpole'\n")
    result = run("sweep", "plan.toml", "--out", "folder")
    words = "interrupted; 1 of 3 runs complete, all epochs saved; go on with --resume"
    assert result.code == 130 and told(result) == words


def test_a_divergence_says_what_is_saved_and_what_may_help(run):
    options = ["--lr", 1e6, "--optimizer", "sgd", "--duration", 40, "--output-init", "glorot"]
    result = run("cartpole", "train", *SMALL, *options, "--epochs", 60, "--out", "run.h5", "--quiet")
    epochs = len(sb.load("run.h5").history["epoch"])
    assert result.code == 3 and f"; run.h5 holds {epochs} epoch" in told(result)
    assert "--learning-rate" in told(result) and result.err.count("\n") == 1


# --- scripts ------------------------------------------------------------------------------------------------------


def test_a_run_without_a_finite_test_loss_is_no_success(run, monkeypatch):
    evaluate = training.ActiveRun.evaluate

    def spoiled(active, name, found):
        evaluate(active, name, found)
        active.means[name] = (float("nan"), float("nan"))

    words = ["cartpole", "train", *SMALL, "--epochs", 2, "--on-divergence", "skip", "--out", "run.h5"]
    with monkeypatch.context() as patch:
        patch.setattr(training.ActiveRun, "evaluate", spoiled)
        result = run(*words)
    assert result.code == 3 and told(result).startswith("cartpole diverged: no test loss of 2 epochs is finite; run.h5 holds 2")
    assert sb.load("run.h5").status.startswith("diverged")
    assert run(*words, "--resume").code == 3  # looking at it again makes it no success
    assert run(*words[:-2], "--out", "good.h5").code == 0


@POSIX
@pytest.mark.parametrize("streams", ["stdout", "stderr"])
def test_a_closed_pipe_does_not_end_a_training(tmp_path, streams):
    """As with `| head -1`: the reader is gone while epochs are still told."""
    command = [sys.executable, "-m", "stablebptt", "cartpole", "train", *SMALL, "--epochs", "2000", "--out", "run.h5"]
    reading, writing = os.pipe()
    where = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, streams: writing}
    words = ["--json"] if streams == "stdout" else []
    process = subprocess.Popen([*command, *words], cwd=tmp_path, text=True, **where)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Error" not in (out or "") + (err or "")
    assert sb.load(tmp_path / "run.h5").status == "complete"


@POSIX
def test_a_file_that_may_not_be_read(tmp_path):
    from stablebptt.data import storage

    (tmp_path / "run.h5").write_bytes(storage.SIGNATURE)
    (tmp_path / "run.h5").chmod(0)
    mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if ROOT else []
    for words in (["inspect", "run.h5"], ["info", "--versions", "--config", "run.h5"]):
        done = subprocess.run([*mortal, sys.executable, "-m", "stablebptt", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 5 and done.stderr == "stablebptt: Permission denied: run.h5\n"


def test_events_of_many_seeds_and_of_checks(run):
    result = run("cartpole", "train", *SMALL, "--epochs", 1, "--seeds", "0:2", "--json", "--out", "runs")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [(r["event"], r["seed"]) for r in records] == [("epoch", 0), ("epoch", 1), ("finished", 0), ("finished", 1)]
    assert all(type(record["best_epoch"]) is int for record in records[2:]) and result.err.count("epoch") == 0
    found = run("cartpole", "check", "--steps", 4, "--hidden", 4, "--json", "--quiet")
    assert {json.loads(line)["event"] for line in found.out.splitlines()} == {"finding"} and found.err == ""
