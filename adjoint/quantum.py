"""Adjoint of the particle in a box; mirror image of `stablebptt.kernels.quantum`.

The step is linear in psi and A is symmetric, so its adjoint is the conjugate of the same step: with ``A y = conj(lam)``,
``lam_x = 2 conj(y) - lam``. With ``psi + psi' = 2 A^-1 psi`` the control's cotangent is ``dt/2 Im sum_k x_k y_k (psi + psi')_k``.
"""

import numpy as np

from stablebptt.adjoint.generics import cost_vjp, step_batch_vjp, step_sample_vjp, step_vjp
from stablebptt.kernels.core.dispatch import block, implements, like
from stablebptt.kernels.core.simd import ONE, lanes, offset, pointer
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.views import Bars, Lanes, One, add_from_lanes, constant, get, padded_batch, put, row, to_lanes
from stablebptt.kernels.generics import step_sample
from stablebptt.kernels.quantum import Overlap, Quantum, factorise, overlap, places, solve


class Solve(Struct):
    """Views of scratch space: pivots of A and a solution y, n_state numbers each."""

    pivots: Struct
    y: Struct


@block
def advance_vjp(system, x, c, x_next, bars, space):
    """`step_vjp` on views, with one factorisation for all cotangents."""
    adjoints, lam, lam_x, lam_c = bars.count, bars.lam, bars.lam_x, bars.lam_c
    pivots, y = space.pivots, space.y
    factorise(system, c, pivots)
    for v in range(adjoints):
        bar, x_bar, c_bar = row(lam, v), row(lam_x, v), row(lam_c, v)
        for k in range(system.points):
            put(y, 2 * k, get(bar, 2 * k))
            put(y, 2 * k + 1, -get(bar, 2 * k + 1))
        solve(system, pivots, y)
        slope = constant(y, like(system.tilt, 0.0))
        for k in range(system.points):
            re, im = get(y, 2 * k), get(y, 2 * k + 1)
            sum_re, sum_im = get(x, 2 * k) + get(x_next, 2 * k), get(x, 2 * k + 1) + get(x_next, 2 * k + 1)
            slope = slope + (re * sum_im + im * sum_re) * like(system.tilt, k + 1)
            put(x_bar, 2 * k, get(x_bar, 2 * k) + ((re + re) - get(bar, 2 * k)))
            put(x_bar, 2 * k + 1, get(x_bar, 2 * k + 1) - ((im + im) + get(bar, 2 * k + 1)))
        put(c_bar, 0, get(c_bar, 0) + slope * system.tilt)


@implements(step_sample_vjp, Quantum)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    bars = Bars(lam.shape[0], One(lam), One(lam_x), One(lam_c))
    advance_vjp(system, One(x), One(c), One(x_next), bars, Solve(One(scratch[: x.size]), One(scratch[x.size :])))


@implements(step_vjp, Quantum)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    x_next, scratch = np.empty_like(x), np.empty(2 * x.size, x.dtype)
    step_sample(system, x, c, x_next, scratch)
    step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


@implements(step_batch_vjp, Quantum)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    batch, adjoints, n_state = lam.shape
    stride, rows = padded_batch(batch), adjoints * n_state
    x_lanes, next_lanes, pivots, y, lam_lanes, lam_x_lanes, c_lanes, lam_c_lanes = places(
        system, adjoints, stride, scratch
    )
    to_lanes(batch, n_state, pointer(x), n_state, x_lanes, stride)
    to_lanes(batch, n_state, pointer(x_next), n_state, next_lanes, stride)
    to_lanes(batch, 1, pointer(c), 1, c_lanes, stride)
    to_lanes(batch, rows, pointer(lam), rows, lam_lanes, stride)
    for k in range(rows * stride):
        lam_x_lanes[k] = like(x, 0.0)
    for k in range(adjoints * stride):
        lam_c_lanes[k] = like(x, 0.0)
    for b in range(0, batch, lanes(x_lanes)):
        bars = Bars(
            adjoints,
            Lanes(offset(lam_lanes, b), stride, ONE * n_state),
            Lanes(offset(lam_x_lanes, b), stride, ONE * n_state),
            Lanes(offset(lam_c_lanes, b), stride, ONE),
        )
        advance_vjp(
            system,
            Lanes(offset(x_lanes, b), stride, ONE * n_state),
            Lanes(offset(c_lanes, b), stride, ONE),
            Lanes(offset(next_lanes, b), stride, ONE * n_state),
            bars,
            Solve(Lanes(offset(pivots, b), stride, ONE * n_state), Lanes(offset(y, b), stride, ONE * n_state)),
        )
    add_from_lanes(batch, rows, pointer(lam_x), rows, lam_x_lanes, stride)
    add_from_lanes(batch, adjoints, pointer(lam_c), adjoints, lam_c_lanes, stride)


@implements(cost_vjp, Overlap)
def _cost_vjp(loss, x, cost_bar, x_bar):
    re, im = overlap(loss, x)
    for k in range(loss.target.size):
        share = (cost_bar + cost_bar) * loss.target[k]
        x_bar[2 * k] -= share * re
        x_bar[2 * k + 1] -= share * im
