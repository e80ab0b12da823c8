"""Activations against NumPy and SciPy in float64: accuracy of values and slopes, NaN, and what is kept."""

import functools

import numpy as np
import pytest
from numba import njit
from scipy.special import expit

from stablebptt.kernels.activations import ACTIVATIONS, activate_all, keeps_slopes, slope, slope_count
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.simd import lanes, load, pointer, store
from stablebptt.kernels.dense import aligned

COUNT = 1 << 14


def gelu(z):
    return z * expit(2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))


EXACT = {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "gelu": gelu,
    "silu": lambda z: z * expit(z),
    "softplus": lambda z: np.logaddexp(0, z),
    "sin": np.sin,
    "identity": lambda z: z,
}
# Where values are normal float32 numbers.
PLACES = {"gelu": [(-1, 1), (-9.5, 9.5), (5, 90)], "silu": [(-1, 1), (-86, 86)], "softplus": [(-1, 1), (-86, 86)]}


@functools.cache
def compiled(name):
    activation = ACTIVATIONS[name]

    @njit(**OPTIONS)
    def run(activation, z, slopes):
        activate_all(activation, z.size, pointer(z), pointer(slopes))

    @njit(**OPTIONS)
    def run_slope(activation, h, out):
        for j in range(0, h.size, lanes(pointer(h))):
            value = load(pointer(h), j)
            store(pointer(out), j, slope(activation, value, value))

    def call(z):
        h, slopes = aligned(z.shape, z.dtype), aligned(z.shape, z.dtype)
        h[:] = z
        run(activation, h, slopes)
        if not keeps_slopes(activation):
            run_slope(activation, h, slopes)
        return h, slopes

    return call


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_are_within_4_ulp_and_slopes_are_derivatives(name, random):
    for low, high in PLACES.get(name, [(-1, 1), (-20, 20)]):
        z = random.uniform(low, high, COUNT)
        single = z.astype(np.float32)
        exact = EXACT[name](single.astype(np.float64))
        unit = np.spacing(np.abs(exact.astype(np.float32))).astype(np.float64)
        h, slopes = compiled(name)(single)
        assert np.max(np.abs(h - exact) / unit) <= 4
        double, double_slopes = compiled(name)(z)
        np.testing.assert_allclose(double, EXACT[name](z), rtol=2e-14, atol=1e-300)
        steps = 1e-20j if name in ("sin",) else None
        difference = np.imag(np.sin(z + steps)) / 1e-20 if steps else _difference(EXACT[name], z)
        np.testing.assert_allclose(double_slopes, difference, atol=1e-8)
        np.testing.assert_allclose(slopes, double_slopes, atol=1e-5)


def _difference(function, z, size=1e-6):
    """A central difference; at a kink, of one side."""
    side = np.where(np.sign(z + size) == np.sign(z - size), 0, 2 * size)
    return (function(z + size + side) - function(z - size + side)) / (2 * size)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_visible_and_far_numbers_saturate(name):
    z = np.resize(np.array([np.nan, 1e4, -1e4, 1e38, -1e38, 0.0, -3.0], np.float32), 64)
    h, slopes = compiled(name)(z)
    with np.errstate(all="ignore"):
        exact = EXACT[name](z.astype(np.float64))
    np.testing.assert_allclose(h, exact, rtol=1e-6, atol=1e-30)
    assert np.all(np.isnan(slopes[np.isnan(z)])) and np.all(np.isfinite(slopes[~np.isnan(z)]))


def test_what_follows_from_the_value_is_not_kept():
    kept = {name for name, activation in ACTIVATIONS.items() if keeps_slopes(activation)}
    assert kept == {"gelu", "silu", "softplus", "sin"}
    assert all(slope_count(activation, 100) == (100 if name in kept else 1) for name, activation in ACTIVATIONS.items())
