"""Runs that belong together, since nothing but the seed tells them apart; and what tells the others apart. Needs no kernels."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from stablebptt.tasks.callbacks import STOPPED
from stablebptt.tasks.settings import without_sources

AnyRun = TypeVar("AnyRun")
COMPLETE, DIVERGED, UNFINISHED = "complete", "diverged", "unfinished"
ENDED = (COMPLETE, STOPPED)  # as they were meant to
LONGEST_WORD = 40  # letters of a value in a name
# Of a problem of one's own: what follows from its arguments. It is named only where nothing else tells runs apart.
DERIVED = ("source", "title", "n_parameters", "parts", "code")


@dataclass(frozen=True)
class Alike(Generic[AnyRun]):
    """Runs that differ only in the seed.

    Attributes
    ----------
    parts : what tells them from the others, in words, by name; the variant first
    values : the same as words and numbers
    runs : without those that are given twice
    """

    parts: dict[str, str]
    values: dict[str, Any]
    runs: list[AnyRun]

    @property
    def name(self) -> str:
        """The variant and all that tells them apart: "C, learning rate 0.01"."""
        return ", ".join(word if name == "variant" else f"{shown(name)} {word}" for name, word in self.parts.items())

    @property
    def label(self) -> str:
        """The name, how many seeds there are, and what became of them."""
        said = notes(self.runs)
        return self.name + (f" ({', '.join(said)})" if said else "")


def outcome(run: Any) -> str:
    """What became of a run in one word: complete, stopped (by a callback), diverged or unfinished."""
    word = run.status.partition(":")[0]
    return word if word in (*ENDED, DIVERGED) else UNFINISHED


def variant_name(run: Any) -> str:
    """The name of a run's variant, or "schedule"."""
    variant = run.config["variant"]
    return variant if isinstance(variant, str) else "schedule"


def notes(runs: list[Any]) -> list[str]:
    """How many seeds runs of one kind have, and how many runs are not complete."""
    if len(runs) == 1:
        return trouble(runs)
    seeds = len({run.config["seed"] for run in runs})
    words = f"{seeds} seed{'s' * (seeds > 1)}"
    return [words if seeds == len(runs) else f"{len(runs)} runs of {words}", *trouble(runs)]


def trouble(runs: list[Any]) -> list[str]:
    """What kept runs of one kind from their end; empty if all are complete."""
    if len(runs) > 1:
        found = [outcome(run) for run in runs]
        return [f"{found.count(word)} {word}" for word in (DIVERGED, UNFINISHED) if word in found]
    (run,) = runs
    done = len(run.history["epoch"])
    if outcome(run) == DIVERGED:
        return [f"diverged in epoch {done + 1}" if done < run.config["epochs"] else "diverged: no finite test loss"]
    return [f"unfinished: {done} of {run.config['epochs']} epochs"] if outcome(run) == UNFINISHED else []


def groups(runs: list[AnyRun]) -> list[Alike[AnyRun]]:
    """Runs by everything that differs but the seed, named by what was varied."""
    names, owners = varied(runs), _owners(runs)
    members: dict[Any, list[AnyRun]] = {}
    for run in runs:
        members.setdefault(tuple(sorted((name, _key(value)) for name, value in facts(run).items())), []).append(run)
    schedules = list(dict.fromkeys(_key(facts(run)["variant"]) for run in runs if variant_name(run) == "schedule"))
    found = []
    for alike in members.values():
        first, known = alike[0], facts(alike[0])
        parts = {"variant": _variant(first, schedules)}
        here = [name for name, scopes in names.items() if name in known and _tells(first, owners[name], scopes)]
        parts |= {name: word(known[name]) for name in here}
        found.append(Alike(parts, {name: known.get(name) for name in names}, _distinct(alike)))
    return list(_told_apart(_in_order(found)))


def varied(runs: list[Any]) -> dict[str, set[str]]:
    """Names of what differs between runs besides variant and seed, in the order of their configuration; and where it does.

    Options are compared within a task, and the numbers of a rule within an optimizer: other tasks and rules have others.
    """
    known, owners = [facts(run) for run in runs], _owners(runs)
    telling: dict[str, set[str]] = {}
    for name in dict.fromkeys(name for one in known for name in one if name != "variant"):
        seen: dict[str, set[Any]] = {}
        for run, one in zip(runs, known):
            seen.setdefault(_scope(run, owners[name]), set()).add(_key(one.get(name)))
        if scopes := {scope for scope, values in seen.items() if len(values) > 1}:
            telling[name] = scopes
    plain = {name: scopes for name, scopes in telling.items() if name.partition(".")[0] not in DERIVED}
    kinds = {tuple(sorted((name, _key(value)) for name, value in one.items())) for one in known}
    told = {(_key(one["variant"]), *(_key(one.get(name)) for name in plain)) for one in known}
    return plain if len(told) == len(kinds) else telling


def facts(run: Any) -> dict[str, Any]:
    """The configuration without nesting and seed."""
    found: dict[str, Any] = {}
    for name, value in run.config.items():
        if name == "options":
            found |= _options(run)
        elif name == "optimizer":
            found |= _rule(run)
        elif name != "seed":
            found[name] = value["sha256"] if isinstance(value, Mapping) and "sha256" in value else value
    return found


def shown(name: str) -> str:
    """The name of a fact, for people."""
    return name.replace("_", " ")


def word(value: Any) -> str:
    """A value of a configuration in a short word."""
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD - 1]}…"


def _flat(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables; the arguments of a function of one's own under their own names."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat("" if name == "arguments" else f"{prefix}{name}.", value)
        else:
            yield prefix + name, value


def _rule(run: Any) -> dict[str, Any]:
    """The numbers of a run's optimizer by name; where a rule of the user's lies does not count."""
    table = without_sources(run.config.get("optimizer", {}))
    parts = {str(place): part for place, part in enumerate(table.pop("parts", []))}
    return {"optimizer" if name == "name" else name: value for name, value in _flat("", {**table, **parts})}


def _options(run: Any) -> dict[str, Any]:
    """The options of a run's task by name; a setting may have the name already."""
    taken = {*run.config, *_rule(run)}
    return {f"option {name}" if name in taken else name: value for name, value in _flat("", run.config.get("options", {}))}


def _owners(runs: list[Any]) -> dict[str, str]:
    """For every fact, what has it: the options of a task, an optimizer, or every run."""
    found = {name: "task" for run in runs for name in _options(run)}
    found |= {name: "optimizer" for run in runs for name in _rule(run) if name != "optimizer"}
    return found | {name: "" for run in runs for name in run.config}


def _scope(run: Any, owner: str) -> str:
    """Within which task or optimizer a fact of this run is compared; empty for all runs."""
    return str({"task": run.config.get("task"), "optimizer": run.config.get("optimizer", {}).get("name")}.get(owner, ""))


def _tells(run: Any, owner: str, scopes: set[str]) -> bool:
    """Whether a fact of a run is named: in the scopes where it differs, and of an optimizer, beside those that name it, too."""
    return owner == "optimizer" or _scope(run, owner) in scopes


def _key(value: Any) -> Any:
    """A value that can be compared: 1 is 1.0, but not True."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def _in_order(found: list[Alike[AnyRun]]) -> list[Alike[AnyRun]]:
    """By variant, then by what was varied: numbers by size, all else as it came first; the names of files mean nothing."""
    rows = [[alike.parts["variant"], *map(_key, alike.values.values())] for alike in found]
    columns = [list(dict.fromkeys(column)) for column in zip(*rows)]

    def place(row: list[Any]) -> list[tuple[bool, float]]:
        return [(isinstance(k, str), seen.index(k) if isinstance(k, str) else k) for k, seen in zip(row, columns)]

    return [found[k] for k in sorted(range(len(found)), key=lambda k: place(rows[k]))]


def _variant(run: Any, schedules: list[Any]) -> str:
    if variant_name(run) != "schedule" or len(schedules) < 2:
        return variant_name(run)
    text = json.dumps(run.config["variant"])
    return f"schedule {text if len(text) <= LONGEST_WORD else schedules.index(_key(run.config['variant'])) + 1}"


def _distinct(runs: list[AnyRun]) -> list[AnyRun]:
    """The runs without those that are there already: the same seed, and the same history to the last bit."""
    found: list[Any] = []
    for run in runs:
        if not any(_same(run, other) for other in found):
            found.append(run)
    return found


def _same(one: Any, other: Any) -> bool:
    columns = [(values, other.history[name]) for name, values in one.history.items()]
    return one.config["seed"] == other.config["seed"] and all(np.array_equal(a, b, equal_nan=True) for a, b in columns)


def _told_apart(found: list[Alike[AnyRun]]) -> Iterator[Alike[AnyRun]]:
    """The same with a number behind names that were cut to the same letters."""
    seen: dict[str, int] = {}
    for alike in found:
        seen[alike.name] = number = seen.get(alike.name, 0) + 1
        yield alike if number == 1 else Alike({**alike.parts, "number": str(number)}, alike.values, alike.runs)
