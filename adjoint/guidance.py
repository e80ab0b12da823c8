"""Adjoint of guidance by repulsion; mirror image of `stablebptt.kernels.guidance`."""

from stablebptt.adjoint.generics import cost_vjp, step_batch_vjp, step_vjp
from stablebptt.kernels.core.dispatch import block, implements, inline, like
from stablebptt.kernels.core.simd import ONE, lanes, offset, pointer
from stablebptt.kernels.core.views import Bars, Lanes, One, add_from_lanes, constant, get, padded_batch, put, row, to_lanes
from stablebptt.kernels.guidance import (
    Gathering,
    Guidance,
    evader_sum,
    friction,
    pair_law,
    places,
    pull_terms,
)


@inline
def pull_vjp(strength, slope, rx, ry, fx_bar, fy_bar):
    """Cotangents of rx and ry; strength and slope come from `pull_terms`."""
    stretch = slope * (rx * fx_bar + ry * fy_bar)
    return strength * fx_bar + stretch * rx, strength * fy_bar + stretch * ry


@inline
def _add(view, k, value):
    put(view, k, get(view, k) + value)


@block
def advance_vjp(system, x, c, bars):
    """`step_vjp` on views. One loop over pairs computes each distance once for all cotangents."""
    adjoints, lam, lam_x, lam_c = bars.count, bars.lam, bars.lam_x, bars.lam_c
    dt = system.dt
    objects = system.drivers + system.evaders
    zero = like(dt, 0.0)
    sx, sy = evader_sum(system, x)
    for v in range(adjoints):
        bar, x_bar, c_bar = row(lam, v), row(lam_x, v), row(lam_c, v)
        for o in range(objects):
            damping = like(dt, 1.0) - dt * friction(system, o)
            for k in range(4 * o, 4 * o + 2):  # position + dt velocity, damping velocity
                _add(x_bar, k, get(bar, k))
                _add(x_bar, k + 2, dt * get(bar, k) + damping * get(bar, k + 2))
        sx_bar, sy_bar = constant(x, zero), constant(x, zero)
        for i in range(system.drivers):  # along u + across perp(u)
            ux, uy = get(x, 4 * i) - sx, get(x, 4 * i + 1) - sy
            along, across = get(c, 2 * i), get(c, 2 * i + 1)
            ax_bar, ay_bar = dt * get(bar, 4 * i + 2), dt * get(bar, 4 * i + 3)
            _add(c_bar, 2 * i, ax_bar * ux + ay_bar * uy)
            _add(c_bar, 2 * i + 1, ay_bar * ux - ax_bar * uy)
            ux_bar, uy_bar = along * ax_bar + across * ay_bar, along * ay_bar - across * ax_bar
            _add(x_bar, 4 * i, ux_bar)
            _add(x_bar, 4 * i + 1, uy_bar)
            sx_bar = sx_bar - ux_bar
            sy_bar = sy_bar - uy_bar
        for o in range(system.drivers, objects):
            _add(x_bar, 4 * o, sx_bar)
            _add(x_bar, 4 * o + 1, sy_bar)
    for j in range(1, objects):
        for i in range(j):
            near, far, mutual = pair_law(system, i, j)
            rx, ry = get(x, 4 * i) - get(x, 4 * j), get(x, 4 * i + 1) - get(x, 4 * j + 1)
            strength, slope = pull_terms(system.reach, near, far, rx, ry)
            for v in range(adjoints):
                bar, x_bar = row(lam, v), row(lam_x, v)
                fx_bar, fy_bar = get(bar, 4 * j + 2), get(bar, 4 * j + 3)
                if mutual:
                    fx_bar = fx_bar - get(bar, 4 * i + 2)
                    fy_bar = fy_bar - get(bar, 4 * i + 3)
                rx_bar, ry_bar = pull_vjp(strength, slope, rx, ry, dt * fx_bar, dt * fy_bar)
                _add(x_bar, 4 * i, rx_bar)
                _add(x_bar, 4 * i + 1, ry_bar)
                _add(x_bar, 4 * j, -rx_bar)
                _add(x_bar, 4 * j + 1, -ry_bar)


@implements(step_vjp, Guidance)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    advance_vjp(system, One(x), One(c), Bars(lam.shape[0], One(lam), One(lam_x), One(lam_c)))


@implements(step_batch_vjp, Guidance)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    batch, adjoints, n_state = lam.shape
    n_control = c.shape[1]
    stride = padded_batch(batch)
    x_lanes, c_lanes, after = places(n_state, n_control, stride, scratch)
    lam_lanes = offset(after, n_state * stride)
    lam_x_lanes = offset(lam_lanes, adjoints * n_state * stride)
    lam_c_lanes = offset(lam_x_lanes, adjoints * n_state * stride)
    to_lanes(batch, n_state, pointer(x), n_state, x_lanes, stride)
    to_lanes(batch, n_control, pointer(c), n_control, c_lanes, stride)
    to_lanes(batch, adjoints * n_state, pointer(lam), adjoints * n_state, lam_lanes, stride)
    for k in range(adjoints * (n_state + n_control) * stride):  # lam_x and lam_c lie side by side
        lam_x_lanes[k] = like(x, 0.0)
    for b in range(0, batch, lanes(x_lanes)):
        bars = Bars(
            adjoints,
            Lanes(offset(lam_lanes, b), stride, ONE * n_state),
            Lanes(offset(lam_x_lanes, b), stride, ONE * n_state),
            Lanes(offset(lam_c_lanes, b), stride, ONE * n_control),
        )
        x_view, c_view = Lanes(offset(x_lanes, b), stride, ONE * n_state), Lanes(offset(c_lanes, b), stride, ONE * n_control)
        advance_vjp(system, x_view, c_view, bars)
    add_from_lanes(batch, adjoints * n_state, pointer(lam_x), adjoints * n_state, lam_x_lanes, stride)
    add_from_lanes(batch, adjoints * n_control, pointer(lam_c), adjoints * n_control, lam_c_lanes, stride)


@implements(cost_vjp, Gathering)
def _cost_vjp(loss, x, cost_bar, x_bar):
    share = cost_bar / x.dtype.type(loss.evaders)
    for o in range(loss.drivers, loss.drivers + loss.evaders):
        x_bar[4 * o] += share * (x[4 * o] - loss.target_x)
        x_bar[4 * o + 1] += share * (x[4 * o + 1] - loss.target_y)
