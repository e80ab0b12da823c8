"""A planar quadrotor: a rigid bar with two rotors hovers at a waypoint that moves; four Runge-Kutta steps per time step.

State (2, 3): position and velocity as (x [m], y [m], angle [rad]) and rates; angle 0 is level. Control (2,): thrust of the left
and of the right rotor [N], beyond that of hovering; bounds keep both between none and twice that of hovering. The step is the
classical Runge-Kutta method of order 4, and its adjoint goes backwards through all stages. Both are written for one quadrotor and
compute a register full of them. docs/quadrotor.md has more.
"""

import math

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_sample_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, inline, like, step, step_sample

SUBSTEPS = 4


class Quadrotor(System):
    """Time step [s], mass [kg], moment of inertia [kg m^2], half the distance of the rotors [m], gravity [m/s^2]."""

    dt: float = 0.05
    mass: float = 0.5
    inertia: float = 0.005
    arm: float = 0.15
    gravity: float = 9.81

    state_shape = (2, 3)
    control_shape = (2,)

    def sample_scratch(self):
        """The states at the beginning of all substeps, and after the last."""
        return 6 * (SUBSTEPS + 1)


class Waypoint(Loss):
    """Waypoint [m] at every time step, path (T+1, 2); weights of tilt, rates and thrusts."""

    path: np.ndarray
    tilt: float = 0.1
    rates: float = 0.05
    effort: float = 0.005


@inline
def rates(s, q, left, right):
    """Time derivative of a state q, a tuple of six numbers."""
    thrust = (left + right + s.mass * s.gravity) / s.mass
    return q[3], q[4], q[5], -thrust * math.sin(q[2]), thrust * math.cos(q[2]) - s.gravity, (right - left) * s.arm / s.inertia


@inline
def rates_vjp(s, q, left, right, bar):
    """Cotangents of q, which does not depend on the place, and of the two thrusts."""
    sin, cos = math.sin(q[2]), math.cos(q[2])
    thrust = (left + right + s.mass * s.gravity) / s.mass
    angle_bar = -thrust * (bar[3] * cos + bar[4] * sin)
    sum_bar, turn_bar = (bar[4] * cos - bar[3] * sin) / s.mass, bar[5] * s.arm / s.inertia
    return (angle_bar, bar[0], bar[1], bar[2]), sum_bar - turn_bar, sum_bar + turn_bar


@inline
def moved(q, h, d):
    """``q + h d``"""
    return q[0] + h * d[0], q[1] + h * d[1], q[2] + h * d[2], q[3] + h * d[3], q[4] + h * d[4], q[5] + h * d[5]


@inline
def scaled(h, d):
    """``h d``"""
    return h * d[0], h * d[1], h * d[2], h * d[3], h * d[4], h * d[5]


@inline
def added(q, angle_and_rates):
    """A cotangent plus one that is zero for the place."""
    d = angle_and_rates
    return q[0], q[1], q[2] + d[0], q[3] + d[1], q[4] + d[2], q[5] + d[3]


@inline
def stages(s, q, left, right, h):
    """The four derivatives of a Runge-Kutta step."""
    half = h * like(h, 0.5)
    k1 = rates(s, q, left, right)
    k2 = rates(s, moved(q, half, k1), left, right)
    k3 = rates(s, moved(q, half, k2), left, right)
    return k1, k2, k3, rates(s, moved(q, h, k3), left, right)


@inline
def runge_kutta(s, q, left, right, h):
    """A step of size h."""
    k1, k2, k3, k4 = stages(s, q, left, right, h)
    sixth, third = h / like(h, 6.0), h / like(h, 3.0)
    return moved(moved(moved(moved(q, sixth, k1), third, k2), third, k3), sixth, k4)


@inline
def runge_kutta_vjp(s, q, left, right, h, bar):
    """Cotangents of q and of the two thrusts, from that of the step's result."""
    half, sixth, third = h * like(h, 0.5), h / like(h, 6.0), h / like(h, 3.0)
    k1, k2, k3, _ = stages(s, q, left, right, h)
    q4_bar, left4, right4 = rates_vjp(s, moved(q, h, k3), left, right, scaled(sixth, bar))
    nothing = scaled(like(h, 0.0), bar)
    k3_bar = moved(scaled(third, bar), h, added(nothing, q4_bar))
    q3_bar, left3, right3 = rates_vjp(s, moved(q, half, k2), left, right, k3_bar)
    k2_bar = moved(scaled(third, bar), half, added(nothing, q3_bar))
    q2_bar, left2, right2 = rates_vjp(s, moved(q, half, k1), left, right, k2_bar)
    k1_bar = moved(scaled(sixth, bar), half, added(nothing, q2_bar))
    q1_bar, left1, right1 = rates_vjp(s, q, left, right, k1_bar)
    q_bar = added(added(added(added(bar, q1_bar), q2_bar), q3_bar), q4_bar)
    return q_bar, left1 + left2 + left3 + left4, right1 + right2 + right3 + right4


@inline
def number_of(x, k):
    """State k of several, one after the other, as a tuple."""
    return x[6 * k], x[6 * k + 1], x[6 * k + 2], x[6 * k + 3], x[6 * k + 4], x[6 * k + 5]


@inline
def keep(x, k, q):
    """Write a tuple to the place of state k."""
    x[6 * k], x[6 * k + 1], x[6 * k + 2] = q[0], q[1], q[2]
    x[6 * k + 3], x[6 * k + 4], x[6 * k + 5] = q[3], q[4], q[5]


@implements(step_sample, Quadrotor)
def _step_sample(system, x, c, x_next, scratch):
    h = system.dt / like(x, SUBSTEPS)
    q = number_of(x, 0)
    for _ in range(SUBSTEPS):
        q = runge_kutta(system, q, c[0], c[1], h)
    keep(x_next, 0, q)


@implements(step_sample_vjp, Quadrotor)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    h = system.dt / like(x, SUBSTEPS)
    keep(scratch, 0, number_of(x, 0))
    for k in range(SUBSTEPS - 1):
        keep(scratch, k + 1, runge_kutta(system, number_of(scratch, k), c[0], c[1], h))
    for v in range(lam.shape[0]):
        bar = number_of(lam[v], 0)
        for k in range(SUBSTEPS - 1, -1, -1):
            bar, left_bar, right_bar = runge_kutta_vjp(system, number_of(scratch, k), c[0], c[1], h, bar)
            lam_c[v, 0] += left_bar
            lam_c[v, 1] += right_bar
        for j in range(6):
            lam_x[v, j] += bar[j]


@implements(step, Quadrotor)
def _step(system, x, c, x_next):
    step_sample(system, x, c, x_next, np.empty(6 * (SUBSTEPS + 1), x.dtype))


@implements(step_vjp, Quadrotor)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    step_sample_vjp(system, x, x, c, lam, lam_x, lam_c, np.empty(6 * (SUBSTEPS + 1), x.dtype))


@inline
def off_waypoint(loss, t, x):
    """Cost of a state: squared distances from the waypoint, from level, and from rest."""
    dx, dy = x[0] - loss.path[t, 0], x[1] - loss.path[t, 1]
    tilt = loss.tilt * x[2] * x[2]
    return dx * dx + dy * dy + tilt + loss.rates * (x[3] * x[3] + x[4] * x[4] + x[5] * x[5])


@inline
def off_waypoint_vjp(loss, t, x, bar, x_bar):
    """Add the cotangent of a state."""
    two = bar * like(x, 2.0)
    x_bar[0] += two * (x[0] - loss.path[t, 0])
    x_bar[1] += two * (x[1] - loss.path[t, 1])
    x_bar[2] += two * loss.tilt * x[2]
    for j in range(3, 6):
        x_bar[j] += two * loss.rates * x[j]


@implements(cost, Waypoint)
def _cost(loss, t, x, c):
    return off_waypoint(loss, t, x) + loss.effort * (c[0] * c[0] + c[1] * c[1])


@implements(cost_vjp, Waypoint)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    off_waypoint_vjp(loss, t, x, cost_bar, x_bar)
    for q in range(2):
        c_bar[q] += cost_bar * like(x, 2.0) * loss.effort * c[q]


@implements(final_cost, Waypoint)
def _final_cost(loss, x):
    return off_waypoint(loss, -1, x)


@implements(final_cost_vjp, Waypoint)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    off_waypoint_vjp(loss, -1, x, cost_bar, x_bar)


def sample(random, count):
    """Places within half a metre of the first waypoint, tilted and moving a little."""
    return random.uniform(-0.5, 0.5, (count, 2, 3))


def make_problem(steps=60, x=0.5, y=0.5, hidden=(32, 32)):
    """Hover at (0, 0) for half of the time, then at (x, y); the controller sees its state and the waypoint of now."""
    path = np.zeros((steps + 1, 2))
    path[steps // 2 :] = x, y
    return sb.problem(
        system=Quadrotor(),
        controller=hidden,
        loss=Waypoint(path),
        sample=sample,
        steps=steps,
        dt=Quadrotor.dt,
        time_weights=[1 / steps] * steps + [0.5],
        observe=sb.observations.join(sb.observations.state(), sb.observations.reference(path)),
        bound=Quadrotor.mass * Quadrotor.gravity / 2,  # rotors do not pull backwards
        title="planar quadrotor",
        state_axes=[["position", "rate"], ["x", "y", "angle"]],
        control_axes=["left", "right"],
        control_units="N",
    )
