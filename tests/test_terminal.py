"""What a person sees at the terminal, and what a script reads: going on, closed pipes, help, bars."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import click
import commands
import numba
import numpy as np
import pytest

import stablebptt as sb
from stablebptt import cli
from stablebptt.data import run_file
from stablebptt.tasks import bars, settings, sweeps, training, variants

HERE = Path(__file__).resolve().parent.parent

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
    assert "resumed: poles: 2 in the file, 3 given; give" in run(*words, "--resume", "--set", "poles=3").err


@pytest.mark.parametrize("spoiled", [
    {"options": []}, {"options": {}}, {"options": {"steps": "x"}}, {"optimizer": []}, {"optimizer": {"name": "x"}},
    {"epochs": []}, {"optimizer": None}, {"variant": None}, {"task": "custom", "options": []}, {"task": "custom"},
])  # fmt: skip
def test_a_file_that_tells_no_training_is_not_resumed(run, monkeypatch, tmp_path, spoiled):
    sb.train(sb.problem("cartpole", steps=4, hidden=(4,)), "R", epochs=1, out="run.h5", train_count=8, test_count=5)
    content = run_file.load("run.h5")
    monkeypatch.setattr(run_file, "load", lambda path: dataclasses.replace(content, config=content.config | spoiled))
    (tmp_path / "own.py").write_text("import stablebptt as sb\n\n\ndef make():\n    return sb.problem('cartpole')\n")
    words = ["custom", "train", "own.py:make"] if "task" in spoiled else ["cartpole", "train"]
    result = run(*words, "--resume", "--out", "run.h5")
    assert result.code == 4 and told(result).startswith("run.h5") and result.err.count("\n") == 1, result.err


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
    assert told(result).endswith("(--force) with a smaller --learning-rate or --clip norm or --on-divergence skip")
    assert result.err.count("\n") == 1


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
    assert "smaller --learning-rate" in told(result) and "skip" not in told(result)
    assert sb.load("run.h5").status.startswith("diverged")
    assert run(*words, "--resume").code == 3  # looking at it again makes it no success
    assert run(*words[:-2], "--out", "good.h5").code == 0


@pytest.mark.slow
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


# --- first contact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["cartpole"], ["custom"], ["landscape"]])
def test_a_group_without_a_command_shows_its_help(run, words):
    """On stdout, as --help does; with the exit code of wrong usage, as click has it since 8.2."""
    alone, asked = run(*words), run(*words, "--help")
    assert alone.out == asked.out and "Commands:" in alone.out
    assert (alone.code, asked.code, alone.err) == (2, 0, "")


def test_the_help_of_train(run):
    text = run("cartpole", "train", "--help").out
    sections = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    told = ["Files and output", "Task", "Training", "Start", "Ends and logs", "Options", "Variants", "Examples"]
    assert sections == told
    assert text.split("Files and output:\n")[1].startswith("  -o, --out ")
    words = " ".join(text.split())
    for option in stablebptt_train().params:
        if isinstance(option, click.Option) and option.default not in (None, False) and not option.flag_value:
            assert f"[default: {option.default}" in words.split(f" {option.opts[-1]} ", 1)[1], option.name
    for letter, line in zip("RMSNC", text.split("Variants:\n")[1].splitlines()):
        assert line.startswith(f"  {letter}  ")
    assert all(len(line) < 80 for line in text.split("Variants:\n")[1].splitlines())
    assert text.count("  stablebptt cartpole train --") == 2
    assert "stablebptt custom train MODULE:FUNCTION --" in run("custom", "train", "-h").out


def stablebptt_train():
    return cli.stablebptt.commands["cartpole"].commands["train"]


def test_the_help_says_what_the_library_does(run):
    words = " ".join(run("cartpole", "train", "--help").out.split())
    rates = {name: inspect.signature(rule).parameters["learning_rate"].default for name, rule in sb.optimizers.RULES.items()}
    assert set(rates.values()) == {0.001, 0.01} and [name for name in rates if rates[name] == 0.01] == ["sgd"]
    assert "[default: 0.001; sgd: 0.01]" in words and sb.optimizers.sgd().momentum == 0
    assert tuple(sb.optimizers.RULES) == settings.OPTIMIZERS
    names = [*settings.VARIANTS, *(name.partition(":")[0] for name in settings.JOINS)]
    assert names == list(variants.NAMES) and all(f" {name} " in words for name in [*settings.JOINS, *settings.GATES])


def test_help_needs_no_numpy():
    call = "import sys; from stablebptt import cli\ntry: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code = call + "assert 'numpy' not in sys.modules"
    for words in ([], ["--help"], ["cartpole"], ["cartpole", "train", "--help"], ["sweep", "-h"], ["train"], ["-V"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_short_options(run):
    assert run("-V").out == run("--version").out
    assert run("cartpole", "train", *SMALL, "--epochs", 1, "-q", "--learning-rate", 0.5, "-o", "run.h5").err == ""
    assert sb.load("run.h5").config["optimizer"]["learning_rate"] == 0.5


def test_short_options_have_no_other_names(run, monkeypatch, tmp_path):
    (tmp_path / "some.toml").write_text("[cartpole.train]\no = 'run.h5'\n")
    result = run("cartpole", "train", "--config", "some.toml")
    assert result.code == 2 and "has no option 'o'" in result.err


@pytest.mark.parametrize("words, way", [
    (["train"], "stablebptt cartpole train"), (["simulate", "run.h5"], "stablebptt cartpole simulate"),
    (["fields"], "stablebptt landscape fields"), (["cartpole", "inspect"], "stablebptt inspect"),
])  # fmt: skip
def test_a_command_of_another_place_is_shown_the_way(run, words, way):
    result = run(*words)
    assert result.code == 2 and f"; try '{way}'" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["cartpool"], ["cartpole", "trian"], ["cartpole", "train"], ["cartpole", "train", "--pole", "3", "-o", "x.h5"],
    ["cartpole", "train", "--momentum", "0.9", "-o", "x.h5"], ["cartpole", "train", "--epochs", "x", "-o", "x.h5"],
    ["sweep"], ["check"], ["custom", "train", "json:loads", "--set", "a=1", "-o", "x.h5"], ["inspect"], ["plot", "a.h5"],
    ["cartpole", "train", "--seeds", "3", "-o", "x.h5"], ["cartpole", "train", "--clip", "all", "-o", "x.h5"],
])  # fmt: skip
def test_errors_are_written_for_people(run, words):
    result = run(*words)
    assert result.code == 2 and result.err.count("\n") == 1 and not result.out
    for wrong in (".;", "..", "()", "keyword", "positional", "with force", "=True", "None", "Error"):
        assert wrong not in result.err, result.err


def test_files_that_exist_are_replaced_with_an_option(run, tmp_path):
    for name in ("run.h5", "paths.h5", "a.png", "seed_0.h5"):
        (tmp_path / name).touch()
    for words in (
        ["cartpole", "train", "-o", "run.h5"], ["cartpole", "train", "--seeds", "0:1", "-o", "."],
        ["landscape", "rotation", "-o", "a.png"],
    ):  # fmt: skip
        result = run(*words)
        assert result.code == 5 and "--force" in result.err and "force=" not in result.err, result.err


@pytest.mark.parametrize("line, words", [
    ("stablebptt cartpole train --variant ", set(variants.NAMES) - {"leaky"}),
    ("stablebptt cartpole train --optimizer a", {"adam", "adagrad", "adadelta"}),
    ("stablebptt qua", {"quantum"}), ("stablebptt inspect r", {"run.h5"}), ("stablebptt plot run.h5 ", {"run.h5", "other.h5"}),
    ("stablebptt cartpole train --out ", {"run.h5", "other.h5"}), ("stablebptt sweep ", {"plan.toml"}),
    ("stablebptt sweep --paper g", {"guidance"}), ("stablebptt cartpole train --learn", {"--learning-rate"}),
])  # fmt: skip
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path, monkeypatch, capsys, shell, line, words):
    monkeypatch.chdir(tmp_path)
    for name in ("run.h5", "other.h5", "plan.toml", "rest.txt"):
        (tmp_path / name).touch()
    count, last = len(line.split(" ")) - 1, line.split(" ")[-1]
    place = {"COMP_WORDS": line, "COMP_CWORD": last if shell == "fish" else str(count)}
    for name, value in (place | {"_STABLEBPTT_COMPLETE": f"{shell}_complete"}).items():
        monkeypatch.setenv(name, value)
    assert commands.call() == 0
    told = capsys.readouterr().out
    if shell == "zsh":  # kind, word and help
        assert set(told.splitlines()[1::3]) == words
    else:
        assert {line.partition(",")[2].partition("\t")[0] for line in told.splitlines()} == words


def test_the_completion_of_the_readme():
    lines = re.findall(r"_STABLEBPTT_COMPLETE=(\w+)_source stablebptt", (HERE / "README.md").read_text("utf-8"))
    assert sorted(lines) == ["bash", "fish", "zsh"]


# --- sweeps -------------------------------------------------------------------------------------------------------

PLAN = "task = 'cartpole'\n[options]\nsteps = 4\nhidden = [4]\n"
PLAN += "[train]\nvariant = 'R'\ntrain_count = 8\ntest_count = 5\nepochs = 4\n"


def test_a_dry_run_counts_what_is_left(run, monkeypatch, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.setattr(sweeps.drive, "_update_seconds", lambda config, chosen: 1.0)
    sweep = ["sweep", "plan.toml", "--seeds", "0:3", "--json"]
    records = [json.loads(line) for line in run(*sweep, "--dry-run").out.splitlines()]
    assert [record["event"] for record in records] == ["planned"] * 3 + ["estimated"]
    whole = records[0]["seconds"]
    assert records[-1]["core_seconds"] == pytest.approx(3 * whole + records[-1]["compile_seconds"])
    assert records[-1]["compile_seconds"] > 0 and list(tmp_path.iterdir()) == [tmp_path / "plan.toml"]
    runs = sweeps.read_plan("plan.toml", "0:3")
    sweeps.run_one(runs[0], "folder")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert sweeps.run_one(runs[1], "folder").epochs == 3
    left = [json.loads(line) for line in run(*sweep, "--dry-run", "--resume", "--out", "folder").out.splitlines()]
    assert {record["run"]: record["seconds"] / whole for record in left[:-1]} == {
        runs[1].name: pytest.approx(0.25), runs[2].name: pytest.approx(1.0)
    }  # fmt: skip


def test_only_a_dry_run_goes_without_a_folder(run, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    for more in ([], ["--resume"], ["--task-index", 0]):
        result = run("sweep", "plan.toml", *more)
        assert result.code == 2 and "Missing option '--out'" in result.err
    result = run("sweep", "plan.toml", "--dry-run", "--resume")
    assert result.code == 0 and "without --out no folder is looked into" in result.err
    assert re.search(r"^1 run, about .* with \d+ jobs?, ", result.out, re.MULTILINE)


# --- bars and messages --------------------------------------------------------------------------------------------


def on_terminal(folder, words, columns=50, **environment):
    """What a terminal of some columns is sent."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    command, variables = [sys.executable, "-m", "stablebptt", *words], {**os.environ, "TERM": "xterm", **environment}
    with subprocess.Popen(command, cwd=folder, env=variables, **streams) as process:
        os.close(theirs)
        content = b""
        while part := _read(ours):
            content += part
    os.close(ours)
    assert process.returncode == 0, content
    return content.decode().replace("\r\n", "\n")


def _read(handle):
    try:
        return os.read(handle, 65536)
    except OSError:  # the other side is closed
        return b""


LONG = ["cartpole", "train", *SMALL, "--epochs", "1500", "--out", "run.h5"]


@POSIX
@pytest.mark.parametrize("columns", [50, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (40, 100))])
def test_a_bar_fits_the_terminal(tmp_path, columns):
    drawn = on_terminal(tmp_path, LONG, columns).partition("\nfile: run.h5\n")[0].split("\r")
    assert len(drawn) > 2 and all(len(line) <= columns for line in drawn)
    assert re.search(r"^100%\|.* 1500/1500 \[\d\d:\d\d\]", drawn[-1]) and (", test loss " in drawn[-1]) == (columns > 49)


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("more, environment", [
    (["--json"], {}), (["--quiet"], {}), (["--json", "--quiet"], {}), ([], {"TERM": "dumb"}),
])  # fmt: skip
def test_no_bar_where_it_has_no_place(tmp_path, more, environment):
    shown = on_terminal(tmp_path, ["cartpole", "train", *SMALL, "--epochs", "2", "--out", "run.h5", *more], **environment)
    assert "\r" not in shown and "|" not in shown
    if "--json" in more:
        assert [json.loads(line)["event"] for line in shown.splitlines()] == ["epoch", "epoch", "finished"]
    else:
        assert shown.count("epoch ") == (0 if more else 2) + shown.count("best epoch ")


@pytest.mark.slow
@POSIX
def test_a_bar_of_a_sweep(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    drawn = on_terminal(tmp_path, ["sweep", "plan.toml", "--jobs", "1", "--out", "folder"]).partition("\nrun ")[0].split("\r")
    assert all(len(line) <= 50 for line in drawn) and re.search(r"^100%\|.*\| 1/1 \[\d\d:\d\d\]", drawn[-1])


def compile_something():
    numba.njit(lambda x: x + 1)(1)


def test_compiling_is_said_once(run, monkeypatch, capsys):
    def train(problem, settings, out, report, **how):
        compile_something()
        compile_something()
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_run", train)
    words = ["cartpole", "train", *SMALL, "--out", "run.h5"]
    first, last = run(*words).err.splitlines()[::2]
    assert first.startswith("compiling, once for this kind of problem") and last == "stablebptt: interrupted"
    assert "compiling" not in run(*words, "--quiet").err + run(*words, "--json").out
    compile_something()  # nobody listens any more
    assert capsys.readouterr().err == ""


def test_quiet_silences_warnings(run, monkeypatch):
    from stablebptt.data import run_file

    def versions():
        warnings.warn("the clock is slow", stacklevel=2)
        return {}

    monkeypatch.setattr(run_file, "versions", versions)
    with pytest.warns(UserWarning, match="the clock is slow"):
        run("info", "--versions")
    with warnings.catch_warnings(record=True) as seen:
        assert run("info", "--versions", "--quiet").code == 0
    assert seen == []


def test_quiet_is_an_option_of_every_command():
    def commands_of(group):
        for command in group.commands.values():
            yield from commands_of(command) if isinstance(command, click.Group) else [command]

    for command in commands_of(cli.stablebptt):
        assert next(option for option in command.params if option.name == "quiet").opts == ["-q", "--quiet"], command.name


def test_a_bar_for_python(capsys, monkeypatch):
    problem, sizes = sb.problem("cartpole", steps=4, hidden=(4,)), {"epochs": 2, "train_count": 8, "test_count": 5}
    seen = []
    sb.train(problem, "R", progress=True, report=seen.append, **sizes)
    assert "2/2 [" in capsys.readouterr().err and [progress.epoch for progress in seen] == [1, 2]
    sb.train(problem, "R", **sizes)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bars, "in_notebook", lambda: True)
    sb.train(problem, "R", **sizes)
    assert "2/2 [" in capsys.readouterr().err
    sb.train(problem, "R", progress=False, **sizes)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="progress is 'no'; it must be True or False"):
        sb.train(problem, "R", progress="no", **sizes)


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    assert not bars.in_notebook()
    for shell, found in ((None, False), (object(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert bars.in_notebook() == found


# --- the page -----------------------------------------------------------------------------------------------------

PAGE = (HERE / "docs" / "terminal.md").read_text("utf-8")


def test_every_variable_is_in_the_table():
    aside = {"docs", "benchmarks", "build", ".venv"}
    sources = [path for path in HERE.rglob("*.py") if not aside & {*path.relative_to(HERE).parts}]
    read = {name for path in sources for name in re.findall(r'environ\S*"([A-Z]\w+)"', path.read_text("utf-8"))}
    assert {"STABLEBPTT_CACHE_DIR", "STABLEBPTT_VECTOR_BYTES", "XDG_CACHE_HOME", "TERM"} <= read
    table = PAGE.split("## Variables")[1]
    assert not {name for name in read if not name.startswith("PYTEST") and f"`{name}`" not in table}


@pytest.mark.slow
def test_every_event_is_in_the_table(run, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    train, sweep = ["cartpole", "train", *SMALL, "--epochs", 1, "--json"], ["sweep", "plan.toml", "--json", "--jobs", 1]
    calls = [*train, "--out", "a.h5"], [*train, "--seeds", "0:1", "--out", "b"], [*sweep, "--dry-run"], [*sweep, "--out", "c"]
    records = []
    for words in calls:
        records += [json.loads(line) for line in run(*words).out.splitlines()]
    section = PAGE.split("## JSON")[1].split("## Variables")[0]
    named = {*re.findall(r"`(\w+)`", section), *run_file.HISTORY, "complete"}  # a status is the key of its number
    assert {key for record in records for key in record} <= named
    events = {name for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    assert {record["event"] for record in records} == events - {"finding", "layer"}
