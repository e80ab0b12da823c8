"""Matrix products of every size, and the hyperbolic tangent."""

import math

import numpy as np
import pytest
from numba import njit

from stablebptt.kernels.core.simd import PAD, VECTOR_BYTES, clamp, lanes, load, pointer, spaced, store
from stablebptt.kernels.core.vector_math import where
from stablebptt.kernels.dense import DEEP, FAR, MANY, Matrix, add_rows, dot, matmul, matmul_runs, matrix, tanh


@njit
def product(rows, columns, inner, a, a_row, a_col, b, init, init_row, out):
    left, first, result = Matrix(pointer(a), a_row, a_col, 0), matrix(pointer(init), init_row), matrix(pointer(out), out.shape[1])
    matmul((rows, columns, inner), left, matrix(pointer(b), b.shape[1]), first, result)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33, 100])
def test_products(rows, dtype, random):
    for columns in range(PAD, 9 * PAD, PAD):
        for inner in (1, 6, 101):
            a = random.standard_normal((rows, inner)).astype(dtype)
            b = random.standard_normal((inner, columns)).astype(dtype)
            bias = random.standard_normal((1, columns)).astype(dtype)
            out = np.full((rows + 1, columns), 7, dtype)
            exact = a.astype(float) @ b.astype(float) + bias
            bound = 4 * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b) + np.abs(bias)).max() * np.sqrt(inner)
            product(rows, columns, inner, a, inner, 1, b, bias, 0, out)
            assert np.abs(out[:rows] - exact).max() <= bound
            assert np.all(out[rows] == 7)  # nothing beyond
            transposed = np.ascontiguousarray(a.T)
            again = np.zeros((rows, columns), dtype)
            product(rows, columns, inner, transposed, 1, rows, b, again, columns, again)  # accumulates
            product(rows, columns, inner, transposed, 1, rows, b, again, columns, again)
            assert np.abs(again - 2 * (exact - bias)).max() <= 2 * bound


def test_elements_do_not_depend_on_the_number_of_rows(random):
    a = random.standard_normal((33, 50)).astype(np.float32)
    b = random.standard_normal((50, 112)).astype(np.float32)
    zero, whole = np.zeros((1, 112), np.float32), np.zeros((33, 112), np.float32)
    product(33, 112, 50, a, 50, 1, b, zero, 0, whole)
    for rows in (1, 2, 4, 7, 8, 20):
        part = np.zeros((rows, 112), np.float32)
        product(rows, 112, 50, a, 50, 1, b, zero, 0, part)
        assert np.array_equal(part, whole[:rows])


@njit
def product_of_runs(rows, columns, inner, run, a, a_apart, b, b_apart, out):
    """Of a (rows of inner numbers, transposed) and b, runs of whose rows lie a_apart and b_apart rows apart."""
    length, line = a.shape[1], b.shape[1]
    zero = np.zeros(columns, out.dtype)
    left, right = Matrix(pointer(a), 1, length, a_apart * length), Matrix(pointer(b), line, 1, b_apart * line)
    matmul_runs((rows, columns, inner, run), left, right, matrix(pointer(zero), 0), matrix(pointer(out), out.shape[1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3, 8, 21, 40])
def test_runs_are_summed_in_their_order(rows, dtype, random):
    for columns in (PAD, 2 * PAD, 7 * PAD):
        for count, run, a_apart, b_apart in ((5, 4, 9, 4), (3, 1, 2, 5), (1, 6, 6, 6), (4, 3, 3, 7), (6, 5, -5, 5)):
            last = (count - 1) * abs(a_apart) + run
            a = random.standard_normal((last, rows + 2)).astype(dtype)
            b = random.standard_normal(((count - 1) * b_apart + run, columns)).astype(dtype)
            first = 0 if a_apart > 0 else last - run
            out, same = (np.zeros((rows, columns), dtype) for _ in range(2))
            product_of_runs(rows, columns, count * run, run, a[first:], a_apart, b, b_apart, out)
            picked = [first + k * a_apart + j for k in range(count) for j in range(run)]
            others = [k * b_apart + j for k in range(count) for j in range(run)]
            gathered, lines = np.ascontiguousarray(a[picked].T[:rows]), np.ascontiguousarray(b[others])
            product(rows, columns, count * run, gathered, count * run, 1, lines, np.zeros((1, columns), dtype), 0, same)
            assert np.array_equal(out, same)
            assert np.allclose(out, gathered.astype(float) @ lines, atol=1e3 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_long_rows_have_the_bits_of_tiles(dtype, random):
    """Runs short and long, whole and cut; narrower strips at the end; an initial row, and sums that are added to."""
    rows, columns = MANY + 5, FAR + PAD
    for count, run, apart in ((1, 1, 1), (7, 4, 9), (1, 2 * DEEP + 3, 0), (3, DEEP + 1, DEEP + 2), (DEEP // 2 + 3, 5, 6)):
        a = random.standard_normal(((count - 1) * apart + run, rows)).astype(dtype)
        b = random.standard_normal((len(a), columns)).astype(dtype)
        blocked = np.ones((rows, columns), dtype)
        product_of_runs(rows, columns, count * run, run, a, apart, b, apart, blocked)
        for j in range(0, columns, PAD):
            tiled = np.ones((rows, PAD), dtype)
            product_of_runs(rows, PAD, count * run, run, a, apart, np.ascontiguousarray(b[:, j : j + PAD]), apart, tiled)
            assert np.array_equal(blocked[:, j : j + PAD], tiled)
        added = blocked.copy()
        product(rows, columns, len(a), a, 1, rows, b, added, columns, added)
        assert np.allclose(added, blocked + a.T.astype(float) @ b, atol=1e3 * float(np.finfo(dtype).eps))


def test_rows_share_no_places_of_the_cache():
    for columns in range(PAD, 600, PAD):
        assert 0 <= spaced(columns) - columns <= PAD
        assert spaced(columns) % PAD == 0
        assert len({row * spaced(columns) % 1024 for row in range(16)}) == 16  # 1024 numbers: all places of 4 KiB


def test_rows_are_added_in_their_order(random):
    run = njit(lambda a, out: add_rows(a.shape[0], out.size, pointer(a), a.shape[1], pointer(out)))
    for columns in (PAD, 3 * PAD, 4 * PAD, 13 * PAD):
        a, out = random.standard_normal((17, columns + PAD)).astype(np.float32), np.ones(columns + PAD, np.float32)
        expected = out.copy()
        for line in a:
            expected[:columns] += line[:columns]
        run(a, out[:columns])
        assert np.array_equal(out, expected)


def test_dot(random):
    run = njit(lambda a, b: dot(a.size, pointer(a), pointer(b)))
    for dtype in (np.float32, np.float64):
        a, b = (random.standard_normal(112).astype(dtype) for _ in range(2))
        assert run(a, b) == pytest.approx(a.astype(float) @ b.astype(float), abs=1e2 * float(np.finfo(dtype).eps))


@njit
def all_tanh(z):
    for j in range(0, z.size, lanes(pointer(z))):
        store(pointer(z), j, tanh(load(pointer(z), j)))


@njit
def one_tanh(x):
    return tanh(x)


def test_tanh_float32_is_accurate():
    x = np.concatenate([np.linspace(-12, 12, 1 << 16), np.geomspace(1e-30, 1, 1 << 12), [0.0] * (1 << 4)])
    x = x.astype(np.float32)
    z = x.copy()
    all_tanh(z)
    exact = np.tanh(x.astype(float))
    assert np.all(np.abs(z - exact) <= 3e-7 * np.abs(exact))
    assert np.abs(z).max() <= 1
    assert z[-1] == 0


def test_tanh_keeps_nan_and_the_limits():
    for dtype in (np.float32, np.float64):
        z = np.array([np.nan, np.inf, -np.inf, 100, -100, 0, 1, -1] * 2, dtype)
        all_tanh(z)
        assert np.isnan(z[0]) and np.isnan(z[8])
        np.testing.assert_allclose(z[1:5], [1, -1, 1, -1], atol=3e-7)
        assert np.isnan(one_tanh(dtype(np.nan)))
        assert one_tanh(dtype(0.5)) == pytest.approx(np.tanh(0.5), rel=3e-7)


@njit
def in_lanes(x, out):
    """Functions of vectors, one row each."""
    for j in range(0, x.size, lanes(pointer(x))):
        value = load(pointer(x), j)
        store(pointer(out[0]), j, math.sqrt(value))
        store(pointer(out[1]), j, where(value == 0, 0, 1 / value))
        store(pointer(out[2]), j, clamp(value, x.dtype.type(1.5)))
        store(pointer(out[3]), j, -value)


def in_python(x):
    with np.errstate(all="ignore"):
        inverse = np.where(x == 0, 0, 1 / x)
        return np.stack([np.sqrt(x), inverse, np.where(np.isnan(x), x, np.clip(x, -1.5, 1.5)), -x]).astype(x.dtype)


@pytest.mark.parametrize("special", [0.0, -0.0, np.nan, np.inf, -np.inf, -4.0, 1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_lane_does_not_touch_the_others(dtype, special, random):
    usual = random.uniform(0.1, 3, 2 * VECTOR_BYTES // np.dtype(dtype).itemsize).astype(dtype)
    for lane in range(len(usual)):
        x, out = usual.copy(), np.empty((4, len(usual)), dtype)
        x[lane] = special
        in_lanes(x, out)
        np.testing.assert_array_equal(out, in_python(x))
        if dtype == np.float32:
            all_tanh(usual_tanh := usual.copy())
            all_tanh(x)
            others = np.arange(len(x)) != lane
            assert np.array_equal(x[others], usual_tanh[others])
            np.testing.assert_allclose(x[lane], np.tanh(np.float64(dtype(special))), rtol=3e-7)
