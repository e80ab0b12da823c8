"""Views of a register full of samples, indexed like the arrays of one sample.

    x[j], lam[v, j], x[2:], x.shape, x.dtype       so the text of a step for one sample computes a register full of them
    number 0 of each sample | number 1 of each sample | ..                                       in memory, a register each

`to_lanes` and `add_from_lanes` convert between the rows of a batch and lanes.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload_attribute

from stablebptt.kernels.core.dispatch import also, inline, like
from stablebptt.kernels.core.simd import Vector, lanes, load, offset, store
from stablebptt.kernels.core.structs import Struct, StructType


class Lanes(Struct):
    """`length` numbers of a register full of samples, one register after the other from `base` on."""

    base: Any
    length: int


class LanesOf(Struct):
    """The same for `count` cotangents, one after the other."""

    base: Any
    count: int
    length: int


def view_type(dtype: Any, *, several: bool = False) -> StructType:
    """Numba type of a view of numbers of a type, of one sample's each or of `several` cotangents."""
    cls = LanesOf if several else Lanes
    kinds = [("base", types.CPointer(dtype)), *((name, types.intp) for name in cls.fields[1:])]
    return StructType(cls.__qualname__, cls.fingerprint(), tuple(kinds))


def _is_a(kind: Any, cls: type[Struct]) -> bool:
    return isinstance(kind, StructType) and kind.struct == cls.__qualname__ and kind.fingerprint == cls.fingerprint()


def _numbers(kind: Any) -> Any:
    """Type of the numbers in a view."""
    return dict(kind.fields)["base"].dtype


@intrinsic
def _as_vector(typing_context, base, value):
    kind = Vector(base.dtype)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return context.cast(builder, given[1], value, kind)

    return kind(base, value), generate


@inline
def _at(index, length):
    """An index that may count from the end."""
    return index + length if index < 0 else index


def _is_slice(index: Any) -> bool:
    return isinstance(index, types.SliceType) and not index.has_step


def _get(view, index):
    if _is_a(view, Lanes):
        if isinstance(index, types.Integer):
            return lambda view, index: load(view.base, _at(index, view.length) * lanes(view.base))
        if _is_slice(index):
            return _slice
    if _is_a(view, LanesOf):
        if isinstance(index, types.Integer):
            return _line
        if isinstance(index, types.BaseTuple) and len(index) == 2 and isinstance(index[0], types.Integer):
            return lambda view, index: view[index[0]][index[1]]
    return None


def _slice(view, index):
    first, end, _ = index.indices(view.length)
    return Lanes(offset(view.base, first * lanes(view.base)), max(0, end - first))


def _line(view, index):
    return Lanes(offset(view.base, _at(index, view.count) * view.length * lanes(view.base)), view.length)


def _set(view, index, value):
    if _is_a(view, Lanes) and isinstance(value, Vector | types.Number):
        if isinstance(index, types.Integer):
            return _put
        if _is_slice(index):
            return _fill
    if _is_a(view, Lanes) and _is_slice(index) and _is_a(value, Lanes):
        return _copy
    if _is_a(view, LanesOf) and isinstance(index, types.BaseTuple) and len(index) == 2:
        return _put_in_line
    return None


def _put(view, index, value):
    store(view.base, _at(index, view.length) * lanes(view.base), _as_vector(view.base, value))


def _fill(view, index, value):
    part = view[index]
    for j in range(part.length):
        part[j] = value


def _copy(view, index, value):
    part = view[index]
    for j in range(part.length):
        part[j] = value[j]


def _put_in_line(view, index, value):
    view[index[0]][index[1]] = value


also(operator.getitem, _get)
also(operator.setitem, _set)
also(len, lambda view: (lambda view: view.length) if _is_a(view, Lanes) else None)


@overload_attribute(StructType, "shape")
def _shape(view):
    if _is_a(view, LanesOf):
        return lambda view: (view.count, view.length)
    return (lambda view: (view.length,)) if _is_a(view, Lanes) else None


@overload_attribute(StructType, "size")
def _size(view):
    return (lambda view: view.length) if _is_a(view, Lanes) else None


@overload_attribute(StructType, "dtype")
def _dtype(view):
    return (lambda view: _dtype_of(view)) if _is_a(view, Lanes) or _is_a(view, LanesOf) else None


@intrinsic
def _dtype_of(typing_context, view):
    return types.DType(_numbers(view))(view), lambda context, builder, signature, given: context.get_dummy_value()


def _like(x, value):
    if not (_is_a(x, Lanes) or _is_a(x, LanesOf)):
        return None
    kind = _numbers(x)
    return lambda x, value: kind(value)


also(like, _like)


@intrinsic
def _gathered(typing_context, rows, length, n):
    """Vector of the first numbers of n samples, `length` apart; the last one stands for those that are missing."""
    kind = Vector(rows.dtype)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, length, n = given
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for lane in range(value.type.count):
            value = builder.insert_element(value, builder.load(address), ir.Constant(ir.IntType(32), lane))
            more = builder.icmp_signed("<", ir.Constant(n.type, lane + 1), n)
            address = builder.gep(address, [builder.select(more, length, ir.Constant(length.type, 0))])
        return value

    return kind(rows, types.intp, types.intp), generate


@intrinsic
def _scatter(typing_context, rows, length, vector):
    """Write a vector to the first numbers of as many samples, `length` apart."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, length, vector = given
        for lane in range(vector.type.count):
            builder.store(builder.extract_element(vector, ir.Constant(ir.IntType(32), lane)), address)
            address = builder.gep(address, [length])
        return context.get_dummy_value()

    return types.none(rows, types.intp, vector), generate


# Vectors are put together in registers: a vector cannot be read at once where its numbers have just been written.


@inline
def to_lanes(n, length, rows, base):
    """Copy n samples of `length` numbers each, one after the other, to the lanes at `base`."""
    if n == lanes(base):
        for k in range(length):
            store(base, k * lanes(base), _gathered(offset(rows, k), length, lanes(base)))
    else:
        for k in range(length):
            store(base, k * lanes(base), _gathered(offset(rows, k), length, n))


@inline
def from_lanes(n, length, rows, base):
    """Copy the lanes at `base` back to n samples."""
    if n == lanes(base):
        for k in range(length):
            _scatter(offset(rows, k), length, load(base, k * lanes(base)))
    else:
        for b in range(n):
            for k in range(length):
                rows[b * length + k] = base[k * lanes(base) + b]


@inline
def add_from_lanes(n, length, rows, base):
    """Add the lanes at `base` to n samples."""
    if n == lanes(base):
        for k in range(length):
            sums = _gathered(offset(rows, k), length, lanes(base)) + load(base, k * lanes(base))
            _scatter(offset(rows, k), length, sums)
    else:
        for b in range(n):
            for k in range(length):
                rows[b * length + k] += base[k * lanes(base) + b]
