"""Runs that look for the reason where the results differ from the paper: the published settings with one thing changed.

``python docs/reproduction/why.py --out FOLDER [QUESTION ..]`` trains what is missing and merges what has ended into the folder
`why` beside this file, from which ``make_page.py`` makes a table of the page.
"""

import argparse
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stablebptt as sb
from stablebptt.data.results import Result
from stablebptt.tasks import collecting, keeping
from stablebptt.tasks.families import UNFINISHED, outcome
from stablebptt.tasks.registry import TASKS

RESULTS = Path(__file__).resolve().parent / "why"
SEEDS = range(3)
CLIP, EVALUATE_EVERY = "norm", 5


@dataclass(frozen=True)
class Question:
    """What is asked of a task: the options that make it as hard, the variants, and the epochs that show it."""

    task: str
    options: dict[str, Any]
    variants: str
    epochs: int


@dataclass(frozen=True)
class Change:
    """What differs from the published settings: options of the problem, and of the training."""

    options: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.001
    epsilon: float = 1e-7
    data: int = 0  # added to the seed, but for that of the weights


QUESTIONS = {
    "one pole": Question("cartpole", {"poles": 1}, "RC", 500),
    "two poles": Question("cartpole", {"poles": 2}, "RCMS", 500),
    "target 4": Question("quantum", {"target": 4}, "RCMS", 60),
}
CHANGES = {
    "as published": Change(),
    "Glorot last kernel": Change({"output_init": "glorot"}),
    "float64": Change({"dtype": "float64"}),
    "learning rate 0.0003": Change(rate=0.0003),
    "learning rate 0.003": Change(rate=0.003),
    "epsilon 1e-5": Change(epsilon=1e-5),
    "epsilon 1e-8": Change(epsilon=1e-8),
    "other states and order": Change(data=1000),
}


def defaults(task: str) -> dict[str, Any]:
    """The published options of a task."""
    return {option.name: option.default for option in TASKS[task].options}


def changes(question: Question) -> dict[str, Change]:
    """What changes something: the last kernel of quantum control is Glorot's as published."""
    published = {**defaults(question.task), **question.options}
    same = {name for name, change in CHANGES.items() if change.options and change.options.items() <= published.items()}
    return {name: change for name, change in CHANGES.items() if name not in same}


def train(question: Question, change: Change, variant: str, seed: int, path: Path) -> None:
    """One run; a diverged one keeps its file."""
    problem = sb.problem(question.task, **question.options, **change.options)
    how: dict[str, Any] = {"resume": True, "progress": False, "threads": 1, "clip": CLIP, "evaluate_every": EVALUATE_EVERY}
    how |= {"optimizer": sb.optimizers.adam(change.rate, epsilon=change.epsilon), "start": problem.init(seed)}
    try:
        sb.train(problem, variant, question.epochs, seed + change.data, path, **how)
    except sb.DivergedError as error:
        print(f"{path}: {error}", flush=True)


def read(folder: Path = RESULTS) -> dict[tuple[str, str], dict[str, list[Result]]]:
    """Results by question and change; then by variant."""
    found: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for path in sorted(folder.glob("*.h5")):
        for result in keeping.load(path):
            found.setdefault(place_of(result.config), {}).setdefault(result.config["variant"], []).append(result)
    return found


def place_of(config: dict[str, Any]) -> tuple[str, str]:
    """The question and the change that make a configuration."""
    options, optimizer = config["options"], config["optimizer"]
    for (asked, question), (changed, change) in itertools.product(QUESTIONS.items(), CHANGES.items()):
        wanted = {**defaults(question.task), **question.options, **change.options}
        same = all(options.get(name) == wanted[name] for name in (*question.options, "output_init", "dtype"))
        rates = (optimizer["learning_rate"], optimizer["epsilon"]) == (change.rate, change.epsilon)
        if config["task"] == question.task and same and rates and config["seed"] - change.data in SEEDS:
            return asked, changed
    raise ValueError(f"no question has the configuration {config}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=list(QUESTIONS), help=f"of {', '.join(QUESTIONS)}; default: all")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for asked in given.questions:
        place, question = given.out / asked, QUESTIONS[asked]
        place.mkdir(parents=True, exist_ok=True)
        for seed, (changed, change), variant in itertools.product(SEEDS, changes(question).items(), question.variants):
            train(question, change, variant, seed, place / f"{changed}, {variant}, seed {seed}.h5")
        runs, problems = collecting.load_runs(place)
        print(place, keeping.keep([run for run in runs if outcome(run) != UNFINISHED], RESULTS), *problems, flush=True)


if __name__ == "__main__":
    main()
