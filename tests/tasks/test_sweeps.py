"""Sweeps: plans, resuming, dying workers, other executors, a real Dask cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks import sweeps
from stablebptt.tasks.cpu import Engine
from stablebptt.tasks.sweeps import drive, make_plan, paper_plan, workers

SMALL = {"steps": 6, "hidden": [5]}
TRAIN = {"variant": ["R", "C"], "clip": "norm", "seed": "0:2", "epochs": 3, "train_count": 16, "test_count": 8}
PLAN = {"task": "cartpole", "options": {**SMALL, "poles": [1, 2]}, "train": TRAIN}
# Runs of a few seconds, so that there is time to kill somebody.
LONG = {"task": "cartpole", "options": SMALL, "train": {**TRAIN, "variant": "R", "epochs": 1500, "seed": "0:3"}}


def write_plan(path, plan):
    def value(item):
        return json.dumps(item)

    lines = [f"task = {value(plan['task'])}"]
    for table in ("options", "train"):
        lines += [f"[{table}]", *(f"{name} = {value(item)}" for name, item in plan.get(table, {}).items())]
    path.write_text("\n".join(lines))
    return path


def everything(path):
    run = sb.load(path)
    history = {name: values for name, values in run.history.items() if name != "seconds"}
    return [run.theta, run.best_theta, *history.values(), *run.trajectories.values()]


def assert_same(folder, other, runs):
    for planned in runs:
        for a, b in zip(everything(folder / planned.name), everything(other / planned.name)):
            np.testing.assert_array_equal(a, b)


def trained_alone(runs, folder):
    for planned in runs:
        assert sweeps.run_one(planned, folder).status == "complete"
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained_alone(make_plan(PLAN), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def long_alone(tmp_path_factory):
    return trained_alone(make_plan(LONG), tmp_path_factory.mktemp("alone"))


# --- plans --------------------------------------------------------------------------------------------------------


def test_a_plan_is_a_product_with_seeds_outermost():
    runs = make_plan(PLAN)
    key = [(r.config["seed"], r.config["options"]["poles"], r.config["variant"]) for r in runs]
    assert key == [(s, p, v) for s in (0, 1) for p in (1, 2) for v in "RC"]
    assert all(r.config["options"]["hidden"] == [5] and r.config["epochs"] == 3 for r in runs)
    assert len({r.name for r in runs}) == 8
    assert re.fullmatch(r"cartpole-1-pole-R-norm-seed0-[0-9a-f]{8}\.h5", runs[0].name)


def test_the_published_runs():
    runs = paper_plan("all")
    assert len(runs) == 132 and len({run.name for run in runs}) == 132
    assert [len(paper_plan(name)) for name in sweeps.PAPER] == [48, 48, 36]
    assert {run.config["epochs"] for run in runs} == {1000} and {run.config["seed"] for run in runs} == {0}
    assert {run.config["clip"] for run in runs} == {"none", "value", "norm"}
    more = paper_plan("quantum", "0:10", 5)
    assert len(more) == 360 and more[-1].config["seed"] == 9 and more[0].config["epochs"] == 5
    with pytest.raises(ValueError, match="unknown paper 'fusion'; choose from cartpole, guidance, quantum, all"):
        paper_plan("fusion")


def test_lists_that_are_one_value():
    runs = make_plan({"task": "guidance", "options": {"target": [1, 2], "hidden": [[5], [6, 7]], "evaders": [2, 3]}})
    assert [run.config["options"]["hidden"] for run in runs] == [[5], [5], [6, 7], [6, 7]]
    assert runs[0].config["options"]["target"] == [1.0, 2.0]
    assert len(make_plan({"task": "quantum", "options": {"target": [3, 4], "weights": [[1, 1], [3, 1]]}})) == 4


def test_a_run_alone_has_the_configuration_of_the_plan(tmp_path):
    planned = make_plan({**PLAN, "train": {**TRAIN, "optimizer": "sgd", "momentum": [0.5, 0.9], "learning_rate": 0.1}})[1]
    sweeps.run_one(planned, tmp_path)
    assert sb.load(tmp_path / planned.name).config == planned.config
    assert planned.config["optimizer"] == {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": 1}, "unknown entry 'tasks'"),
        ({"task": 3}, "needs a task"),
        ({"task": "fusion"}, "unknown task 'fusion'"),
        ({"options": []}, r"\[options\] must be a table"),
        ({"options": {"pole": 1}}, "no option 'pole'"),
        ({"train": {"variants": "R"}}, "no option 'variants'"),
        ({"train": {"variant": "X"}}, "unknown variant 'X'"),
        ({"train": {"seed": "5:5"}}, "empty range"),
        ({"train": {"seed": "five"}}, "seed is 'five'"),
        ({"train": {"clip": []}}, "clip is an empty list"),
        ({"train": {"optimizer": "newton"}}, "unknown optimizer"),
        ({"train": {"momentum": 0.9}}, "momentum"),
    ],
)
def test_bad_plans(tmp_path, change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make_plan({**PLAN, **change})
    if change.get("options") != []:
        with pytest.raises(ValueError, match=r"plan\.toml: .*"):
            sweeps.read_plan(write_plan(tmp_path / "plan.toml", {**PLAN, **change}) if "tasks" not in change else bad(tmp_path))


def bad(folder):
    (folder / "plan.toml").write_text('task = "cartpole"\ntasks = 1\n')
    return folder / "plan.toml"


ODD = {"task": "cartpole", "options": {**SMALL, "poles": [1, 2]}}
ODD["train"] = {"variant": ["R", "C"], "epochs": [2, 5], "batch_size": 5, "train_count": 33, "test_count": 17}


def test_estimates_are_near_the_truth(monkeypatch, tmp_path):
    """By a clock that goes on by 3 ms per sample and gradient, and by 1 ms per sample whose loss is computed."""
    now = [0.0]

    def counted(name, seconds):
        computed = getattr(Engine, name)

        def slow(self, theta, x0, *more):
            now[0] += seconds * len(x0)
            return computed(self, theta, x0, *more)

        monkeypatch.setattr(Engine, name, slow)

    counted("_gradient", 3e-3)
    counted("_losses", 1e-3)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    runs = make_plan(ODD)
    expected = sweeps.estimate(runs).runs
    assert list(expected) == [planned.name for planned in runs]
    for planned in runs:
        begin = now[0]
        sweeps.run_one(planned, tmp_path)
        assert expected[planned.name] == pytest.approx(now[0] - begin, rel=0.1)


@pytest.mark.slow
def test_an_estimate_by_a_real_clock(tmp_path):
    (planned,) = make_plan({"task": "cartpole", "options": {"poles": 2}, "train": {"epochs": 10}})
    expected = sweeps.estimate([planned]).runs[planned.name]
    begin = time.perf_counter()
    sweeps.run_one(planned, tmp_path)
    assert expected / 3 < time.perf_counter() - begin < 3 * expected


# --- running ------------------------------------------------------------------------------------------------------


def test_a_sweep_gives_what_each_run_gives_alone(tmp_path, alone):
    runs, told = make_plan(PLAN), []
    outcomes = sb.sweep(runs, tmp_path / "sweep", jobs=2, report=told.append)
    assert [o.name for o in outcomes] == [r.name for r in runs] and {o.status for o in outcomes} == {"complete"}
    assert_same(tmp_path / "sweep", alone, runs)
    ended = [progress.ended.name for progress in told if progress.ended is not None]
    assert sorted(ended) == sorted(r.name for r in runs)
    assert told[-1].count("complete") == told[-1].total == 8 and told[-1].seconds_left == 0
    assert max(progress.running for progress in told) <= 2
    best = sb.load(tmp_path / "sweep" / runs[0].name).history["test_loss"].min()
    assert outcomes[0].best_test_loss == best and outcomes[0].epochs == 3
    assert {path.suffix for path in (tmp_path / "sweep").iterdir()} == {".h5"}


@pytest.mark.slow
def test_complete_runs_are_skipped_and_broken_off_ones_resumed(tmp_path, alone):
    runs = make_plan(PLAN)
    folder = tmp_path / "sweep"
    sweeps.run_one(runs[0], folder)
    stamp = (folder / runs[0].name).stat().st_mtime_ns

    def stop(progress):
        if progress.epoch == 1:
            raise KeyboardInterrupt

    settings = {name: runs[1].config[name] for name in ("variant", "clip", "epochs", "seed", "train_count", "test_count")}
    with pytest.raises(KeyboardInterrupt):
        problem = sb.problem("cartpole", **runs[1].config["options"])
        sb.train(problem, out=folder / runs[1].name, report=stop, **settings)
    assert sweeps.outcome_of(folder / runs[1].name).status == "interrupted"
    with pytest.raises(FileExistsError, match="holds 2 runs of this plan"):
        sb.sweep(runs, folder, jobs=1)
    with ThreadPoolExecutor(2) as executor:
        outcomes = sb.sweep(runs, folder, executor=executor, resume=True)
    assert {o.status for o in outcomes} == {"complete"}
    assert (folder / runs[0].name).stat().st_mtime_ns == stamp
    assert_same(folder, alone, runs)


COUNTS = {"train_count": 16, "test_count": 8}
WILD = {"task": "cartpole", "options": {**SMALL, "output_init": "glorot"}}
WILD["train"] = {"variant": "R", "epochs": 5, "optimizer": "sgd", "learning_rate": [1e39, 1e-3], **COUNTS}


def test_failures_are_reported_and_kept_until_told_otherwise(tmp_path, monkeypatch):
    runs = make_plan(WILD)
    with ThreadPoolExecutor(1) as executor:
        first = sb.sweep(runs, tmp_path, executor=executor)
        assert [o.status for o in first] == ["diverged", "complete"]
        assert "cartpole diverged in epoch" in first[0].message
        assert sb.sweep(runs, tmp_path, executor=executor, resume=True) == first
        called = []
        monkeypatch.setattr(drive, "trained", lambda config, path: called.append(path) or first[0])
        sb.sweep(runs, tmp_path, executor=executor, resume=True, retry_failed=True)
        assert called == [str(tmp_path / runs[0].name)]


def test_errors_leave_a_note(tmp_path, monkeypatch):
    runs = make_plan(PLAN)[:2]
    good = workers.training.train_run

    def broken(problem, settings, *out, **how):
        if settings.variant == "R":
            raise RuntimeError("out of luck")
        return good(problem, settings, *out, **how)

    monkeypatch.setattr(workers.training, "train_run", broken)
    with ThreadPoolExecutor(1) as executor:
        outcomes = sb.sweep(runs, tmp_path, executor=executor)
        assert [o.status for o in outcomes] == ["failed", "complete"] and outcomes[1].message == ""
        assert re.fullmatch(r"RuntimeError: out of luck \(.*test_sweeps\.py:\d+\)", outcomes[0].message)
        assert sb.sweep(runs, tmp_path, executor=executor, resume=True)[0].message == outcomes[0].message
        monkeypatch.setattr(workers.training, "train_run", good)
        again = sb.sweep(runs, tmp_path, executor=executor, resume=True, retry_failed=True)
    assert [o.status for o in again] == ["complete", "complete"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".h5"}


def test_a_run_that_another_process_writes_is_left_to_it(tmp_path):
    from stablebptt.data.atomic import locked

    (planned,) = make_plan({**PLAN, "options": SMALL, "train": {**TRAIN, "variant": "R", "seed": 0}})
    with locked(tmp_path / planned.name):
        outcome = sweeps.run_one(planned, tmp_path)
    assert outcome.status == "busy" and str(os.getpid()) in outcome.message


# --- killing ------------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


def start(folder, plan, *more):
    words = ["sweep", str(plan), "--out", "sweep", "--jobs", "2", "--json", "--quiet", *more]
    command = [sys.executable, "-m", "stablebptt", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid):
    """Processes that a process has started to compute (not multiprocessing's tracker)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{entry}/cmdline") as file:
                    words = file.read()
            except OSError:
                continue
            if parent == pid and "spawn_main" in words:
                found.append(int(entry))
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def trains(folder, count):
    """Whether so many workers train."""
    return len(list(folder.glob(".*.lock"))) == count


procfs = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="workers are found in /proc")


@pytest.mark.slow
@posix
@procfs
def test_nothing_is_lost_when_a_worker_is_killed(tmp_path, long_alone):
    def kill_one():
        wait_until(lambda: trains(tmp_path, 2))
        os.kill(children(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = sb.sweep(make_plan(LONG), tmp_path, jobs=2)
    killer.join()
    assert [o.status for o in outcomes] == ["complete"] * 3, outcomes
    assert_same(tmp_path, long_alone, make_plan(LONG))


@pytest.mark.slow
@posix
@procfs
def test_a_worker_that_is_told_to_end_saves_first(tmp_path, long_alone):
    planned = make_plan(LONG)[0]
    path = tmp_path / planned.name
    with workers.local_workers(1) as make:
        future = make().submit(workers.worked, planned.config, str(path))
        wait_until(lambda: trains(tmp_path, 1))
        os.kill(children(os.getpid())[0], signal.SIGTERM)
        with pytest.raises(BrokenExecutor):
            future.result()
    saved = sweeps.outcome_of(path)
    assert saved.status == "interrupted" and 0 < saved.epochs < planned.config["epochs"]
    assert list(tmp_path.iterdir()) == [path]
    sweeps.run_one(planned, tmp_path)
    assert_same(tmp_path, long_alone, [planned])


@posix
@procfs
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_lost_when_a_sweep_is_killed(tmp_path, long_alone, number):
    plan, folder = write_plan(tmp_path / "plan.toml", LONG), tmp_path / "sweep"
    process = start(tmp_path, plan)
    wait_until(lambda: trains(folder, 2))
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGTERM else -number), err
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))
    saved = list(folder.glob("*.h5"))
    assert saved and all(len(sb.load(path).history["epoch"]) > 0 for path in saved)  # the workers saved before they left
    process = start(tmp_path, plan, "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    assert json.loads(out.splitlines()[-1]) == {"event": "finished", "complete": 3}
    assert_same(folder, long_alone, make_plan(LONG))


# --- Dask ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each a process of its own; gives the scheduler's file and the workers."""
    pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    options = ["--scheduler-file", str(file)]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--no-dashboard", "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", *options, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        wait_until(lambda: file.exists() and file.stat().st_size > 0)
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        yield file, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@posix
@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker(tmp_path, cluster, long_alone):
    file, workers = cluster
    runs, folder = make_plan(LONG), tmp_path / "sweep"

    def kill_one():
        wait_until(lambda: trains(folder, 2))
        workers[0].kill()
        workers[0].wait()

    with sweeps.dask_executor(str(file)) as executor:
        executor._client.wait_for_workers(2, timeout=60)
        killer = threading.Thread(target=kill_one)
        killer.start()
        outcomes = sb.sweep(runs, folder, executor=executor)
        killer.join()
    assert workers[0].poll() == -signal.SIGKILL and workers[1].poll() is None
    assert [o.status for o in outcomes] == ["complete"] * 3, outcomes
    assert_same(folder, long_alone, runs)


def gather(run, tmp_path, address):
    """A sweep on a cluster whose workers write elsewhere."""
    plan, runs = write_plan(tmp_path / "plan.toml", PLAN), make_plan(PLAN)
    told = run("sweep", plan, "--out", "sweep", "--dask", address, "--gather", "--json", "--quiet")
    assert told.code == 0, told.err
    assert json.loads(told.out.splitlines()[-1]) == {"event": "finished", "complete": 8}
    assert_same(tmp_path / "sweep", trained_alone(runs, tmp_path / "alone"), runs)


@posix
@pytest.mark.slow
def test_dask_workers_without_a_shared_folder(tmp_path, cluster, run):
    gather(run, tmp_path, cluster[0])


@pytest.mark.slow
def test_a_dask_cluster_in_this_process(tmp_path, run):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        gather(run, tmp_path, cluster.scheduler_address)


def test_a_cluster_that_is_not_there(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda **given: client(**{**given, "timeout": "0.2s"}))
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        with sweeps.dask_executor("tcp://127.0.0.1:9"):
            pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"stablebptt\[dask\]"):
        with sweeps.dask_executor("tcp://127.0.0.1:9"):
            pass


# --- where scripts come from, and executors that break -----------------------------------------------------------

SCRIPT = """
import json, sys
import stablebptt as sb
from stablebptt.tasks.sweeps import make_plan

outcomes = sb.sweep(make_plan(json.loads(PLAN)), "out", jobs=2)
print([outcome.status for outcome in outcomes])
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["standard input", "script"])
def test_a_script_needs_no_main_guard(tmp_path, source):
    counts = {"train_count": 4, "test_count": 4, "epochs": 1, "seed": "0:2"}
    plan = {"task": "cartpole", "options": {"steps": 4, "hidden": [4]}, "train": counts}
    text = SCRIPT.replace("PLAN", repr(json.dumps(plan)))
    (tmp_path / "script.py").write_text(text)
    words, given = (["script.py"], None) if source == "script" else (["-"], text)
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, input=given, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['complete', 'complete']\n", "")


class Breaking(Executor):
    """Does its work at once, and breaks at its n-th submit."""

    def __init__(self, good):
        self.good, self.sent = good, []

    def submit(self, function, *arguments):
        if len(self.sent) == self.good:
            raise BrokenProcessPool("a worker died")
        self.sent.append(arguments)
        future = Future()
        future.set_result(function(*arguments))
        return future


def works(config, path):
    return sweeps.Outcome(os.path.basename(path), "complete")


@pytest.mark.parametrize("limit", [1, 2, 8])
@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_worker_that_dies_between_a_completion_and_the_next_submit(tmp_path, good, limit):
    runs, made, told = make_plan(PLAN), [], []

    def make():
        made.append(Breaking(good if len(made) < 3 else 100))
        return made[-1]

    driving = drive.Drive(tmp_path, works, len(runs), {}, told.append)
    driving.run(runs, make, limit, attempts=4)
    assert {name: outcome.status for name, outcome in driving.ended.items()} == {run.name: "complete" for run in runs}
    assert len(made) == (3 if good == 3 else 4) and told[-1].count("complete") == 8  # of 8 runs, 2 x 3 before the third
    assert sum(progress.ended is not None for progress in told) == 8


def test_an_executor_that_stays_broken_ends_a_sweep_with_its_runs_failed(tmp_path, monkeypatch):
    runs = make_plan(PLAN)
    monkeypatch.setattr(drive, "trained", works)
    outcomes = sb.sweep(runs, tmp_path, executor=Breaking(3))
    assert [outcome.status for outcome in outcomes].count("complete") == 3
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert len(failed) == 5 and all("a worker died" in outcome.message for outcome in failed)
    driving = drive.Drive(tmp_path, works, len(runs), {}, None)
    made = []
    driving.run(runs, lambda: made.append(Breaking(0)) or made[-1], 2, attempts=3)
    assert {outcome.status for outcome in driving.ended.values()} == {"failed"} and len(made) <= 1 + 3 * len(runs)


def test_a_new_pool_waits_until_the_workers_of_a_broken_one_have_left(monkeypatch):
    done = []

    class Pool:
        def __init__(self, *arguments):
            done.append("made")

        def shutdown(self, wait, cancel_futures=False):
            done.append("left" if wait else "abandoned")

    monkeypatch.setattr(workers, "_Pool", Pool)
    with workers.local_workers(1) as make:
        make(), make()
    assert done[:3] == ["made", "left", "made"]


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(tmp_path, run):
    plan = write_plan(tmp_path / "plan.toml", PLAN)
    listed = run("sweep", plan, "--out", "s", "--dry-run")
    assert listed.code == 0 and "8 runs, about" in listed.out and not (tmp_path / "s").exists()
    assert listed.out.count("cartpole-") == 8
    one = run("sweep", plan, "--out", "s", "--task-index", 3, "--json")
    assert json.loads(one.out)["name"] == make_plan(PLAN)[3].name and len(list((tmp_path / "s").iterdir())) == 1
    for words, code, message in (
        ([plan, "--out", "s"], 5, "holds 1 run of"),
        (["--out", "s"], 2, "either a plan or --paper"),
        ([plan, "--out", "s", "--paper", "all"], 2, "either a plan or --paper"),
        ([plan, "--out", "s", "--task-index", 8], 2, "task index is 8"),
        ([plan, "--out", "s", "--seeds", "x"], 2, "seed is 'x'"),
        ([plan, "--out", "s", "--jobs", 0], 2, "jobs is 0"),
        ([plan, "--out", "s", "--gather"], 2, "--dask"),
        (["absent.toml", "--out", "s"], 5, "absent.toml"),
        ([plan, "--out", plan], 5, "is not a folder"),
        (["--paper", "fusion", "--out", "s"], 2, "unknown paper"),
    ):
        result = run("sweep", *words)
        assert result.code == code and result.err.count("\n") == 1 and message in result.err, (words, result)
    whole = run("sweep", plan, "--out", "s", "--resume", "--seeds", "0", "--jobs", 1)
    assert whole.code == 0, whole
    assert "4 of 4 runs done" in whole.err and whole.out.count("complete") == 4


@pytest.mark.slow
def test_the_command_says_what_diverged(tmp_path, run):
    plan = write_plan(tmp_path / "plan.toml", WILD)
    result = run("sweep", plan, "--out", "s", "--quiet", "--jobs", 1)
    assert result.code == 3 and result.err == "stablebptt: 1 of 2 runs diverged\n", result
    shutil.rmtree(tmp_path / "s")
    result = run("sweep", plan, "--out", "s", "--quiet", "--task-index", 0)
    assert result.code == 3 and "status: diverged" in result.out
