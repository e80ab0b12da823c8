"""Combination of the regular and the modified gradient by sign; docs/method.md, section 2, variant C."""

import numpy as np

from stablebptt.kernels.core.dispatch import inline, like


@inline
def agreeing(m, r):
    """One component of `combine`: m where its sign agrees with r, otherwise 0."""
    zero = like(m, 0.0)
    sign_m, sign_r = int(m > 0) - int(m < 0), int(r > 0) - int(r < 0)
    nothing = m * zero + r * zero  # 0 for finite numbers, otherwise NaN
    return nothing + (m if sign_m == sign_r else zero)


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
