"""Functions of vectors against NumPy in float64: accuracy, NaN and Inf, and what they refuse."""

import functools
import math

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from stablebptt.kernels import where
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.simd import lanes, load, pointer, store

COUNT = 1 << 14  # a multiple of every width
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3.0, 1e38]


def of_vectors(function):
    """A function of an array whose numbers pass through vectors."""
    formula = njit(**OPTIONS)(function)

    @njit(**OPTIONS)
    def run(x, y):
        for i in range(0, x.size, lanes(pointer(x))):
            store(pointer(y), i, formula(load(pointer(x), i)))

    def call(x):
        y = np.empty_like(x)
        run(x, y)
        return y

    return call


def between(low, high):
    return lambda random: random.uniform(low, high, COUNT)


def tiny(random):
    return 10.0 ** random.uniform(-37, 1, COUNT)


# Function, the same in NumPy, where, and how many units in the last place it may be off in float32.
FUNCTIONS = {
    "sin": (lambda x: math.sin(x), np.sin, (between(-4, 4), between(-1e5, 1e5), between(-1e9, 1e9), tiny), 2),
    "cos": (lambda x: np.cos(x), np.cos, (between(-4, 4), between(-1e5, 1e5), between(-1e9, 1e9)), 2),
    "exp": (lambda x: math.exp(x), np.exp, (between(-1, 1), between(-87, 88.7), between(-103, -87)), 2),
    "tanh": (lambda x: np.tanh(x), np.tanh, (between(-1, 1), between(-20, 20), tiny), 2),
    "sqrt": (lambda x: math.sqrt(x), np.sqrt, (between(0, 9), tiny), 0.51),
    "log": (lambda x: math.log(x), np.log, (between(0.1, 20), between(0.99, 1.01), tiny, between(1e20, 3e38)), 2),
    "log1p": (lambda x: np.log1p(x), np.log1p, (between(-0.99, 2), between(-1e-3, 1e-3), tiny, between(1e20, 3e38)), 2.5),
    "arctan": (lambda x: np.arctan(x), np.arctan, (between(-9, 9),), 1),
    "atan2": (lambda x: math.atan2(x, 2.0), lambda x: np.arctan2(x, 2.0), (between(-9, 9),), 1),
    "cube": (lambda x: x**3, lambda x: x**3, (between(-9, 9),), 2),
    "inverse square": (lambda x: x**-2, lambda x: x**-2.0, (between(1, 9),), 3),
    "root": (lambda x: x**0.25, lambda x: x**0.25, (between(1, 9),), 1),
    "abs": (lambda x: abs(x), np.abs, (between(-9, 9),), 0),
    "min": (lambda x: min(x, 1.5), lambda x: np.minimum(x, 1.5), (between(-9, 9),), 0),
    "max": (lambda x: np.maximum(1, x), lambda x: np.maximum(1, x), (between(-9, 9),), 0),
    "where": (
        lambda x: where((x > 1) & ~(x >= 4) | (x != 0), -x, 2.0), lambda x: np.where(x != 0, -x, 2.0), (between(-9, 9),), 0
    ),
}  # fmt: skip


@functools.cache
def compiled(name):
    return of_vectors(FUNCTIONS[name][0])


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_accurate_as_they_say(name, random):
    _, exact, places, most = FUNCTIONS[name]
    call = compiled(name)
    for place in places:
        x = place(random)
        single = x.astype(np.float32)
        expected = exact(single.astype(np.float64))
        unit = np.spacing(np.abs(expected.astype(np.float32))).astype(np.float64)
        assert np.max(np.abs(call(single) - expected) / unit) <= most
        np.testing.assert_allclose(call(x), exact(x), rtol=5e-16 if name != "inverse square" else 1e-15, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sin", "exp", "tanh", "sqrt", "log", "log1p", "cube", "min", "where"])
def test_nan_and_infinities_come_out_as_they_do_of_numbers(name, dtype):
    exact = FUNCTIONS[name][1]
    x = np.resize(np.array(SPECIAL, dtype), 64)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64)).astype(dtype)
    found = compiled(name)(x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
    np.testing.assert_allclose(found, expected, rtol=2e-6 if dtype == np.float32 else 1e-15)


def test_numbers_become_vectors_where_they_must(random):
    def formula(x):
        total = 0.0
        for k in range(3):
            total += k * x
        total /= 2
        total -= np.float64(1.0)
        total *= x
        return 1 + total

    x = random.uniform(-2, 2, 64).astype(np.float32)
    np.testing.assert_allclose(of_vectors(formula)(x), 1 + (1.5 * x - 1) * x, rtol=1e-5, atol=1e-6)


def test_a_truth_value_of_many_is_refused():
    with pytest.raises(TypingError, match=r"bool\(Mask"):
        of_vectors(lambda x: x if x > 0 else -x)(np.ones(64))


def test_where_of_numbers():
    both = njit(lambda x: where(x > 0, x, -2.0 * x))
    for function in (both, both.py_func):
        assert function(3.0) == 3.0 and function(-3.0) == 6.0
