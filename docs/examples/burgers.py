"""Burgers' equation on a ring, pushed by four actuators so that it follows a moving target.

    u_t + u u_x = nu u_xx + sum_k c_k phi_k(x)        on a ring of length 2 pi

State (N,): u at N places. Control (4,): strength of four bumps phi_k. Central differences of the flux u^2/2, explicit Euler. The
target is a wave that travels once around the ring while it is followed. docs/burgers.md has more.
"""

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, inline, like, step

POINTS, ACTUATORS = 32, 4
LIMIT = 1.0  # of the actuators
DX = 2 * np.pi / POINTS
PLACES = DX * np.arange(POINTS)


def bumps():
    """Shapes phi_k of the actuators (ACTUATORS, POINTS), a quarter of the ring apart; none changes the mean of u."""
    centres = 2 * np.pi * np.arange(ACTUATORS) / ACTUATORS
    shapes = np.exp((np.cos(PLACES[None] - centres[:, None]) - 1) / 0.3)
    return shapes - shapes.mean(axis=1, keepdims=True)


def wave(steps, height=0.5):
    """Target (steps + 1, POINTS): a wave that travels once around the ring."""
    return height * np.sin(PLACES[None] - 2 * np.pi * np.arange(steps + 1)[:, None] / steps)


class Burgers(System):
    """Shapes of the actuators (ACTUATORS, N), time step, distance of places, viscosity nu."""

    shapes: np.ndarray
    dt: float = 0.05
    dx: float = DX
    viscosity: float = 0.2

    control_shape = (ACTUATORS,)


class Following(Loss):
    """Target (T+1, N), and weight of the squared controls."""

    target: np.ndarray
    effort: float = 0.001


@inline
def off_target(x, target):
    """Mean squared distance of u from a target (N,)."""
    value = like(x, 0.0)
    for i in range(x.size):
        off = x[i] - target[i]
        value += off * off
    return value / like(x, x.size)


@inline
def off_target_vjp(x, target, bar, x_bar):
    """Add the cotangent of u."""
    factor = bar * like(x, 2.0) / like(x, x.size)
    for i in range(x.size):
        x_bar[i] += factor * (x[i] - target[i])


@implements(step, Burgers)
def _step(s, x, c, x_next):
    n = x.size
    flux, spread = s.dt / (like(s.dx, 4.0) * s.dx), s.dt * s.viscosity / (s.dx * s.dx)
    for i in range(n):
        left, here, right = x[i - 1], x[i], x[(i + 1) % n]
        force = c[0] * s.shapes[0, i]
        for k in range(1, ACTUATORS):
            force += c[k] * s.shapes[k, i]
        x_next[i] = here - flux * (right - left) * (right + left) + spread * (left + right - here - here) + s.dt * force


@implements(step_vjp, Burgers)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    n = x.size
    flux, spread = s.dt / (like(s.dx, 2.0) * s.dx), s.dt * s.viscosity / (s.dx * s.dx)
    for v in range(lam.shape[0]):
        for i in range(n):
            left, here, right = lam[v, i - 1], lam[v, i], lam[v, (i + 1) % n]
            lam_x[v, i] += here + flux * x[i] * (right - left) + spread * (left + right - here - here)
            for k in range(ACTUATORS):
                lam_c[v, k] += s.dt * s.shapes[k, i] * here


@implements(cost, Following)
def _cost(loss, t, x, c):
    value = off_target(x, loss.target[t])
    for k in range(ACTUATORS):
        value += loss.effort * c[k] * c[k]
    return value


@implements(cost_vjp, Following)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    off_target_vjp(x, loss.target[t], cost_bar, x_bar)
    for k in range(ACTUATORS):
        c_bar[k] += cost_bar * 2 * loss.effort * c[k]


@implements(final_cost, Following)
def _final_cost(loss, x):
    return off_target(x, loss.target[-1])


@implements(final_cost_vjp, Following)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    off_target_vjp(x, loss.target[-1], cost_bar, x_bar)


def smooth(random, count):
    """Random sums of the first three waves on the ring."""
    waves = np.stack([shape(k * PLACES) / k for k in (1, 2, 3) for shape in (np.sin, np.cos)])
    return random.normal(0, 0.3, (count, len(waves))) @ waves


def make_problem(steps=100, hidden=(64, 64)):
    """Follow the wave for five seconds; the controller sees u and where the wave is now."""
    target = wave(steps)
    return sb.problem(
        system=Burgers(bumps()),
        controller=hidden,
        loss=Following(target),
        sample=smooth,
        steps=steps,
        dt=Burgers.dt,
        state_shape=(POINTS,),
        time_weights=[1 / steps] * (steps + 1),
        observe=sb.observations.join(sb.observations.state(), sb.observations.reference(target[:, :: POINTS // 4])),
        bound=LIMIT,
        title="Burgers' equation",
        state_axes=[sb.Axis("place", "place on the ring", tuple(PLACES.round(3).tolist()), "m")],
        control_axes=["bump 0", "bump 1", "bump 2", "bump 3"],
    )
