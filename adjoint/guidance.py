"""Adjoint of guidance by repulsion; mirror image of `stablebptt.kernels.guidance`."""

from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.kernels.core.dispatch import implements, inline, like
from stablebptt.kernels.guidance import Gathering, Guidance, evader_sum, friction, pair_law, pull_terms


@inline
def pull_vjp(strength, slope, rx, ry, fx_bar, fy_bar):
    """Cotangents of rx and ry; strength and slope come from `pull_terms`."""
    stretch = slope * (rx * fx_bar + ry * fy_bar)
    return strength * fx_bar + stretch * rx, strength * fy_bar + stretch * ry


@implements(step_vjp, Guidance)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    """One loop over pairs computes each distance once for all cotangents."""
    adjoints, dt = lam.shape[0], system.dt
    objects = system.drivers + system.evaders
    sx, sy = evader_sum(system, x)
    for v in range(adjoints):
        bar, x_bar, c_bar = lam[v], lam_x[v], lam_c[v]
        for o in range(objects):
            damping = like(dt, 1.0) - dt * friction(system, o)
            for k in range(4 * o, 4 * o + 2):  # position + dt velocity, damping velocity
                x_bar[k] += bar[k]
                x_bar[k + 2] += dt * bar[k] + damping * bar[k + 2]
        sx_bar, sy_bar = like(dt, 0.0), like(dt, 0.0)
        for i in range(system.drivers):  # along u + across perp(u)
            ux, uy = x[4 * i] - sx, x[4 * i + 1] - sy
            along, across = c[2 * i], c[2 * i + 1]
            ax_bar, ay_bar = dt * bar[4 * i + 2], dt * bar[4 * i + 3]
            c_bar[2 * i] += ax_bar * ux + ay_bar * uy
            c_bar[2 * i + 1] += ay_bar * ux - ax_bar * uy
            ux_bar, uy_bar = along * ax_bar + across * ay_bar, along * ay_bar - across * ax_bar
            x_bar[4 * i] += ux_bar
            x_bar[4 * i + 1] += uy_bar
            sx_bar -= ux_bar
            sy_bar -= uy_bar
        for o in range(system.drivers, objects):
            x_bar[4 * o] += sx_bar
            x_bar[4 * o + 1] += sy_bar
    for j in range(1, objects):
        for i in range(j):
            near, far, mutual = pair_law(system, i, j)
            rx, ry = x[4 * i] - x[4 * j], x[4 * i + 1] - x[4 * j + 1]
            strength, slope = pull_terms(system.reach, near, far, rx, ry)
            for v in range(adjoints):
                bar, x_bar = lam[v], lam_x[v]
                fx_bar, fy_bar = bar[4 * j + 2], bar[4 * j + 3]
                if mutual:
                    fx_bar -= bar[4 * i + 2]
                    fy_bar -= bar[4 * i + 3]
                rx_bar, ry_bar = pull_vjp(strength, slope, rx, ry, dt * fx_bar, dt * fy_bar)
                x_bar[4 * i] += rx_bar
                x_bar[4 * i + 1] += ry_bar
                x_bar[4 * j] -= rx_bar
                x_bar[4 * j + 1] -= ry_bar


@implements(cost_vjp, Gathering)
def _cost_vjp(loss, x, cost_bar, x_bar):
    share = cost_bar / x.dtype.type(loss.evaders)
    for o in range(loss.drivers, loss.drivers + loss.evaders):
        x_bar[4 * o] += share * (x[4 * o] - loss.target_x)
        x_bar[4 * o + 1] += share * (x[4 * o + 1] - loss.target_y)
