"""One computation on many threads: the bits are those of one thread, whatever else happens."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.adjoint.generics import control_vjp, cost_vjp, step_vjp
from stablebptt.adjoint.rollout import group_bounds
from stablebptt.kernels.core import threads
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.core.structs import Struct, StructArray
from stablebptt.kernels.generics import Controller, Loss, System, control, cost, step
from stablebptt.tasks import cpu

COUNTS = (1, 2, 3, 8)
BATCHES = (1, 7, 8, 33, 130)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Share out the smallest work, too."""
    monkeypatch.setattr(cpu, "PART_WORK", 1)


class Swing(System):
    """A swing with two controls that refuses to turn over."""

    dt: float


@implements(step, Swing)
def _step(system, x, c, x_next):
    if x[0] > 3:
        raise ValueError("turned over")
    x_next[1] = x[1] + system.dt * (c[0] - math.sin(x[0]))
    x_next[0] = x[0] + system.dt * (x_next[1] + c[1])


@implements(step_vjp, Swing)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        rate = lam[v, 1] + system.dt * lam[v, 0]
        lam_x[v, 0] += lam[v, 0] - system.dt * math.cos(x[0]) * rate
        lam_x[v, 1] += rate
        lam_c[v, 0] += system.dt * rate
        lam_c[v, 1] += system.dt * lam[v, 0]


class Still(Loss):
    """Half the square of the angle."""


@implements(cost, Still)
def _cost(loss, x):
    return x[0] * x[0] / 2


@implements(cost_vjp, Still)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += cost_bar * x[0]


class Gains(Controller):
    """Each control is a gain times a number of the state."""

    def layout(self):
        return {"kernel": (2,)}


@implements(control, Gains)
def _control(controller, theta, x, c):
    for q in range(2):
        c[q] = theta[q] * x[q]


@implements(control_vjp, Gains)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    for q in range(2):
        theta_bar[q] += c_bar[q] * x[q]
        x_bar[q] += c_bar[q] * theta[q]


def swing(dtype="float64"):
    number = np.dtype(dtype).type
    return sb.problem(
        system=Swing(number(0.1)), controller=Gains(), loss=Still(), state_shape=(2,), control_shape=(2,), steps=6, dt=0.1,
        sample=lambda random, count: random.uniform(-1, 1, (count, 2)), dtype=dtype,
    )  # fmt: skip


PROBLEMS = {
    "cart-pole": lambda dtype: sb.problem("cartpole", poles=2, steps=40, hidden=(37, 21), dtype=dtype),
    "guidance": lambda dtype: sb.problem("guidance", steps=20, hidden=(17,), dtype=dtype),
    "quantum": lambda dtype: sb.problem("quantum", steps=20, points=9, width=4, dtype=dtype),
    "own": swing,
}


def computed(problem, batch, variant, count):
    """All numbers of a gradient, and losses and paths, on some threads."""
    theta, x0 = problem.init(1), problem.sample(batch)
    g = problem.gradient(theta, x0, variant, threads=count)
    path = problem.rollout(theta, x0, threads=count)
    losses = problem.losses(theta, x0, threads=count)
    return [g.value, g.norm2, g.loss.total, g.loss.physics, g.cosine, *losses, path.states, path.controls]


@pytest.mark.parametrize(("name", "dtype"), [("cart-pole", "float32"), ("guidance", "float32")])
def test_bits_are_those_of_one_thread(name, dtype):
    check_bits(PROBLEMS[name](dtype), BATCHES[1:4], "C")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_bits_of_everything(name, dtype):
    check_bits(PROBLEMS[name](dtype), BATCHES, "RMC")


def check_bits(problem, batches, variants):
    for batch in batches:
        for variant in variants:
            alone = computed(problem, batch, variant, 1)
            for count in COUNTS[1:]:
                for here, there in zip(alone, computed(problem, batch, variant, count)):
                    np.testing.assert_array_equal(here, there, err_msg=f"{batch} samples, {variant}, {count} threads")
            works = [work for [work] in problem.engine._works.gradients.values()]
            assert {len(work.bounds) - 1 for work in works} >= {min(count, len(group_bounds(batch)) - 1) for count in COUNTS}
            problem.engine._works.gradients.clear()


def test_a_training_on_many_threads(tmp_path):
    problem = PROBLEMS["cart-pole"]("float32")
    settings = {"epochs": 2, "train_count": 21, "test_count": 10, "batch_size": 8}
    one, three = (sb.train(problem, "C", **settings, threads=count) for count in (1, 3))
    assert np.array_equal(one.theta, three.theta)
    for name in one.history:
        if name != "seconds":
            np.testing.assert_array_equal(one.history[name], three.history[name])
    seeds = sb.train_seeds(problem, [0, 1], "C", **settings, threads=2)
    assert np.array_equal(seeds[0].theta, one.theta)


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = "--poles 2 --steps 5 --hidden 4 --epochs 1 --train-count 8 --test-count 8 --quiet".split()
    for count in ("1", "2"):
        assert call("cartpole", "train", *train, "--threads", count, "--out", f"{count}.h5") == 0
        assert call("cartpole", "simulate", f"{count}.h5", "--threads", count, "--out", f"paths{count}.h5") == 0
    assert np.array_equal(sb.load("1.h5").theta, sb.load("2.h5").theta)
    assert call("cartpole", "train", *train, "--threads", "0", "--out", "no.h5") == 2


@pytest.mark.parametrize("count", [0, 257, 1.5, "many"])
def test_impossible_counts(count):
    problem = swing()
    with pytest.raises(ValueError, match="threads is"):
        problem.loss(problem.init(), problem.sample(2), threads=count)


def test_the_default(monkeypatch):
    monkeypatch.setenv("STABLEBPTT_THREADS", "3")
    assert threads.available() == 3
    with threads.limit(2), threads.limit(None):
        assert threads.available() == 2
    monkeypatch.delenv("STABLEBPTT_THREADS")
    assert 1 <= threads.available() <= (os.cpu_count() or 1)
    monkeypatch.setenv("STABLEBPTT_THREADS", "0")
    with pytest.raises(ValueError, match="STABLEBPTT_THREADS is '0'; give a whole number from 1 to 256"):
        threads.available()


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 7])
def test_an_error_in_the_users_code_reaches_the_caller(where):
    """In a part of another thread, too; and the next computation is as always."""
    problem = swing()
    theta, x0 = problem.init(1), problem.sample(8)
    good = computed(problem, 8, "C", 1)
    bad = x0.copy()
    bad[where, 0] = 4
    for count in COUNTS:
        for run in (problem.rollout, problem.gradient):
            with pytest.raises(ValueError, match="turned over"):
                run(theta, bad, threads=count)
        np.testing.assert_array_equal(computed(problem, 8, "C", count)[0], good[0])


def test_callers_at_once():
    """One of them has the threads, the others work alone."""
    problems = [PROBLEMS["cart-pole"]("float32") for _ in range(3)]
    alone, found = computed(problems[0], 33, "C", 1), {}

    def work(number):
        for _ in range(20):
            found.setdefault(number, []).append(computed(problems[number], 33, "C", 2)[0].copy())

    callers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 3 and all(np.array_equal(value, alone[0]) for values in found.values() for value in values)


def test_a_system_without_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "crew", threads.Crew())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    problem = PROBLEMS["cart-pole"]("float32")
    for count in COUNTS:
        np.testing.assert_array_equal(computed(problem, 8, "C", count)[0], computed(problem, 8, "C", 1)[0])
    assert not threads.crew.threads


def test_threads_that_have_ended_are_not_missed(monkeypatch):
    monkeypatch.setattr(threads, "crew", threads.Crew())
    problem = PROBLEMS["cart-pole"]("float32")
    before = computed(problem, 8, "C", 3)
    threads.crew.end()
    assert not any(thread.is_alive() for thread in threads.crew.threads)
    np.testing.assert_array_equal(computed(problem, 8, "C", 3)[0], before[0])


def test_idle_threads_park(monkeypatch):
    monkeypatch.setattr(threads, "crew", threads.Crew())
    problem = PROBLEMS["cart-pole"]("float32")
    before, crew = computed(problem, 8, "C", 3), threads.crew
    deadline = time.monotonic() + 60
    while crew.words[threads.PARKED] < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert crew.words[threads.PARKED] == 2
    np.testing.assert_array_equal(computed(problem, 8, "C", 3)[0], before[0])
    crew.end()


FORKED = """
import os, sys
import numpy as np
import stablebptt as sb
from stablebptt.kernels.core import threads
from stablebptt.tasks import cpu
cpu.PART_WORK = 1
problem = sb.problem("cartpole", poles=2, steps=40, hidden=(37, 21))
theta, x0 = problem.init(1), problem.sample(33)
before = problem.gradient(theta, x0, "C", threads=2).value
if os.fork() == 0:  # with a crew whose threads do not live here
    again = problem.gradient(theta, x0, "C", threads=2).value
    sys.exit(0 if np.array_equal(before, again) and len(threads.crew.threads) == 1 else 7)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
FOREVER = """
import stablebptt as sb
from stablebptt.tasks import cpu
cpu.PART_WORK = 1
problem = sb.problem("cartpole", poles=2, steps=40, hidden=(37, 21))
theta, x0 = problem.init(1), problem.sample(33)
problem.gradient(theta, x0, "C", threads=2)
print("begun", flush=True)
while True:
    problem.gradient(theta, x0, "C", threads=2)
"""


def process(script):
    folder = str(Path(sb.__file__).parents[1])
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": folder}, **how)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_computes():
    child = process(FORKED)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 0, told


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_process_and_its_threads():
    child = process(FOREVER)
    try:
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode in (1, -signal.SIGINT) and told.rstrip().endswith("KeyboardInterrupt")


class Numbers(Struct):
    """Some numbers."""

    values: np.ndarray


def test_an_array_of_structs_has_one_type():
    array = StructArray([Numbers(np.zeros(3)), Numbers(np.ones(5))])
    assert [len(each.values) for each in array] == [3, 5]
    with pytest.raises(TypeError, match="must have one type"):
        StructArray([Numbers(np.zeros(3)), Numbers(np.zeros(3, np.float32))])
