"""Small dense algebra: matrix products built from register tiles, and a hyperbolic tangent that vectorises."""

import math

import numpy as np
from numba import types

from stablebptt.kernels.core.dispatch import block, compiled_as, inline, like
from stablebptt.kernels.core.simd import (
    NONE,
    VECTOR_BYTES,
    WIDE,
    clamp,
    fill,
    lanes,
    load,
    make_buffer,
    make_tile,
    offset,
    store,
    total,
)


@inline
def _next_strip(left, most):
    """Vectors of the next strip: evenly at the end, as a single vector has too few sums to hide the time of one."""
    return most if left >= 2 * most else left if left <= most else (left + 1) >> 1


def _make_strips(rows, most):
    """Product of a strip of rows first .. end, a multiple of `rows`, in strips of 1 .. `most` vectors of columns."""
    one, two, three = make_tile(rows, 1), make_tile(rows, 2), make_tile(rows, 3)
    four = make_tile(rows, 4) if most == 4 else three

    @inline
    def strip(first, end, vectors, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row):
        for i in range(first, end, rows):
            x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
            if vectors == 4:
                four(inner, run, x, a_row, a_col, a_apart, b, b_row, b_apart, y, init_row, z, out_row)
            elif vectors == 3:
                three(inner, run, x, a_row, a_col, a_apart, b, b_row, b_apart, y, init_row, z, out_row)
            elif vectors == 2:
                two(inner, run, x, a_row, a_col, a_apart, b, b_row, b_apart, y, init_row, z, out_row)
            else:
                one(inner, run, x, a_row, a_col, a_apart, b, b_row, b_apart, y, init_row, z, out_row)

    @inline
    def strips(first, end, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row):
        # Columns outermost: a few columns of b stay in the first-level cache for all rows.
        width = lanes(b)
        left, j = columns // width, 0
        while left > 0:
            vectors = _next_strip(left, most)
            x, y, z = offset(b, j), offset(init, j), offset(out, j)
            strip(first, end, vectors, inner, run, a, a_row, a_col, a_apart, x, b_row, b_apart, y, init_row, z, out_row)
            left -= vectors
            j += vectors * width

    return strips


# Sums that fit in the registers: 8 x 3 of 32 (AVX-512), 4 x 3 or 2 x 4 of 16; of a single vector of columns, more rows.
TALL = 16 if WIDE else 8
_tall, _eights = make_tile(TALL, 1), _make_strips(8, 3)
_fours = _make_strips(4, 4 if WIDE else 3)
_twos, _ones = _make_strips(2, 4), _make_strips(1, 4)

# Blocks pay from so long rows of b (in elements), and so many rows, on. A block has so many rows, and vectors of columns.
FAR, MANY, DEEP, STRIP = 512, 128, 128, 3
_buffer = make_buffer(DEEP * STRIP * VECTOR_BYTES)


@inline
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
    matmul_runs(rows, columns, inner, inner, a, a_row, a_col, NONE, b, b_row, NONE, init, init_row, out, out_row)


@inline
def matmul_runs(rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row):
    """`matmul` with the inner index in runs of `run`, a divisor of `inner`.

    a_apart, b_apart : elements from one run of a's columns, and of b's rows, to the next
    """
    if b_row >= FAR and rows >= MANY:
        matmul_blocks(rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)
    else:
        matmul_tiles(rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)


@block
def matmul_blocks(rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row):
    """`matmul_runs` for long rows of b: blocks of them, which many rows of a need, are copied together.

    Rows far apart lie in as many pages of memory, and a strip of all of them leaves the first-level cache. Sums keep their order.
    """
    width, piece, several = lanes(b), min(run, DEEP), max(1, DEEP // run)
    left, j, packed = columns // width, 0, _buffer(b)
    while left > 0:
        vectors = _next_strip(left, STRIP)
        line, y, y_row, z = vectors * width, offset(init, j), init_row, offset(out, j)
        for first in range(0, inner, several * run):  # several short runs, or
            for k in range(0, run, piece):  # a piece of a long one
                count, size = min(several, (inner - first) // run), min(piece, run - k)
                x = offset(b, first // run * b_apart + k * b_row + j)
                for r in range(count * size):
                    source = offset(x, r // size * b_apart + r % size * b_row)
                    for v in range(0, line, width):
                        store(packed, r * line + v, load(source, v))
                w = offset(a, first // run * a_apart + k * a_col)
                matmul_tiles(
                    rows, line, count * size, size, w, a_row, a_col, a_apart, packed, line, size * line, y, y_row, z, out_row
                )  # fmt: skip
                y, y_row = z, out_row
        left -= vectors
        j += line


@block
def matmul_tiles(rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row):
    """`matmul_runs`, by tiles."""
    done, end = 0, 0
    if columns == lanes(b):
        end = rows // TALL * TALL
        for i in range(0, end, TALL):
            x, y, z = offset(a, i * a_row), offset(init, i * init_row), offset(out, i * out_row)
            _tall(inner, run, x, a_row, a_col, a_apart, b, b_row, b_apart, y, init_row, z, out_row)
        done = end
    if WIDE and rows - done >= 8:
        end = done + ((rows - done) & ~7)
        _eights(done, end, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)
        done = end
    if rows - done >= 4:
        end = done + ((rows - done) & ~3)
        _fours(done, end, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)
        done = end
    if rows - done >= 2:
        end = done + 2
        _twos(done, end, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)
        done = end
    if rows > done:
        _ones(done, rows, columns, inner, run, a, a_row, a_col, a_apart, b, b_row, b_apart, init, init_row, out, out_row)


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
def add_rows(rows, n, a, a_row, out):
    """Add all rows of a (rows, n), in their order, to out, for a padded n."""
    width, j = lanes(a), 0
    while j < n:
        line = offset(a, j)
        if n - j >= 4 * width:  # several sums at a time hide the time of one
            one, two, three, four = load(out, j), load(out, j + width), load(out, j + 2 * width), load(out, j + 3 * width)
            for _ in range(rows):
                one, two = one + load(line, 0), two + load(line, width)
                three, four = three + load(line, 2 * width), four + load(line, 3 * width)
                line = offset(line, a_row)
            store(out, j, one)
            store(out, j + width, two)
            store(out, j + 2 * width, three)
            store(out, j + 3 * width, four)
            j += 4 * width
        else:
            one = load(out, j)
            for _ in range(rows):
                one = one + load(line, 0)
                line = offset(line, a_row)
            store(out, j, one)
            j += width


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
