"""One formula for one sample or for a register full of samples.

A simulator written with `get`, `put` and `row` runs on `One` (a flat array of one sample) and on `Lanes` (samples side by side:
number k of all samples, padded, then number k + 1). On `Lanes` every value is a vector. `to_lanes` and `from_lanes` convert
between the rows of a batch and lanes.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from stablebptt.kernels.core.dispatch import generic, implements, inline, like
from stablebptt.kernels.core.simd import PAD, Vector, fill, load, offset, store
from stablebptt.kernels.core.structs import Struct


class One(Struct):
    """The numbers of one sample: values (n,), or (m, n) for m cotangents."""

    values: np.ndarray


class Lanes(Struct):
    """A register full of samples: number k lies at ``base + k * stride``; a row has `length` numbers."""

    base: Any
    stride: int
    length: int


class Bars(Struct):
    """Views of m = `count` cotangents of a step: lam of the next state; lam_x and lam_c of state and control, added to."""

    count: int
    lam: Struct
    lam_x: Struct
    lam_c: Struct


@generic
def get(view, k):
    """Number k of a view: a number of one sample, or a vector over samples."""


@generic
def put(view, k, value):
    """Set number k of a view."""


@generic
def row(view, v):
    """The view of cotangent v."""


@generic
def constant(view, number):
    """A constant of the view's type: a number, or a vector."""


@implements(get, One)
def _get_one(view, k):
    return view.values[k]


@implements(put, One)
def _put_one(view, k, value):
    view.values[k] = value


@implements(row, One)
def _row_one(view, v):
    return One(view.values[v])


@implements(constant, One)
def _constant_one(view, number):
    return like(view.values, 1.0) * number


@implements(get, Lanes)
def _get_lanes(view, k):
    return load(view.base, k * view.stride)


@implements(put, Lanes)
def _put_lanes(view, k, value):
    store(view.base, k * view.stride, value)


@implements(row, Lanes)
def _row_lanes(view, v):
    return Lanes(offset(view.base, v * view.length * view.stride), view.stride, view.length)


@implements(constant, Lanes)
def _constant_lanes(view, number):
    return fill(view.base, number)


@inline
def padded_batch(batch):
    """Samples per number in lanes, padding included."""
    return (batch + PAD - 1) // PAD * PAD


@inline
def to_lanes(n, length, rows, row_length, base, stride):
    """Copy n samples of `length` numbers each, `row_length` apart, to the lanes at `base` (length, stride)."""
    for b in range(n):
        source = offset(rows, b * row_length)
        for k in range(length):
            base[k * stride + b] = source[k]


@inline
def from_lanes(n, length, rows, row_length, base, stride):
    """Copy the lanes at `base` (length, stride) back to n samples."""
    for b in range(n):
        target = offset(rows, b * row_length)
        for k in range(length):
            target[k] = base[k * stride + b]


@inline
def add_from_lanes(n, length, rows, row_length, base, stride):
    """Add the lanes at `base` (length, stride) to n samples."""
    for b in range(n):
        target = offset(rows, b * row_length)
        for k in range(length):
            target[k] += base[k * stride + b]


def sqrt(x):
    """Square root of a number or a vector."""
    return math.sqrt(x)


@intrinsic
def _sqrt_vector(typing_context, x):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        name = f"llvm.sqrt.v{value.type.count}f{x.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(value.type, [value.type]), name)
        return builder.call(function, [value])

    return x(x), generate


@overload(sqrt, jit_options={"forceinline": True})
def _sqrt(x):
    if isinstance(x, Vector):
        return lambda x: _sqrt_vector(x)
    return lambda x: math.sqrt(x)


def inverse_or_zero(x):
    """``1 / x`` of a number or a vector, and 0 where x is 0; NaN stays NaN."""
    return like(x, 0.0) if x == 0 else like(x, 1.0) / x


@intrinsic
def _inverse_or_zero_vector(typing_context, x):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        zero, one = (ir.Constant(value.type, [number] * value.type.count) for number in (0.0, 1.0))
        return builder.select(builder.fcmp_ordered("==", value, zero), zero, builder.fdiv(one, value))

    return x(x), generate


@overload(inverse_or_zero, jit_options={"forceinline": True})
def _inverse_or_zero(x):
    if isinstance(x, Vector):
        return lambda x: _inverse_or_zero_vector(x)
    if not isinstance(x, types.Float):
        return None
    return inverse_or_zero
