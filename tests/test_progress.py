"""What a person sees of work that takes long, and what is left of it after Ctrl-C."""

import os
import re
import subprocess
import sys
import time

import numba
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.console import output
from stablebptt.tasks import adjoint_check, bars, reports, seeds, sweeps, training
from stablebptt.tasks.pictures import landscape
from stablebptt.tasks.runs import trajectories
from stablebptt.tasks.sweeps import drive, workers

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
SIZES = {"train_count": 8, "test_count": 5}


@pytest.fixture
def problem():
    return sb.problem("cartpole", steps=4, hidden=(4,))


# --- bars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns, seen", [
    (79, r"100%\|█+\| 1500/1500 \[00:00\], test loss 0\.12345, words"),
    (56, r"100%\|█+\| 1500/1500 \[00:00\], test loss 0\.12345"),
    (36, r"100%\|█+\| 1500/1500 \[00:00\]"), (29, r"100% 1500/1500 \[00:00\]"), (16, r"100% 1500/1500"), (6, r"100%"),
])  # fmt: skip
def test_a_bar_says_what_fits_and_cuts_nothing(monkeypatch, capsys, columns, seen):
    tqdm = bars._tqdm()
    monkeypatch.setattr(bars, "_tqdm", lambda: lambda **how: tqdm(**how | {"dynamic_ncols": False, "ncols": columns}))
    with bars.bar() as tell:
        for done in range(1501):
            tell(done, 1500, "test loss 0.12345, words")
    drawn = capsys.readouterr().err.removesuffix("\n").split("\r")[1:]
    assert max(map(len, drawn)) <= columns and re.fullmatch(seen, drawn[-1].rstrip())
    assert all(re.match(r" *\d+%(\||$| +\d+/1500)", line.rstrip()) for line in drawn)


def test_what_is_quick_shows_no_bar(monkeypatch, capsys):
    clock = iter([0.0, 0.5, 0.9, 1.1, *[1.2] * 99])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with bars.bar(1.0) as tell:
        tell(1, 4, "")
        tell(2, 4, "")
        assert capsys.readouterr().err == ""
        tell(3, 4, "")
    assert re.search(r"| 3/4 \[[\d:<?]+\]\s+$", capsys.readouterr().err)


def test_lines_where_there_is_no_bar_come_when_it_takes_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with output.counter("{} of {} pictures", quiet=False) as tell:
        for done, now[0] in enumerate((4.0, 8.0, 12.0, 16.0, 23.0, 24.0), 1):
            tell(done, 6, "")
    assert capsys.readouterr().err.splitlines() == [
        "3 of 6 pictures  0:12 left", "5 of 6 pictures  0:05 left", "6 of 6 pictures"
    ]  # fmt: skip
    with output.counter("{} of {} pictures", quiet=False) as tell:
        tell(6, 6, "")
    assert capsys.readouterr().err == ""  # it was quick


@pytest.mark.slow
def test_films_reports_fields_and_rollouts_tell_how_far_they_are(problem, tmp_path):
    run = sb.train(problem, "R", epochs=1, out=tmp_path / "run.h5", **SIZES)
    seen = []

    def tell(done, total, words):
        seen.append((done, total))

    reports.write(tmp_path, tell)
    landscape.fields(3, tell)
    whole = problem.sample(2500, 1)
    found = trajectories(problem, [run.theta, run.best_theta], whole, tell)
    assert seen == [(1, 1), (1, 3), (2, 3), (3, 3), *[(1, 3), (2, 3), (3, 3)] * 2]
    path = problem.rollout(run.theta, whole)
    for name, values in (("states", path.states), ("controls", path.controls), ("loss", path.loss)):
        assert np.array_equal(found[name][0], values) and found[name].shape[:2] == (2, 2500)


@pytest.mark.slow
def test_the_bar_of_a_film(run, monkeypatch):
    told = []
    monkeypatch.setattr(output, "_lines", lambda line, at_once: lambda done, total, words: told.append((line, done, total)))
    run("cartpole", "train", "--steps", 3, "--hidden", 4, "--variant", "R", "--train-count", 8, "--test-count", 5,
        "--epochs", 1, "--out", "run.h5", "--quiet")  # fmt: skip
    assert run("animate", "run.h5", "--fps", 2, "--out", "film.gif").code == 0
    assert told == [("{} of {} pictures", done, 6) for done in range(1, 7)]
    assert run("animate", "run.h5", "--fps", 2, "--out", "film.gif", "--force", "--quiet").err == "" and len(told) == 6


def test_a_bar_of_many_seeds(problem, capsys, monkeypatch):
    seen = []
    seeds.train_seeds(problem, [3, 5], "R", 2, progress=True, report=lambda seed, at: seen.append((seed, at.epoch)), **SIZES)
    assert "| 4/4 [" in capsys.readouterr().err and sorted(seen) == [(3, 1), (3, 2), (5, 1), (5, 2)]
    seeds.train_seeds(problem, [3], "R", 1, **SIZES)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bars, "in_notebook", lambda: True)
    seeds.train_seeds(problem, [3, 5], "R", 1, **SIZES)
    assert "| 2/2 [" in capsys.readouterr().err


def test_a_session_says_that_code_is_compiled(capsys):
    for progress, said in ((None, ""), (True, "compiling, once for this kind of problem: 10 to 60 s ...\n")):
        with bars.epochs(None, progress, 1):
            numba.njit(lambda x: x + 1)(1)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("call", ["rollout", "loss", "losses", "gradient", "train"])
def test_what_is_called_in_a_session_says_that_code_is_compiled(problem, capsys, monkeypatch, call):
    theta, x0, engine = problem.init(), problem.sample(2), type(problem.engine)
    evaluate, gradients = engine.evaluate, engine.gradients

    def compiling(compute):
        def computed(*given, **more):
            numba.njit(lambda x: x + 1)(1)
            return compute(*given, **more)

        return computed

    monkeypatch.setattr(engine, "evaluate", compiling(evaluate))
    monkeypatch.setattr(engine, "gradients", compiling(gradients))

    def computed(**more):
        return sb.train(problem, "R", 1, **SIZES, **more) if call == "train" else getattr(problem, call)(theta, x0)

    computed()
    assert capsys.readouterr().err == ""  # in a script
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    computed()
    assert capsys.readouterr().err == "compiling, once for this kind of problem: 10 to 60 s ...\n"
    if call == "train":
        computed(progress=False)
        assert capsys.readouterr().err == ""


def test_a_sweep_shows_how_far_its_long_runs_are(problem, tmp_path, capsys):
    """From their files, which workers write now and then."""
    [planned] = sweeps.make_plan({"task": "cartpole", "options": {"steps": 4, "hidden": [4]}, "train": {"epochs": 4}})
    sb.train(problem, "C", epochs=3, out=tmp_path / planned.name, **SIZES)
    assert drive.Drive(tmp_path, workers.worked, 1, {}, None)._share(planned) == 0.75
    assert drive.Drive(tmp_path / "nowhere", workers.worked, 1, {}, None)._share(planned) == 0
    with output.sweep_progress(quiet=False, as_json=False) as report:
        report(sweeps.SweepProgress(3, (), 2, float("nan"), share=0.75))
    assert capsys.readouterr().err == "0 of 3 runs done  2 running at 75%, 0 failed or diverged\n"


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


def stop_after(monkeypatch, epoch):
    begin = training.ActiveRun.begin_epoch

    def stopped(run):
        if run.progress.epoch == epoch:
            raise KeyboardInterrupt
        begin(run)

    monkeypatch.setattr(training.ActiveRun, "begin_epoch", stopped)


@pytest.mark.parametrize("call", ["gradient", "train", "train with a bar"])
def test_an_interrupted_compiler_is_not_shown(problem, monkeypatch, call):
    """Its hundred calls take IPython seconds to show."""

    def deep(level):
        if level == 0:
            raise KeyboardInterrupt
        deep(level - 1)

    monkeypatch.setattr(type(problem.engine), "gradients", lambda *given, **more: deep(100))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt) as stop:
        if call == "gradient":
            problem.gradient(problem.init(), problem.sample(2))
        else:
            sb.train(problem, "R", 1, progress=True if call.endswith("bar") else None, **SIZES)
    assert len(stop.traceback) < 15 and stop.value.__suppress_context__


def test_an_interrupt_that_finds_nothing_computes_nothing(problem, monkeypatch, tmp_path):
    """Rollouts may have to be compiled first: half a minute after Ctrl-C."""
    stop_after(monkeypatch, 0)
    path = tmp_path / "run.h5"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(training.runs, "run_of", lambda *given: pytest.fail("it rolls out"))
        with pytest.raises(KeyboardInterrupt):
            sb.train(problem, "R", 1, **SIZES)
    with pytest.raises(KeyboardInterrupt) as stop:
        sb.train(problem, "R", 1, out=path, force=True, **SIZES)
    assert path.read_bytes() == b"old" and stop.value.__notes__ == ["no epoch was done, and nothing is changed"]
    monkeypatch.undo()
    sb.train(problem, "R", 1, out=path, force=True, **SIZES)  # the lock is free


def test_seeds_without_an_epoch_are_returned_too(problem, monkeypatch, capsys):
    """The first of two queues has done its epoch when the second begins."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    end = training.ActiveRun.end_epoch

    def stopped(run):
        if run.settings.seed == 1:
            raise KeyboardInterrupt
        end(run)

    monkeypatch.setattr(training.ActiveRun, "end_epoch", stopped)
    found = sb.train_seeds(problem, [0, 1], "R", 2, **SIZES)
    assert [len(run.history["epoch"]) for run in found] == [1, 0] and {run.status for run in found} == {"interrupted"}
    assert "interrupted after epoch 1" in capsys.readouterr().err


def test_an_interrupted_session_keeps_what_was_learned(problem, monkeypatch, capsys, tmp_path):
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        sb.train(problem, "R", epochs=3, **SIZES)  # a script
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    run = sb.train(problem, "R", epochs=3, **SIZES)
    assert (run.status, len(run.history["epoch"])) == ("interrupted", 2) and run.theta.any()
    assert capsys.readouterr().err == "interrupted after epoch 2; what was learned is returned\n"
    run = sb.train(problem, "R", epochs=3, out=tmp_path / "run.h5", **SIZES)
    assert run.status == sb.load(tmp_path / "run.h5").status == "interrupted"
    assert capsys.readouterr().err.endswith(f"is returned; {tmp_path / 'run.h5'} holds 2 epochs\n")
    runs = seeds.train_seeds(problem, [0, 1], "R", 3, **SIZES)
    assert [one.status for one in runs] == ["interrupted"] * 2
    planned = sweeps.make_plan({"task": "cartpole", "options": {"steps": 4, "hidden": [4]}, "train": {"epochs": 3, **SIZES}})
    assert sweeps.run_one(planned[0], tmp_path / "folder").status == "interrupted"


def test_a_session_that_learned_nothing_is_interrupted(problem, monkeypatch):
    stop_after(monkeypatch, 0)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt):
        sb.train(problem, "R", epochs=3, **SIZES)


def test_an_interrupt_that_meets_the_end_of_an_object_is_not_lost(run, monkeypatch):
    class Object:
        def __del__(self):
            raise KeyboardInterrupt

    def write(folder, tell, keep):
        Object()
        for _ in range(10_000_000):
            tell(1, 2, "")
        return {}

    monkeypatch.setattr(reports, "write", write)
    hook = sys.unraisablehook
    result = run("report", ".")
    assert (result.code, result.err.strip()) == (130, "stablebptt: interrupted") and sys.unraisablehook is hook


def test_an_interrupt_waits_until_processes_are_started_or_ended():
    interrupts, after = workers._Interrupts(), []
    with pytest.raises(KeyboardInterrupt):
        with interrupts:
            interrupts(2, None)
            interrupts(2, None)
            after.append("done")
    interrupts(2, None)  # once is enough
    with interrupts:
        after.append("ended")
    assert after == ["done", "ended"]
    with pytest.raises(KeyboardInterrupt):
        workers._Interrupts()(2, None)


TWICE = """
import multiprocessing, os, signal, threading
from stablebptt.tasks.sweeps import workers

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

before = signal.getsignal(signal.SIGINT)
try:
    with workers.local_workers(2) as make:
        make().submit(os.getpid)
        threading.Timer(0.3, interrupt).start()  # while the block waits for its workers, which still start
        interrupt()
except KeyboardInterrupt:
    print(multiprocessing.active_children(), signal.getsignal(signal.SIGINT) is before)
"""
KILLED = """
import os, signal
from stablebptt.tasks.sweeps import workers

with workers.local_workers(1) as make:
    print(make().submit(os.getpid).result() != os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("script, said, code", [(TWICE, "[] True\n", 0), (KILLED, "True\n", -9)])
def test_no_worker_is_left_behind(script, said, code):
    """An interrupt comes twice; a sweep is killed while workers are idle."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)  # of the workers, too
    assert (done.stdout, done.returncode) == (said, code) and "Traceback" not in done.stderr


def test_a_check_shows_every_finding_at_once(run, monkeypatch):
    """Compiling the functions takes most of the time, so that rows come one by one."""
    shown, after = [], []
    monkeypatch.setattr(output, "say", lambda text, err=False: shown.append(text))
    findings = adjoint_check.findings

    def watched(rule, *given, **how):
        after.append(sum(not text.startswith(("function", "compiling")) for text in shown))
        yield from findings(rule, *given, **how)

    monkeypatch.setattr(adjoint_check, "findings", watched)
    assert run("cartpole", "check", "--steps", 4, "--hidden", 4).code == 0
    assert after[:4] == [0, 2, 4, 5], after  # step, step_batch, cost, control
    assert sum(text.startswith("function") for text in shown) == 1 and shown[-1].startswith("whole rollout")
