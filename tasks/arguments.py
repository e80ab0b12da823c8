"""Checks of user input. Every message says what was given and what is allowed."""

import math
import operator
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from stablebptt.data import storage
from stablebptt.tasks.errors import ArgumentError

MOST = 10**9  # bound of every count
LARGEST = 10**6  # number of poles, objects, points, features
LONGEST_TOLD = 100  # characters of a value in a message
MOST_AXES = 32  # of a parameter: the limit of HDF5
MOST_PARTS = storage.MOST_OBJECTS * 2 // 5  # of a layout: a run file stores them twice, last and best, beside everything else


def told(value: Any) -> str:
    """A given value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]} .."


def threads(value: Any) -> AbstractContextManager[None]:
    """A context whose computations use at most so many threads; None for all."""
    from stablebptt.kernels.core import threads as core

    return core.limit(None if value is None else whole("threads", value, 1, core.MOST_THREADS))


def whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """An integer from `least` to `most`."""
    try:
        if not _is_scalar(value):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} is {told(value)}; it must be a whole number") from None
    if number < least:
        raise ArgumentError(f"{name} is {number}; it must be at least {least}")
    if number > most:
        raise ArgumentError(f"{name} is {number}; it must be at most {most}")
    return number


def size(name: str, value: Any, least: int = 1) -> int:
    """A number of objects, points, layers or the like: an integer from `least` to `LARGEST`."""
    return whole(name, value, least, LARGEST)


def memory(what: str, wanted: float) -> None:
    """Raise a ValueError if this machine has less memory than `wanted` bytes."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if wanted > there:
        raise ArgumentError(f"{what} would need {wanted / 1e9:.3g} GB of memory; this machine has {there / 1e9:.3g} GB")


def index(name: str, value: Any, count: int) -> int:
    """An index below `count`."""
    return whole(name, value, 0, count - 1)


def real(name: str, value: Any, above: float | None = None, least: float | None = None, below: float | None = None) -> float:
    """A finite number above `above`, of at least `least`, below `below`."""
    try:
        if not _is_scalar(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} is {told(value)}; it must be a number") from None
    except OverflowError:
        raise ArgumentError(f"{name} is beyond the numbers of 64 bits; it must be finite") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name} is {number}; it must be finite")
    if above is not None and not number > above:
        raise ArgumentError(f"{name} is {number}; it must be above {above:g}")
    if least is not None and not number >= least:
        raise ArgumentError(f"{name} is {number}; it must be at least {least:g}")
    if below is not None and not number < below:
        raise ArgumentError(f"{name} is {number}; it must be below {below:g}")
    return number


def _is_scalar(value: Any) -> bool:
    """Whether a value is one real number: no word, truth value, array with axes, mask, complex number or time."""
    if isinstance(value, bool | str | bytes | bytearray | np.ma.MaskedArray):
        return False
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    return kind in "fiu" and getattr(value, "ndim", 0) == 0


def flag(name: str, value: Any) -> bool:
    """A truth value."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name} is {told(value)}; it must be True or False")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"unknown {name} {told(value)}; choose from {', '.join(allowed)}")
    return str(value)


def known(owner: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise an error if an option is given that its owner does not have."""
    for name in given:
        if name not in allowed:
            raise ArgumentError(f"{owner} has no option {name!r}; choose from {', '.join(allowed)}")


def word(name: str, value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name} is {told(value)}; it must be a word")
    return str(value)


def plain(name: str, value: Any) -> Any:
    """A value as Python words, numbers, lists and dicts, as in JSON."""
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        unmasked(name, value)
        return (value.astype(np.float64) if value.dtype.kind == "f" else value).tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{place}]", item) for place, item in enumerate(value)]
    allowed = "a run file keeps words, numbers, truth values, and lists and tables of them"
    raise ArgumentError(f"{name} is of type {type(value).__name__}; {allowed}")


def native(value: Any) -> Any:
    """A NumPy number as a Python number; anything else unchanged."""
    return plain("number", value) if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def precision(value: Any) -> Any:
    """The type np.float32 or np.float64."""
    name = getattr(value, "__name__", None) or str(value)
    return {"float32": np.float32, "float64": np.float64}[choice("dtype", name, ("float32", "float64"))]


def _is_row(name: str, value: Any) -> bool:
    """Whether a value is a sequence or an array with one axis."""
    unmasked(name, value)
    return not isinstance(value, str) and isinstance(value, Sequence | np.ndarray) and getattr(value, "ndim", 1) == 1


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Sizes of hidden layers, each at least 1; none for a linear controller."""
    if not _is_row(name, value):
        raise ArgumentError(f"{name} is {told(value)}; it must be a sequence of layer sizes such as (100, 100)")
    return tuple(size(f"{name}[{i}]", width) for i, width in enumerate(value))


def point(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers."""
    if not _is_row(name, value) or len(value) != 2:
        raise ArgumentError(f"{name} is {told(value)}; it must be two numbers such as (0, 0)")
    return real(f"{name}[0]", value[0]), real(f"{name}[1]", value[1])


def array(name: str, value: Any, shape: tuple[Any, ...], dtype: Any, *, finite: bool = True) -> np.ndarray:
    """A contiguous array of (finite) numbers of the given shape. A letter in `shape` stands for any length above 0."""
    unmasked(name, value)
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise TypeError
        # A read-only array would be another Numba type, with its own machine code and last bits.
        if given.dtype == dtype and given.flags.carray:
            result = given
        else:
            with np.errstate(over="ignore"):  # checked below
                result = np.require(given, dtype, ("C", "A", "W"))
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be an array of real numbers of shape {_show(shape)}") from None
    fits = len(given.shape) == len(shape) and all(
        length > 0 if isinstance(wanted, str) else length == wanted for length, wanted in zip(given.shape, shape)
    )
    if not fits:
        raise ArgumentError(f"{name} has shape {given.shape}; it must be {_show(shape)}")
    if finite and not np.isfinite(result).all():
        where = np.argwhere(~np.isfinite(result))[0]
        raise ArgumentError(f"{name} has a value that is not finite in {np.dtype(dtype)}, at {tuple(map(int, where))}")
    return result


def unmasked(name: str, value: Any) -> None:
    """Raise a TypeError if a value contains a masked array: a masked element has no value to compute with."""
    if _has_mask(value):
        raise ArgumentError(f"{name} is a masked array; give plain numbers (numpy.ma.filled fills the gaps)")


def _has_mask(value: Any) -> bool:
    return isinstance(value, np.ma.MaskedArray) or (isinstance(value, list | tuple) and any(map(_has_mask, value)))


def sampled(states: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A copy of the states that a problem's `sample` returned: floating-point numbers, shape (count, *state_shape).

    Other types are not cast, because training would silently use a sampler's mistake.
    """
    wanted = f"it must give an array of floating-point numbers of shape {_show(shape)}"
    unmasked("what sample gave", states)
    if getattr(getattr(states, "dtype", None), "kind", None) != "f":
        dtype_given = f" of {states.dtype}" if hasattr(states, "dtype") else ""
        raise ArgumentError(f"sample gave {type(states).__name__}{dtype_given}; {wanted}")
    if tuple(states.shape) != shape:
        raise ArgumentError(f"sample gave the shape {tuple(states.shape)}; {wanted}")
    return array("what sample gave", states, shape, dtype).copy()


def _show(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def span(name: str, text: str) -> list[int] | None:
    """The numbers of a range such as "0:10" (0 .. 9); None if the text is not a range."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None:
        return None
    first, end = map(int, match.groups())
    if end <= first:
        raise ArgumentError(f"{name} is {text!r}, an empty range")
    return list(range(first, end))


def layout(controller: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a controller's parameters, if a run file can store them; names in Unicode's normal form.

    A name is one or more words with slashes between them, such as "gain/kernel"; a shape is a tuple of whole numbers above 0.
    """
    who = f"the layout of {type(controller).__name__}"
    if not callable(getattr(controller, "layout", None)):
        example = "{'gain/kernel': (1, 2)}"
        raise ArgumentError(f"{who} is missing; define layout(self), a dict of names and shapes such as {example}")
    given = controller.layout()
    if not isinstance(given, Mapping) or not given:
        found = "empty" if isinstance(given, Mapping) else f"of type {type(given).__name__}"
        raise ArgumentError(f"{who} is {found}; it must be a dict of names and shapes, such as {{'gain/kernel': (1, 2)}}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in given.items():
        place = _place(who, name)
        if place in shapes:
            raise ArgumentError(f"{who} has the name {name!r} twice")
        shapes[place] = _axes(f"{who}: the shape of {name!r}", shape)
    for inner in shapes:
        if (name := next((str(layer) for layer in PurePosixPath(inner).parents if str(layer) in shapes), None)) is not None:
            raise ArgumentError(f"{who} has a parameter {name!r} and, in a layer of that name, {inner!r}; give one another name")
    objects = sum(name.count("/") + 1 + len(shape) for name, shape in shapes.items())
    if objects > MOST_PARTS:
        raise ArgumentError(f"{who} has {objects} names, layers and axes; a run file keeps at most {MOST_PARTS}")
    return shapes


def _place(who: str, name: Any) -> str:
    """A name of a layout in Unicode's normal form, as netCDF stores it."""
    words = unicodedata.normalize("NFC", name).split("/") if isinstance(name, str) else []
    if not 1 <= len(words) <= storage.DEEPEST or not all(map(storage.is_name, words)):
        raise ArgumentError(
            f"{who} has the name {name!r}; it must be up to {storage.DEEPEST} words with slashes between them, each "
            f"{storage.NAME_RULE}"
        )
    return "/".join(words)


def _axes(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or len(shape) > MOST_AXES:
        raise ArgumentError(f"{name} is {told(shape)}; it must be a tuple of at most {MOST_AXES} whole numbers, such as (1, 2)")
    return tuple(whole(f"{name}[{axis}]", length, 1) for axis, length in enumerate(shape))
