"""Adjoint of the particle in a box; mirror image of `stablebptt.kernels.quantum`.

The step is linear in psi and A is symmetric, so its adjoint is the conjugate of the same step: with ``A y = conj(lam)``,
``lam_x = 2 conj(y) - lam``. With ``psi + psi' = 2 A^-1 psi`` the control's cotangent is ``dt/2 Im sum_k x_k y_k (psi + psi')_k``.
"""

import numpy as np

from stablebptt.adjoint.generics import cost_vjp, step_sample_vjp, step_vjp
from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.generics import step_sample
from stablebptt.kernels.quantum import Overlap, Quantum, factorise, overlap, solve


@implements(step_sample_vjp, Quantum)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """One factorisation serves all cotangents."""
    pivots, y = scratch[: x.size], scratch[x.size :]
    factorise(system, c, pivots)
    for v in range(lam.shape[0]):
        bar, x_bar, c_bar = lam[v], lam_x[v], lam_c[v]
        for k in range(system.points):
            y[2 * k] = bar[2 * k]
            y[2 * k + 1] = -bar[2 * k + 1]
        solve(system, pivots, y)
        slope = like(system.tilt, 0.0)
        for k in range(system.points):
            re, im = y[2 * k], y[2 * k + 1]
            sum_re, sum_im = x[2 * k] + x_next[2 * k], x[2 * k + 1] + x_next[2 * k + 1]
            slope += (re * sum_im + im * sum_re) * like(system.tilt, k + 1)
            x_bar[2 * k] += (re + re) - bar[2 * k]
            x_bar[2 * k + 1] -= (im + im) + bar[2 * k + 1]
        c_bar[0] += slope * system.tilt


@implements(step_vjp, Quantum)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    x_next, scratch = np.empty_like(x), np.empty(2 * x.size, x.dtype)
    step_sample(system, x, c, x_next, scratch)
    step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


@implements(cost_vjp, Overlap)
def _cost_vjp(loss, x, cost_bar, x_bar):
    re, im = overlap(loss, x)
    for k in range(loss.target.size):
        share = (cost_bar + cost_bar) * loss.target[k]
        x_bar[2 * k] -= share * re
        x_bar[2 * k + 1] -= share * im
