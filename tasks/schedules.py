"""Learning rates that change: immutable functions of the update's number, counted from 0; docs/training.md.

A schedule has one spelling for Python, plans, files and the command line, such as ``cosine:0.001:1e-05:9600``. `read` makes the
schedule of it, `str` the spelling again. A plain number is a rate that stays.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Schedule",
    "Warmup",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "piecewise",
    "warmup",
]

EXAMPLE = "cosine:0.001:1e-5"


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules. A call with the number of updates done gives the rate of the next one.

    Examples
    --------
    >>> isinstance(sb.schedules.cosine(0.001), Schedule)
    True
    """

    def __call__(self, update: int) -> float:
        """The rate of the update with this number, counted from 0.

        Parameters
        ----------
        update : its number, counted from 0
        """
        raise NotImplementedError

    def over(self, updates: int) -> Self:
        """The same schedule for a run of so many updates; a length that was given stays.

        Parameters
        ----------
        updates : of the whole run
        """
        return self

    def __str__(self) -> str:
        return ":".join([type(self).__name__.lower(), *_words(self)])


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate always.

    Parameters
    ----------
    rate : above 0

    Examples
    --------
    >>> Constant(0.001)(500)
    0.001
    """

    rate: float

    def __post_init__(self) -> None:
        _set(self, rate=arguments.real("rate", self.rate, above=0))

    def __call__(self, update: int) -> float:
        return self.rate


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From `begin`, at update 0, to `end`, at update `updates` and from then on; by default at the end of the run."""

    begin: float
    end: float
    updates: int | None = None

    def __post_init__(self) -> None:
        _set(self, begin=arguments.real("begin", self.begin, least=0), end=arguments.real("end", self.end, least=0))
        if max(self.begin, self.end) == 0:
            raise ArgumentError(f"begin and end of a {type(self).__name__.lower()} rate are 0; one of them must be above 0")
        if self.updates is not None:
            _set(self, updates=arguments.whole("updates", self.updates, 1))

    def over(self, updates: int) -> Self:
        return replace(self, updates=max(updates, 1)) if self.updates is None else self

    def __call__(self, update: int) -> float:
        if self.updates is None:
            raise ArgumentError(f"{self} has no length; training gives it one, otherwise give updates=..., or use .over(updates)")
        share = min(update / self.updates, 1.0)
        return self.begin if share == 0 else self.end if share == 1 else self._between(share)

    def _between(self, share: float) -> float:
        """The rate where a share of the way, between 0 and 1, is done."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line: ``begin + (end - begin) s`` with s = update / updates.

    Parameters
    ----------
    begin, end : rates
    updates : length of the way; by default the whole run

    Examples
    --------
    >>> Linear(0.1, 0.0, updates=10)(5)
    0.05
    """

    def _between(self, share: float) -> float:
        return self.begin + (self.end - self.begin) * share


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine: ``end + (begin - end) (1 + cos(pi s)) / 2`` with s = update / updates.

    Parameters
    ----------
    begin, end : rates
    updates : length of the way; by default the whole run

    Examples
    --------
    >>> round(Cosine(0.1, 0.0, updates=10)(5), 6)
    0.05
    """

    end: float = 0.0

    def _between(self, share: float) -> float:
        return self.end + (self.begin - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Exponential(_Ramp):
    """The same factor in every update: ``begin (end / begin)^s`` with s = update / updates.

    Parameters
    ----------
    begin, end : rates
    updates : length of the way; by default the whole run

    Examples
    --------
    >>> round(Exponential(0.1, 0.001, updates=10)(5), 6)
    0.01
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("begin", "end"):
            arguments.real(name, getattr(self, name), above=0)

    def _between(self, share: float) -> float:
        return self.begin * (self.end / self.begin) ** share


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Rates in turn: ``rates[0]`` at first, and ``rates[k]`` from update ``at[k - 1]`` on.

    Parameters
    ----------
    rates : one more than `at`
    at : numbers of updates, ascending

    Examples
    --------
    >>> rate = Piecewise((0.001, 0.0001), (500,))
    >>> rate(499), rate(500)
    (0.001, 0.0001)
    """

    rates: tuple[float, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(row, Sequence) and not isinstance(row, str) for row in (self.rates, self.at)):
            raise ArgumentError("rates and at of a piecewise rate must be sequences, such as (0.001, 0.0001) and (500,)")
        _set(self, rates=tuple(arguments.real(f"rates[{k}]", rate, least=0) for k, rate in enumerate(self.rates)))
        _set(self, at=tuple(arguments.whole(f"at[{k}]", update, 1) for k, update in enumerate(self.at)))
        if len(self.rates) != len(self.at) + 1 or list(self.at) != sorted(set(self.at)) or not any(self.rates):
            told = f"{len(self.rates)} rates and the updates {list(self.at)}"
            raise ArgumentError(f"a piecewise rate has {told}; give one rate, not 0, more than updates, and the updates in order")

    def __call__(self, update: int) -> float:
        return self.rates[sum(update >= first for first in self.at)]


@dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line to the first rate of another schedule, which it reaches in update ``updates - 1``; then that schedule.

    Parameters
    ----------
    updates : length of the line
    then : the schedule that follows, or a rate

    Examples
    --------
    >>> Warmup(4, Constant(0.001))(1)
    0.0005
    """

    updates: int
    then: Schedule

    def __post_init__(self) -> None:
        then = read("then", self.then)
        _set(self, then=then if isinstance(then, Schedule) else Constant(then))
        _set(self, updates=arguments.whole("updates", self.updates, 1))

    def over(self, updates: int) -> Self:
        return replace(self, then=self.then.over(updates - self.updates))

    def __call__(self, update: int) -> float:
        if update >= self.updates:
            return self.then(update - self.updates)
        return self.then(0) * (update + 1) / self.updates


# Schedules by the names that they have in Python, in files and on the command line.
constant, linear, cosine, exponential, piecewise, warmup = Constant, Linear, Cosine, Exponential, Piecewise, Warmup
KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Constant, Linear, Cosine, Exponential, Piecewise, Warmup)}
SPELLINGS = {
    "constant": "constant:RATE",
    "linear": "linear:BEGIN:END[:UPDATES]",
    "cosine": "cosine:BEGIN[:END[:UPDATES]]",
    "exponential": "exponential:BEGIN:END[:UPDATES]",
    "piecewise": "piecewise:RATE:UPDATE:RATE[:UPDATE:RATE ..]",
    "warmup": "warmup:UPDATES:RATE or warmup:UPDATES:SCHEDULE",
}


def read(name: str, value: Any) -> Any:
    """A rate: a number above 0, or a schedule, given as such or as its spelling."""
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        return arguments.real(name, value, above=0)
    kind, _, rest = value.strip().partition(":")
    if kind in KINDS:
        return _spelled(name, value, kind, rest)
    try:
        number = float(value)
    except ValueError:
        allowed = f"a number, or a schedule such as {EXAMPLE} (there are {', '.join(KINDS)})"
        raise ArgumentError(f"{name} is {arguments.told(value)}; it must be {allowed}") from None
    return arguments.real(name, number, above=0)


def at(rate: Any, update: int) -> float:
    """The rate, a number or a schedule, of the update with this number, counted from 0."""
    return float(rate(update) if isinstance(rate, Schedule) else rate)


def _spelled(name: str, text: str, kind: str, rest: str) -> Schedule:
    """The schedule that a text spells."""
    words = rest.split(":")
    try:
        if kind == "warmup":
            updates, _, then = rest.partition(":")
            made: Schedule = Warmup(_whole(updates), read("the rate after it", then))
        elif kind == "piecewise":
            made = Piecewise(tuple(map(float, words[::2])), tuple(map(_whole, words[1::2])))
        else:
            numbers = [_whole(word) if place == 2 else float(word) for place, word in enumerate(words)]
            made = KINDS[kind](*numbers)
    except ArgumentError as error:
        raise ArgumentError(f"{name} is {arguments.told(text)}: {error}") from None
    except (ValueError, TypeError):
        raise ArgumentError(f"{name} is {arguments.told(text)}; it must be of the form {SPELLINGS[kind]}") from None
    return made


def _whole(word: str) -> int:
    if not re.fullmatch(r"\d{1,10}", word):
        raise ValueError(word)
    return int(word)


def _words(schedule: Any) -> list[str]:
    """What follows the name in the spelling of a schedule."""
    if isinstance(schedule, Piecewise):
        later = [word for update, rate in zip(schedule.at, schedule.rates[1:]) for word in (str(update), repr(rate))]
        return [repr(schedule.rates[0]), *later]
    if isinstance(schedule, Warmup):
        then = schedule.then
        return [str(schedule.updates), repr(then.rate) if isinstance(then, Constant) else str(then)]
    values = (getattr(schedule, field.name) for field in fields(schedule))
    return [repr(value) for value in values if value is not None]


def _set(schedule: Schedule, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(schedule, name, value)
