"""Arithmetic and functions of vectors, so that a formula for numbers is one for registers full of numbers.

In compiled code a `Vector` may stand wherever a formula has a real number: with operators, numbers of any kind, `math.sin`,
`np.sin` and the like, `abs`, `min`, `max`, and `where`. A comparison gives a `Mask`, which has no truth value. So a formula with
an ``if`` on a number does not compile for vectors.

In float32, functions are at most 2 ulp off; those without a formula here, and all in float64, take the library's value of each
number. NaN and Inf come out as they do of numbers.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_cast
from numba.extending import intrinsic, models, register_model

from stablebptt.kernels.core.dispatch import also, block, compiled_as, inline, like
from stablebptt.kernels.core.simd import Vector, spread


class Mask(types.Type):
    """Truth values of the numbers of a vector."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        super().__init__(f"Mask({vector})")


@register_model(Mask)
class MaskModel(models.PrimitiveModel):
    """LLVM vector of bits."""

    def __init__(self, manager: Any, kind: Mask) -> None:
        count = manager.lookup(kind.vector).get_value_type().count
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), count))


@lower_cast(types.Number, Vector)
def _number_to_vector(context: Any, builder: Any, given: Any, kind: Vector, value: Any) -> Any:
    return spread(builder, context.get_value_type(kind), context.cast(builder, value, given, kind.dtype))


def _vector_of(*kinds: Any) -> Vector | None:
    """The type of a formula of these types: that of its vectors, if there are any beside numbers."""
    vectors = [kind for kind in kinds if isinstance(kind, Vector)]
    fits = vectors and all(kind == vectors[0] or isinstance(kind, types.Number | types.Boolean) for kind in kinds)
    return vectors[0] if fits else None


def _instruction(emit: Callable, result: Callable = lambda vector: vector) -> Any:
    """An intrinsic of vectors and numbers; `emit(builder, *values)` gives the LLVM code."""

    @intrinsic
    def combine(typing_context, arguments):
        vector = _vector_of(*arguments)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values = [builder.extract_value(given[0], k) for k in range(len(arguments))]
            return emit(builder, *(context.cast(builder, v, kind, vector) for v, kind in zip(values, arguments)))

        return result(vector)(arguments), generate

    return combine


def _operator(symbols: tuple[Any, ...], emit: Callable, result: Callable = lambda vector: vector) -> None:
    combine = _instruction(emit, result)

    def typed(a, b):
        return (lambda a, b: combine((a, b))) if _vector_of(a, b) else None

    for symbol in symbols:
        also(symbol, typed)


def _contracting(name: str) -> Callable:
    """Products and sums may contract."""
    return lambda builder, a, b: getattr(builder, name)(a, b, flags=("contract", "nsz", "arcp"))


_operator((operator.add, operator.iadd), _contracting("fadd"))
_operator((operator.sub, operator.isub), _contracting("fsub"))
_operator((operator.mul, operator.imul), _contracting("fmul"))
_operator((operator.truediv, operator.itruediv), _contracting("fdiv"))
for _symbol, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "==")):
    _operator((_symbol,), lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b), Mask)
_operator((operator.ne,), lambda builder, a, b: builder.fcmp_unordered("!=", a, b), Mask)


def _call(name: str, count: int = 1) -> Any:
    """One of LLVM's functions that processors compute in vectors."""

    def emit(builder: Any, *values: Any) -> Any:
        kind = values[0].type
        letter = 32 if isinstance(kind.element, ir.FloatType) else 64
        symbol = f"llvm.{name}.v{kind.count}f{letter}"
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * count), symbol), values)

    return _instruction(emit)


negative = _instruction(lambda builder, a: builder.fneg(a))
square_root, absolute, nearest, multiply_add = _call("sqrt"), _call("fabs"), _call("rint"), _call("fma", 3)


@intrinsic
def _fma(typing_context, a, b, c):
    return a(a, b, c), lambda context, builder, signature, given: builder.fma(*given)


def fma(a, b, c):
    """``a b + c``, rounded once, for numbers of one type; a vector may be among them."""
    return type(c)(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def _fused(a, b, c):
    return (lambda a, b, c: multiply_add((a, b, c))) if _vector_of(a, b, c) else lambda a, b, c: _fma(a, b, c)


compiled_as(fma, _fused, forceinline=True)


def _function(symbols: tuple[Any, ...], method: Callable) -> None:
    """Give functions of one number a method for vectors."""

    def typed(x):
        return method(x) if isinstance(x, Vector) else None

    for symbol in symbols:
        also(symbol, typed)


_function((operator.neg,), lambda kind: lambda x: negative((x,)))
_function((operator.pos,), lambda kind: lambda x: x)
_function((math.sqrt, np.sqrt), lambda kind: lambda x: square_root((x,)))
_function((abs, math.fabs, np.abs, np.fabs), lambda kind: lambda x: absolute((x,)))


# --- truth values ---------------------------------------------------------------------------------------------------


@intrinsic
def _select(typing_context, mask, a, b):
    vector = mask.vector

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        sides = [context.cast(builder, value, kind, vector) for value, kind in zip(given[1:], (a, b))]
        return builder.select(given[0], *sides)

    return vector(mask, a, b), generate


def where(condition, a, b):
    """a where a condition is true, else b; for numbers, and for vectors of samples, where an ``if`` cannot stand.

    Examples
    --------
    >>> where(1.0 > 0.0, 2.0, 3.0)
    2.0
    """
    return a if condition else b


def _chosen(condition, a, b):
    return (lambda condition, a, b: _select(condition, a, b)) if isinstance(condition, Mask) else None


compiled_as(where, lambda condition, a, b: _chosen(condition, a, b) or where, forceinline=True)
also(np.where, _chosen)


def _logic(symbol: Any, name: str) -> None:
    @intrinsic
    def combine(typing_context, a, b):
        return a(a, b), lambda context, builder, signature, given: getattr(builder, name)(*given)

    def typed(a, b):
        return (lambda a, b: combine(a, b)) if isinstance(a, Mask) and a == b else None

    also(symbol, typed)


for _symbol, _name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.xor, "xor")):
    _logic(_symbol, _name)


@intrinsic
def _opposite(typing_context, mask):
    return mask(mask), lambda context, builder, signature, given: builder.not_(given[0])


def _invert(mask):
    return (lambda mask: _opposite(mask)) if isinstance(mask, Mask) else None


also(operator.invert, _invert)


@intrinsic
def every(typing_context, mask):
    """Whether a mask is true everywhere."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        bits = given[0].type.count
        number = builder.bitcast(given[0], ir.IntType(bits))
        return builder.icmp_unsigned("==", number, ir.Constant(number.type, (1 << bits) - 1))

    return types.boolean(mask), generate


def _extreme(symbols: tuple[Any, ...], method: Callable) -> None:
    def typed(a, b):
        return method if _vector_of(a, b) else None

    for symbol in symbols:
        also(symbol, typed)


_extreme((min,), lambda a, b: where(b < a, b, a))
_extreme((max,), lambda a, b: where(b > a, b, a))
_extreme((np.minimum,), lambda a, b: where((b < a) | (b != b), b, a))
_extreme((np.maximum,), lambda a, b: where((b > a) | (b != b), b, a))


# --- functions --------------------------------------------------------------------------------------------------------


@intrinsic
def _count(typing_context, x):
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return ir.Constant(ir.IntType(64), given[0].type.count)

    return types.intp(x), generate


@intrinsic
def _number(typing_context, x, k):
    return x.dtype(x, types.intp), lambda context, builder, signature, given: builder.extract_element(*given)


@intrinsic
def _with_number(typing_context, x, k, value):
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        value = context.cast(builder, given[2], signature.args[2], x.dtype)
        return builder.insert_element(given[0], value, given[1])

    return x(x, types.intp, value), generate


_constant = _instruction(lambda builder, x, number: number)  # a number as a vector like x


def one_by_one(function: Any) -> Callable:
    """A function of a vector that takes a function of each number."""

    def each(x):
        result = x
        for k in range(_count(x)):
            result = _with_number(result, k, function(_number(x, k)))
        return result

    return each


def pair_by_pair(function: Any) -> Callable:
    """A function of two vectors, or a vector and a number, that takes a function of each pair."""

    def each(a, b):
        x, y = _constant((a + b, a)), _constant((a + b, b))
        result = x
        for k in range(_count(x)):
            result = _with_number(result, k, function(_number(x, k), _number(y, k)))
        return result

    return each


HALF_PI = tuple(np.float32(part) for part in (1.57079637050628662109375, -4.371139000186241438e-8, -1.7151245100059e-15))
LN_2 = tuple(np.float32(part) for part in (0.693145751953125, 1.42860682030941723212e-6))
LOG_2 = np.float32(0.693359375), np.float32(-2.12194440e-4)
FAR = np.float32(1e5)  # for larger angles, the library
EXP_MOST, EXP_LEAST = np.float32(90.0), np.float32(-110.0)  # beyond, the result is infinite, or zero
SHIFT = np.float32(1.5 * 2**23 + 127)  # plus n: rounded to a whole number, whose last bits are the exponent of 2^n


@intrinsic
def _turned(typing_context, sine, cosine, quarters, shift):
    """Sine of an angle plus so many quarter turns, from the sine and the cosine of the angle."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        sine, cosine, quarters, shift = given
        whole = ir.VectorType(ir.IntType(32), sine.type.count)

        def constant(number: int) -> Any:
            return ir.Constant(whole, [number] * whole.count)

        def bit(number: int) -> Any:
            return builder.icmp_signed("!=", builder.and_(turns, constant(number)), constant(0))

        first = builder.insert_element(constant(0), builder.trunc(shift, whole.element), ir.Constant(whole.element, 0))
        turns = builder.add(builder.fptosi(quarters, whole), builder.shuffle_vector(first, constant(0), constant(0)))
        value = builder.select(bit(1), cosine, sine)
        return builder.select(bit(2), builder.fneg(value), value)

    return sine(sine, cosine, quarters, types.intp), generate


@intrinsic
def _power_of_two(typing_context, n):
    """2 to the power of whole numbers from -126 to 127, in float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        whole = ir.VectorType(ir.IntType(32), given[0].type.count)
        bias, digits = (ir.Constant(whole, [number] * whole.count) for number in (127, 23))
        exponent = builder.shl(builder.add(builder.fptosi(given[0], whole), bias), digits)
        return builder.bitcast(exponent, given[0].type)

    return n(n), generate


@intrinsic
def _last_bits_as_exponent(typing_context, shifted):
    """2^n for shifted = n + SHIFT, in float32, with n from -126 to 127."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        whole = ir.VectorType(ir.IntType(32), given[0].type.count)
        bits = builder.shl(builder.bitcast(given[0], whole), ir.Constant(whole, [23] * whole.count))
        return builder.bitcast(bits, given[0].type)

    return shifted(shifted), generate


@inline
def _sine(x, shift):
    """Sine of x plus so many quarter turns, for small |x|: two polynomials for up to an eighth of a turn."""
    quarters = nearest((x * np.float32(2 / np.pi),))
    r = multiply_add((-quarters, HALF_PI[0], x))
    r = multiply_add((-quarters, HALF_PI[1], r))
    r = multiply_add((-quarters, HALF_PI[2], r))
    z = r * r
    sine = (np.float32(-1.9515295891e-4) * z + np.float32(8.3321608736e-3)) * z + np.float32(-1.6666654611e-1)
    cosine = (np.float32(2.443315711809948e-5) * z + np.float32(-1.388731625493765e-3)) * z + np.float32(4.166664568298827e-2)
    sine = multiply_add((sine * z, r, r))
    cosine = multiply_add((cosine * z, z, multiply_add((z, np.float32(-0.5), np.float32(1.0)))))
    return _turned(sine, cosine, quarters, shift)


def _where_far(function: Any) -> Callable:
    """Replace the values at large angles by the library's. What the other samples get does not depend on them."""

    @block
    def replaced(x, value):
        for k in range(_count(x)):
            number = _number(x, k)
            if not abs(number) <= FAR:
                value = _with_number(value, k, function(number))
        return value

    return replaced


_far_sines, _far_cosines = _where_far(math.sin), _where_far(math.cos)


def _sin(x):
    value = _sine(x, 0)
    return value if every(abs(x) <= FAR) else _far_sines(x, value)


def _cos(x):
    value = _sine(x, 1)
    return value if every(abs(x) <= FAR) else _far_cosines(x, value)


@inline
def _exp_near_0(r):
    """``e^r`` for r of at most half of log 2. Its powers are computed side by side: a register waits for fewer others."""
    z = r * r
    low = np.float32(1.6666665459e-1) * r + np.float32(5.0000001201e-1)
    high = np.float32(8.3334519073e-3) * r + np.float32(4.1665795894e-2)
    p = ((np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)) * z + high) * z + low
    return p * z + r + np.float32(1.0)


@inline
def _exp(x):
    x = where(x > EXP_MOST, EXP_MOST, where(x < EXP_LEAST, EXP_LEAST, x))
    n = nearest((x * np.float32(1 / np.log(2)),))
    r = multiply_add((-n, LN_2[1], multiply_add((-n, LN_2[0], x))))
    half = nearest((n * np.float32(0.5),))
    return _exp_near_0(r) * _power_of_two(half) * _power_of_two(n - half)


def exp_within(x):
    """``e^x`` for x such that e^x and e^-x are normal numbers of its precision."""
    return math.exp(x)


def _exp_within(x):
    if not isinstance(x, Vector) or x.dtype != types.float32:
        return exp_within

    def in_single(x):
        shifted = x * np.float32(1 / np.log(2)) + SHIFT
        n = shifted - SHIFT
        r = multiply_add((-n, LN_2[1], multiply_add((-n, LN_2[0], x))))
        return _exp_near_0(r) * _last_bits_as_exponent(shifted)

    return in_single


compiled_as(exp_within, _exp_within, forceinline=True)


def exp_of_product(x, y, rest):
    """``e^(x (y + rest))`` with a small rest, for such a product."""
    product, one = x * y, like(x, 1.0)
    lost = fma(x, y, -product) + x * rest
    return math.exp(product) * (one + lost * (one + like(x, 0.5) * lost))


def _exp_of_product(x, y, rest):
    if not isinstance(x, Vector) or x.dtype != types.float32:
        return exp_of_product

    def in_single(x, y, rest):
        shifted = x * y * np.float32(1 / np.log(2)) + SHIFT
        n = shifted - SHIFT
        r = multiply_add((x, y, -n * LN_2[0]))  # this product is exact
        r = multiply_add((-n, LN_2[1], multiply_add((x, rest, r))))
        return _exp_near_0(r) * _last_bits_as_exponent(shifted)

    return in_single


compiled_as(exp_of_product, _exp_of_product, forceinline=True)


def _tanh(x):
    y = abs(x)
    z = y * y
    p = (np.float32(-5.70498872745e-3) * z + np.float32(2.06390887954e-2)) * z + np.float32(-5.37397155531e-2)
    p = (p * z + np.float32(1.33314422036e-1)) * z + np.float32(-3.33332819422e-1)
    near = multiply_add((p * z, y, y))
    far = np.float32(1.0) - np.float32(2.0) / (_exp(y + y) + np.float32(1.0))
    value = where(y < np.float32(0.625), near, far)
    return where(x < np.float32(0.0), -value, value)


@intrinsic
def _mantissa(typing_context, x):
    """The m of ``m 2^n`` with 0.5 <= m < 1, of normal float32 numbers above 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        whole = ir.VectorType(ir.IntType(32), given[0].type.count)
        digits, half = (ir.Constant(whole, [number] * whole.count) for number in (0x007FFFFF, 0x3F000000))
        return builder.bitcast(builder.or_(builder.and_(builder.bitcast(given[0], whole), digits), half), given[0].type)

    return x(x), generate


@intrinsic
def _exponent(typing_context, x):
    """The n of ``m 2^n`` with 0.5 <= m < 1, of normal float32 numbers above 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        whole = ir.VectorType(ir.IntType(32), given[0].type.count)
        digits, bias = (ir.Constant(whole, [number] * whole.count) for number in (23, 126))
        exponent = builder.sub(builder.lshr(builder.bitcast(given[0], whole), digits), bias)
        return builder.sitofp(exponent, given[0].type)

    return x(x), generate


@inline
def _log(x):
    """``n log 2 + log(1 + r)`` with a polynomial for r, in absolute value at most 0.42."""
    small = x < np.float32(2.0**-126)
    scaled = where(small, x * np.float32(2.0**25), x)
    m = _mantissa(scaled)
    low = m < np.float32(math.sqrt(0.5))
    n = _exponent(scaled) - where(small, np.float32(25.0), np.float32(0.0)) - where(low, np.float32(1.0), np.float32(0.0))
    r = where(low, m + m, m) - np.float32(1.0)
    p = (np.float32(7.0376836292e-2) * r + np.float32(-1.1514610310e-1)) * r + np.float32(1.1676998740e-1)
    p = ((p * r + np.float32(-1.2420140846e-1)) * r + np.float32(1.4249322787e-1)) * r + np.float32(-1.6668057665e-1)
    p = ((p * r + np.float32(2.0000714765e-1)) * r + np.float32(-2.4999993993e-1)) * r + np.float32(3.3333331174e-1)
    z = r * r
    tail = p * r * z + n * LOG_2[1] - np.float32(0.5) * z
    value = n * LOG_2[0] + (r + tail)
    value = where(x < np.float32(np.inf), value, x)  # infinity, and NaN
    return where(x > np.float32(0.0), value, where(x == np.float32(0.0), np.float32(-np.inf), np.float32(np.nan)))


@inline
def _log1p(x):
    """``log(u) + (x - (u - 1)) / u`` with u = 1 + x: what rounding took from u comes back."""
    u = np.float32(1.0) + x
    value = _log(u) + (x - (u - np.float32(1.0))) / u
    return where((u == np.float32(0.0)) | (u == np.float32(np.inf)), _log(u), value)


def _in_single(formula: Callable, function: Any) -> Callable:
    """A formula in float32, and otherwise a function of each number."""
    each = one_by_one(function)
    return lambda kind: formula if kind.dtype == types.float32 else each


_function((math.sin, np.sin), _in_single(_sin, math.sin))
_function((math.cos, np.cos), _in_single(_cos, math.cos))
_function((math.exp, np.exp), _in_single(lambda x: _exp(x), math.exp))
_function((math.tanh, np.tanh), _in_single(_tanh, math.tanh))
_function((math.log, np.log), _in_single(lambda x: _log(x), math.log))
_function((math.log1p, np.log1p), _in_single(lambda x: _log1p(x), math.log1p))


def _give_one_by_one() -> None:
    names = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}
    for name in ("tan", "sinh", "cosh", "log10", "log2", "expm1", "erf", "erfc", *names):
        function = getattr(math, name)
        each, others = one_by_one(function), (getattr(np, names.get(name, name), None),)
        _function((function, *(other for other in others if other is not None)), lambda kind, each=each: each)
    for function, other in ((math.atan2, np.arctan2), (math.hypot, np.hypot), (math.copysign, np.copysign)):
        _extreme((function, other), pair_by_pair(function))


_give_one_by_one()


def _by_squaring(x, n):
    result, factor, left = _constant((x, 1)), x, abs(n)
    while left > 0:
        if left % 2 == 1:
            result = result * factor
        factor = factor * factor
        left //= 2
    return result if n >= 0 else 1 / result


_powers = pair_by_pair(math.pow)


def _power(a, b):
    if isinstance(a, Vector) and isinstance(b, types.Integer):
        return _by_squaring
    return _powers if _vector_of(a, b) else None


for _pow in (operator.pow, operator.ipow, math.pow, np.power):
    also(_pow, _power)
