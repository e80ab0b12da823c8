"""Small dense algebra: matrix products from register tiles, and a hyperbolic tangent that vectorises."""

import math

import numpy as np
from numba import types
from numba.extending import overload

from stablebptt.kernels.compiler import OPTIONS, block
from stablebptt.kernels.simd import TILE_ROWS, lanes, make_tile, offset

_tile_8x3, _tile_8x2, _tile_8x1 = make_tile(8, 3), make_tile(8, 2), make_tile(8, 1)
_tile_4x4, _tile_4x2, _tile_4x1 = make_tile(4, 4), make_tile(4, 2), make_tile(4, 1)
_tile_1x4, _tile_1x1 = make_tile(1, 4), make_tile(1, 1)


@block
def _columns_8(rows, vectors, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):  # noqa: ANN
    for i in range(0, rows, 8):
        x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
        if vectors == 3:
            _tile_8x3(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        elif vectors == 2:
            _tile_8x2(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        else:
            _tile_8x1(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)


@block
def _columns_4(rows, vectors, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):  # noqa: ANN
    for i in range(0, rows, 4):
        x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
        if vectors == 4:
            _tile_4x4(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        elif vectors == 2:
            _tile_4x2(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        else:
            _tile_4x1(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)


@block
def _columns_1(rows, vectors, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):  # noqa: ANN
    for i in range(rows):
        x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
        if vectors == 4:
            _tile_1x4(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)
        else:
            _tile_1x1(inner, x, a_row, a_col, b, b_row, y, init_row, z, out_row)


@block
def matmul(rows, columns, inner, a, a_row, a_col, b, b_row, init, init_row, out, out_row):  # noqa: ANN
    """``out = init + a @ b`` on raw addresses, for a padded number of `columns`.

    Parameters
    ----------
    rows, columns, inner : int
        out is (rows, columns), a (rows, inner), b (inner, columns); columns a multiple of `PAD`.
    a, a_row, a_col : address and distances (in elements) between rows and columns; any order, so transposes are free
    b, b_row, init, init_row, out, out_row : addresses and distances between rows; columns lie side by side.
        ``init`` may be ``out`` (accumulate) or one row (``init_row`` 0: a bias).
    """
    width = lanes(b)
    eights = rows & ~7 if TILE_ROWS == 8 else 0
    fours = (rows - eights) & ~3
    ones = rows - eights - fours
    # Columns outermost: a few columns of b stay in the first cache while all rows pass.
    left, j = columns // width, 0
    while left > 0 and eights > 0:
        wide = 3 if left == 3 or left > 4 else 2 if left > 1 else 1
        y, z = offset(init, j), offset(out, j)
        _columns_8(eights, wide, inner, a, a_row, a_col, offset(b, j), b_row, y, init_row, z, out_row)
        left -= wide
        j += wide * width
    a4 = offset(a, eights * a_row)
    left, j = columns // width, 0
    while left > 0 and fours > 0:
        wide = 4 if TILE_ROWS == 8 and left > 3 else 2 if left > 1 else 1
        y, z = offset(init, eights * init_row + j), offset(out, eights * out_row + j)
        _columns_4(fours, wide, inner, a4, a_row, a_col, offset(b, j), b_row, y, init_row, z, out_row)
        left -= wide
        j += wide * width
    done = eights + fours
    a1 = offset(a, done * a_row)
    left, j = columns // width, 0
    while left > 0 and ones > 0:
        wide = 4 if left > 3 else 1
        y, z = offset(init, done * init_row + j), offset(out, done * out_row + j)
        _columns_1(ones, wide, inner, a1, a_row, a_col, offset(b, j), b_row, y, init_row, z, out_row)
        left -= wide
        j += wide * width


def tanh(x):  # noqa: ANN
    """Hyperbolic tangent; in float32 a rational function without branches (relative error below 3e-7)."""
    return np.tanh(x)


@overload(tanh, jit_options={"forceinline": True, **OPTIONS})
def _tanh(x):  # noqa: ANN
    if x != types.float32:
        return lambda x: math.tanh(x)
    limit, low = np.float32(7.90531110763549805), np.float32(-7.90531110763549805)
    a13, a11 = np.float32(-2.76076847742355e-16), np.float32(2.00018790482477e-13)
    a9, a7 = np.float32(-8.60467152213735e-11), np.float32(5.12229709037114e-08)
    a5, a3 = np.float32(1.48572235717979e-05), np.float32(6.37261928875436e-04)
    a1, b6 = np.float32(4.89352455891786e-03), np.float32(1.19825839466702e-06)
    b4, b2 = np.float32(1.18534705686654e-04), np.float32(2.26843463243900e-03)
    b0 = np.float32(4.89352518554385e-03)

    def rational(x):  # noqa: ANN
        clamped = limit if x > limit else x  # this order of the comparisons keeps NaN
        clamped = low if clamped < low else clamped
        z = clamped * clamped
        p = ((((((a13 * z + a11) * z + a9) * z + a7) * z + a5) * z + a3) * z + a1) * clamped
        q = ((b6 * z + b4) * z + b2) * z + b0
        return p / q

    return rational
