"""Many trainings that differ in nothing but the seed, advanced together; docs/gpu.md, section 4.

Every training is the one of `training.train`, step by step; only what it asks for is computed together with the others'.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stablebptt.data.atomic import expanded
from stablebptt.tasks import checks
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.problems import LARGEST_SEED, Problem
from stablebptt.tasks.settings import CHECKPOINT_SECONDS, Settings
from stablebptt.tasks.training import Ask, Progress, Run, Training, answers, begin, check_training, look, make_settings, usable
from stablebptt.tasks.variants import Gates

# While the device works for one half of the trainings, the host's optimizers work for the other.
LANES = 2
# Writing a file takes about 30 ms: with this pause per training, files take at most 1 % of the time.
SECONDS_PER_FILE = 3.0


class Lane:
    """Trainings that are computed together: by seed, each with what it asked for."""

    def __init__(self, problem: Problem, opened: Gates, number: int) -> None:
        self.problem, self.opened, self.number = problem, opened, number
        self.waiting: dict[int, tuple[Training, Ask]] = {}
        self.results: dict[int, Run | DivergedError] = {}
        self.turn: list[int] = []
        self.answers: Any = iter(())

    def start(self, seed: int, training: Training) -> None:
        """Let a training ask its first question."""
        self._advance(seed, training, partial(next, training))

    def launch(self) -> None:
        """Begin to compute what is asked for; trainings that ask for something else than the first wait for their turn."""
        first = next(iter(self.waiting.values()))[1]
        self.turn = [seed for seed, (_, ask) in self.waiting.items() if _alike(ask, first)]
        self.answers = answers(self.problem, self.opened, [self.waiting[seed][1] for seed in self.turn], self.number)

    def collect(self) -> None:
        """Give the answers to those who asked."""
        for seed, answer in zip(self.turn, self.answers):
            training, _ = self.waiting.pop(seed)
            self._advance(seed, training, partial(training.send, answer))

    def _advance(self, seed: int, training: Training, go_on: Callable[[], Ask]) -> None:
        try:
            self.waiting[seed] = training, go_on()
        except StopIteration as end:
            self.results[seed] = end.value
        except DivergedError as error:
            self.results[seed] = error


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
    report: Callable[[int, Progress], None] | None = None,
    **settings: Any,
) -> list[Run | DivergedError]:
    """Train one controller per seed; each becomes what `train` makes of its seed alone, bit by bit.

    Parameters
    ----------
    seeds : different whole numbers
    out : folder for the run files ``seed_0.h5``, ..; made if it is not there
    report : called with a seed and its `Progress` after every epoch
    checkpoint_seconds : with many trainings longer, so that files take at most 1 % of the time
    problem, variant, epochs, resume, force, **settings : as in `train`

    Returns
    -------
    Run or DivergedError of every seed, in their order. A training that diverges does not end the others.
    """
    numbers = [checks.whole("seed", seed, 0, LARGEST_SEED) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds are {list(seeds)}; give one or more different whole numbers")
    chosen = {seed: make_settings(variant=variant, epochs=epochs, seed=seed, **settings) for seed in numbers}
    opened = check_training(problem, chosen[numbers[0]], checkpoint_seconds)
    paths = _paths(out, numbers, resume, force)
    for seed, path in paths.items():  # all are looked at before the first is changed
        if path is not None and resume and path.exists():
            look(path, problem, chosen[seed])
    pause = max(checkpoint_seconds, SECONDS_PER_FILE * len(numbers)) if len(numbers) > 1 else checkpoint_seconds
    lanes = [Lane(problem, opened, number) for number in range(min(LANES, len(numbers)))]
    begun: list[Training] = []
    try:
        for place, seed in enumerate(numbers):
            told = None if report is None else partial(report, seed)
            begun.append(begin(problem, chosen[seed], opened, paths[seed], resume, pause, told))
            lanes[place % len(lanes)].start(seed, begun[-1])
        for lane in lanes:
            if lane.waiting:
                lane.launch()
        while any(lane.waiting for lane in lanes):
            for lane in lanes:
                if lane.waiting:
                    lane.collect()
                if lane.waiting:
                    lane.launch()
    finally:
        for training in begun:  # those that have not ended save what they have
            with contextlib.suppress(Exception):  # what ails one must not cost the others their files
                training.close()
    results = {seed: result for lane in lanes for seed, result in lane.results.items()}
    return [results[seed] for seed in numbers]


def _paths(out: str | Path | None, seeds: list[int], resume: bool, force: bool) -> dict[int, Path | None]:
    """A file for every seed."""
    if out is None:
        return dict.fromkeys(seeds)
    folder = expanded(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; several seeds need a folder, for a run file each")
    folder.mkdir(parents=True, exist_ok=True)
    _allow_files(len(seeds))
    return {seed: usable(folder / f"seed_{seed}.h5", resume, force) for seed in seeds}


def _allow_files(count: int) -> None:
    """Every training holds the lock of its file open: ask the system for as many."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < count + 256:
            most = count + 256 if hard == resource.RLIM_INFINITY else min(hard, count + 256)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _alike(ask: Ask, other: Ask) -> bool:
    return ask.what == other.what and ask.states.shape == other.states.shape
