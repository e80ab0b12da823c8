"""The text of a step for one sample, computed for registers full of samples: the numbers agree, or it is computed alone."""

import math

import numpy as np
import pytest
from numba import njit, typeof

from stablebptt.adjoint import step_batch_vjp, step_vjp
from stablebptt.kernels import System, implements, in_lanes, step, step_batch, where
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.lanes import view_type
from stablebptt.kernels.generics import scratch_size


class Everything(System):
    """What the text of a step may contain: helpers, slices, negative indices, loops, functions, numbers of any kind."""

    gain: float
    table: np.ndarray

    state_shape = (4,)
    control_shape = (2,)


@njit(**OPTIONS)
def helper(system, a, b):
    return system.gain * math.sin(a) * b, max(a, b)


@implements(step, Everything)
def _step(system, x, c, x_next):
    total = 0.0
    for j in range(len(x)):
        total += system.table[j % 2] * x[j] ** 2
    first, second = helper(system, x[0], c[-1])
    x_next[:] = 0.5
    x_next[2:] = x[:2]
    x_next[0] += first + total / x.size
    x_next[-1] -= where(second > 0, math.sqrt(abs(second)), np.exp(second))
    x_next[1] = np.tanh(x[1]) + math.cos(x[2]) * c[0] + x.shape[0] + x.dtype.type(2)


@implements(step_vjp, Everything)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        bar, x_bar = lam[v], lam_x[v]
        for j in range(lam.shape[1]):
            x_bar[j] += bar[j] * x[-1 - j]
        lam_c[v, -1] += bar[0] * math.sin(x[0])
        lam_c[v, 0] += lam[v, 1] * c[0]


class Branching(System):
    """A step with an ``if`` on a number."""

    dt: float

    state_shape = (1,)
    control_shape = (1,)


@implements(step, Branching)
def _step_branching(system, x, c, x_next):
    if x[0] > 0:
        x_next[0] = x[0] - system.dt * c[0]
    else:
        x_next[0] = 2 * x[0]


@implements(step_vjp, Branching)
def _step_branching_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        lam_x[v, 0] += where(x[0] > 0, lam[v, 0], 2 * lam[v, 0])
        lam_c[v, 0] -= where(x[0] > 0, system.dt * lam[v, 0], 0.0)


@njit(**OPTIONS)
def run(system, x, c, x_next, scratch):
    step_batch(system, x, c, x_next, scratch)


@njit(**OPTIONS)
def run_vjp(system, given, bars, scratch):
    x, x_next, c = given
    lam, lam_x, lam_c = bars
    step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


def everything(dtype):
    return Everything(dtype(0.3), np.array([0.5, -1.5], dtype))


def branching(dtype):
    return Branching(dtype(0.3))


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(branching, np.float32), *(pytest.param(everything, dtype, marks=pytest.mark.slow) for dtype in (np.float32, np.float64))],
)
def test_a_batch_is_its_samples(make, dtype, random):
    for batch in (1, 3, 16, 21):
        check_batch(make(dtype), batch, dtype, random)


def check_batch(system, batch, dtype, random):
    m = 2
    n, q = system.state_shape[0], system.control_shape[0]
    x, c, lam = (random.standard_normal(shape).astype(dtype) for shape in ((batch, n), (batch, q), (batch, m, n)))
    lam_x, lam_c = random.standard_normal((batch, m, n)).astype(dtype), random.standard_normal((batch, m, q)).astype(dtype)
    scratch = np.full(scratch_size(system, batch, m, n, q), np.nan, dtype)
    x_next, expected = np.full_like(x, np.nan), np.full_like(x, np.nan)
    x_bar, c_bar = lam_x.copy(), lam_c.copy()
    run(system, x, c, x_next, scratch)
    run_vjp(system, (x, x_next, c), (lam, x_bar, c_bar), scratch)
    for b in range(batch):
        step(system, x[b], c[b], expected[b])
        step_vjp(system, x[b], c[b], lam[b], lam_x[b], lam_c[b])
    bound = 40 * np.finfo(dtype).eps
    for found, wanted in ((x_next, expected), (x_bar, lam_x), (c_bar, lam_c)):
        np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound)


def test_only_what_has_no_branch_on_a_number_is_computed_so():
    for system, expected in ((everything(np.float32), True), (branching(np.float32), False)):
        view = view_type(typeof(np.float32(0)))
        assert in_lanes.fits(in_lanes.step_sample, typeof(system), view, view, view, view) is expected


def test_a_sample_that_is_not_finite_does_not_touch_the_others(random):
    system = everything(np.float32)
    x, c = random.standard_normal((9, 4)).astype(np.float32), random.standard_normal((9, 2)).astype(np.float32)
    after, scratch = np.empty((2, 9, 4), np.float32), np.empty(scratch_size(system, 9, 1, 4, 2), np.float32)
    run(system, x, c, after[0], scratch)
    x[4] = [np.nan, np.inf, -np.inf, 1e30]
    run(system, x, c, after[1], scratch)
    others = np.arange(9) != 4
    assert np.array_equal(after[0, others], after[1, others]) and np.isnan(after[1, 4]).any()
