"""Results that outlive their run files, in small files that later runs are merged into; docs/sweeps.md. Needs no kernels."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import results, run_file
from stablebptt.data.atomic import expanded, locked
from stablebptt.data.results import POINTS, Result
from stablebptt.data.run_file import EVERY_EPOCH, Content
from stablebptt.tasks.collecting import check_known, threshold
from stablebptt.tasks.families import UNFINISHED, facts, outcome

NEW, REPLACED, AS_BEFORE = "kept_new", "kept_replaced", "kept_as_before"
LENGTH = ("epochs", *EVERY_EPOCH)  # of a configuration: what does not change the epochs that two runs share


def result_of(run: Content) -> Result:
    """What is kept of a run file."""
    versions = _versions(run.attributes.get("versions"))
    words = {
        "status": run.status,
        "version": str(versions.get("stablebptt", "unknown")),
        "versions": json.dumps(versions),
        "git_commit": str(run.attributes.get("git_commit", "")),
    }
    best_epoch, best = run_file.best(run.history)
    below = threshold(run)
    solved = run.history["epoch"][run.history["test_loss"] < below]
    numbers = {
        "epochs": len(run.history["epoch"]),
        "last_test_loss": run_file.last(run.history)[1],
        "best_test_loss": best,
        "best_epoch": best_epoch,
        "solved_below": below,
        "first_epoch_solved": int(solved[0]) if solved.size else -1,
        "seconds": float(run.history["seconds"].sum()),
    }
    return Result(run.config, words, numbers, thinned(run.history))


def _versions(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def thinned(history: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most `POINTS` evaluated epochs of a history, at equal distances back from the last one."""
    known = np.flatnonzero(run_file.evaluated(history))
    every = max(1, -(-len(known) // POINTS))
    chosen = known[::-1][::every][::-1]
    with np.errstate(over="ignore"):  # what is too large for the file becomes infinite
        curves = {name: history[name][chosen].astype(np.float32) for name in results.CURVES}
    return {"epoch": history["epoch"][chosen].astype(np.int32), **curves}


def identity(result: Result) -> str:
    """What a run is: its configuration with the seed, whatever its length and however often it was evaluated."""
    return json.dumps({name: value for name, value in result.config.items() if name not in LENGTH}, sort_keys=True)


def length(result: Result) -> float:
    """Epochs that a run shows: those planned if it came to an end, even by diverging; else those done."""
    return result.numbers["epochs"] if outcome(result) == UNFINISHED else result.config["epochs"]


def merged(kept: Iterable[Result], given: Iterable[Result]) -> tuple[list[Result], Counter[str]]:
    """Results with new ones among them, in an order of their own, and how many are new, replaced or as before.

    No run is there twice. One that is given again takes the place of the other, unless it shows fewer epochs.
    """
    found = {identity(result): result for result in kept}
    counts = Counter({NEW: 0, REPLACED: 0, AS_BEFORE: 0})
    for result in given:
        other = found.get(name := identity(result))
        if other is not None and (length(result) < length(other) or same(result, other)):
            counts[AS_BEFORE] += 1
            continue
        counts[NEW if other is None else REPLACED] += 1
        found[name] = result
    return sorted(found.values(), key=_place), counts


def same(one: Result, other: Result) -> bool:
    """Whether two results say the same."""
    curves = all(np.array_equal(values, other.history[name], equal_nan=True) for name, values in one.history.items())
    numbers = np.array_equal([*one.numbers.values()], [*other.numbers.values()], equal_nan=True)
    return curves and numbers and (one.config, one.words) == (other.config, other.words)


def _place(result: Result) -> tuple[str, int, str]:
    """The kind of run, then the seed, as a number."""
    return identity(Result({**result.config, "seed": 0}, {}, {}, {})), result.config["seed"], identity(result)


def keep(runs: Iterable[Content], folder: str | Path) -> dict[str, int]:
    """Merge what is kept of run files into the results in a folder, one file per task; counts of runs by what became of them."""
    place = expanded(folder)
    place.mkdir(parents=True, exist_ok=True)
    by_task: dict[str, list[Result]] = {}
    for run in runs:
        by_task.setdefault(run.config["task"], []).append(result_of(run))
    counts: Counter[str] = Counter()
    for task, given in by_task.items():
        counts += merge_into(place / f"{task}.h5", given)
    return {name: counts[name] for name in (NEW, REPLACED, AS_BEFORE)}


def merge_into(path: Path, given: Iterable[Result]) -> Counter[str]:
    """Merge results into a file, which is left as it is if they change nothing; counts of runs by what became of them."""
    with locked(path):
        found, counts = merged(load(path) if path.exists() else [], given)
        if counts[NEW] or counts[REPLACED]:
            results.save(path, found, [facts(result) for result in found], f"results of {path.stem}")
    return counts


def load(path: Path) -> list[Result]:
    """The results in a file, checked.

    Raises
    ------
    FileFormatError
        If the file is damaged or foreign, or a configuration makes no problem.
    """
    found = results.load(path)
    for result in found:
        check_known(result, path)
    return found
