"""Joins of R and M as immutable data; docs/joins.md.

A join is componentwise, a function of one component of M and of R, or it weighs R and M by their inner products ("Gram"). It has
one spelling for Python, plans, files and the command line, such as ``leaky:leak=0.1`` or ``config/layer``.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaError

from stablebptt.adjoint import combine
from stablebptt.kernels.core.dispatch import OPTIONS, implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.settings import LAYERS

__all__ = [
    "Componentwise",
    "Config",
    "Gram",
    "Imtlg",
    "Join",
    "Joined",
    "Leaky",
    "Mean",
    "Mgda",
    "Minmod",
    "Normalized",
    "Pcgrad",
    "Projected",
    "Signs",
    "config",
    "imtlg",
    "leaky",
    "mean",
    "mgda",
    "minmod",
    "normalized",
    "pcgrad",
    "per_layer",
    "projected",
    "signs",
]

LENGTHS: dict[str, Callable[[float, float], float]] = {
    "mean": lambda r, m: (r + m) / 2,
    "minimum": min,
    "maximum": max,
    "harmonic": lambda r, m: 2 * _over(r * m, r + m),
}


class Joined(NamedTuple):
    """Of a joined gradient the squared norm, and the cosine of the angle between R and M (NaN where one is 0).

    Examples
    --------
    >>> Joined(norm2=4.0, cosine=0.5).cosine
    0.5
    """

    norm2: float
    cosine: float


@dataclass(frozen=True)
class Join:
    """Base of the joins.

    Examples
    --------
    >>> isinstance(sb.joins.config(), Join), str(sb.joins.config())
    (True, 'config')
    """

    name: ClassVar[str] = ""

    def into(self, regular: np.ndarray, modified: np.ndarray, layers: np.ndarray, joined: np.ndarray) -> float:
        """Join R and M (n,), whose layers have bounds (layers + 1,), into `joined` (n,); returns the squared norm.

        Parameters
        ----------
        regular, modified (n,) : R and M
        layers : bounds of the layers
        joined (n,) : the result
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{name}={value}" for name, value in self._words())])

    def _words(self) -> list[tuple[str, Any]]:
        """Parameters by name, without those that have their default."""
        own = [each for each in fields(self) if each.init and each.repr]
        return [(each.name, value) for each in own if (value := getattr(self, each.name)) != each.default]


@dataclass(frozen=True)
class Componentwise(Join):
    """Base of the joins of single components.

    Examples
    --------
    >>> isinstance(sb.joins.minmod(), Componentwise)
    True
    """

    def part(self) -> Struct:
        """The struct whose method of `component` joins."""
        raise NotImplementedError

    @functools.cached_property
    def _part(self) -> Struct:
        return self.part()

    def into(self, regular: np.ndarray, modified: np.ndarray, layers: np.ndarray, joined: np.ndarray) -> float:
        return float(combine.join_components(self._part, regular, modified, joined))


@dataclass(frozen=True)
class Gram(Join):
    """Base of the joins ``wr R + wm M`` whose weights follow from R.R, R.M and M.M, of the whole vectors or of each layer.

    degree : how weights change if R and M are scaled together by t: they are scaled by t^degree

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> sb.joins.mgda().weights(4.0, 0.0, 1.0)
    (0.2, 0.8)
    """

    degree: ClassVar[int] = 0
    layered: bool = field(default=False, kw_only=True, repr=False)

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        """Weights of R and M, from R.R, R.M and M.M.

        Parameters
        ----------
        rr, rm, mm : the inner products
        """
        raise NotImplementedError

    def into(self, regular: np.ndarray, modified: np.ndarray, layers: np.ndarray, joined: np.ndarray) -> float:
        bounds = layers if self.layered else layers[[0, -1]]
        weights = np.array([self._weights(*row) for row in _products(regular, modified, bounds).tolist()])
        return float(combine.weigh(regular, modified, bounds, weights, joined))

    def _weights(self, exponent: float, *products: float) -> tuple[float, float]:
        """The weights of R and M, from products of R / 2^exponent and M / 2^exponent; NaN if these are not finite."""
        if not all(map(math.isfinite, products)):
            return math.nan, math.nan
        wr, wm = self.weights(*products)
        scale = math.ldexp(1.0, int(exponent) * self.degree)
        return wr * scale, wm * scale

    def __str__(self) -> str:
        name, *words = super().__str__().split(":")
        return ":".join([name + LAYERS * self.layered, *words])


@dataclass(frozen=True)
class Signs(Componentwise):
    """Variant C: M where its sign agrees with that of R, otherwise 0.

    Examples
    --------
    >>> str(sb.joins.signs())
    'C'
    """

    name = "C"

    def part(self) -> Struct:
        return combine.Signs()


@dataclass(frozen=True)
class Minmod(Componentwise):
    """The one of smaller magnitude where the signs of R and M agree, otherwise 0.

    Examples
    --------
    >>> str(sb.joins.minmod())
    'minmod'
    """

    name = "minmod"

    def part(self) -> Struct:
        return combine.Smaller()


@dataclass(frozen=True)
class Leaky(Componentwise):
    """M where its sign agrees with that of R, otherwise ``leak M``; with leak 0 it is C, with 1 it is M.

    Parameters
    ----------
    leak : from 0 to 1

    Examples
    --------
    >>> str(sb.joins.leaky(0.1))
    'leaky:leak=0.1'
    """

    name = "leaky"
    leak: float

    def __post_init__(self) -> None:
        leak = arguments.real("leak", self.leak, least=0)
        if leak > 1:
            raise ArgumentError(f"leak is {leak}; it must be at most 1")
        object.__setattr__(self, "leak", leak)

    def part(self) -> Struct:
        return combine.Leaky(self.leak)


@dataclass(frozen=True)
class Mean(Gram):
    """``(R + M) / 2``.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.mean())
    'mean'
    """

    name = "mean"

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        return 0.5, 0.5


@dataclass(frozen=True)
class Normalized(Gram):
    """``(R/|R| + M/|M|) / 2``, in which a zero vector stays zero.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.normalized())
    'normalized'
    """

    name, degree = "normalized", -1

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        return _over(0.5, math.sqrt(rr)), _over(0.5, math.sqrt(mm))


@dataclass(frozen=True)
class Config(Gram):
    """ConFIG of two gradients: ``L (R/|R| + M/|M|)``; the length L is a mean of both lengths, or the smaller or larger one.

    Parameters
    ----------
    length : "mean", "minimum", "maximum" or "harmonic"
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.config("minimum"))
    'config:length=minimum'
    """

    name = "config"
    length: str = "mean"

    def __post_init__(self) -> None:
        arguments.choice("length", self.length, tuple(LENGTHS))

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        r, m = math.sqrt(rr), math.sqrt(mm)
        length = LENGTHS[self.length](r, m)
        return _over(length, r), _over(length, m)


@dataclass(frozen=True)
class Imtlg(Gram):
    """IMTL-G of two gradients: ``|R||M| / (|R| + |M|) (R/|R| + M/|M|)``, with equal projections on both directions.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.imtlg())
    'imtlg'
    """

    name = "imtlg"

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        r, m = math.sqrt(rr), math.sqrt(mm)
        return _over(m, r + m), _over(r, r + m)


@dataclass(frozen=True)
class Pcgrad(Gram):
    """PCGrad: where R and M conflict, each loses its component along the other; then their sum.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.pcgrad())
    'pcgrad'
    """

    name = "pcgrad"

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        conflict = min(rm, 0.0)
        return 1 - _over(conflict, rr), 1 - _over(conflict, mm)


@dataclass(frozen=True)
class Mgda(Gram):
    """MGDA: the shortest vector between R and M.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.mgda())
    'mgda'
    """

    name = "mgda"

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        distance2 = rr + mm - 2 * rm
        g = min(max((mm - rm) / distance2, 0.0), 1.0) if distance2 > 0 else 0.5
        return g, 1 - g


@dataclass(frozen=True)
class Projected(Gram):
    """M as far as R allows: M without its component against R.

    Parameters
    ----------
    layered : every array of parameters on its own

    Examples
    --------
    >>> str(sb.joins.projected())
    'projected'
    """

    name = "projected"

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        return -_over(min(rm, 0.0), rr), 1.0


@dataclass(frozen=True)
class OwnComponent(Componentwise):
    """A user's function (m, r) -> number, which Numba compiles."""

    function: Any

    def part(self) -> Struct:
        return _part_of(self.function)

    def into(self, regular: np.ndarray, modified: np.ndarray, layers: np.ndarray, joined: np.ndarray) -> float:
        try:
            return super().into(regular, modified, layers, joined)
        except NumbaError as error:
            from stablebptt.tasks.plain_python import gist

            raise ArgumentError(f"the join {self} cannot be compiled: {gist(error)}") from error

    def __str__(self) -> str:
        return _source(self.function)


@dataclass(frozen=True)
class OwnGram(Gram):
    """A user's function (RR, RM, MM) -> (wr, wm)."""

    function: Any

    def weights(self, rr: float, rm: float, mm: float) -> tuple[float, float]:
        try:
            found = self.function(rr, rm, mm)
        except ArithmeticError as error:
            raise ArgumentError(f"the join {self} failed at RR = {rr:g}, RM = {rm:g}, MM = {mm:g}: {error}") from error
        try:
            wr, wm = found
            return float(wr), float(wm)
        except (TypeError, ValueError):
            raise ArgumentError(f"the join {self} gave {arguments.told(found)}; it must give two numbers (wr, wm)") from None

    def __str__(self) -> str:
        return _source(self.function) + LAYERS * self.layered


# Joins by the names that they have in Python, in files and on the command line.
signs, minmod, leaky, mean, normalized, config = Signs, Minmod, Leaky, Mean, Normalized, Config
imtlg, pcgrad, mgda, projected = Imtlg, Pcgrad, Mgda, Projected
KINDS: dict[str, Any] = {
    kind.name: kind for kind in (Signs, Minmod, Leaky, Mean, Normalized, Config, Imtlg, Pcgrad, Mgda, Projected)
}


def per_layer(join: Any) -> Gram:
    """The same join for every array of parameters on its own, as `problem.layers` names them; `join` may be a name.

    Examples
    --------
    >>> str(sb.joins.per_layer("config"))
    'config/layer'
    """
    from stablebptt.tasks import variants

    found = variants.read(join)
    if not isinstance(found, Gram):
        raise ArgumentError(f"{arguments.told(str(join))} has no inner products, so layers change nothing; leave {LAYERS} out")
    return replace(found, layered=True)


def of(function: Callable) -> Join:
    """The join that is a user's function: of two arguments (m, r), or of three (RR, RM, MM)."""
    if isinstance(function, type) or str(getattr(function, "__module__", "")).startswith("stablebptt."):
        told = getattr(function, "__name__", str(function)).lower()
        raise ArgumentError(f"{told} makes a variant, it is none; call it, as in sb.joins.config()")
    count = len(inspect.signature(getattr(function, "py_func", function)).parameters)
    if count not in (2, 3):
        raise ArgumentError(f"the join {_source(function)} takes {count} arguments; give a function of (m, r) or of (RR, RM, MM)")
    return OwnComponent(function) if count == 2 else OwnGram(function)


def join(kind: Join, regular: np.ndarray, modified: np.ndarray, layers: np.ndarray, joined: np.ndarray) -> Joined:
    """Join R and M (n,), contiguous and of one precision, into `joined` (n,); layers (count + 1,) are the bounds of layers."""
    norm2 = kind.into(regular, modified, layers, joined)
    [[_, rr, rm, mm]] = _products(regular, modified, layers[[0, -1]]).tolist()
    norms = math.sqrt(rr) * math.sqrt(mm)
    return Joined(norm2, rm / norms if norms > 0 else math.nan)


def join_arrays(kind: Join, regular: Sequence[np.ndarray], modified: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Join R and M, given as arrays of parameters of any shapes; each array is a layer."""
    dtype = np.float64 if any(each.dtype == np.float64 for each in regular) else np.float32
    r, m = (np.concatenate([np.asarray(each, dtype).ravel() for each in arrays]) for arrays in (regular, modified))
    layers, joined = bounds([each.shape for each in regular]), np.empty_like(r)
    kind.into(r, m, layers, joined)
    parts = np.split(joined, layers[1:-1])
    return [part.reshape(each.shape).astype(each.dtype) for part, each in zip(parts, regular)]


def layers_of(problem: Any) -> np.ndarray:
    """Bounds (layers + 1,) of the arrays of parameters of a problem's controller."""
    return bounds(list(arguments.layout(problem.controller).values()))


def bounds(shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Bounds (layers + 1,) of arrays of these shapes in one vector."""
    return np.cumsum([0, *map(math.prod, shapes)])


def _products(regular: np.ndarray, modified: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Per layer an exponent and three inner products; see `combine.gram`."""
    products = np.empty((len(layers) - 1, 4))
    combine.gram(regular, modified, layers, products)
    return products


def _over(a: float, b: float) -> float:
    """``a / b``; 0 if b is 0."""
    return a / b if b else 0.0


def _source(function: Callable) -> str:
    """Where a user's function lies, as `custom.find` takes it."""
    plain: Any = getattr(function, "py_func", function)
    return f"{plain.__module__}:{plain.__qualname__}"


@functools.cache
def _part_of(function: Any) -> Struct:
    """A struct whose method of `component` is a user's function."""
    compiled = function if isinstance(function, Dispatcher) else njit(**OPTIONS)(function)

    class Own(Struct):
        pass

    @implements(combine.component, Own)
    def _component(join, m, r):
        return compiled(m, r)

    return Own()
