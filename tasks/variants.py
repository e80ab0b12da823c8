"""The gradient variants: gates of the adjoint recursion, and how R and M are joined; docs/method.md, section 2; docs/joins.md."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from stablebptt.adjoint import rollout
from stablebptt.tasks import arguments, joins
from stablebptt.tasks import gates as families
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.joins import Join
from stablebptt.tasks.settings import spelled

__all__ = ["GATES", "NAMES", "Gates", "gates", "truncated"]

# Gates of the physics path and of the network path (through the network's input): open (1) or closed (0).
GATES = {"R": (1.0, 1.0), "M": (1.0, 0.0), "S": (0.0, 0.0), "N": (0.0, 1.0)}
NAMES = (*GATES, *joins.KINDS)


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates of m adjoints that run together, physics and network (m, T); `join`: they are R and M, to be joined.

    Examples
    --------
    >>> gates("M", 2).joined
    False
    """

    physics: np.ndarray
    network: np.ndarray
    join: Join | None = None

    @property
    def joined(self) -> bool:
        """Whether R and M are joined."""
        return self.join is not None

    @property
    def is_combined(self) -> bool:
        """Whether R and M are joined to C, which the kernels of the gradient do themselves."""
        return isinstance(self.join, joins.Signs)

    @functools.cached_property
    def packed(self) -> rollout.Gates:
        """The gates for the kernels."""
        return rollout.Gates(self.physics, self.network, joined=self.is_combined)


def read(variant: Any) -> Any:
    """A variant as a letter, a join, a family of gates or a pair of schedules; it may be given as its spelling.

    A spelling of the form "module:name" is imported: it must be the user's own words.
    """
    if isinstance(variant, str):
        return _spelled(variant)
    if isinstance(variant, Join | families.Family):
        return variant
    if callable(variant):
        return joins.of(variant)
    if isinstance(variant, tuple | list) and len(variant) == 2:
        return tuple(variant)
    raise ArgumentError(
        f"variant is {arguments.told(variant)}; give one of R, M, S, N, C, or a pair (a, b) of numbers or arrays, one value in "
        "[0, 1] per time step, or gates such as 'M:decay=0.4', or another join such as 'config'"
    )


def gates(
    variant: Any, steps: int, dtype: Any = np.float64, *, dt: float = 1.0, random: np.random.Generator | None = None
) -> Gates:
    """The gates of a variant, physics and network (m, T): m = 2 for a join, otherwise 1.

    Parameters
    ----------
    variant : "R", "M", "S", "N", a join ("C", "config", ..), a family of gates ("R:decay=0.4", ..), or a pair (a, b)
        Each part of a pair is a number or an array of length `steps` with values in [0, 1].
    steps : horizon T
    dtype : of the gates
    dt : time step [s]
    random : draws the gates of a family that has random ones

    Examples
    --------
    >>> found = gates("C", 3)
    >>> found.physics.tolist(), found.network.tolist()
    ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    """
    inner, outer = read(variant), []
    while isinstance(inner, families.Family):
        outer.append(inner)
        inner = inner.of
    join = inner if isinstance(inner, Join) else None
    pairs = [GATES["R"], GATES["M"]] if join else [GATES[inner] if isinstance(inner, str) else inner]
    physics = np.array([_schedule(a, steps, "a (physics)") for a, _ in pairs])
    network = np.array([_schedule(b, steps, "b (network)") for _, b in pairs])
    opening = families.Opening(physics, network)
    for family in reversed(outer):
        opening = family.applied(opening, dt, random)
    return Gates(opening.physics.astype(dtype), opening.network.astype(dtype), join)


def gates_of(variant: Any, problem: Any, random: np.random.Generator | None = None) -> Gates:
    """`gates` for the time steps and the precision of a problem."""
    if isinstance(variant, str) and variant in NAMES:
        return _known(variant, problem.steps, np.dtype(problem.dtype))
    return gates(variant, problem.steps, problem.dtype, dt=problem.dt, random=random)


@functools.lru_cache(maxsize=64)
def _known(variant: str, steps: int, dtype: np.dtype) -> Gates:
    """Gates of what has a name alone. They take as long to make as a small gradient."""
    return gates(variant, steps, dtype)


def is_random(variant: Any) -> bool:
    """Whether the gates of a variant are drawn anew in every update."""
    if isinstance(variant, str) and variant in NAMES:
        return False
    found = read(variant)
    while isinstance(found, families.Family):
        if isinstance(found, families.Random):
            return True
        found = found.of
    return False


def describe(variant: Any) -> Any:
    """A variant in words and numbers, for a file: its spelling, or a pair of schedules. Nothing is imported."""
    if isinstance(variant, str) and spelled(variant).is_own:
        return str(variant)
    found = read(variant)
    return arguments.plain("variant", variant) if isinstance(found, tuple) else str(found)


def truncated(steps: int, window: int, variant: str = "R") -> tuple[np.ndarray, np.ndarray]:
    """Schedules (a, b), (T,) each, of truncated backpropagation: the variant's gates, closed at every `window`-th step.

    Parameters
    ----------
    steps : horizon T
    window : time steps between two closed ones
    variant : "R", "M", "S" or "N"

    Examples
    --------
    >>> a, b = truncated(6, 3)
    >>> a.tolist()
    [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    """
    if window < 1:
        raise ArgumentError(f"window is {window}; it must be at least 1")
    if variant not in GATES:
        raise ArgumentError(f"variant {variant!r} has no schedule of its own; choose from {', '.join(GATES)}")
    opened = gates(families.truncate(window, variant), steps)
    return opened.physics[0], opened.network[0]


def _spelled(text: str) -> Any:
    """The variant that a text spells."""
    name, layered, words, is_own = spelled(text)
    chain = [(word, value) for word, value in words if word in families.KINDS]
    parameters = {word: value for word, value in words if word not in families.KINDS}
    try:
        found = _named(name, parameters, is_own=is_own)
        if layered:
            found = joins.per_layer(found)
        for word, value in chain:
            found = families.KINDS[word](_value(value), found)
    except ArgumentError as error:
        if text == name:
            raise
        raise ArgumentError(f"variant is {arguments.told(text)}: {error}") from None
    return found


def _named(name: str, parameters: Mapping[str, str], *, is_own: bool) -> Any:
    """The letter or join of a name, with its parameters."""
    if is_own:
        from stablebptt.tasks.custom import find

        arguments.known(name, parameters, families.KINDS)
        found = find(name)
        if not callable(found):
            raise ArgumentError(f"{name} is {type(found).__name__}; it must be a function of (m, r) or of (RR, RM, MM)")
        return joins.of(found)
    arguments.choice("variant", name, NAMES)
    if name in GATES:
        arguments.known(name, parameters, families.KINDS)
        return name
    return _join(joins.KINDS[name], {word: _value(value) for word, value in parameters.items()})


def _join(kind: Any, parameters: Mapping[str, Any]) -> Join:
    """A join of one of our kinds."""
    own = [each.name for each in fields(kind) if each.name != "layered"]
    arguments.known(kind.name, parameters, (*own, *families.KINDS))
    try:
        made: Join = kind(**parameters)
    except TypeError as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{kind.name} needs a number: {kind.name}:{own[0]}=0.1") from None
    return made


def _value(text: str) -> Any:
    """A value in a spelling: a number, or a word."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _schedule(given: Any, steps: int, name: str) -> np.ndarray:
    arguments.unmasked(f"gate {name}", given)
    try:
        values = np.asarray(given)
        if values.dtype.kind not in "fiub":  # True is open, False closed
            raise TypeError
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"gate {name} is {arguments.told(given)}; it must be numeric") from None
    if values.ndim == 0:
        values = np.full(steps, values)
    if values.shape != (steps,):
        raise ArgumentError(f"gate {name} has shape {values.shape}; it must be one number or have shape ({steps},)")
    if not np.all((values >= 0) & (values <= 1)):
        raise ArgumentError(f"gate {name} has values outside [0, 1]")
    return values
