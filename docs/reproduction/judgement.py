"""The published runs among the results, and what pairs of one seed say about the paper's claims."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data.results import Result
from stablebptt.tasks import keeping
from stablebptt.tasks.families import COMPLETE, UNFINISHED, outcome
from stablebptt.tasks.registry import TASKS, title
from stablebptt.tasks.settings import Settings

VARIANTS, CLIPS = ("R", "M", "C", "S"), ("norm", "value", "none")
EPOCHS = 1000
CLIPPING = "reproduction-{}-clipping.png"  # the figure of a task
NAMES = {"guidance": "Guidance", "cartpole": "Cart-pole", "quantum": "Quantum"}
# What makes each task harder, from easy to hard, and how many seeds are planned with clipping by norm.
LEVELS: dict[str, tuple[str, tuple[float, ...]]] = {
    "guidance": ("regularization", (1.0, 0.1, 0.01, 0.001)),
    "cartpole": ("poles", (1, 2, 3, 4)),
    "quantum": ("target", (3, 4, 5)),
}
# What may differ among the runs that are judged.
FREE = ("task", "options", "variant", "clip", "seed", "evaluate_every", "backend")
PUBLISHED_SEED = 0
SEEDS = {"guidance": 10, "cartpole": 10, "quantum": 5}
FLOOR = 1e-6  # of losses in ratios: 1 - cos in float32 has steps of 6e-8, and a loss of 0 no logarithm
RESAMPLES = 10_000
MOST_SIGNS = 12  # whose choices are all tried
LIMIT, FEWEST = 0.05, 6  # of chance, and pairs that can get below it (five of five: 1 in 16)
WIDTH, POWER = 1.96, 0.84  # normal quantiles: of a 95 % interval, and of a chance of 80 %
MOST_SEEDS = 1000  # that are worth a number


@dataclass(frozen=True)
class Results:
    """Results with the published settings by (task, level, variant, clip) and seed, and how many others there are."""

    runs: dict[tuple[str, float, str, str], dict[int, Result]]
    others: int

    def of(self, task: str, level: float, variant: str, clip: str = "norm") -> dict[int, Result]:
        return self.runs.get((task, level, variant, clip), {})

    def all(self) -> list[Result]:
        return [result for alike in self.runs.values() for result in alike.values()]

    def ended(self, task: str, level: float, variant: str) -> list[Result]:
        """Runs that are complete or have diverged, clipped by norm."""
        return [result for result in self.of(task, level, variant).values() if outcome(result) != UNFINISHED]

    def published(self, task: str, level: float, variant: str, clip: str) -> Result | None:
        """The run of the published grid, which has one seed, if it has ended."""
        found = self.of(task, level, variant, clip).get(PUBLISHED_SEED)
        return None if found is None or outcome(found) == UNFINISHED else found

    def clipped_tasks(self) -> list[str]:
        """Tasks of which a published run is there that is not clipped by norm."""
        others = [place for place in self.runs if place[-1] != "norm" and self.published(*place) is not None]
        return [task for task in LEVELS if any(task == place[0] for place in others)]

    def levels(self, task: str) -> list[float]:
        """Levels of a task, from easy to hard, of which there is a run."""
        return [level for level in LEVELS[task][1] if any(self.ended(task, level, variant) for variant in VARIANTS)]


def read(folder: Path) -> Results:
    """All results in a folder."""
    found: dict[tuple[str, float, str, str], dict[int, Result]] = {}
    others = 0
    for path in sorted(folder.glob("*.h5")):
        for result in keeping.load(path):
            config = result.config
            if not _published(config):
                others += 1
                continue
            place = (config["task"], config["options"][LEVELS[config["task"]][0]], config["variant"], config["clip"])
            found.setdefault(place, {})[config["seed"]] = result
    return Results(found, others)


def _published(config: dict[str, Any]) -> bool:
    """Whether a run has the published settings, whatever is `FREE`. What it does not say is newer than it, and as published."""
    if config["task"] not in LEVELS or config["variant"] not in VARIANTS:
        return False
    wanted = {**Settings().describe(), "epochs": EPOCHS}
    defaults = {option.name: option.default for option in TASKS[config["task"]].options}
    return _agrees(_without(config, FREE), wanted) and _agrees(_without(config["options"], LEVELS[config["task"]][:1]), defaults)


def _agrees(table: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether everything that a table says is as wanted; lists and tuples are the same."""
    return json.dumps(table, sort_keys=True) == json.dumps({name: wanted.get(name) for name in table}, sort_keys=True)


def _without(table: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def level_name(task: str, level: float) -> str:
    """The level of a task in words: "2 poles", "rho 0.01", "target 4"."""
    defaults = {option.name: option.default for option in TASKS[task].options}
    return title({"task": task, "options": {**defaults, LEVELS[task][0]: level}}).rpartition(", ")[2]


def last(result: Result) -> float:
    """The last test loss, not below `FLOOR`; infinite if the run has diverged."""
    return max(result.numbers["last_test_loss"], FLOOR) if outcome(result) == COMPLETE else math.inf


def last_training(result: Result) -> float:
    """As `last`, of the training states."""
    return max(float(result.history["train_loss"][-1]), FLOOR) if outcome(result) == COMPLETE else math.inf


def solved(result: Result) -> bool:
    """Whether a run ever got below its task's threshold."""
    return result.numbers["first_epoch_solved"] > 0


def epochs_until_solved(result: Result) -> float:
    """The epoch in which a run was solved; all epochs if it never was, which is the least that it would have taken."""
    return result.numbers["first_epoch_solved"] if solved(result) else EPOCHS


Measure = Callable[[Result], float]


def log_ratios(results: Results, task: str, level: float, pair: Sequence[str], measure: Measure = last) -> dict[int, float]:
    """Logarithm of the ratio of what was measured for two variants, by seed."""
    one, other = ({r.config["seed"]: measure(r) for r in results.ended(task, level, variant)} for variant in pair)
    return {seed: math.log(one[seed] / other[seed]) for seed in sorted(one) if seed in other}


@dataclass(frozen=True)
class Mean:
    """A mean of paired differences.

    Attributes
    ----------
    values, mean : one per seed; and their mean
    low, high : its 95 % bootstrap interval (percentiles)
    chance : of so large a mean if the two of every pair are swapped at random
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    chance: float

    @property
    def below(self) -> int:
        return sum(value < 0 for value in self.values)

    @property
    def needed(self) -> float:
        """Seeds whose interval would exclude 0 with a chance of 80 %, if mean and spread are those of these."""
        if self.mean == 0:
            return math.inf
        return max(FEWEST, np.ceil(((WIDTH + POWER) * np.std(self.values, ddof=1) / self.mean) ** 2))

    @property
    def verdict(self) -> str:
        """Whether the values are below 0."""
        if self.chance < LIMIT and self.high < 0:
            return "agrees"
        if self.chance < LIMIT and self.low > 0:
            return "does not"
        return "undecided"


def mean_of(values: Iterable[float]) -> Mean:
    """The mean of paired differences; nothing but they decides its interval."""
    given = np.array(list(values), np.float64)
    picks = np.random.default_rng(0).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.percentile(given[picks].mean(axis=1), [2.5, 97.5])
    return Mean(tuple(given.tolist()), float(given.mean()), float(low), float(high), _chance(given))


def _chance(given: np.ndarray) -> float:
    """Share of all choices of signs that give a mean as far from 0; of more than `MOST_SIGNS` values, of `RESAMPLES` choices."""
    if len(given) > MOST_SIGNS:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(RESAMPLES, len(given)))
    else:
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=len(given))))
    return float(np.mean(np.abs(signs @ given) >= abs(given.sum()) * (1 - 1e-9)))


def comparison(results: Results, task: str, level: float, pair: Sequence[str], measure: Measure = last) -> Mean | None:
    """The mean logarithm of the ratio of two variants; None if no seed has both."""
    values = log_ratios(results, task, level, pair, measure)
    return mean_of(values.values()) if values else None


def trend(results: Results, task: str, pair: Sequence[str], measure: Measure = last) -> Mean | None:
    """Change of the logarithm of the ratio from one level to the next harder one, over seeds that have all; None if none has."""
    columns = [log_ratios(results, task, level, pair, measure) for level in LEVELS[task][1]]
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    steps = np.arange(len(columns)) - (len(columns) - 1) / 2
    slopes = [float(np.dot(steps, [column[seed] for column in columns]) / np.dot(steps, steps)) for seed in seeds]
    return mean_of(slopes) if slopes else None


Place = tuple[str, float, str, str]  # task, level, variant, clipping


def between(results: Results, pairs: Iterable[tuple[Place, Place]]) -> Mean | None:
    """The mean logarithm of the ratio of last losses of published runs, one value per pair; None if no pair is there."""
    both = ([results.published(*place) for place in pair] for pair in pairs)
    values = [math.log(last(one) / last(other)) for one, other in both if one is not None and other is not None]
    return mean_of(values) if values else None
