"""Primitives of a CUDA thread block: four samples at once, copies, columns of samples; docs/gpu.md.

A thread block computes `TILE` samples. Number k of sample b of an array of numbers lies at ``k * TILE + b``: four samples are
one 16-byte access. Only the backend "cuda" imports this file.

Loops here use `while`: the compiler sees through their counters and adds addresses up instead of multiplying them out, which
`range` prevents. `load`, `store` and the like accept no negative indices for the same reason.
"""

from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.core import config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from stablebptt.kernels.activations import activate, slope
from stablebptt.kernels.core.dispatch import inline, like

TILE, QUAD, WARP = 8, 4, 32
QUADS = TILE // QUAD
SIMULATED = bool(vars(config)["ENABLE_CUDASIM"])


class _Simulated:
    """The simulator's `cuda` of the running kernel. The simulator swaps it into one module only; our kernels span several."""

    def __getattr__(self, name: str) -> Any:
        from numba.cuda.simulator.kernel import _get_kernel_context

        return getattr(_get_kernel_context(), name)


gpu: Any = _Simulated() if SIMULATED else cuda


def device(function: Any) -> Any:
    """Compile a function that the threads of a thread block run together."""
    return function if SIMULATED else cuda.jit(device=True)(function)


@device
def thread():
    """Number of this thread in its thread block."""
    return gpu.threadIdx.x


@device
def threads():
    """Threads in a thread block."""
    return gpu.blockDim.x


@device
def barrier():
    """Wait for all threads of the thread block."""
    gpu.syncthreads()


def _vector(context: Any, kind: Any) -> Any:
    return ir.VectorType(context.get_value_type(kind), QUAD)


def _at(context: Any, builder: Any, array: Any, value: Any, place: Any) -> Any:
    return builder.gep(make_array(array)(context, builder, value).data, [place])


@intrinsic
def _load(typing_context, array, place):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_at(context, builder, array, *arguments))

    return array.dtype(array, types.intp), generate


@intrinsic
def _store(typing_context, array, place, value):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _at(context, builder, array, *arguments[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


@intrinsic
def _load4(typing_context, array, place):
    kind = types.UniTuple(array.dtype, QUAD)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(_at(context, builder, array, *arguments), _vector(context, array.dtype).as_pointer())
        vector = builder.load(address, align=16)
        items = [builder.extract_element(vector, ir.Constant(ir.IntType(32), k)) for k in range(QUAD)]
        return context.make_tuple(builder, kind, items)

    return kind(array, types.intp), generate


@intrinsic
def _store4(typing_context, array, place, values):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.Constant(_vector(context, array.dtype), ir.Undefined)
        for k in range(QUAD):
            item = builder.extract_value(arguments[2], k)
            vector = builder.insert_element(vector, item, ir.Constant(ir.IntType(32), k))
        address = builder.bitcast(_at(context, builder, array, *arguments[:2]), vector.type.as_pointer())
        builder.store(vector, address, align=16)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.UniTuple(array.dtype, QUAD)), generate


def _strided(context: Any, builder: Any, array: Any, data: Any, shape: tuple, lengths: tuple) -> Any:
    """A view that begins at the address `data`; its strides are multiples of one row of a tile."""
    size = array.dtype.bitwidth // 8
    step = ir.Constant(ir.IntType(64), TILE * size)
    result = make_array(types.Array(array.dtype, len(shape), "A"))(context, builder)
    populate_array(
        result,
        data=data,
        shape=shape,
        strides=(*(builder.mul(length, step) for length in lengths), step),
        itemsize=ir.Constant(ir.IntType(64), size),
        meminfo=None,
    )
    return result._getvalue()


@intrinsic
def _column(typing_context, array, first, count):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, first, count = arguments
        return _strided(context, builder, array, _at(context, builder, array, value, first), (count,), ())

    return types.Array(array.dtype, 1, "A")(array, types.intp, types.intp), generate


@intrinsic
def _columns(typing_context, array, first, rows, length, count):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, first, rows, length, count = arguments
        return _strided(context, builder, array, _at(context, builder, array, value, first), (rows, count), (length,))

    index = types.intp
    return types.Array(array.dtype, 2, "A")(array, index, index, index, index), generate


def _compiled_as(compiled: Any) -> Any:
    """Replace the decorated function by `compiled`, except in the simulator, which runs the function itself."""
    return lambda function: function if SIMULATED else compiled


@_compiled_as(_load)
def load(array, place):
    """The number at `place`, not negative."""
    return array[place]


@_compiled_as(_store)
def store(array, place, value):
    """Write a number at `place`, not negative."""
    array[place] = value


@_compiled_as(_load4)
def load4(array, place):
    """The four numbers from `place` on, a multiple of four."""
    return array[place], array[place + 1], array[place + 2], array[place + 3]


@_compiled_as(_store4)
def store4(array, place, values):
    """Write four numbers from `place` on, a multiple of four."""
    array[place], array[place + 1], array[place + 2], array[place + 3] = values


@_compiled_as(_column)
def column(array, first, count):
    """`count` numbers of one sample; the first lies at `first`."""
    return array[first : first + count * TILE : TILE]


@_compiled_as(_columns)
def columns(array, first, rows, length, count):
    """A matrix (rows, count) of one sample: the first `count` of the `length` numbers in each row; the first lies at `first`."""
    return array[first : first + rows * length * TILE : TILE].reshape(rows, length)[:, :count]


@device
def copy(count, source, target):
    """``target = source`` for `count` numbers."""
    i = thread()
    while i < count:
        store(target, i, load(source, i))
        i += threads()


@device
def clear(count, target):
    """``target = 0`` for `count` numbers."""
    i = thread()
    while i < count:
        store(target, i, like(target, 0.0))
        i += threads()


@inline
def spread(number):
    """One number for all four samples."""
    return number, number, number, number


@inline
def multiply_add(factor, a, z):
    """``factor a + z`` of four samples."""
    return factor * a[0] + z[0], factor * a[1] + z[1], factor * a[2] + z[2], factor * a[3] + z[3]


@inline
def accumulate4(a, b, total):
    """Inner product over four samples, added to `total`."""
    return a[3] * b[3] + (a[2] * b[2] + (a[1] * b[1] + (a[0] * b[0] + total)))


@inline
def activate4(activation, z):
    """Values of four samples."""
    return activate(activation, z[0]), activate(activation, z[1]), activate(activation, z[2]), activate(activation, z[3])


@inline
def slope4(activation, z, h):
    """Slopes of four samples."""
    return (
        slope(activation, z[0], h[0]),
        slope(activation, z[1], h[1]),
        slope(activation, z[2], h[2]),
        slope(activation, z[3], h[3]),
    )


@inline
def multiply4(a, b):
    """Products of four samples."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]
