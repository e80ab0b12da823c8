"""Compilation on all cores: forked processes compile kernels into the cache, where this process finds them.

    queue    0 1 2 ..        numbers of the pieces that nobody has taken yet, in a pipe; this process takes some, too

Whatever a child does not manage is compiled here when it is called, and this process tells what is wrong with it.
"""

import _thread
import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from numba.core import config

from stablebptt.kernels.core import threads
from stablebptt.kernels.core.cache import usable_folder

Entry = tuple[Any, tuple[Any, ...]]  # a kernel and the Numba types of its arguments
PATIENCE = 120.0  # seconds that a child may take longer than this process
DIE_WITH_PARENT = 1  # of Linux's prctl
STOPS = (signal.SIGINT, signal.SIGTERM)


def compile_ahead(pieces: Sequence[Sequence[Entry]]) -> None:
    """Compile kernels that the cache does not hold yet, on all cores that computations may use.

    pieces : kernels that have much in common are compiled by one process
    """
    if not _may_fork():
        return
    missing = [piece for piece in pieces if any(kernel._cache.lacks(kernel, kinds) for kernel, kinds in piece)]
    count = min(len(missing), threads.available())
    if count < 2:
        return
    queue, entrance = os.pipe()
    os.write(entrance, bytes(range(len(missing))))
    os.close(entrance)
    children: list[int] = []
    try:
        with contextlib.suppress(OSError):  # the system refuses more processes
            for _ in range(count - 1):
                _begin_child(children, queue, missing)
        _compile(queue, missing)
        _await(children)
    finally:
        os.close(queue)
        for child in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _may_fork() -> bool:
    """Whether a forked process would work: another thread could hold a lock, which nobody would open in the child.

    Our own threads are no exception: they may be compiling what they serve.
    """
    if sys.platform != "linux" or _thread._count() > 0 or "jax" in sys.modules:  # JAX warns of every fork
        return False
    return not vars(config)["DISABLE_JIT"] and usable_folder() is not None


def _begin_child(children: list[int], queue: int, pieces: Sequence[Sequence[Entry]]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # so that a child is known, or handles them itself
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's threads sleep, and are prepared for a fork
            child = os.fork()
        if child == 0:
            _be_child(queue, pieces)
        children.append(child)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_child(queue: int, pieces: Sequence[Sequence[Entry]]) -> NoReturn:
    """Compile silently; a stop, or the parent's end, ends it at once."""
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        _compile(queue, pieces)
    finally:
        os._exit(0)


def _compile(queue: int, pieces: Sequence[Sequence[Entry]]) -> None:
    while number := os.read(queue, 1):
        for kernel, kinds in pieces[number[0]]:
            kernel.compile(kinds)


def _await(children: list[int]) -> None:
    """Wait for the children, but not for ever; those that end leave the list."""
    end = time.monotonic() + PATIENCE
    while children and time.monotonic() < end:
        children[:] = [child for child in children if not _has_ended(child)]
        time.sleep(0.005)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:  # somebody else has waited for it
        return True
