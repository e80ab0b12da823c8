"""Many runs as one resumable job: a folder with one file per run, and any executor to send them to."""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import storage
from stablebptt.data.atomic import check_folder, expanded
from stablebptt.tasks import arguments, custom, variants
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import GATES, stream
from stablebptt.tasks.settings import Settings, join_source, settings_of, sources
from stablebptt.tasks.sweeps.plans import Planned, problem_of_run, read_plan
from stablebptt.tasks.sweeps.workers import (
    ABSENT,
    COMPLETE,
    DIVERGED,
    FAILED,
    Outcome,
    cores,
    gathered,
    local_workers,
    outcome_of,
    trained,
    worked,
)  # fmt: skip

ATTEMPTS = 5  # of a run whose worker died


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep stands; `ended` is the run that just ended, if one did, `share` that of the running ones that is done.

    Attributes
    ----------
    total : runs of the plan
    outcomes : of the runs that have ended
    running : how many are under way
    seconds_left : estimate; NaN before anything is known
    ended : the run that just ended, or None
    share : of the running ones, that is done

    Examples
    --------
    >>> progress = SweepProgress(2, (Outcome("a.h5", "complete"),), running=1, seconds_left=30.0)
    >>> progress.count("complete")
    1
    """

    total: int
    outcomes: tuple[Outcome, ...]
    running: int
    seconds_left: float
    ended: Outcome | None = None
    share: float = 0.0

    def count(self, *statuses: str) -> int:
        """How many runs have ended with one of these statuses.

        Parameters
        ----------
        statuses : such as "complete", "failed"
        """
        return sum(outcome.status in statuses for outcome in self.outcomes)


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
    out : folder, created if missing

    Returns
    -------
    list of Outcome, in the order of the plan

    Raises
    ------
    FileExistsError
        If `out` holds runs of this plan and `resume` is not given.
    RuntimeError
        If it is called by a module that is just imported for a sweep: a sweep would start a sweep.

    Examples
    --------
    >>> plan = {"task": "pendulum", "options": {"steps": 5, "hidden": [5]},
    ...         "train": {"variant": ["R", "C"], "epochs": 1, "train_count": 8, "test_count": 8}}
    >>> outcomes = sb.sweep(sb.tasks.sweeps.make_plan(plan), "folder", jobs=1)
    >>> [outcome.status for outcome in outcomes]
    ['complete', 'complete']
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
    work = worked if executor is None else gathered if gather else trained
    drive = Drive(folder, work, len(runs), ended, report)
    if executor is not None:
        drive.run(todo, lambda: executor, len(todo), 1)
    elif todo:
        count = min(arguments.whole("jobs", jobs or cores(), 1), len(todo))
        _check_sources(todo)
        _compile(todo)
        with local_workers(count) as make:
            drive.run(todo, make, count, ATTEMPTS)
    return [drive.ended[planned.name] for planned in runs]


def run_one(planned: Planned, out: str | Path, *, retry_failed: bool = False) -> Outcome:
    """Train one run of a plan in this process; what is complete, or has failed before, is left alone.

    Parameters
    ----------
    planned : the run
    out : folder, created if missing
    retry_failed : also try a run again that diverged or failed before

    Examples
    --------
    >>> plan = {"task": "pendulum", "options": {"steps": 5, "hidden": [5]},
    ...         "train": {"epochs": 1, "train_count": 8, "test_count": 8}}
    >>> run_one(make_plan(plan)[0], "folder").status
    'complete'
    """
    folder = expanded(out)
    _make_folder(folder)
    known = outcome_of(folder / planned.name)
    if known.status in _skipped(retry_failed):
        return known
    return trained(planned.config, str(folder / planned.name))


@dataclass
class Drive:
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
        except Exception as error:  # of the executor: `trained` itself reports what goes wrong
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
        running = [planned for future, (planned, _) in self.flying.items() if future.running()]
        remaining = [planned for planned, _ in (*self.flying.values(), *self.waiting)]
        left = sum(self._expected(planned) for planned in remaining) / max(len(running), 1)
        share = sum(map(self._share, running)) / max(len(running), 1)
        self.report(SweepProgress(self.total, tuple(self.ended.values()), len(running), left, outcome, share))

    def _share(self, planned: Planned) -> float:
        """Of the epochs of a run, those that its file holds, which is written now and then."""
        path = self.folder / planned.name
        try:
            return _epochs_in(path, path.stat().st_mtime_ns) / max(planned.config["epochs"], 1)
        except OSError:  # there is none yet
            return 0.0

    def _expected(self, planned: Planned) -> float:
        """Seconds of a run, from those of its task (or of all) that are done; NaN at first."""
        known = self.seconds.get(planned.config["task"]) or [s for each in self.seconds.values() for s in each]
        return float(np.mean(known)) if known else float("nan")


@lru_cache
def _epochs_in(path: Path, stamp: int) -> int:
    """How many epochs the file of a run holds that was written at a time `stamp`."""
    return outcome_of(path).epochs


@dataclass(frozen=True)
class Estimate:
    """Seconds that runs would take on one core, by name; and those of compiling their code, or of loading it.

    Attributes
    ----------
    runs : seconds by the name of the run
    compiling : seconds

    Examples
    --------
    >>> Estimate({"a.h5": 2.0}, compiling=8.0).runs["a.h5"]
    2.0
    """

    runs: dict[str, float]
    compiling: float


def estimate(
    runs: Iterable[Planned], out: str | Path | None = None, *, resume: bool = False, retry_failed: bool = False
) -> Estimate:
    """What a sweep would take, from a few updates of every kind of run, which are compiled first.

    With `resume` only what is left to do in the folder `out` counts.

    Parameters
    ----------
    runs : of a plan
    out : folder of runs that are done
    resume, retry_failed : as in `sweep`

    Examples
    --------
    >>> plan = {"task": "pendulum", "options": {"steps": 5, "hidden": [5]}, "train": {"epochs": 1}}
    >>> len(estimate(make_plan(plan)).runs)
    1
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
        per_epoch = updates + evaluation / settings.evaluate_every
        found[planned.name] = (settings.epochs - known.epochs) * measured[kind] * per_epoch
    return Estimate(found, compiling)


def _skipped(retry_failed: bool) -> tuple[str, ...]:
    """What a resumed sweep leaves alone."""
    return (COMPLETE,) if retry_failed else (COMPLETE, DIVERGED, FAILED)


def _update_seconds(config: dict[str, Any], settings: Settings) -> float:
    made = problem_of_run(config)
    theta, x0 = made.init(), made.sample(settings.batch_size)
    gates = variants.gates_of(settings.variant, made, stream(settings.seed, GATES))
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


def _check_sources(runs: list[Planned]) -> None:
    """Refuse functions that other processes cannot find."""
    configs = [run.config for run in runs]
    named = [config["options"].get("source") for config in configs] + [join_source(config["variant"]) for config in configs]
    named += [source for config in configs for source in sources(config["optimizer"])]
    source = next((s for s in named if s is not None and s.startswith("__main__:")), None)
    if source is not None:
        advice = "put it into a file of its own"
        raise ArgumentError(f"{source} is in the running script, where worker processes do not look; {advice}")


def _compile(runs: list[Planned]) -> None:
    """Compile once, into the cache on disk, what the workers are going to load."""
    kinds = {(planned.config["task"], planned.config["options"]["dtype"]): planned.config for planned in runs}
    for config in kinds.values():
        made = problem_of_run(config)
        theta, x0 = made.init(), made.sample(1)
        next(made.engine.gradients([theta], [x0], variants.gates_of("C", made)))
        made.losses(theta, x0)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Executor of a Dask cluster, by the scheduler's address or by its file; the connection ends with the block.

    Parameters
    ----------
    address : of the scheduler, or its file

    Raises
    ------
    ValueError
        If the package distributed is not installed.
    OSError
        If there is no such cluster.

    Examples
    --------
    >>> with dask_executor("tcp://scheduler:8786") as executor:  # doctest: +SKIP
    ...     sb.sweep("plan.toml", "folder", executor=executor)
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
