"""Many runs that differ only in the seed, advanced together; docs/gpu.md, section 4."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stablebptt.data.atomic import expanded
from stablebptt.tasks import arguments, bars, starts
from stablebptt.tasks.callbacks import several
from stablebptt.tasks.errors import ArgumentError, DivergedError
from stablebptt.tasks.problems import LARGEST_SEED, Problem
from stablebptt.tasks.runs import Progress, Run, check_options, resumed
from stablebptt.tasks.settings import CHECKPOINT_SECONDS, OPTIONS, Settings, make_settings
from stablebptt.tasks.starts import NOTHING, Start
from stablebptt.tasks.task import document
from stablebptt.tasks.training import ActiveRun, advance, check_problem, check_training, usable

Report = Callable[[int, Progress], Any] | Sequence[Callable[[int, Progress], Any]]
# Writing a file takes about 30 ms. With this pause per run, writing takes at most 1 % of the time.
SECONDS_PER_FILE = 3.0


def train_seeds(
    problem: Problem,
    seeds: Sequence[int],
    variant: Any = Settings.variant,
    epochs: int = Settings.epochs,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Report | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    start: Any = None,
    train_states: Any = None,
    test_states: Any = None,
    **settings: Any,
) -> list[Run | DivergedError]:
    """Train one controller per seed. Each run equals that of `train` with its seed alone, bit for bit.

    Parameters
    ----------
    seeds : different whole numbers
    out : folder for the run files ``seed_0.h5``, ..; created if missing
    report : called with a seed and its `Progress` after every epoch, or several such functions; ``sb.Stop`` ends this seed's run
    checkpoint_seconds : time between writes of a run file [s]; longer with many runs, so writing takes at most 1 % of the time
    problem, variant, epochs, resume, force, progress, threads, start, train_states, test_states, **settings : as in `train`

    Returns
    -------
    Run or DivergedError of every seed, in the order of `seeds`. A run that diverges does not end the others.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> runs = sb.train_seeds(problem, range(3), epochs=2, train_count=8, test_count=8)
    >>> [run.config["seed"] for run in runs]
    [0, 1, 2]
    """
    check_problem(problem)
    begun = starts.make(problem, start, train_states, test_states)
    chosen = make_settings(variant=variant, epochs=epochs, seed=Settings.seed, **begun.counts() | settings)
    how: dict[str, Any] = {"resume": resume, "force": force, "checkpoint_seconds": checkpoint_seconds, "threads": threads}
    return train_runs(problem, seeds, chosen, out, report=report, progress=progress, start=begun, **how)


document(train_seeds, "Settings", OPTIONS.values())


def train_runs(
    problem: Problem,
    seeds: Sequence[int],
    settings: Settings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Report | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    start: Start = NOTHING,
    ended: Mapping[int, Callable[[Progress], Any] | None] | None = None,
) -> list[Run | DivergedError]:
    """`train_seeds` with settings and a start that are built already; only the seed of the settings is replaced.

    ended : by seed, what may stop a resumed run before its next epoch
    """
    settings = settings.within(problem.steps)
    numbers = [arguments.whole("seed", seed, 0, LARGEST_SEED) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ArgumentError(f"seeds are {list(seeds)}; give one or more different whole numbers")
    by_seed = {seed: replace(settings, seed=seed) for seed in numbers}
    check_training(problem, by_seed[numbers[0]], checkpoint_seconds, start)
    if out is not None:
        check_options(problem)
    paths = _paths(out, numbers, resume=resume, force=force)
    for seed, path in paths.items():  # check all files before the first is changed
        if path is not None and resume and path.exists():
            resumed(path, problem, by_seed[seed], start)
    pause = max(checkpoint_seconds, SECONDS_PER_FILE * len(numbers)) if len(numbers) > 1 else checkpoint_seconds
    with arguments.threads(threads), bars.epochs(several(report), progress, settings.epochs * len(numbers)) as told:
        reports = {seed: None if told is None else partial(told, seed) for seed in numbers}
        how: dict[str, Any] = {"resume": resume, "checkpoint_seconds": pause, "start": start}
        stops = ended or {}
        active = [
            ActiveRun(problem, by_seed[seed], paths[seed], report=reports[seed], ended=stops.get(seed), **how) for seed in numbers
        ]
        return advance(active)


def _paths(out: str | Path | None, seeds: list[int], *, resume: bool, force: bool) -> dict[int, Path | None]:
    """A file for every seed."""
    if out is None:
        return dict.fromkeys(seeds)
    folder = expanded(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; several seeds need a folder, for a run file each")
    folder.mkdir(parents=True, exist_ok=True)
    _allow_files(len(seeds))
    return {seed: usable(folder / f"seed_{seed}.h5", resume=resume, force=force) for seed in seeds}


def _allow_files(count: int) -> None:
    """Raise the limit of open files: every run holds the lock of its file open."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < count + 256:
            most = count + 256 if hard == resource.RLIM_INFINITY else min(hard, count + 256)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
