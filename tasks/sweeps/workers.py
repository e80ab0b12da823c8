"""The runs of a sweep in worker processes: what trains one, and how it ended."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stablebptt.data import run_file, storage
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import training
from stablebptt.tasks.callbacks import STOPPED
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.places import behind
from stablebptt.tasks.runs import Progress
from stablebptt.tasks.settings import settings_of
from stablebptt.tasks.sweeps.plans import problem_of_run

SINGLE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
COMPLETE, DIVERGED, FAILED, INTERRUPTED, BUSY, ABSENT = "complete", "diverged", "failed", "interrupted", "busy", "absent"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "complete", "diverged", "failed", "interrupted" or "busy" (another process writes it).

    Attributes
    ----------
    name : of the run file
    status : one of these words, or "absent" before the run begins
    epochs, seconds : done, and the time they took
    test_loss, best_test_loss : of the last epoch, and the lowest
    message : why it diverged or failed, or was stopped

    Examples
    --------
    >>> Outcome("run.h5", "complete", epochs=10).status
    'complete'
    """

    name: str
    status: str
    epochs: int = 0
    test_loss: float = float("nan")
    best_test_loss: float = float("nan")
    seconds: float = 0.0
    message: str = ""


def outcome_of(path: Path) -> Outcome:
    """What the files of a run say of it.

    Parameters
    ----------
    path : of the run file, a `Path`

    Examples
    --------
    >>> from pathlib import Path
    >>> outcome_of(Path("none.h5")).status
    'absent'
    """
    if not path.exists():
        note = note_of(path)
        return Outcome(path.name, FAILED, message=note.read_text("utf-8")) if note.is_file() else Outcome(path.name, ABSENT)
    try:
        content = run_file.load(path)
    except FileFormatError as error:
        return Outcome(path.name, FAILED, message=str(error))
    state, _, message = content.status.partition(": ")
    if state == STOPPED:
        return ended(path.name, COMPLETE, content.history, content.status)
    status = state if state in (COMPLETE, DIVERGED) else INTERRUPTED
    return ended(path.name, status, content.history, message)


def note_of(path: Path) -> Path:
    """Where it is kept why a run failed."""
    return path.with_suffix(".error.txt")


def ended(name: str, status: str, history: Mapping[str, np.ndarray], message: str = "") -> Outcome:
    if not (epochs := len(history["epoch"])):
        return Outcome(name, status, message=message)
    (_, loss), (_, lowest) = run_file.last(history), run_file.best(history)
    return Outcome(name, status, epochs, loss, lowest, float(history["seconds"].sum()), message)


class Worker:
    """A process of a local sweep. It saves what it does and leaves when the sweep ends, dies, or breaks."""

    def __init__(self, stop: Any, parent: int) -> None:
        self.stop, self.parent, self.terminated = stop, parent, False
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
        signal.signal(signal.SIGTERM, self.terminate)
        self.busy = False
        threading.Thread(target=self.end_with_parent, daemon=True).start()

    def end_with_parent(self) -> None:
        """Leave a dead parent, when no run is under way."""
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        while self.busy:
            time.sleep(1)
        os._exit(1)

    def terminate(self, number: int, frame: Any) -> None:
        if not self.busy:
            os._exit(128 + number)
        self.terminated = True

    @property
    def is_alone(self) -> bool:
        return self.terminated or os.getppid() != self.parent

    def train(self, config: dict[str, Any], path: str) -> Outcome:
        self.busy = True
        outcome = trained(config, path)
        if self.is_alone:
            os._exit(1)  # nobody waits for the outcome; the file is written
        self.busy = False
        return outcome


_worker: Worker | None = None


def begin_worker(stop: Any, parent: int) -> None:
    global _worker
    _worker = Worker(stop, parent)


def worked(config: dict[str, Any], path: str) -> Outcome:
    assert _worker is not None
    return _worker.train(config, path)


def _watch(progress: Progress) -> None:
    """End the run, with its file, if the sweep has ended."""
    if _worker is not None and (_worker.is_alone or _worker.stop.is_set()):
        raise KeyboardInterrupt


def trained(config: dict[str, Any], path: str) -> Outcome:
    """Train, or go on with, one run."""
    place = Path(path)
    try:
        made = problem_of_run(config)
        run = training.train_run(made, settings_of(config), place, resume=True, report=_watch, threads=1)
        note_of(place).unlink(missing_ok=True)
        return ended(place.name, run.status, run.history)
    except BlockingIOError as error:
        return Outcome(place.name, BUSY, message=str(error))
    except (DivergedError, KeyboardInterrupt):
        outcome = outcome_of(place)
        return outcome if outcome.status != ABSENT else Outcome(place.name, INTERRUPTED)  # before there was a file
    except Exception as error:
        message = f"{type(error).__name__}: {error}{behind(error)}"
        if not isinstance(error, OSError):
            storage.write(note_of(place), message.encode())
        return Outcome(place.name, FAILED, message=message)


def gathered(config: dict[str, Any], path: str) -> tuple[Outcome, bytes | None]:
    """`trained` in a folder of the worker's own, and the file's content."""
    with tempfile.TemporaryDirectory(prefix="stablebptt-") as folder:
        place = Path(folder) / Path(path).name
        outcome = trained(config, str(place))
        return outcome, place.read_bytes() if place.exists() else None


class _Interrupts:
    """SIGINT and SIGTERM raise one KeyboardInterrupt; as a context, not before its end.

    An interrupt that meets the start of a process leaves one behind that nobody ends. One that meets the join of a thread lets
    Python take it for ended: the exit of the program then waits for workers that nobody tells to go.
    """

    def __init__(self) -> None:
        self.held = self.came = self.raised = False

    def __call__(self, number: int, frame: Any) -> None:
        self.came = True
        if not self.held:
            self._raise()

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, *_: Any) -> None:
        self.held = False
        if self.came:
            self._raise()

    def _raise(self) -> None:
        if not self.raised:
            self.raised = True
            raise KeyboardInterrupt


class _Pool(ProcessPoolExecutor):
    """Processes that do not run the user's script again: it may have no main guard, or be the standard input."""

    interrupts: _Interrupts

    def submit(self, *arguments: Any, **more: Any) -> Future:  # starts processes, which would run what is called __main__
        script = sys.modules["__main__"]
        with self.interrupts, _deaf():
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                return super().submit(*arguments, **more)
            finally:
                sys.modules["__main__"] = script


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here hear no Ctrl-C from the terminal, which is the parent's affair."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def local_workers(count: int) -> Iterator[Callable[[], Executor]]:
    """Makes pools of processes with one thread each; when the block ends, runs that are under way save and end."""
    context = multiprocessing.get_context("spawn")
    stop, interrupts = context.Event(), _Interrupts()
    pools: list[_Pool] = []
    before = {name: os.environ.get(name) for name in SINGLE_THREAD}
    os.environ.update(SINGLE_THREAD)

    def make() -> Executor:
        with interrupts:
            for broken in pools:
                broken.shutdown(wait=True)  # those of its workers that live save their runs and leave them to others
        pools.append(_Pool(count, context, begin_worker, (stop, os.getpid())))
        pools[-1].interrupts = interrupts
        return pools[-1]

    main = threading.current_thread() is threading.main_thread()  # the only one that is interrupted
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if main and callable(signal.getsignal(n))]
    handlers = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield make
    finally:
        try:
            with interrupts:
                stop.set()
                for pool in pools:
                    pool.shutdown(wait=True, cancel_futures=True)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def cores() -> int:
    """Cores that this process may use.

    Examples
    --------
    >>> cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
