"""Small dense algebra: matrix products built from register tiles, and a hyperbolic tangent that vectorises."""

import math

import numpy as np
from numba import types

from stablebptt.kernels.core.dispatch import block, compiled_as, inline, like
from stablebptt.kernels.core.simd import WIDE, clamp, fill, lanes, load, make_tile, offset, store, total


def _make_strip(rows, most):
    """Product of a strip of the matrix: a multiple of `rows` rows by 1 .. `most` vectors of columns."""
    one, two, three = make_tile(rows, 1), make_tile(rows, 2), make_tile(rows, 3)
    four = make_tile(rows, 4) if most == 4 else three

    @inline
    def strip(n, vectors, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):
        for i in range(0, n, rows):
            x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
            if vectors == 4:
                four(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
            elif vectors == 3:
                three(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
            elif vectors == 2:
                two(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
            else:
                one(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)

    @inline
    def strips(n, columns, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):
        # Columns outermost: a few columns of b stay in the first-level cache for all rows.
        width = lanes(b)
        left, j = columns // width, 0
        while left > 0:
            parts = (left + most - 1) // most
            vectors = (left + parts - 1) // parts
            y, z = offset(init, j), offset(out, j)
            strip(n, vectors, inner, a, a_row, a_col, offset(b, j), b_row, y, init_row, z, out_row)
            left -= vectors
            j += vectors * width

    return strips


# Accumulators that fit in the registers: 8 x 3 of 32 (AVX-512), 4 x 3 or 2 x 4 of 16.
_eights = _make_strip(8, 3)
_fours = _make_strip(4, 4 if WIDE else 3)
_twos, _ones = _make_strip(2, 4), _make_strip(1, 4)


@block
def matmul(rows, columns, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):
    """Compute ``out = init + a @ b`` on raw addresses, for a padded number of `columns`.

    Parameters
    ----------
    rows, columns, inner : int
        out is (rows, columns), a (rows, inner), b (inner, columns); columns is a multiple of `PAD`.
    a, a_row, a_col : address, and strides (in elements) of rows and columns; any strides, so transposes are free
    b, b_row, init, init_row, out, out_row : addresses and row strides; columns are contiguous.
        ``init`` may be ``out`` (accumulate) or one row (``init_row`` 0: a bias).
    """
    done = 0
    if WIDE and rows >= 8:
        done = rows & ~7
        _eights(done, columns, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row)
    if rows - done >= 4:
        n = (rows - done) & ~3
        x, y, z = offset(a, done * a_row), offset(init, done * init_row), offset(out, done * out_row)
        _fours(n, columns, inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        done += n
    if rows - done >= 2:
        x, y, z = offset(a, done * a_row), offset(init, done * init_row), offset(out, done * out_row)
        _twos(2, columns, inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        done += 2
    if rows > done:
        x, y, z = offset(a, done * a_row), offset(init, done * init_row), offset(out, done * out_row)
        _ones(1, columns, inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros of a shape, aligned to a cache line. One vector more may be read behind them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 128, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


@inline
def dot(n, a, b):
    """Inner product of n (padded) elements at addresses a and b."""
    result = fill(a, like(a, 0.0))
    for j in range(0, n, lanes(a)):
        result = result + load(a, j) * load(b, j)
    return total(result)


@inline
def copy(n, a, out):
    """Set ``out = a`` for n elements at addresses a and out."""
    for j in range(n):
        out[j] = a[j]


@inline
def scale(n, factor, a, out):
    """Set ``out = factor * a`` for n elements at addresses a and out. It may write up to one vector more."""
    for j in range(0, n, lanes(a)):
        store(out, j, factor * load(a, j))


@inline
def add(n, a, out):
    """Add a to out, for n (padded) elements at these addresses."""
    for j in range(0, n, lanes(a)):
        store(out, j, load(out, j) + load(a, j))


def tanh(x):
    """Hyperbolic tangent; in float32 a rational function without branches (relative error below 3e-7)."""
    return np.tanh(x)


def _tanh(x):
    if getattr(x, "dtype", x) != types.float32:
        return lambda x: math.tanh(x)
    limit = np.float32(7.90531110763549805)
    a13, a11 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13)
    a9, a7 = np.float32(-8.60467152213735e-11), np.float32(5.12229709037114e-08)
    a5, a3 = np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04)
    a1, b6 = np.float32(4.89352455891786e-03), np.float32(1.19825839466702e-06)
    b4, b2 = np.float32(1.18534705686654e-04), np.float32(2.26843463243900e-03)
    b0 = np.float32(4.89352518554385e-03)

    def rational(x):
        y = clamp(x, limit)
        z = y * y
        p = ((((((a13 * z + a11) * z + a9) * z + a7) * z + a5) * z + a3) * z + a1) * y
        q = ((b6 * z + b4) * z + b2) * z + b0
        return p / q

    return rational


compiled_as(tanh, _tanh, forceinline=True)
