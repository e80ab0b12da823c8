"""Results of runs: what they were, how they ended, and a thinned history; many runs in one small file, without weights.

docs/files.md describes the layout. `storage` writes and checks the file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import columns, run_file, storage
from stablebptt.data.run_file import HISTORY, RESULTS_FORMAT
from stablebptt.data.storage import FileFormatError, Group, Variable

POINTS = 200  # of a history, at most
CURVES = ("loss", "train_loss", "test_loss", "gradient_norm2", "cosine")
NUMBERS = {
    "epochs": "epochs done",
    "last_test_loss": "last test loss that was computed",
    "best_test_loss": "lowest test loss",
    "best_epoch": "epoch of the lowest test loss; 0: none was finite, -1: not known",
    "solved_below": "test loss below which the task counts as solved",
    "first_epoch_solved": "first evaluated epoch with a test loss below solved_below; -1: none",
    "seconds": "wall time of all epochs",
}
WHOLE = ("epochs", "best_epoch", "first_epoch_solved")
WORDS = {
    "status": "how the run ended: complete, diverged and where, or what it was when its file was read",
    "version": "of the package that computed the run",
    "versions": "of all programs (JSON)",
    "git_commit": "of the package, if it was a checkout",
}


@dataclass(frozen=True)
class Result:
    """What is kept of a run.

    Attributes
    ----------
    config : configuration of the run
    words : see `WORDS`
    numbers : see `NUMBERS`
    history : epoch (points,) and the columns `CURVES` of a run file at these epochs, the last evaluated one included
    """

    config: dict[str, Any]
    words: dict[str, str]
    numbers: dict[str, float]
    history: dict[str, np.ndarray]

    @property
    def status(self) -> str:
        return self.words["status"]


def save(path: str | Path, results: list[Result], told: list[dict[str, Any]], title: str) -> None:
    """Write results, as a whole.

    `told` has columns for readers of the file: facts of every run by name. The package itself reads only `config`.
    """
    group: Group = {name: columns.words(meaning, [r.words[name] for r in results]) for name, meaning in WORDS.items()}
    group |= {name: _numbers(name, [result.numbers[name] for result in results]) for name in NUMBERS}
    group["seed"] = columns.numbers("seed", [result.config["seed"] for result in results])
    for fact in dict.fromkeys(name for facts in told for name in facts):
        column = columns.name_of("epochs planned" if fact == "epochs" else fact, group)
        group[column] = columns.anything(column.replace("_", " "), [facts.get(fact) for facts in told], column)
    configs = [json.dumps(result.config) for result in results]
    group["config"] = columns.letters("configuration of the run, in letters of UTF-8 (JSON)", "config_letter", configs)
    content = {"runs": group, "histories": _histories(results)}
    storage.write(path, storage.encode(run_file.table_attributes(title, RESULTS_FORMAT), content))


def _numbers(name: str, values: Iterable[float]) -> Variable:
    found = columns.numbers(NUMBERS[name], values, "s" if name == "seconds" else "1")
    return Variable(found.values.astype(np.int64 if name in WHOLE else np.float64), ("run",), found.units, found.long_name)


def _histories(results: list[Result]) -> Group:
    """Histories as arrays (runs, points); behind the end of the shorter ones the epoch is 0, and everything else NaN."""
    shape = len(results), max(1, *(len(result.history["epoch"]) for result in results)) if results else 1
    epochs = np.zeros(shape, np.int32)
    group = {"epoch": Variable(epochs, ("run", "point"), "1", f"{HISTORY['epoch']}; 0: no point")}
    for name in CURVES:
        group[name] = Variable(np.full(shape, np.nan, np.float32), ("run", "point"), "1", HISTORY[name])
    for number, result in enumerate(results):
        for name, values in result.history.items():
            group[name].values[number, : len(values)] = values
    return group


def load(path: str | Path) -> list[Result]:
    """The results in a file.

    Raises
    ------
    FileFormatError
        If the file is damaged, foreign, of a later version, or incomplete.
    """
    attributes, groups = storage.read(path, (RESULTS_FORMAT,))
    if (version := attributes.get("format_version")) != run_file.FORMAT_VERSION:
        raise FileFormatError(f"{path} has results of version {version}; this program reads version {run_file.FORMAT_VERSION}")
    try:
        return _results(groups["runs"], groups["histories"])
    except KeyError as error:
        raise FileFormatError(f"{path} lacks {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} holds no results ({error})") from None


def _results(runs: Group, histories: Group) -> list[Result]:
    """The results in two groups; a KeyError, TypeError or ValueError if they are none."""
    configs = [json.loads(text) for text in columns.cells(runs["config"])]
    words = {name: columns.cells(runs[name]) for name in WORDS}
    numbers = {name: runs[name].values for name in NUMBERS}
    curves = {name: histories[name].values for name in ("epoch", *CURVES)}
    count = len(configs)
    if any(len(column) != count or not all(isinstance(word, str) for word in column) for column in words.values()):
        raise ValueError("a column of words does not belong to the runs")
    if any(column.shape != (count,) for column in numbers.values()):
        raise ValueError("a column of numbers does not belong to the runs")
    points = curves["epoch"].shape[-1]
    if points > POINTS or any(values.shape != (count, points) for values in curves.values()):
        raise ValueError("the histories do not belong to the runs")
    return [
        Result(
            _checked(config),
            {name: column[k] for name, column in words.items()},
            {name: column[k].item() for name, column in numbers.items()},
            _history({name: values[k] for name, values in curves.items()}),
        )
        for k, config in enumerate(configs)
    ]


def _checked(config: Any) -> dict[str, Any]:
    """A configuration with all that tells runs apart."""
    known: dict[str, Any] = {"task": str, "options": dict, "variant": (str, list), "clip": str, "seed": int, "epochs": int}
    if not isinstance(config, dict) or not all(isinstance(config.get(name), kind) for name, kind in known.items()):
        raise ValueError("a configuration is none")
    return {**run_file.EVERY_EPOCH, **config}


def _history(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A row of the histories without what is behind its end."""
    epochs = row["epoch"]
    count = int((epochs > 0).sum())
    if epochs.dtype.kind not in "iu" or (np.diff(epochs[:count].astype(np.int64)) <= 0).any() or (epochs[:count] < 1).any():
        raise ValueError("the epochs of a history do not grow")
    return {name: values[:count] for name, values in row.items()}
