"""Columns of tables of runs: numbers, and words that netCDF keeps as numbers."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from stablebptt.data import run_file, storage
from stablebptt.data.storage import Variable

MOST_WORDS = 40_000  # letters of an attribute; HDF5 keeps 64 KiB


def numbers(long_name: str, values: Iterable[Any], units: str = "1") -> Variable:
    """A column of numbers."""
    return Variable(np.array(list(values)), ("run",), units, long_name)


def words(long_name: str, values: list[str], meanings: Iterable[str] | None = None) -> Variable:
    """Words as numbers that attributes explain."""
    known = list(dict.fromkeys(values if meanings is None else meanings))
    place = {meaning: number for number, meaning in enumerate(known)}
    return Variable(np.array([place[value] for value in values], np.int32), ("run",), "1", long_name, run_file.flags(known))


def letters(long_name: str, dim: str, values: list[str]) -> Variable:
    """Words as rows of bytes, filled up by zeros: any number of them, of any length."""
    encoded = [value.encode() for value in values]
    widest = max(map(len, encoded))
    return Variable(np.array([list(word.ljust(widest, b"\0")) for word in encoded], np.uint8), ("run", dim), "1", long_name)


def anything(long_name: str, values: list[Any], column: str) -> Variable:
    """A column of numbers where there are only numbers (NaN: the run has none), else of words."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return numbers(long_name, values)
    if all(isinstance(value, int | float) or value is None for value in values):
        return numbers(long_name, [math.nan if value is None else float(value) for value in values])
    texts = ["none" if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    if sum(map(len, dict.fromkeys(texts))) > MOST_WORDS:
        return letters(f"{long_name}, in letters of UTF-8", f"{column}_letter", texts)
    return words(long_name, texts)


def name_of(word: str, taken: Iterable[str]) -> str:
    """The name of a column, as netCDF takes it, that no other has."""
    column = "".join(letter if letter.isalnum() else "_" for letter in word)[: storage.LONGEST_NAME // 4]
    while column in (*taken, "run") or column.endswith("_letter"):
        column += "_"
    return column


def cells(variable: Variable) -> list[Any]:
    """What a column says: numbers, or the words that they stand for."""
    values = variable.values
    if values.ndim == 2:  # letters
        return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in values.astype(np.uint8)]
    try:
        known = json.loads(variable.attributes["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        known = None
    if not isinstance(known, list) or values.dtype.kind not in "iu":
        return values.tolist()
    return [known[k] if 0 <= k < len(known) else k for k in values.tolist()]
