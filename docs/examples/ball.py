"""A ball on stiff ground: a small thruster, weaker than the ball's weight, brings it to a place above the ground; it must bounce.

State (2, 2): position (x [m], y [m] above the ground) and velocity. Control (2,): force along x and y [N]. The ground pushes like
a stiff spring with damping as long as the ball is in it, and rubs. A time step is eight steps of semi-implicit Euler, because
a contact lasts about one time step only. docs/ball.md has more.
"""

import math

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_sample_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, inline, like, step, step_sample, where

SUBSTEPS = 8
LIMIT = 0.6  # of each force [N]; the weight is 0.98 N


class Ball(System):
    """Time step [s], mass [kg], stiffness [N/m], damping [s/m], friction and its speed [m/s], gravity [m/s^2]."""

    dt: float = 0.02
    mass: float = 0.1
    stiffness: float = 1000.0
    damping: float = 0.1
    friction: float = 0.3
    slip: float = 0.1
    gravity: float = 9.8

    state_shape = (2, 2)
    control_shape = (2,)

    def sample_scratch(self):
        """The states at the beginning of all substeps."""
        return 4 * SUBSTEPS


class Arrived(Loss):
    """Place [m] where the ball is to be at the end; weights of the squared velocity there and of the squared force on the way."""

    x: float = 0.0
    y: float = 0.5
    rates: float = 0.05
    effort: float = 0.01


@inline
def moved(s, q, c, h):
    """A substep of a state q, a tuple of four numbers."""
    x, y, u, v = q
    nothing = like(h, 0.0)
    # The ground never pulls: a ball that leaves it fast enough is free.
    normal = where(y < nothing, max(-s.stiffness * y * (like(h, 1.0) - s.damping * v), nothing), nothing)
    u += h * (c[0] - s.friction * normal * math.tanh(u / s.slip)) / s.mass
    v += h * ((c[1] + normal) / s.mass - s.gravity)
    return x + h * u, y + h * v, u, v


@inline
def moved_vjp(s, q, h, bar):
    """Cotangents of a state and of the two forces, from that of the state after a substep."""
    _, y, u, v = q
    nothing, one = like(h, 0.0), like(h, 1.0)
    release = one - s.damping * v
    rub = math.tanh(u / s.slip)
    touching = where(y < nothing, one, nothing) * where(release > nothing, one, nothing)
    normal = -touching * s.stiffness * y * release
    u_bar, v_bar = bar[2] + h * bar[0], bar[3] + h * bar[1]
    u_push, v_push = h * u_bar / s.mass, h * v_bar / s.mass
    normal_bar = touching * (v_push - s.friction * rub * u_push)
    u_bar -= s.friction * normal * (one - rub * rub) / s.slip * u_push
    v_bar += normal_bar * s.stiffness * y * s.damping
    return (bar[0], bar[1] - normal_bar * s.stiffness * release, u_bar, v_bar), u_push, v_push


@inline
def number_of(x, k):
    """State k of several, one after the other, as a tuple."""
    return x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]


@inline
def keep(x, k, q):
    """Write a tuple to the place of state k."""
    x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3] = q[0], q[1], q[2], q[3]


@implements(step_sample, Ball)
def _step_sample(system, x, c, x_next, scratch):
    h = system.dt / like(x, SUBSTEPS)
    q = number_of(x, 0)
    for _ in range(SUBSTEPS):
        q = moved(system, q, c, h)
    keep(x_next, 0, q)


@implements(step_sample_vjp, Ball)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    h = system.dt / like(x, SUBSTEPS)
    keep(scratch, 0, number_of(x, 0))
    for k in range(SUBSTEPS - 1):
        keep(scratch, k + 1, moved(system, number_of(scratch, k), c, h))
    for v in range(lam.shape[0]):
        bar = number_of(lam[v], 0)
        for k in range(SUBSTEPS - 1, -1, -1):
            bar, x_force, y_force = moved_vjp(system, number_of(scratch, k), h, bar)
            lam_c[v, 0] += x_force
            lam_c[v, 1] += y_force
        for j in range(4):
            lam_x[v, j] += bar[j]


@implements(step, Ball)
def _step(system, x, c, x_next):
    step_sample(system, x, c, x_next, np.empty(4 * SUBSTEPS, x.dtype))


@implements(step_vjp, Ball)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    step_sample_vjp(system, x, x, c, lam, lam_x, lam_c, np.empty(4 * SUBSTEPS, x.dtype))


@implements(cost, Arrived)
def _cost(loss, t, x, c):
    return loss.effort * (c[0] * c[0] + c[1] * c[1])


@implements(cost_vjp, Arrived)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    for q in range(2):
        c_bar[q] += cost_bar * 2 * loss.effort * c[q]


@implements(final_cost, Arrived)
def _final_cost(loss, x):
    dx, dy = x[0] - loss.x, x[1] - loss.y
    return dx * dx + dy * dy + loss.rates * (x[2] * x[2] + x[3] * x[3])


@implements(final_cost_vjp, Arrived)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += cost_bar * 2 * (x[0] - loss.x)
    x_bar[1] += cost_bar * 2 * (x[1] - loss.y)
    for k in range(2, 4):
        x_bar[k] += cost_bar * 2 * loss.rates * x[k]


def dropped(random, count):
    """From 0.3 to 0.8 m above the ground, within half a metre of the place, moving along x."""
    low, high = np.array([[-0.5, 0.3], [-0.5, 0.0]]), np.array([[0.5, 0.8], [0.5, 0.0]])
    return low + (high - low) * random.uniform(0, 1, (count, 2, 2))


def make_problem(steps=75, hidden=(32, 32), limit=LIMIT):
    """Be at the place after 1.5 s, two or three bounces later."""
    return sb.problem(
        system=Ball(),
        controller=hidden,
        loss=Arrived(),
        sample=dropped,
        steps=steps,
        dt=Ball.dt,
        when="continuous",
        observe="state,time",
        bound=limit,
        title="ball on stiff ground",
        state_axes=[["position", "rate"], ["x", "y"]],
        control_axes=["force x", "force y"],
        control_units="N",
    )
