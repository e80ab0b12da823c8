"""Joins of the regular and the modified gradient, R and M; docs/method.md, section 2, and docs/joins.md.

    componentwise    joined_i = component(join, M_i, R_i)          a struct selects the method
    Gram             joined = wr R + wm M                          weights from the inner products, for the whole or per layer
"""

import math

import numpy as np

from stablebptt.kernels.core.dispatch import generic, implements, inline, kernel, like
from stablebptt.kernels.core.structs import Struct

# Inner products within these bounds neither overflow nor lose digits; beyond, R and M are scaled by a power of two.
LEAST, LARGEST = 2.0**-800, 2.0**800
HIGHEST = 1000  # exponent of that power at most: 2^1024 overflows


class Signs(Struct):
    """Variant C: M where its sign agrees with that of R, otherwise 0."""


class Smaller(Struct):
    """The one of smaller magnitude where the signs agree, otherwise 0."""


class Leaky(Struct):
    """M where its sign agrees with that of R, otherwise a share of it."""

    leak: float


@generic
def component(join, m, r):
    """One component of the joined gradient, from those of M and R."""


@inline
def agree(m, r):
    """Whether the signs of m and r agree; 0 has a sign of its own."""
    sign_m, sign_r = int(m > 0) - int(m < 0), int(r > 0) - int(r < 0)
    return sign_m == sign_r


@inline
def nothing(m, r):
    """0 for finite numbers, otherwise NaN: what is added to a join hides neither NaN nor Inf."""
    zero = like(m, 0.0)
    return m * zero + r * zero


@inline
def agreeing(m, r):
    """One component of `combine`: m where its sign agrees with r, otherwise 0."""
    return nothing(m, r) + (m if agree(m, r) else like(m, 0.0))


@implements(component, Signs)
def _signs(join, m, r):
    return agreeing(m, r)


@implements(component, Smaller)
def _smaller(join, m, r):
    if agree(m, r):
        return m if abs(m) < abs(r) else r
    return like(m, 0.0)


@implements(component, Leaky)
def _leaky(join, m, r):
    return m if agree(m, r) else like(m, join.leak) * m


@inline
def combine(modified, regular, combined):
    """``C = M where sign(M) == sign(R), else 0``, of vectors of one length; NaN and Inf never vanish."""
    for i in range(modified.size):
        combined[i] = agreeing(modified[i], regular[i])


@inline
def inner(u, v):
    """Inner product of two vectors (n,), summed in float64."""
    total = 0.0
    for i in range(u.size):
        total += np.float64(u[i]) * np.float64(v[i])
    return total


@kernel
def join_components(join, regular, modified, joined):
    """Join R and M (n,) component by component; returns the squared norm."""
    for i in range(joined.size):
        joined[i] = component(join, modified[i], regular[i]) + nothing(modified[i], regular[i])
    return inner(joined, joined)


@inline
def _scaled_products(regular, modified, scale):
    """R.R, R.M and M.M of two vectors times `scale`."""
    rr, rm, mm = 0.0, 0.0, 0.0
    for i in range(regular.size):
        r, m = scale * np.float64(regular[i]), scale * np.float64(modified[i])
        rr += r * r
        rm += r * m
        mm += m * m
    return rr, rm, mm


@inline
def _largest(u, v):
    """The largest finite magnitude in two vectors."""
    largest = 0.0
    for i in range(u.size):
        for x in (abs(np.float64(u[i])), abs(np.float64(v[i]))):
            if x > largest and x < np.inf:
                largest = x
    return largest


@kernel
def gram(regular, modified, bounds, products):
    """Inner products of R and M (n,) in layers with these bounds (layers + 1,), in float64.

    products (layers, 4) : an exponent e, and R.R, R.M, M.M of R / 2^e and M / 2^e. e is 0 unless squares would overflow or
        vanish
    """
    for k in range(bounds.size - 1):
        r, m = regular[bounds[k] : bounds[k + 1]], modified[bounds[k] : bounds[k + 1]]
        exponent = 0
        rr, rm, mm = _scaled_products(r, m, 1.0)
        if not LEAST < max(rr, mm) < LARGEST:  # so is NaN, which stays
            exponent = max(math.frexp(_largest(r, m))[1], -HIGHEST)
            rr, rm, mm = _scaled_products(r, m, math.ldexp(1.0, -exponent))
        products[k, 0], products[k, 1], products[k, 2], products[k, 3] = exponent, rr, rm, mm


@kernel
def weigh(regular, modified, bounds, weights, joined):
    """Join R and M (n,) as ``wr R + wm M`` in layers, with weights (layers, 2); returns the squared norm."""
    for k in range(bounds.size - 1):
        wr, wm = weights[k, 0], weights[k, 1]
        for i in range(bounds[k], bounds[k + 1]):
            joined[i] = wr * np.float64(regular[i]) + wm * np.float64(modified[i])
    return inner(joined, joined)
