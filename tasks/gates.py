"""Families of gates as immutable data; docs/joins.md.

A family changes the gates of a variant: ``decay(0.4)`` those of R, ``decay(0.4, of="C")`` those of both R and M. In plans, in
files and on the command line it is a word behind the variant: ``R:decay=0.4``, ``C:truncate=20``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

__all__ = [
    "Decay",
    "Family",
    "Opening",
    "Random",
    "Truncate",
    "decay",
    "random",
    "truncate",
]


class Opening(NamedTuple):
    """Gates of m adjoints: physics and network (m, T).

    Examples
    --------
    >>> Opening(np.ones((1, 3)), np.zeros((1, 3))).physics.shape
    (1, 3)
    """

    physics: np.ndarray
    network: np.ndarray


@dataclass(frozen=True)
class Family:
    """Base of the families; `of` is the variant whose gates change: a letter, a join, or another family.

    Parameters
    ----------
    value : number of the family
    of : the variant whose gates change

    Examples
    --------
    >>> isinstance(sb.gates.truncate(20), Family)
    True
    """

    word: ClassVar[str] = ""

    value: Any
    of: Any = "R"

    def __post_init__(self) -> None:
        from stablebptt.tasks import variants

        if not isinstance(found := variants.read(self.of), str | Family | variants.Join):
            raise ArgumentError(f"of is {arguments.told(self.of)}; give a variant with a name, such as 'R', 'M' or 'C'")
        object.__setattr__(self, "of", found)
        object.__setattr__(self, "value", self._read(self.value))

    @classmethod
    def _read(cls, value: Any) -> Any:
        """The value, if it fits."""
        raise NotImplementedError

    def applied(self, gates: Opening, dt: float, random: np.random.Generator | None) -> Opening:
        """The gates changed, for time steps of dt [s].

        Parameters
        ----------
        gates : of the variant
        dt : time step [s]
        random : draws what is random
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.of}:{self.word}={self.value}"


@dataclass(frozen=True)
class Decay(Family):
    """The gate of the physics, ``a_t = alpha^dt a`` with the problem's dt [s]; that of the network stays.

    Parameters
    ----------
    value : number of the family
    of : the variant whose gates change

    Examples
    --------
    >>> str(sb.gates.decay(0.4))
    'R:decay=0.4'
    """

    word = "decay"

    @classmethod
    def _read(cls, value: Any) -> float:
        alpha = arguments.real("alpha", value, above=0)
        if alpha > 1:
            raise ArgumentError(f"alpha is {alpha}; it must be at most 1")
        return alpha

    def applied(self, gates: Opening, dt: float, random: np.random.Generator | None) -> Opening:
        return gates._replace(physics=gates.physics * self.value**dt)


@dataclass(frozen=True)
class Truncate(Family):
    """Truncated backpropagation: both gates are closed at every k-th time step.

    Parameters
    ----------
    value : number of the family
    of : the variant whose gates change

    Examples
    --------
    >>> str(sb.gates.truncate(20, of="C"))
    'C:truncate=20'
    """

    word = "truncate"

    @classmethod
    def _read(cls, value: Any) -> int:
        return arguments.whole("steps between truncations", value, 1)

    def applied(self, gates: Opening, dt: float, random: np.random.Generator | None) -> Opening:
        cut = np.arange(gates.physics.shape[1]) % self.value == 0
        return Opening(*(np.where(cut, 0.0, each) for each in gates))


@dataclass(frozen=True)
class Random(Family):
    """Truncation at random: both gates are closed with the chance 1/k, and multiplied by k / (k - 1) where they are not.

    So the mean over draws is the gradient without truncation. Training draws anew in every update, from its seed.

    Parameters
    ----------
    value : number of the family
    of : the variant whose gates change

    Examples
    --------
    >>> str(sb.gates.random(20))
    'R:random=20'
    """

    word = "random"

    @classmethod
    def _read(cls, value: Any) -> int:
        return arguments.whole("mean steps between truncations", value, 2)

    def applied(self, gates: Opening, dt: float, random: np.random.Generator | None) -> Opening:
        if random is None:
            raise ArgumentError(f"{self} draws its gates for every update; only training and problem.gradient(.., seed=..) can")
        k = self.value
        share = np.where(random.random(gates.physics.shape[1]) * k < 1, 0.0, k / (k - 1))
        return Opening(*(each * share for each in gates))


# Families by the names that they have in Python, in files and on the command line.
KINDS: dict[str, Any] = {kind.word: kind for kind in (Decay, Truncate, Random)}


def decay(alpha: float, of: Any = "R") -> Decay:
    """The gate of the physics decays: ``a_t = alpha^dt`` with the problem's dt [s], and b = 1; with ``of="M"``, b = 0.

    Parameters
    ----------
    alpha : factor per second, above 0 and at most 1
    of : the variant whose gates change

    Examples
    --------
    >>> str(decay(0.4))
    'R:decay=0.4'
    """
    return Decay(alpha, of)


def truncate(steps: int, of: Any = "R") -> Truncate:
    """Truncated backpropagation: both gates are closed at every time step whose number `steps` divides.

    Parameters
    ----------
    steps : between two closed ones
    of : the variant whose gates change

    Examples
    --------
    >>> str(truncate(20, of="C"))
    'C:truncate=20'
    """
    return Truncate(steps, of)


def random(steps: int, of: Any = "R") -> Random:
    """Truncation at random, on average after so many steps; what is left is scaled up, so that the mean is not changed.

    Parameters
    ----------
    steps : on average
    of : the variant whose gates change

    Examples
    --------
    >>> str(random(20))
    'R:random=20'
    """
    return Random(steps, of)
