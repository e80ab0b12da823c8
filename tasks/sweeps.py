"""Many runs as one resumable job: a plan, a folder with one file per run, and any executor to send them to."""

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stablebptt.data import run_file, storage
from stablebptt.data.atomic import check_folder, expanded
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import arguments, custom, problem, training, variants
from stablebptt.tasks.errors import ArgumentError, DivergedError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.runs import Progress, problem_of
from stablebptt.tasks.settings import Settings, settings_in_words, settings_of
from stablebptt.tasks.task import LISTS, Task

PAPER = {name: task.published for name, task in TASKS.items() if task.published is not None}
PAPER_TRAINING = {"variant": ["R", "M", "C", "S"], "clip": ["none", "value", "norm"]}
USUAL_LISTS = ("hidden", "weights")  # arguments of a function of one's own whose value is a list
LONGEST_TITLE = 160  # letters of it in a file's name
SINGLE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
ATTEMPTS = 5  # of a run whose worker died
COMPLETE, DIVERGED, FAILED, INTERRUPTED, BUSY, ABSENT = "complete", "diverged", "failed", "interrupted", "busy", "absent"


@dataclass(frozen=True)
class Planned:
    """One run of a plan: its configuration, as the run file will hold it."""

    config: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is, in words that fit into a file name."""
        title = re.sub(r"[^A-Za-z0-9.]+", "-", problem_of(self.config, "plan").title)[:LONGEST_TITLE]
        words = [title.lstrip("-.") or self.config["task"], _variant(self.config), self.config["clip"]]
        return re.sub("-+", "-", "-".join([*words, f"seed{self.config['seed']}"]))

    @property
    def name(self) -> str:
        """Name of its file: the label, and a hash of the whole configuration."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()
        return f"{self.label}-{digest[:8]}.h5"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "complete", "diverged", "failed", "interrupted" or "busy" (another process writes it)."""

    name: str
    status: str
    epochs: int = 0
    test_loss: float = float("nan")
    best_test_loss: float = float("nan")
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep stands; `ended` is the run that just ended, if one did."""

    total: int
    outcomes: tuple[Outcome, ...]
    running: int
    seconds_left: float
    ended: Outcome | None = None

    def count(self, *statuses: str) -> int:
        return sum(outcome.status in statuses for outcome in self.outcomes)


def read_plan(path: str | Path, seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """The runs of a plan, a TOML file with `task` and the tables [options] and [train], seeds outermost.

    A task "module:function" or "file.py:function" is a function of one's own that makes a problem from the [options].

    Where a list is given for one value, all its values are run; "0:10" is the list 0 .. 9. `seeds` and `epochs` replace those
    of the plan.

    Raises
    ------
    ValueError, TypeError
        With what was given and what is allowed.
    """
    try:
        content = tomllib.loads(expanded(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} is not a TOML file: {error}") from None
    try:
        return make_plan(content, seeds, epochs)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"{path}: {error}") from None


def paper_plan(name: str, seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """The published runs of one task, or of "all" tasks (132)."""
    names = list(PAPER) if name == "all" else (arguments.choice("paper", name, (*PAPER, "all")),)
    plans = ({"task": each, "options": PAPER[each], "train": PAPER_TRAINING} for each in names)
    return [planned for plan in plans for planned in make_plan(plan, seeds, epochs)]


def make_plan(content: Mapping[str, Any], seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """`read_plan` of the file's content."""
    unknown = sorted(set(content) - {"task", "options", "train"})
    if unknown:
        raise ArgumentError(f"unknown entry {unknown[0]!r}; a plan has task, [options] and [train]")
    if not isinstance(content.get("task"), str):
        raise ArgumentError("a plan needs a task, such as task = \"cartpole\"")
    for table in ("options", "train"):
        if not isinstance(content.get(table, {}), Mapping):
            raise ArgumentError(f"[{table}] must be a table")
    train = {"seed": 0, **content.get("train", {})}
    train |= {name: value for name, value in (("seed", seeds), ("epochs", epochs)) if value is not None}
    chosen = {"seed": train.pop("seed")}  # seeds vary slowest: the first runs show all variants
    axes = [_axis("train", name, value, content["task"]) for name, value in chosen.items()]
    axes += [_axis("options", name, value, content["task"]) for name, value in content.get("options", {}).items()]
    axes += [_axis("train", name, value, content["task"]) for name, value in train.items()]
    runs = {}
    for values in itertools.product(*(values for _, _, values in axes)):
        given: dict[str, dict[str, Any]] = {"options": {}, "train": {}}
        for (table, name, _), value in zip(axes, values):
            given[table][name] = value
        planned = Planned(_configuration(content["task"], given["options"], given["train"]))
        runs[planned.name] = planned
    return list(runs.values())


def sweep(
    plan: str | Path | Iterable[Planned],
    out: str | Path,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    gather: bool = False,
    report: Callable[[SweepProgress], None] | None = None,
) -> list[Outcome]:
    """Train all runs of a plan, each into its own file in the folder `out`.

    Parameters
    ----------
    plan : file, or what `read_plan` or `paper_plan` returned
    jobs : processes on this machine, each with one thread; all cores by default
    executor : any `concurrent.futures.Executor` to send the runs to instead; its workers must see `out`, unless `gather`
    resume : go on with a folder that holds runs of this plan: complete runs are skipped, broken off ones resumed
    retry_failed : also try runs again that diverged or failed before
    gather : workers keep the files and send them back when they are complete
    report : called with a `SweepProgress` now and then, and whenever a run ends

    Returns
    -------
    list of Outcome, in the order of the plan

    Raises
    ------
    FileExistsError
        If `out` holds runs of this plan and `resume` is not given.
    RuntimeError
        If it is called by a module that is just imported for a sweep: a sweep would start a sweep.
    """
    if custom.importing:
        raise RuntimeError(
            f"sb.sweep is called while {custom.importing[-1]} is imported; put the call under: if __name__ == \"__main__\":"
        )
    runs = read_plan(plan) if isinstance(plan, str | Path) else list(plan)
    folder = expanded(out)
    _make_folder(folder)
    known = {planned.name: outcome_of(folder / planned.name) for planned in runs}
    started = [name for name, outcome in known.items() if outcome.status != ABSENT]
    if started and not resume:
        advice = "go on with resume=True, or choose another folder"
        raise FileExistsError(f"{folder} holds {len(started)} run{'s' * (len(started) > 1)} of this plan; {advice}")
    skipped = _skipped(retry_failed)
    todo = [planned for planned in runs if known[planned.name].status not in skipped]
    ended = {name: outcome for name, outcome in known.items() if outcome.status in skipped}
    work = _worked if executor is None else _gathered if gather else _trained
    drive = _Drive(folder, work, len(runs), ended, report)
    if executor is not None:
        drive.run(todo, lambda: executor, len(todo), 1)
    elif todo:
        count = min(arguments.whole("jobs", jobs or cores(), 1), len(todo))
        _check_sources(todo)
        _compile(todo)
        with _local_workers(count) as make:
            drive.run(todo, make, count, ATTEMPTS)
    return [drive.ended[planned.name] for planned in runs]


def run_one(planned: Planned, out: str | Path, *, retry_failed: bool = False) -> Outcome:
    """Train one run of a plan in this process; what is complete, or has failed before, is left alone."""
    folder = expanded(out)
    _make_folder(folder)
    known = outcome_of(folder / planned.name)
    if known.status in _skipped(retry_failed):
        return known
    return _trained(planned.config, str(folder / planned.name))


def outcome_of(path: Path) -> Outcome:
    """What the files of a run say of it."""
    if not path.exists():
        note = _note(path)
        return Outcome(path.name, FAILED, message=note.read_text("utf-8")) if note.is_file() else Outcome(path.name, ABSENT)
    try:
        content = run_file.load(path)
    except FileFormatError as error:
        return Outcome(path.name, FAILED, message=str(error))
    state, _, message = content.status.partition(": ")
    status = state if state in (COMPLETE, DIVERGED) else INTERRUPTED
    return _outcome(path.name, status, content.history, message)


@dataclass(frozen=True)
class Estimate:
    """Seconds that runs would take on one core, by name; and those of compiling their code, or of loading it."""

    runs: dict[str, float]
    compiling: float


def estimate(
    runs: Iterable[Planned], out: str | Path | None = None, *, resume: bool = False, retry_failed: bool = False
) -> Estimate:
    """What a sweep would take, from a few updates of every kind of run, which are compiled first.

    With `resume` only what is left to do in the folder `out` counts.
    """
    measured: dict[str, float] = {}
    found, compiling = {}, 0.0
    for planned in runs:
        known = outcome_of(expanded(out) / planned.name) if resume and out is not None else Outcome(planned.name, ABSENT)
        if known.status in _skipped(retry_failed):
            continue
        config = planned.config
        settings = settings_of(config)
        kind = json.dumps([config["task"], config["options"], config["variant"], config["batch_size"]])
        if kind not in measured:
            begin = time.perf_counter()
            _compile([planned])
            compiling += time.perf_counter() - begin
            measured[kind] = _update_seconds(config, settings)
        updates = -(-settings.train_count // settings.batch_size)
        evaluation = 0.35 * (settings.train_count + settings.test_count) / settings.batch_size  # of an update each
        found[planned.name] = (settings.epochs - known.epochs) * measured[kind] * (updates + evaluation)
    return Estimate(found, compiling)


def _skipped(retry_failed: bool) -> tuple[str, ...]:
    """What a resumed sweep leaves alone."""
    return (COMPLETE,) if retry_failed else (COMPLETE, DIVERGED, FAILED)


def _made(config: dict[str, Any]) -> Problem:
    """The problem of a planned run."""
    return custom.remake(config["options"]) if config["task"] == custom.TASK else problem_of(config, "plan")


def _update_seconds(config: dict[str, Any], settings: Settings) -> float:
    made = _made(config)
    theta, x0 = made.init(), made.sample(settings.batch_size)
    gates = variants.gates(settings.variant, made.steps, made.dtype)
    next(made.engine.gradients([theta], [x0], gates))
    begin = time.perf_counter()
    for _ in range(5):
        next(made.engine.gradients([theta], [x0], gates))
    return (time.perf_counter() - begin) / 5


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder / "run.h5")


def _variant(config: Mapping[str, Any]) -> str:
    return config["variant"] if isinstance(config["variant"], str) else "schedule"


def _axis(table: str, name: str, value: Any, task: str) -> tuple[str, str, list[Any]]:
    """All values of one entry of a plan."""
    if isinstance(value, str) and (numbers := arguments.span(name, value)) is not None:
        return table, name, numbers
    if not isinstance(value, list):
        return table, name, [value]
    is_list = table == "options" and name in _lists(task)
    values = [value] if is_list and not any(isinstance(item, list) for item in value) else value
    if not values:
        raise ArgumentError(f"{name} is an empty list")
    return table, name, values


def _lists(task: str) -> tuple[str, ...]:
    """Names of the options of a task whose value is a list."""
    found = custom.find(task) if ":" in task else TASKS.get(task)
    return tuple(o.name for o in found.options if o.kind in LISTS) if isinstance(found, Task) else USUAL_LISTS


def _configuration(task: str, options: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    made = custom.from_source(task, **options) if ":" in task else problem(task, **options)
    settings = settings_in_words(train)
    variants.gates(settings.variant, made.steps)
    if made.backend != "cpu":
        advice = "a device trains many seeds together: train --seeds 0:132 --backend cuda"
        raise ArgumentError(f"a sweep computes on the CPU; {advice}")
    return {"task": made.task, "options": made.options, **settings.describe()}


def _note(path: Path) -> Path:
    """Where it is kept why a run failed."""
    return path.with_suffix(".error.txt")


def _outcome(name: str, status: str, history: Mapping[str, np.ndarray], message: str = "") -> Outcome:
    losses = history["test_loss"]
    if not len(losses):
        return Outcome(name, status, message=message)
    lowest = run_file.best(history)[1]
    return Outcome(name, status, len(losses), float(losses[-1]), lowest, float(history["seconds"].sum()), message)


# --- in a worker --------------------------------------------------------------------------------------------------

class _Worker:
    """A process of a local sweep. It saves what it does and leaves when the sweep ends, dies, or breaks."""

    def __init__(self, stop: Any, parent: int) -> None:
        self.stop, self.parent, self.terminated = stop, parent, False
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
        signal.signal(signal.SIGTERM, self.terminate)
        self.busy = False

    def terminate(self, number: int, frame: Any) -> None:
        if not self.busy:
            os._exit(128 + number)
        self.terminated = True

    @property
    def is_alone(self) -> bool:
        return self.terminated or os.getppid() != self.parent

    def train(self, config: dict[str, Any], path: str) -> Outcome:
        self.busy = True
        outcome = _trained(config, path)
        if self.is_alone:
            os._exit(1)  # nobody waits for the outcome; the file is written
        self.busy = False
        return outcome


_worker: _Worker | None = None


def _begin_worker(stop: Any, parent: int) -> None:
    global _worker
    _worker = _Worker(stop, parent)


def _worked(config: dict[str, Any], path: str) -> Outcome:
    assert _worker is not None
    return _worker.train(config, path)


def _watch(progress: Progress) -> None:
    """End the run, with its file, if the sweep has ended."""
    if _worker is not None and (_worker.is_alone or _worker.stop.is_set()):
        raise KeyboardInterrupt


def _trained(config: dict[str, Any], path: str) -> Outcome:
    """Train, or go on with, one run."""
    place = Path(path)
    try:
        made = _made(config)
        settings = settings_of(config)
        run = training.train(made, out=place, resume=True, report=_watch, **settings.given())
        _note(place).unlink(missing_ok=True)
        return _outcome(place.name, COMPLETE, run.history)
    except BlockingIOError as error:
        return Outcome(place.name, BUSY, message=str(error))
    except (DivergedError, KeyboardInterrupt):
        outcome = outcome_of(place)
        return outcome if outcome.status != ABSENT else Outcome(place.name, INTERRUPTED)  # before there was a file
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if not isinstance(error, OSError):
            storage.write(_note(place), message.encode())
        return Outcome(place.name, FAILED, message=message)


def _gathered(config: dict[str, Any], path: str) -> tuple[Outcome, bytes | None]:
    """`_trained` in a folder of the worker's own, and the file's content."""
    with tempfile.TemporaryDirectory(prefix="stablebptt-") as folder:
        place = Path(folder) / Path(path).name
        outcome = _trained(config, str(place))
        return outcome, place.read_bytes() if place.exists() else None


# --- where the sweep runs -----------------------------------------------------------------------------------------


@dataclass
class _Drive:
    """Sends runs to an executor and keeps account."""

    folder: Path
    work: Callable[..., Any]
    total: int
    ended: dict[str, Outcome]
    report: Callable[[SweepProgress], None] | None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    waiting: deque[tuple[Planned, int]] = field(default_factory=deque)  # with the attempts that are left
    flying: dict[Future, tuple[Planned, int]] = field(default_factory=dict)

    def run(self, todo: list[Planned], make: Callable[[], Executor], limit: int, attempts: int) -> None:
        """Run all, at most `limit` at a time; a run whose executor broke is tried again with a new one."""
        self.waiting.extend((planned, attempts) for planned in todo)
        executor = make()
        try:
            while self.waiting or self.flying:
                broken = self._send(executor, limit)
                done, _ = wait(self.flying, timeout=0.0 if broken else 1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    broken |= self._receive(future)
                if broken and self.waiting:
                    self.waiting.extend(self.flying.values())
                    self.flying.clear()
                    executor = make()
                if not done:
                    self._tell()
        except BaseException:
            for future in self.flying:
                future.cancel()
            raise

    def _send(self, executor: Executor, limit: int) -> bool:
        """Submit what may fly; whether the executor was found broken."""
        while self.waiting and len(self.flying) < limit:
            planned, left = self.waiting.popleft()
            try:
                future = executor.submit(self.work, planned.config, str(self.folder / planned.name))
            except BrokenExecutor as error:
                self._lose(planned, left, error)
                return True
            self.flying[future] = (planned, left)
        return False

    def _receive(self, future: Future) -> bool:
        """Note how a run ended; whether its executor broke."""
        planned, left = self.flying.pop(future)
        try:
            self._end(planned, self._kept(planned, future.result()))
        except BrokenExecutor as error:
            self._lose(planned, left, error)
            return True
        except Exception as error:  # of the executor: `_trained` itself reports what goes wrong
            self._end(planned, Outcome(planned.name, FAILED, message=f"{type(error).__name__}: {error}"))
        return False

    def _lose(self, planned: Planned, left: int, error: BrokenExecutor) -> None:
        """A run whose executor broke waits for its next attempt, if it has one."""
        if left > 1:
            self.waiting.append((planned, left - 1))
        else:
            self._end(planned, Outcome(planned.name, FAILED, message=f"its worker died, at the last attempt, too ({error})"))

    def _kept(self, planned: Planned, result: Any) -> Outcome:
        if isinstance(result, Outcome):
            return result
        outcome, content = result
        if content is not None:
            storage.write(self.folder / planned.name, content)
        return outcome

    def _end(self, planned: Planned, outcome: Outcome) -> None:
        self.ended[planned.name] = outcome
        if outcome.status == COMPLETE:
            self.seconds.setdefault(planned.config["task"], []).append(outcome.seconds)
        self._tell(outcome)

    def _tell(self, outcome: Outcome | None = None) -> None:
        if self.report is None:
            return
        running = sum(future.running() for future in self.flying)
        remaining = [planned for planned, _ in (*self.flying.values(), *self.waiting)]
        left = sum(self._expected(planned) for planned in remaining) / max(running, 1)
        self.report(SweepProgress(self.total, tuple(self.ended.values()), running, left, outcome))

    def _expected(self, planned: Planned) -> float:
        """Seconds of a run, from those of its task (or of all) that are done; NaN at first."""
        known = self.seconds.get(planned.config["task"]) or [s for each in self.seconds.values() for s in each]
        return float(np.mean(known)) if known else float("nan")


class _Pool(ProcessPoolExecutor):
    """Processes that do not run the user's script again: it may have no main guard, or be the standard input."""

    def submit(self, *arguments: Any, **more: Any) -> Future:  # starts processes, which would run what is called __main__
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return super().submit(*arguments, **more)
        finally:
            sys.modules["__main__"] = script


@contextmanager
def _local_workers(count: int) -> Iterator[Callable[[], Executor]]:
    """Makes pools of processes with one thread each; when the block ends, runs that are under way save and end."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pools: list[ProcessPoolExecutor] = []
    before = {name: os.environ.get(name) for name in SINGLE_THREAD}
    os.environ.update(SINGLE_THREAD)

    def make() -> Executor:
        for broken in pools:
            broken.shutdown(wait=True)  # those of its workers that live save their runs and leave them to others
        pools.append(_Pool(count, context, _begin_worker, (stop, os.getpid())))
        return pools[-1]

    try:
        yield make
    finally:
        stop.set()
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_sources(runs: list[Planned]) -> None:
    """Refuse functions that other processes cannot find."""
    source = next((s for run in runs if str(s := run.config["options"].get("source")).startswith("__main__:")), None)
    if source is not None:
        advice = "put it into a file of its own"
        raise ArgumentError(f"{source} is in the running script, where worker processes do not look; {advice}")


def _compile(runs: list[Planned]) -> None:
    """Compile once, into the cache on disk, what the workers are going to load."""
    kinds = {(planned.config["task"], planned.config["options"]["dtype"]): planned.config for planned in runs}
    for config in kinds.values():
        made = _made(config)
        theta, x0 = made.init(), made.sample(1)
        next(made.engine.gradients([theta], [x0], variants.gates("C", made.steps, made.dtype)))
        made.losses(theta, x0)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Executor of a Dask cluster, by the scheduler's address or by its file; the connection ends with the block.

    Raises
    ------
    ValueError
        If the package distributed is not installed.
    OSError
        If there is no such cluster.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ArgumentError("--dask needs the package distributed; install stablebptt[dask]") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters comes back as an error
    file = expanded(address)
    where = {"scheduler_file": str(file)} if file.exists() else {"address": address}
    with Client(**where, timeout="5s") as client:
        yield client.get_executor(pure=False)


