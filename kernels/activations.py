"""Activations, the functions between the layers of a network: ``h = f(z)``, number by number.

One text serves numbers and registers full of them. The derivative f'(z), the slope, is computed with the value where it needs z,
and kept for the way back; the slope of a `FromValue` follows from h alone.
"""

import math
from typing import Any

import numpy as np
from numba import types

from stablebptt.kernels.core.dispatch import block, compiled_as, generic, implements, inline, like
from stablebptt.kernels.core.simd import clamp, lanes, load, store
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.vector_math import exp_of_product, exp_within, fma, where
from stablebptt.kernels.dense import tanh


class Activation(Struct):
    """Base of activations. They define `activate` and `slope`."""


class FromValue(Activation):
    """Base of activations whose slope follows from the value."""


class Tanh(FromValue):
    """Hyperbolic tangent."""


class Relu(FromValue):
    """The larger of z and 0; its slope at 0 is 0."""


class Identity(FromValue):
    """z itself."""


class Gelu(Activation):
    """z times the normal distribution's share below z, in the usual form with tanh (Hendrycks and Gimpel 2016, section 2)."""


class Silu(Activation):
    """``z / (1 + exp(-z))``, also called swish."""


class Softplus(Activation):
    """``log(1 + exp(z))``."""


class Sin(Activation):
    """Sine."""


# Constants of `gelu_share`.
GELU_A = round(2 * math.sqrt(2 / math.pi) * 2**19) / 2**19
GELU_A_REST = 2 * math.sqrt(2 / math.pi) - GELU_A
GELU_B = 0.044715 * 2 * math.sqrt(2 / math.pi)
FAR = {"float32": (87.0, 9.97), "float64": (708.0, 21.0)}  # see `far`

ACTIVATIONS: dict[str, Activation] = {
    "tanh": Tanh(),
    "relu": Relu(),
    "gelu": Gelu(),
    "silu": Silu(),
    "softplus": Softplus(),
    "sin": Sin(),
    "identity": Identity(),
}


@generic
def activate(activation, z):
    """The value h of a number z."""


@generic
def slope(activation, z, h):
    """The derivative at z, where the value is h. A `FromValue` is given h for both."""


@generic
def keeps_slopes(activation):
    """Whether slopes are kept for the way back."""


@implements(keeps_slopes, Activation)
def _kept(activation):
    return True


@implements(keeps_slopes, FromValue)
def _not_kept(activation):
    return False


def slope_count(activation: Any, count: int) -> int:
    """Numbers to keep for so many slopes: one if they are not kept, since arrays are not empty."""
    return 1 if isinstance(activation, FromValue) else count


@block
def activate_all(activation, n, z, slopes):
    """Replace n (padded) numbers at address z by their values; keep their slopes if need be."""
    for j in range(0, n, lanes(z)):
        numbers = load(z, j)
        values = activate(activation, numbers)
        if keeps_slopes(activation):
            store(slopes, j, slope(activation, numbers, values))
        store(z, j, values)


@implements(activate, Tanh)
def _tanh(activation, z):
    return tanh(z)


@implements(slope, Tanh)
def _tanh_slope(activation, z, h):
    return like(h, 1.0) - h * h


@inline
def above(z, least):
    """z, or `least` if it is below; NaN stays NaN."""
    return where(z < like(z, least), like(z, least), z)


@implements(activate, Relu)
def _relu(activation, z):
    return above(z, 0.0)


@implements(slope, Relu)
def _relu_slope(activation, z, h):
    return where(h > like(h, 0.0), like(h, 1.0), h - h)  # NaN stays


@implements(activate, Identity)
def _identity(activation, z):
    return z


@implements(slope, Identity)
def _one(activation, z, h):
    return where(h == h, like(h, 1.0), h)


def far(z):
    """The z up to which e^z and e^-z are normal numbers, and that up to which those of `gelu_share` are."""
    return FAR[np.asarray(z).dtype.name]


def _far(z):
    name = str(getattr(z, "dtype", z))
    most, gelu = map(np.dtype(name).type, FAR[name])
    return lambda z: (most, gelu)


compiled_as(far, _far, forceinline=True)


@inline
def sigmoid(z):
    """``1 / (1 + exp(-z))`` for z within `far`."""
    one = like(z, 1.0)
    return one / (one + exp_within(-z))


@implements(activate, Silu)
def _silu(activation, z):
    most = far(z)[0]
    return above(z, -most) * sigmoid(clamp(z, most))


@implements(slope, Silu)
def _silu_slope(activation, z, h):
    share = sigmoid(clamp(z, far(z)[0]))
    return share + h * (like(z, 1.0) - share)


@inline
def rest(z, value):
    """What a constant loses in the precision of z."""
    return like(z, value - float(like(z, value)))


@inline
def gelu_share(z):
    """``sigmoid(a z + b z^3)`` with ``a = 2 sqrt(2 / pi)`` and ``b = 0.044715 a``.

    A rounded argument of 80 would make the exponential wrong by 40 ulp, so what is lost by rounding is computed, too. The first
    digits of a have so few bits that ``a - factor`` is exact.
    """
    a, b, one = like(z, GELU_A), like(z, GELU_B), like(z, 1.0)
    square = z * z
    factor = fma(b, square, a)
    lost = fma(b, square, a - factor)
    lost = lost + (like(z, GELU_A_REST) + rest(z, GELU_B) * square + b * fma(z, z, -square))
    return one / (one + exp_of_product(-z, factor, lost))


@implements(activate, Gelu)
def _gelu(activation, z):
    most = far(z)[1]
    return above(z, -most) * gelu_share(clamp(z, most))


@implements(slope, Gelu)
def _gelu_slope(activation, z, h):
    near = clamp(z, far(z)[1])
    share = gelu_share(near)
    return share + near * share * (like(z, 1.0) - share) * (like(z, GELU_A + GELU_A_REST) + like(z, 3 * GELU_B) * near * near)


def log1p_of_share(y):
    """``log(1 + y)`` for 0 <= y <= 1; in float32 a polynomial (relative error 5e-8), its powers side by side."""
    return math.log1p(y)


def _log1p_of_share(y):
    if getattr(y, "dtype", y) != types.float32:
        return lambda y: math.log1p(y)
    p2, p3, p4, p5 = (np.float32(p) for p in (-0.49999648, 0.33321324, -0.24857163, 0.19153653))
    p6, p7, p8, p9 = (np.float32(p) for p in (-0.13753799, 0.079204492, -0.030065764, 0.0053648166))

    def polynomial(y):
        z = y * y
        low, high = (p5 * y + p4) * z + (p3 * y + p2), (p9 * y + p8) * z + (p7 * y + p6)
        return (high * (z * z) + low) * z + y

    return polynomial


compiled_as(log1p_of_share, _log1p_of_share, forceinline=True)


@inline
def exp_of_minus(z):
    """``exp(-|z|)``, for z beyond `far` as there."""
    return exp_within(clamp(-abs(z), far(z)[0]))


@implements(activate, Softplus)
def _softplus(activation, z):
    return above(z, 0.0) + log1p_of_share(exp_of_minus(z))


@implements(slope, Softplus)
def _softplus_slope(activation, z, h):
    small = exp_of_minus(z)
    return where(z < like(z, 0.0), small, like(z, 1.0)) / (like(z, 1.0) + small)


@implements(activate, Sin)
def _sin(activation, z):
    return math.sin(z)


@implements(slope, Sin)
def _sin_slope(activation, z, h):
    return math.cos(z)
