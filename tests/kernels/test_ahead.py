"""Compilation on all cores, with stand-ins for kernels; every test runs in a process of its own, because this one has threads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stablebptt as sb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems compile in one process")
KERNELS = """
import _thread, os, signal, sys, threading, time, warnings
from pathlib import Path
from stablebptt.kernels.core import threads
from stablebptt.kernels.core.ahead import compile_ahead

PARENT = os.getpid()


class Kernel:
    def __init__(self, name, seconds=0.0, then=lambda: None):
        self.name, self.seconds, self.then, self._cache = name, seconds, then, self

    def lacks(self, dispatcher, kinds):
        return not Path(self.name).exists()

    def compile(self, kinds):
        Path(self.name + ".begun").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        self.then()
        Path(self.name).write_text(str(os.getpid()))


def ahead(*kernels, count=2):
    with threads.limit(count):
        compile_ahead([[(kernel, ())] for kernel in kernels])


def in_child(action):
    return lambda: action() if os.getpid() != PARENT else None


def fail():
    raise ValueError("it cannot be compiled")
"""
COLD = """
import stablebptt as sb
from stablebptt.kernels.core import cache

written, save = [], cache.KernelCache.save_overload
cache.KernelCache.save_overload = lambda *given: (written.append(given), save(*given))
problem = sb.problem("pendulum", steps=5, hidden=(5,))
found = problem.gradient(problem.init(), problem.sample(3), "C", threads=2)
print(found.value.tobytes().hex(), len(written))
"""


def begin(folder, script):
    environment = {**os.environ, "STABLEBPTT_CACHE_DIR": str(folder / "cache")}
    command, pipe = [sys.executable, "-c", KERNELS + script], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(folder, script):
    process = begin(folder, script)
    printed, told = process.communicate(timeout=60)
    return process.returncode, printed, told


def pids(folder, *names):
    return [int((folder / name).read_text()) for name in names]


def awaited(condition):
    """Wait until a condition holds, 20 s at most."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_gone(pid):
    """Whether a process has ended; nobody may have asked how."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN); "])
def test_processes_share_the_pieces(tmp_path, before):
    """Also in a process that does not want to hear of its children."""
    assert run(tmp_path, before + "ahead(*(Kernel(name, 0.5) for name in 'abcd'), count=2)")[0] == 0
    assert len(set(pids(tmp_path, *"abcd"))) == 2


def test_what_the_cache_holds_is_not_compiled(tmp_path):
    (tmp_path / "a").write_text("0")
    assert run(tmp_path, "ahead(*map(Kernel, 'abc'))")[0] == 0
    assert not (tmp_path / "a.begun").exists() and (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "script",
    [
        "ahead(*map(Kernel, 'abc'), count=1)",
        "ahead(Kernel('a'))",
        "threading.Thread(target=time.sleep, args=(0.5,)).start(); ahead(*map(Kernel, 'abc'))",
        "threads.crew._wake(1); time.sleep(0.2); ahead(*map(Kernel, 'abc'))",
        "_thread.start_new_thread(time.sleep, (1.0,)); time.sleep(0.2); ahead(*map(Kernel, 'abc'))",
        "sys.modules['jax'] = sys; ahead(*map(Kernel, 'abc'))",
        "os.environ['STABLEBPTT_CACHE_DIR'] = '/dev/null'; warnings.simplefilter('ignore'); ahead(*map(Kernel, 'abc'))",
    ],
)
def test_nothing_is_compiled_ahead(tmp_path, script):
    """With one thread, with one piece, beside other threads (ours may be compiling), with JAX, without a cache."""
    assert run(tmp_path, script) == (0, "", "") and not list(tmp_path.glob("*.begun"))


def test_a_mistake_is_told_by_this_process_alone(tmp_path):
    script = "ahead(Kernel('a', 1.0), Kernel('b', 0.2, in_child(fail)), Kernel('c', 0.2)); print('goes on')"
    assert run(tmp_path, script) == (0, "goes on\n", "")
    assert (tmp_path / "a").exists()
    status, _, told = run(tmp_path, "ahead(Kernel('d', 0.1, fail), Kernel('e', 0.1, fail))")
    assert status == 1 and told.count("it cannot be compiled") == 1


def test_a_child_may_be_killed(tmp_path):
    script = "ahead(*(Kernel(name, 0.3, in_child(lambda: os.kill(os.getpid(), 9))) for name in 'ab')); print('goes on')"
    assert run(tmp_path, script) == (0, "goes on\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_its_parent(tmp_path, number):
    process = begin(tmp_path, "ahead(Kernel('a', 60), Kernel('b', 60))")
    awaited(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("a.begun", "b.begun")))
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode != 0 and ("KeyboardInterrupt" in told) == (number == signal.SIGINT)
    awaited(lambda: all(map(is_gone, pids(tmp_path, "a.begun", "b.begun"))))


@pytest.mark.slow
def test_a_first_gradient_has_the_same_bits(tmp_path):
    """This process compiles alone, because the tests have threads."""
    environment = {**os.environ, "STABLEBPTT_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COLD]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout.split()
    problem = sb.problem("pendulum", steps=5, hidden=(5,))
    expected = problem.gradient(problem.init(), problem.sample(3), "C", threads=1)
    assert found[0] == expected.value.tobytes().hex()
    assert 0 < int(found[1]) < len(list(tmp_path.glob("*/*.bin")))  # some were compiled here, some in children


@pytest.mark.slow
def test_a_computation_with_threads_may_come_first(tmp_path):
    """Its threads compile what they serve, and a child forked beside them would wait for the compiler's lock for ever."""
    script = """
import stablebptt as sb

problem = sb.problem("cartpole", poles=2)
problem.losses(problem.init(), problem.sample(64), threads=2)
problem.gradient(problem.init(), problem.sample(8), "C", threads=2)
"""
    environment = {**os.environ, "STABLEBPTT_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, timeout=110, check=True)  # a child is awaited for longer
