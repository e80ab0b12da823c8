"""Small dense algebra: matrix products built from register tiles, and a hyperbolic tangent that vectorises."""

import math
from typing import Any

import numpy as np
from numba import types

from stablebptt.kernels.core.dispatch import block, compiled_as, inline, like
from stablebptt.kernels.core.simd import (
    NONE,
    ONE,
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
from stablebptt.kernels.core.structs import Struct


class Matrix(Struct):
    """A matrix in memory.

    start : address of its first element
    row, column : elements from one row to the next, and from one column to the next
    run : elements from one run of a product's inner index to the next
    """

    start: Any
    row: int
    column: int
    run: int


@inline
def matrix(start, row):
    """A matrix whose columns lie side by side. With `row` 0 all its rows are one."""
    return Matrix(start, row, ONE, NONE)


@inline
def moved(matrix, elements):
    """A matrix that begins some elements later."""
    return Matrix(offset(matrix.start, elements), matrix.row, matrix.column, matrix.run)


@inline
def _next_strip(left, most):
    """Vectors of the next strip: evenly at the end, as a single vector has too few sums to hide the time of one."""
    return most if left >= 2 * most else left if left <= most else (left + 1) >> 1


def _make_strips(rows, most):
    """Product of a part (first, end) of the rows, a multiple of `rows`, in strips of 1 .. `most` vectors of columns."""
    one, two, three = make_tile(rows, 1), make_tile(rows, 2), make_tile(rows, 3)
    four = make_tile(rows, 4) if most == 4 else three

    @inline
    def strip(part, size, a, b, init, out):
        first, end, vectors = part
        for i in range(first, end, rows):
            x, y, z = moved(a, i * a.row), moved(init, i * init.row), moved(out, i * out.row)
            if vectors == 4:
                four(size, x, b, y, z)
            elif vectors == 3:
                three(size, x, b, y, z)
            elif vectors == 2:
                two(size, x, b, y, z)
            else:
                one(size, x, b, y, z)

    @inline
    def strips(part, size, a, b, init, out):
        # Columns outermost: a few columns of b stay in the first-level cache for all rows.
        width = lanes(b.start)
        left, j = size[1] // width, 0
        while left > 0:
            vectors = _next_strip(left, most)
            strip((*part, vectors), size, a, moved(b, j), moved(init, j), moved(out, j))
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
def matmul(size, a, b, init, out):
    """Compute ``out = init + a @ b`` on raw addresses, for a padded number of `columns`.

    Parameters
    ----------
    size : rows, columns, inner
        out is (rows, columns), a (rows, inner), b (inner, columns); columns is a multiple of `PAD`.
    a, b, init, out : Matrix
        Only a may have columns that are not side by side: a transposed matrix.
        ``init`` may be ``out`` (accumulate) or have one row (a bias).
    """
    rows, columns, inner = size
    matmul_runs((rows, columns, inner, inner), a, b, init, out)


@inline
def matmul_runs(size, a, b, init, out):
    """`matmul` with the inner index in runs.

    size : rows, columns, inner, and the length of a run, a divisor of inner
    """
    if b.row >= FAR and size[0] >= MANY:
        matmul_blocks(size, a, b, init, out)
    else:
        matmul_tiles(size, a, b, init, out)


@block
def matmul_blocks(size, a, b, init, out):
    """`matmul_runs` for long rows of b: blocks of them, which many rows of a need, are copied together.

    Rows far apart lie in as many pages of memory, and a strip of all of them leaves the first-level cache. Sums keep their order.
    """
    rows, columns, inner, run = size
    width, piece, several = lanes(b.start), min(run, DEEP), max(1, DEEP // run)
    left, j, packed = columns // width, 0, _buffer(b.start)
    while left > 0:
        vectors = _next_strip(left, STRIP)
        line, y, z = vectors * width, moved(init, j), moved(out, j)
        for first in range(0, inner, several * run):  # several short runs, or
            for k in range(0, run, piece):  # a piece of a long one
                count, length = min(several, (inner - first) // run), min(piece, run - k)
                for r in range(count * length):
                    source = offset(b.start, (first // run + r // length) * b.run + (k + r % length) * b.row + j)
                    for v in range(0, line, width):
                        store(packed, r * line + v, load(source, v))
                w, together = moved(a, first // run * a.run + k * a.column), Matrix(packed, line, ONE, length * line)
                matmul_tiles((rows, line, count * length, length), w, together, y, z)
                y = z
        left -= vectors
        j += line


@block
def matmul_tiles(size, a, b, init, out):
    """`matmul_runs`, by tiles."""
    rows, done, end = size[0], 0, 0
    if size[1] == lanes(b.start):
        end = rows // TALL * TALL
        for i in range(0, end, TALL):
            _tall(size, moved(a, i * a.row), b, moved(init, i * init.row), moved(out, i * out.row))
        done = end
    if WIDE and rows - done >= 8:
        end = done + ((rows - done) & ~7)
        _eights((done, end), size, a, b, init, out)
        done = end
    if rows - done >= 4:
        end = done + ((rows - done) & ~3)
        _fours((done, end), size, a, b, init, out)
        done = end
    if rows - done >= 2:
        end = done + 2
        _twos((done, end), size, a, b, init, out)
        done = end
    if rows > done:
        _ones((done, rows), size, a, b, init, out)


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
