"""A system with fields that differ between samples: drawn uniformly from a range for each, by its key.

    values (B, fields)      at the beginning of the scratch space of a batch

Where a step computes a register full of samples, such a field is a vector. The text of the step stays the same.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from stablebptt.kernels.core.dispatch import class_of, compiled_as, implements
from stablebptt.kernels.core.simd import Vector, pointer
from stablebptt.kernels.core.structs import StructType
from stablebptt.kernels.generics import System, draw, step, step_batch, step_sample
from stablebptt.kernels.in_lanes import of_sample, of_samples, step_all
from stablebptt.kernels.noise import OF_FIELDS, uniform


class Varied(System):
    """A system around another one. `varied` makes a class for every choice of fields, `names`.

    low, high (fields,) : ranges
    """

    names = ()
    system: System
    low: np.ndarray
    high: np.ndarray

    def scratch_size(self, batch: int, variants: int) -> int:
        """That of the system, behind the values."""
        return type(self.system).scratch_size(self.system, batch, variants)

    def value_count(self) -> int:
        """One per field."""
        return len(type(self).names)

    def sample_scratch(self) -> int:
        """That of the system."""
        return type(self.system).sample_scratch(self.system)

    def inside(self) -> System:
        """The system around which this is."""
        return self.system

    def __reduce__(self) -> Any:
        """Copies, also in other processes, find the class by its fields."""
        pairs = zip(self.low.tolist(), self.high.tolist())
        return varied, (self.system, dict(zip(type(self).names, pairs)), self.low.dtype.type)

    @classmethod
    def register_type(cls, kind: Any, dtype: Any) -> Any:
        """The system's type, with vectors for the fields."""
        return _with(_inner(kind), cls.names, Vector(dtype))


@functools.cache
def _class(names: tuple[str, ...]) -> type[Varied]:
    return type(f"Varied[{', '.join(names)}]", (Varied,), {"names": names, "__module__": __name__})


def varied(system: System, ranges: Mapping[str, tuple[float, float]], dtype: type = np.float64) -> Varied:
    """The system with these fields drawn from (low, high) for every sample."""
    low, high = np.array(list(ranges.values()), dtype).T
    return _class(tuple(ranges))(system, np.ascontiguousarray(low), np.ascontiguousarray(high))


def _inner(kind: Any) -> Any:
    """Numba type of the system in a `Varied`, from its type or that of a reference to it."""
    return dict((kind if isinstance(kind, StructType) else kind.struct).fields)["system"]


def _with(system: Any, names: tuple[str, ...], field: Any) -> StructType:
    """A system's type with another type for some fields."""
    return StructType(system.struct, system.fingerprint, tuple((n, field if n in names else k) for n, k in system.fields))


@functools.cache
def _inserting(names: tuple[str, ...], *, vectors: bool) -> Any:
    """An intrinsic that puts the values of sample b, or of n samples from b on, into a system."""

    def read(builder: Any, kind: Any, values: Any, number: int, b: Any, n: Any) -> Any:
        """Field `number` of the sample, or of the samples; the last one stands for those that are missing."""

        def one(sample: Any) -> Any:
            place = builder.add(builder.mul(sample, ir.Constant(b.type, len(names))), ir.Constant(b.type, number))
            return builder.load(builder.gep(values, [place]))

        if not vectors:
            return one(b)
        result = ir.Constant(kind, ir.Undefined)
        last = builder.sub(n, ir.Constant(n.type, 1))
        for lane in range(kind.count):
            here = ir.Constant(n.type, lane)
            near = builder.select(builder.icmp_signed("<", here, n), here, last)
            result = builder.insert_element(result, one(builder.add(b, near)), ir.Constant(ir.IntType(32), lane))
        return result

    @intrinsic
    def inserted(typing_context, system, values, b, n):
        field = Vector(values.dtype) if vectors else values.dtype
        result = _with(system, names, field)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            value = ir.Constant(context.get_value_type(result), ir.Undefined)
            for place, (name, _) in enumerate(system.fields):
                item = builder.extract_value(given[0], place)
                if name in names:
                    item = read(builder, context.get_value_type(field), given[1], names.index(name), given[2], given[3])
                value = builder.insert_value(value, item, place)
            return value

        return result(system, values, types.intp, types.intp), generate

    return inserted


def _for_one(varied, values, b, n):
    inserted = _inserting(class_of(varied).names, vectors=False)
    return lambda varied, values, b, n: inserted(varied.system, pointer(values), b, n)


def _for_many(varied, values, b, n):
    inserted = _inserting(class_of(varied).names, vectors=True)
    return lambda varied, values, b, n: inserted(varied.system, pointer(values), b, n)


def with_values(varied, values, b, n):
    """The system of sample b."""
    raise NotImplementedError("for compiled code only")


def with_vectors(varied, values, b, n):
    """The system of n samples from b on, a register full of them."""
    raise NotImplementedError("for compiled code only")


compiled_as(with_values, _for_one, forceinline=True)
compiled_as(with_vectors, _for_many, forceinline=True)


@implements(of_sample, Varied)
def _of_sample(system, values, b):
    return with_values(system, values, b, 1)


@implements(of_samples, Varied)
def _of_samples(system, values, b, n):
    return with_vectors(system, values, b, n)


@implements(draw, Varied)
def _draw(system, keys, scratch):
    count = system.low.size
    for b in range(keys.size):
        for k in range(count):
            share = scratch.dtype.type(uniform(keys[b], 0, OF_FIELDS + k))
            scratch[b * count + k] = system.low[k] + (system.high[k] - system.low[k]) * share


@implements(step_batch, Varied)
def _step_batch(system, x, c, x_next, scratch):
    size = x.shape[0] * system.low.size
    step_all(system, x, c, x_next, scratch[size:], scratch[:size])


@implements(step_sample, Varied)
def _step_sample(system, x, c, x_next, scratch):
    step_sample(system.system, x, c, x_next, scratch)


@implements(step, Varied)
def _step(system, x, c, x_next):
    step(system.system, x, c, x_next)
