"""Checks of what users give; every message says what was given and what is allowed."""

import math
import operator
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 10**9  # of anything that is counted
LARGEST = 10**6  # number of poles, objects, points, features


def whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """An integer from `least` to `most`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}; it must be at least {least}")
    if number > most:
        raise ValueError(f"{name} is {number}; it must be at most {most}")
    return number


def size(name: str, value: Any, least: int = 1) -> int:
    """How many of something a system or network has."""
    return whole(name, value, least, LARGEST)


def memory(what: str, wanted: float) -> None:
    """Raise a ValueError if `wanted` bytes are more than this machine has."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if wanted > there:
        raise ValueError(f"{what} would need {wanted / 1e9:.3g} GB of memory; this machine has {there / 1e9:.3g} GB")


def index(name: str, value: Any, count: int) -> int:
    """The number of one of `count` things, counted from 0."""
    number = whole(name, value, 0)
    if number >= count:
        raise ValueError(f"{name} is {number}; it must be at most {count - 1}")
    return number


def real(name: str, value: Any, above: float | None = None, least: float | None = None) -> float:
    """A finite number above `above` or of at least `least`."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it must be a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; it must be finite")
    if above is not None and not number > above:
        raise ValueError(f"{name} is {number}; it must be above {above:g}")
    if least is not None and not number >= least:
        raise ValueError(f"{name} is {number}; it must be at least {least:g}")
    return number


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(allowed)}")
    return value


def precision(value: Any) -> Any:
    """The type np.float32 or np.float64."""
    name = getattr(value, "__name__", None) or str(value)
    return {"float32": np.float32, "float64": np.float64}[choice("dtype", name, ("float32", "float64"))]


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Sizes of hidden layers: at least one, each at least 1."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} is {value!r}; it must be a sequence of layer sizes such as (100, 100)")
    if len(value) == 0:
        raise ValueError(f"{name} is empty; give at least one hidden layer")
    return tuple(size(f"{name}[{i}]", width) for i, width in enumerate(value))


def point(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != 2:
        raise TypeError(f"{name} is {value!r}; it must be two numbers such as (0, 0)")
    return real(f"{name}[0]", value[0]), real(f"{name}[1]", value[1])


def array(name: str, value: Any, shape: tuple[Any, ...], dtype: Any, finite: bool = True) -> np.ndarray:
    """A contiguous array of (finite) numbers of the given shape; a letter in `shape` stands for any length above 0."""
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise TypeError
        result = np.ascontiguousarray(given, dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of real numbers of shape {_show(shape)}") from None
    fits = len(given.shape) == len(shape) and all(
        length > 0 if isinstance(wanted, str) else length == wanted for length, wanted in zip(given.shape, shape)
    )
    if not fits:
        raise ValueError(f"{name} has shape {given.shape}; it must be {_show(shape)}")
    if finite and not np.all(np.isfinite(result)):
        where = np.argwhere(~np.isfinite(result))[0]
        raise ValueError(f"{name} has a value that is not finite in {np.dtype(dtype)}, at {tuple(map(int, where))}")
    return result


def _show(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def span(name: str, text: str) -> list[int] | None:
    """The numbers 0 .. 9 of "0:10"; None if the text is no range."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None:
        return None
    first, end = map(int, match.groups())
    if end <= first:
        raise ValueError(f"{name} is {text!r}, an empty range")
    return list(range(first, end))
