"""Derivatives by finite differences at many step sizes, and the verdict on a vjp.

At every place the slopes to both sides are computed, from h = 2^-7 downwards. Where a function is smooth within 3 h, the two
slopes agree with each other and with those of the next larger h. A kink, a jump, noise or too large a step separates them. Their
distance measures the doubt about their mean. The best step is thus chosen without the vjp. The vjp is wrong where its error
exceeds the doubt.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
TOLERANCE = 1e-7
# Powers of two, so that places move by exact amounts.
LADDER = tuple(2.0**-k for k in range(7, 48, 2))
# Slope at 0 from the changes after h, 2 h, 3 h: third order. The mean of both sides has fourth order.
ONE_SIDED = ((1, 18 / 6), (2, -9 / 6), (3, 2 / 6))
# A vjp is wrong if its error exceeds this many times the doubt about the differences.
SAFETY = 10.0
# Differences with a larger doubt say nothing.
COARSE = 1e-3
# Rounding error of a value, relative.
ROUNDING = 8 * np.finfo(float).eps
# Slopes are measured relative to themselves plus this part of the value, which separates zero from rounding.
FLOOR = 1e-3
# An argument of at most this many numbers is perturbed along each of them.
DIRECTIONS = 16
# Values that change by less than this part, and then not at all, count as rounded.
QUANTUM = 1e-4
# Places that show the noise at every step.
WITNESSES = 32
COTANGENTS = (1, 2, 3)


@dataclass(frozen=True)
class Rule:
    """A forward function and its vjp.

    Attributes
    ----------
    name : str
    forward : (inputs) -> outputs, one array
    vjp : (inputs, cotangents (m, *outputs)) -> per input the cotangents (m, *input)
    independent : inputs whose rows, along the first axis, affect only the same row of the output
    write, add : forward and vjp in place, if the functions work so: (inputs, output), and (inputs, cotangents, bars)
    names : the functions' own names for the output and for the cotangents of the inputs

    Examples
    --------
    >>> rule = Rule("square", lambda inputs: inputs["x"] ** 2, lambda inputs, bars: {"x": 2 * inputs["x"] * bars})
    >>> rule.forward({"x": np.array([3.0])}).tolist()
    [9.0]
    """

    name: str
    forward: Callable[[Arrays], np.ndarray]
    vjp: Callable[[Arrays, np.ndarray], Arrays]
    independent: frozenset[str] = frozenset()
    write: Callable[[Arrays, np.ndarray], None] | None = None
    add: Callable[[Arrays, np.ndarray, Arrays], None] | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Outcome for one argument.

    Attributes
    ----------
    rule, argument : names of the function and of its input
    error : ``|<y, J dx> - <J^T y, dx>|`` relative to the sum of absolute terms, at the worst place
    step : of the differences there, relative to the larger of 1 and the perturbed number
    certainty : possible error of the differences there, on the scale of `error`
    verdict : "ok", "WRONG", or "unsure" if the differences say nothing
    note : other faults

    Examples
    --------
    >>> Finding("step", "state", error=1e-12, verdict="ok").passed
    True
    """

    rule: str
    argument: str
    error: float
    step: float = float("nan")
    certainty: float = 0.0
    verdict: str = "WRONG"
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the vjp is right."""
        return self.verdict == "ok"


def in_place(name: str, write: Any, add: Any, shape: Callable[[Arrays], tuple[int, ...]], **more: Any) -> Rule:
    """A rule of functions that work in place: ``write(inputs, output)``, ``add(inputs, cotangents, bars)``, ``shape(inputs)``."""

    def forward(inputs: Arrays) -> np.ndarray:
        output = np.zeros(shape(inputs))
        write(inputs, output)
        return output

    def vjp(inputs: Arrays, cotangents: np.ndarray) -> Arrays:
        bars = {name: np.zeros((len(cotangents), *values.shape)) for name, values in inputs.items()}
        add(inputs, cotangents, bars)
        return bars

    return Rule(name, forward, vjp, write=write, add=add, **more)


def findings(
    rule: Rule, inputs: Arrays, random: np.random.Generator, step: float | None = None, tolerance: float = TOLERANCE
) -> Iterator[Finding]:
    """Test every argument of a rule, with 1, 2 and 3 random cotangents at once.

    Parameters
    ----------
    step : size of the differences; by default the best of many, at every place
    tolerance : relative errors up to this one pass
    rule : the functions
    inputs : arrays by name
    random : generator of the directions

    Examples
    --------
    >>> rule = Rule("square", lambda inputs: inputs["x"] ** 2, lambda inputs, bars: {"x": 2 * inputs["x"] * bars})
    >>> [found.verdict for found in findings(rule, {"x": np.array([3.0, 4.0])}, np.random.default_rng(0))]
    ['ok']
    """
    broken = {finding.argument: finding for finding in contract(rule, inputs, random)}
    output = np.asarray(rule.forward(_copies(inputs)))
    groups = [_cotangents(m, output.shape, random) for m in COTANGENTS]
    results = [rule.vjp(_copies(inputs), cotangents.copy()) for cotangents in groups]
    steps = LADDER if step is None else (step,)
    for name in results[0]:
        bars = np.concatenate([result[name] for result in results])
        slopes = _Slopes(rule, inputs, name, np.concatenate(groups), bars)
        trials = [slopes.best(direction, steps, tolerance) for direction in slopes.directions(random)]
        worst = max((trial.worst(tolerance) for trial in trials), key=_badness)
        yield broken.pop(name) if name in broken else Finding(rule.name, name, *worst)
    yield from broken.values()


def _cotangents(m: int, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Cotangents (m, *shape), alternately of one output per row and of all outputs; a large output thus hides no small one."""
    rows, width = (shape[0] if shape else 1), int(np.prod(shape[1:]))
    values = random.standard_normal((m, rows, width))
    values[::2] *= np.arange(width) == random.integers(width, size=(len(values[::2]), rows, 1))
    return values.reshape(m, *shape)


def _badness(outcome: tuple[float, float, float, str]) -> tuple[int, float]:
    error, _, _, verdict = outcome
    return ("ok", "unsure", "WRONG").index(verdict), error if error == error else np.inf


@dataclass(frozen=True)
class _Trial:
    """At every place (P,): error of the vjp at the best step, doubt about the differences, and that step."""

    error: np.ndarray
    doubt: np.ndarray
    step: np.ndarray

    def worst(self, tolerance: float) -> tuple[float, float, float, str]:
        """Error, step, certainty and verdict at the decisive place: the worst one where the differences can be trusted."""
        certainty = SAFETY * self.doubt
        wrong = np.isfinite(certainty) & ~(self.error <= np.maximum(tolerance, certainty))  # NaN is wrong
        sure = certainty <= tolerance
        if wrong.any() or sure.any():
            ranked = np.where(np.isnan(self.error), np.inf, self.error)
            place = int(np.argmax(np.where(wrong if wrong.any() else sure, ranked, -1.0)))
        else:
            place = int(np.argmin(certainty))
        good = certainty[place] <= max(tolerance, COARSE)
        verdict = "WRONG" if wrong[place] else "ok" if good else "unsure"
        return float(self.error[place]), float(self.step[place]), float(certainty[place]), verdict


class _Slopes:
    """Differences along directions of one input, compared with the vjp.

    Shapes: P places (independent rows, or 1), V cotangents.
    """

    def __init__(self, rule: Rule, inputs: Arrays, name: str, cotangents: np.ndarray, bars: np.ndarray) -> None:
        self.rule, self.inputs, self.name = rule, inputs, name
        self.apart = name in rule.independent
        self.base = np.asarray(rule.forward(_copies(inputs)))
        self.places = len(self.base) if self.apart else 1
        self.base = self.base.reshape(self.places, -1)
        self.x = np.asarray(inputs[name]).reshape(self.places, -1)
        self.cotangents = cotangents.reshape(len(cotangents), self.places, -1)
        self.bars = bars.reshape(len(bars), self.places, -1)
        # A small output is measured relative to its usual size, but at most to the size of the numbers at this place:
        # rows of a rollout that has grown must not hide the others.
        usual = _medians(np.abs(self.base), np.isfinite(self.base))
        there = np.maximum(np.abs(self.base).max(axis=1, initial=0.0), np.abs(self.x).max(axis=1, initial=0.0))
        self.value = np.maximum(np.abs(self.base), np.minimum(usual, there[:, None]))

    def directions(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Directions (P, n): along every number; or, of many, along some (different at each place) and along all together."""
        n = self.bars.shape[-1]
        sizes = np.maximum(1.0, np.abs(self.x))
        for k in range(min(n, DIRECTIONS)):
            if n > DIRECTIONS and k % 2:
                yield random.standard_normal((self.places, n)) * sizes
            else:
                column = random.integers(n, size=self.places) if n > DIRECTIONS else np.full(self.places, k)
                yield np.where(np.arange(n) == column[:, None], sizes, 0.0)

    def best(self, direction: np.ndarray, steps: tuple[float, ...], tolerance: float) -> _Trial:
        """Reduce the step at every place until the differences can be trusted."""
        trial = _Trial(np.full(self.places, np.inf), np.full(self.places, np.inf), np.full(self.places, np.nan))
        rows, previous, last = np.arange(self.places), np.full_like(self.base, np.nan), np.zeros_like(self.base)
        with np.errstate(all="ignore"):  # values that are not finite are not trusted
            for step in steps:
                ahead, behind = self._sides(direction, rows, step)
                slope, gap = (ahead + behind) / 2, np.abs(ahead - behind)
                if len(steps) > 1:
                    gap = np.maximum(gap, np.abs(slope - previous[rows]))  # NaN for the first step
                gap = np.maximum(gap, self._noise(rows, (ahead * step, behind * step), gap * step, last) / step)
                error, doubt = self._compare(direction[rows], rows, slope, gap, step)
                better = doubt < trial.doubt[rows]
                for values, found in ((trial.error, error), (trial.doubt, doubt), (trial.step, step)):
                    values[rows] = np.where(better, found, values[rows])
                previous[rows] = slope
                in_doubt = rows[~(SAFETY * trial.doubt[rows] <= tolerance)]
                if len(in_doubt) == 0:
                    break
                rows = np.union1d(in_doubt, rows[rows < WITNESSES])
        return trial

    def _noise(self, rows: np.ndarray, changes: tuple[np.ndarray, np.ndarray], off: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Noise in the values (rows, outputs), at least the typical noise of other places: no place is certain by luck.

        Values that no longer change may be rounded. If they changed a little to both sides before, that change is their noise.
        """
        least, most = (choose(*map(np.abs, changes)) for choose in (np.minimum, np.maximum))
        moves, witnesses = most > 0, (rows < WITNESSES)[:, None]
        typical = np.nan_to_num(_medians(off, moves & witnesses & np.isfinite(off)))
        last[rows] = np.where(least > 0, np.where(least <= QUANTUM * self.value[rows], least, 0.0), last[rows])
        return np.where(moves, typical, last[rows])

    def _sides(self, direction: np.ndarray, rows: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Slopes (rows, outputs) on both sides of the places, ahead and behind."""
        part = self.inputs
        if len(rows) < self.places:
            part = {n: v[rows] if n in self.rule.independent else v for n, v in self.inputs.items()}
        sides = []
        for sign in (1.0, -1.0):
            total = np.zeros_like(self.base[rows])
            for distance, weight in ONE_SIDED:
                change = (sign * distance * step * direction[rows]).reshape(part[self.name].shape)
                values = self.rule.forward(_copies(part | {self.name: part[self.name] + change}))
                total += weight * (np.asarray(values).reshape(len(rows), -1) - self.base[rows])
            sides.append(sign * total / step)
        return sides[0], sides[1]

    def _compare(self, direction: np.ndarray, rows: np.ndarray, slope: np.ndarray, gap: np.ndarray, step: float) -> Any:
        """Error of the vjp and doubt about the slope, per row, for the worst cotangent."""
        weights = np.abs(self.cotangents[:, rows])
        value = np.sum(weights * self.value[rows], axis=-1)
        scale = np.sum(weights * np.abs(slope), axis=-1) + FLOOR * value
        terms = self.bars[:, rows] * direction
        off = np.abs(np.sum(self.cotangents[:, rows] * slope, axis=-1) - np.sum(terms, axis=-1))
        error = _ratio(off, scale + np.sum(np.abs(terms), axis=-1)).max(axis=0)
        moved = np.max(np.abs(self.x[rows]) * (direction != 0), axis=-1) / np.max(np.abs(direction), axis=-1)
        doubt = _ratio(np.sum(weights * gap, axis=-1) + ROUNDING * value / step, scale).max(axis=0)
        return error, doubt + ROUNDING * moved / step


def _medians(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Median of the valid values in every column; NaN if there are none."""
    ordered, count = np.sort(np.where(valid, values, np.inf), axis=0), valid.sum(axis=0)
    return np.where(count > 0, ordered[np.maximum(count - 1, 0) // 2, np.arange(values.shape[1])], np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient; 0 for 0 / 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=(part != 0) | (whole != 0))


def _copies(inputs: Arrays) -> Arrays:
    return {name: values.copy() for name, values in inputs.items()}


def contract(rule: Rule, inputs: Arrays, random: np.random.Generator) -> Iterator[Finding]:
    """Faults of functions that work in place: outputs left unwritten, changed inputs, overwritten instead of added cotangents."""
    if rule.write is None or rule.add is None:
        return
    whole, output = _copies(inputs), rule.forward(_copies(inputs))
    unwritten = np.full_like(output, np.nan)
    rule.write(whole, unwritten)
    missing = ~((unwritten == output) | (np.isnan(unwritten) & np.isnan(output)))
    if missing.any():
        name = f"{rule.names['output']}[{np.argwhere(missing)[0, -1]}]"
        yield Finding(rule.name, rule.names["output"], 1.0, note=f"{name} is not always written")
    for m in COTANGENTS:
        cotangents = random.standard_normal((m, *output.shape))
        bars, given = rule.vjp(_copies(inputs), cotangents.copy()), cotangents.copy()
        sizes = {name: np.max(np.abs(values[np.isfinite(values)]), initial=0.0) or 1.0 for name, values in bars.items()}
        before = {name: sizes[name] * random.standard_normal(values.shape) for name, values in bars.items()}
        after = _copies(before)
        rule.add(whole, given, after)
        for name, values in bars.items():
            off = np.abs(after[name] - before[name] - values)[np.isfinite(values)] / sizes[name]
            if not np.all(off <= 1e-9):
                note = f"the vjp must add to {rule.names[name]}, whatever it holds"
                yield Finding(rule.name, name, float(np.max(off)), note=note)
        if not np.array_equal(given, cotangents, equal_nan=True):
            yield Finding(rule.name, "cotangents", 1.0, note="the vjp changes the cotangents given to it")
    for name, values in inputs.items():
        if not np.array_equal(whole[name], values, equal_nan=True):
            yield Finding(rule.name, name, 1.0, note=f"the {name} itself is changed")
