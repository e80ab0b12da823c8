"""Raw addresses, vectors of the processor's width, and one register tile of a matrix product.

`kernels/core/vector_math.py` computes with vectors; `kernels/dense.py` builds on the tile.
The width follows the processor, or ``STABLEBPTT_VECTOR_BYTES`` (64, 32 or 16).
"""

import os
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.extending import intrinsic, models, overload, register_model
from numba.np.arrayobj import make_array

WIDTHS = (64, 32, 16)
# Processors that compute with 64 bytes in two halves: narrower vectors are as fast, and columns need less padding.
HALVES = ("znver4",)


def _native_vector_bytes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and llvm.get_host_cpu_name() not in HALVES:
        return 64
    return 32 if features.get("avx2") else 16


def _vector_bytes() -> int:
    given = os.environ.get("STABLEBPTT_VECTOR_BYTES", "")
    if not given:
        return _native_vector_bytes()
    if given not in {str(width) for width in WIDTHS}:
        raise ValueError(f"STABLEBPTT_VECTOR_BYTES is {given!r}; choose from 64, 32, 16")
    return int(given)


VECTOR_BYTES = _vector_bytes()
WIDE = VECTOR_BYTES == 64  # AVX-512 has 32 registers, the others 16
# Matrices that a tile writes have their columns padded to a multiple of this: a vector of float32.
PAD = 16 if WIDE else 8


# Strides as typed numbers: `matmul` would be compiled once more for bare literals.
ONE, NONE = np.int64(1), np.int64(0)


def padded(columns: int) -> int:
    """The smallest multiple of `PAD` that is at least `columns`."""
    return -(-columns // PAD) * PAD


def spaced(columns: int) -> int:
    """Numbers from one row to the next, for so many padded columns: never a multiple of 128.

    A product reads a few columns of many rows. Rows a multiple of 512 bytes apart would share few places of the cache.
    """
    return columns + PAD if columns % 128 == 0 else columns


@intrinsic
def pointer(typing_context, array):
    """Address of the first element of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def offset(typing_context, base, elements):
    """The address `elements` after `base`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return base(base, types.intp), generate


@intrinsic
def lanes(typing_context, base):
    """Elements of the type at `base` per vector."""
    count = VECTOR_BYTES * 8 // base.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), count)

    return types.intp(base), generate


class Vector(types.Type):
    """A register full of numbers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(f"Vector{VECTOR_BYTES}({dtype})")

    # A number passes for a vector: a variable may begin as the one and become the other.

    def unify(self, typingctx: Any, other: Any) -> Any:
        """The common type of a vector and a number."""
        return self if isinstance(other, types.Number) else None

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """How a number becomes a vector."""
        return Conversion.safe if isinstance(other, types.Number) else None


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """LLVM vector of `VECTOR_BYTES` bytes."""

    def __init__(self, manager: Any, kind: Vector) -> None:
        element = manager.lookup(kind.dtype).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, VECTOR_BYTES * 8 // kind.dtype.bitwidth))


@intrinsic
def load(typing_context, base, element):
    """Load the vector that starts at an element of `base`."""
    kind = Vector(base.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.gep(arguments[0], [arguments[1]])
        address = builder.bitcast(address, context.get_value_type(kind).as_pointer())
        return builder.load(address, align=base.dtype.bitwidth // 8)

    return kind(base, types.intp), generate


@intrinsic
def store(typing_context, base, element, vector):
    """Store a vector, starting at an element of `base`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.gep(arguments[0], [arguments[1]])
        address = builder.bitcast(address, arguments[2].type.as_pointer())
        builder.store(arguments[2], address, align=base.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(base, types.intp, vector), generate


@intrinsic
def fill(typing_context, base, number):
    """A vector filled with one number of the type at `base`."""
    kind = Vector(base.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread(builder, context.get_value_type(kind), arguments[1])

    return kind(base, base.dtype), generate


@intrinsic
def total(typing_context, vector):
    """Sum of the elements of a vector, as a fixed tree."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, element = arguments[0], context.get_value_type(vector.dtype)
        name = f"llvm.vector.reduce.fadd.v{value.type.count}f{vector.dtype.bitwidth}"
        kind = ir.FunctionType(element, [element, value.type])
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [ir.Constant(element, 0.0), value], fastmath=("reassoc",))

    return vector.dtype(vector), generate


def spread(builder: Any, vector: Any, scalar: Any) -> Any:
    """LLVM code for a vector, of an LLVM type, filled with one number."""
    i32 = ir.IntType(32)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(i32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(i32, vector.count), [0] * vector.count))


@intrinsic
def _clamp_vector(typing_context, x, limit):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, high = arguments[0], spread(builder, arguments[0].type, arguments[1])
        low = builder.fsub(ir.Constant(value.type, [-0.0] * value.type.count), high)
        value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
        return builder.select(builder.fcmp_ordered("<", value, low), low, value)

    return x(x, limit), generate


def clamp(x, limit):
    """x limited to [-limit, limit]; NaN stays NaN."""
    return limit if x > limit else -limit if x < -limit else x


@overload(clamp, jit_options={"forceinline": True})
def _clamp(x, limit):
    if isinstance(x, Vector):
        return lambda x, limit: _clamp_vector(x, limit)
    return clamp


def make_buffer(size: int) -> Any:
    """Emit the address of `size` bytes on the stack, for elements like those at another address."""

    @intrinsic
    def buffer(typing_context, like):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            with builder.goto_entry_block():
                place = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            place.align = 64
            return builder.bitcast(place, arguments[0].type)

        return like(like), generate

    return buffer


def _keep_rolled(branch: Any) -> None:
    """Tell LLVM not to unroll the loop that this branch repeats: it does so on some processors, where runs are short."""
    module = branch.module
    loop = module.add_metadata([module.add_metadata(["llvm.loop.unroll.disable"])])
    loop.operands = (loop, *loop.operands)  # a loop's first operand is itself
    branch.set_metadata("llvm.loop", loop)


def make_tile(rows: int, vectors: int) -> Any:
    """Emit ``out = init + a @ b`` for `rows` rows and `vectors` vectors of columns, with all sums in registers.

    Every element is summed over the inner index in order, for every shape of tile. Results therefore do not depend on how a
    matrix is divided into tiles. The inner index is made of runs: after each, the addresses in a and b jump.
    """

    @intrinsic
    def tile(typing_context, size, a, b, init, out):
        dtype = dict(a.fields)["start"].dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            proxies = [cgutils.create_struct_proxy(kind) for kind in (a, b, init, out)]
            operands = [proxy(context, builder, value) for proxy, value in zip(proxies, arguments[1:])]
            depth = [builder.extract_value(arguments[0], number) for number in (2, 3)]
            vector = ir.VectorType(context.get_value_type(dtype), VECTOR_BYTES * 8 // dtype.bitwidth)
            _Tile(builder, vector, dtype.bitwidth // 8, rows, vectors).emit(depth, *operands)
            return context.get_dummy_value()

        return types.void(size, a, b, init, out), generate

    return tile


class _Tile:
    """Emits a tile; see `make_tile`."""

    def __init__(self, builder: Any, vector: Any, align: int, rows: int, vectors: int) -> None:
        self.builder, self.vector, self.align, self.vectors = builder, vector, align, vectors
        self.rows, self.cells = range(rows), [(r, v) for r in range(rows) for v in range(vectors)]
        name = f"llvm.fma.v{vector.count}f{align * 8}"
        self.fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)

    def emit(self, depth: Any, a: Any, b: Any, init: Any, out: Any) -> None:
        """The tile; depth: the inner index, and the length of a run."""
        builder = self.builder
        starts, lines = self.lines(init.start, init.row), self.lines(out.start, out.row)
        first = {(r, v): builder.load(self.address(starts[r], v), align=self.align) for r, v in self.cells}
        sums = self.all_runs(depth, a, b, first)
        for r, v in self.cells:
            builder.store(sums[r, v], self.address(lines[r], v), align=self.align)

    def all_runs(self, depth: Any, a: Any, b: Any, first: Any) -> Any:
        """A loop over the runs; returns the sums."""
        (inner, run), builder, i64 = depth, self.builder, ir.IntType(64)
        lines, start = self.lines(a.start, a.row), builder.block
        runs, one, done = (builder.append_basic_block(name) for name in ("runs", "run", "done"))
        builder.branch(runs)
        builder.position_at_end(runs)
        passed, a_place, b_place = (builder.phi(i64) for _ in range(3))
        sums = {cell: builder.phi(self.vector) for cell in self.cells}
        builder.cbranch(builder.icmp_signed("<", passed, inner), one, done)
        builder.position_at_end(one)
        starts = [builder.gep(line, [a_place]) for line in lines]
        added = self.one_run(run, (starts, a.column), (builder.gep(b.start, [b_place]), b.row), sums)
        for phi, step in ((passed, run), (a_place, a.run), (b_place, b.run)):
            phi.add_incoming(ir.Constant(i64, 0), start)
            phi.add_incoming(builder.add(phi, step), builder.block)
        for cell in self.cells:
            sums[cell].add_incoming(first[cell], start)
            sums[cell].add_incoming(added[cell], builder.block)
        builder.branch(runs)
        builder.position_at_end(done)
        return sums

    def one_run(self, run: Any, a: Any, b: Any, first: Any) -> Any:
        """A loop over the elements of a run; a, b: addresses of its first elements, and steps. Returns the sums."""
        builder, i64, start = self.builder, ir.IntType(64), self.builder.block
        head, body, over = (builder.append_basic_block(name) for name in ("head", "body", "next"))
        builder.branch(head)
        builder.position_at_end(head)
        k, sums = builder.phi(i64), {cell: builder.phi(self.vector) for cell in self.cells}
        builder.cbranch(builder.icmp_signed("<", k, run), body, over)
        builder.position_at_end(body)
        line = builder.gep(b[0], [builder.mul(k, b[1])])
        columns = [builder.load(self.address(line, v), align=self.align) for v in range(self.vectors)]
        step = builder.mul(k, a[1])
        for r in self.rows:
            number = spread(builder, self.vector, builder.load(builder.gep(a[0][r], [step])))
            for v in range(self.vectors):
                sums[r, v].add_incoming(first[r, v], start)
                sums[r, v].add_incoming(builder.call(self.fma, [number, columns[v], sums[r, v]]), body)
        k.add_incoming(ir.Constant(i64, 0), start)
        k.add_incoming(builder.add(k, ir.Constant(i64, 1)), body)
        _keep_rolled(builder.branch(head))
        builder.position_at_end(over)
        return sums

    def lines(self, start: Any, row: Any) -> list[Any]:
        """Addresses of the rows."""
        found = [start]
        for _ in self.rows[1:]:
            found.append(self.builder.gep(found[-1], [row]))
        return found

    def address(self, line: Any, v: int) -> Any:
        """Address of a vector of a row."""
        place = ir.Constant(ir.IntType(64), v * self.vector.count)
        return self.builder.bitcast(self.builder.gep(line, [place]), self.vector.as_pointer())
