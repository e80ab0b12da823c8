"""A double pendulum on a cart: two links on top of each other, coupled by a mass matrix that every step solves.

State (3, 2): cart (x [m], rate [m/s]), lower link, upper link (angle [rad], rate [rad/s]; absolute angles, 0 is upright).
Control: a force on the cart [N]. Point masses sit at the ends of the links; the integrator is semi-implicit Euler.
docs/double_pendulum.md has the equations.
"""

import math

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, implements, inline, like, step


class DoublePendulum(System):
    """Time step [s], masses of cart and links [kg], lengths of the links [m], gravity [m/s^2]."""

    dt: float = 0.02
    cart: float = 1.0
    mass_1: float = 0.2
    mass_2: float = 0.2
    length_1: float = 0.5
    length_2: float = 0.5
    gravity: float = 9.8

    state_shape = (3, 2)
    control_shape = (1,)


class BothUp(Loss):
    """Loss ``1 - mean(cos)`` of the two links."""


@inline
def constants(s):
    """The moments that appear in the mass matrix."""
    mass = s.mass_1 + s.mass_2
    return s.cart + mass, mass * s.length_1, s.mass_2 * s.length_2, s.mass_2 * s.length_1 * s.length_2


@inline
def solve(s, cos_a, cos_b, cos_ab, f1, f2, f3):
    """Solution of ``M y = f`` by an LDL^T factorisation (Cholesky without square roots); M is symmetric."""
    total, k1, k2, k3 = constants(s)
    m12, m13, m23 = k1 * cos_a, k2 * cos_b, k3 * cos_ab
    l21, l31 = m12 / total, m13 / total
    d2 = k1 * s.length_1 - l21 * m12
    t = m23 - l21 * m13
    l32 = t / d2
    d3 = k2 * s.length_2 - l31 * m13 - l32 * t
    r2 = f2 - l21 * f1
    y3 = (f3 - l31 * f1 - l32 * r2) / d3
    y2 = r2 / d2 - l32 * y3
    return f1 / total - l21 * y2 - l31 * y3, y2, y3


@inline
def accelerations(s, x, force):
    """Accelerations of cart and links in a state."""
    _, k1, k2, k3 = constants(s)
    a, wa, b, wb = x[2], x[3], x[4], x[5]
    sin_a, sin_b, sin_ab = math.sin(a), math.sin(b), math.sin(a - b)
    f1 = force + k1 * sin_a * wa * wa + k2 * sin_b * wb * wb
    f2 = k1 * s.gravity * sin_a - k3 * sin_ab * wb * wb
    f3 = k2 * s.gravity * sin_b + k3 * sin_ab * wa * wa
    return solve(s, math.cos(a), math.cos(b), math.cos(a - b), f1, f2, f3)


@implements(step, DoublePendulum)
def _step(s, x, c, x_next):
    acceleration = accelerations(s, x, c[0])
    for k in range(3):
        rate = x[2 * k + 1] + s.dt * acceleration[k]
        x_next[2 * k + 1] = rate
        x_next[2 * k] = x[2 * k] + s.dt * rate


@implements(step_vjp, DoublePendulum)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    _, k1, k2, k3 = constants(s)
    a, wa, b, wb = x[2], x[3], x[4], x[5]
    sin_a, cos_a, sin_b, cos_b = math.sin(a), math.cos(a), math.sin(b), math.cos(b)
    sin_ab, cos_ab = math.sin(a - b), math.cos(a - b)
    acc1, acc2, acc3 = accelerations(s, x, c[0])
    two = like(x, 2.0)
    for v in range(lam.shape[0]):
        # rate' = rate + dt acc; position' = position + dt rate'
        bar1, bar2, bar3 = lam[v, 1] + s.dt * lam[v, 0], lam[v, 3] + s.dt * lam[v, 2], lam[v, 5] + s.dt * lam[v, 4]
        # acc = M^-1 f: f_bar = M^-1 acc_bar, M_bar = -f_bar acc^T
        f1, f2, f3 = solve(s, cos_a, cos_b, cos_ab, s.dt * bar1, s.dt * bar2, s.dt * bar3)
        m12, m13, m23 = -(f1 * acc2 + f2 * acc1), -(f1 * acc3 + f3 * acc1), -(f2 * acc3 + f3 * acc2)
        # terms in a - b: m23 = k3 cos(a - b), f2 = .. - k3 sin(a - b) wb^2, f3 = .. + k3 sin(a - b) wa^2
        difference = -k3 * sin_ab * m23 + k3 * cos_ab * (f3 * wa * wa - f2 * wb * wb)
        lam_x[v, 0] += lam[v, 0]
        lam_x[v, 1] += bar1
        lam_x[v, 2] += lam[v, 2] + difference - k1 * sin_a * m12 + k1 * cos_a * (f1 * wa * wa + f2 * s.gravity)
        lam_x[v, 3] += bar2 + two * wa * (f1 * k1 * sin_a + f3 * k3 * sin_ab)
        lam_x[v, 4] += lam[v, 4] - difference - k2 * sin_b * m13 + k2 * cos_b * (f1 * wb * wb + f3 * s.gravity)
        lam_x[v, 5] += bar3 + two * wb * (f1 * k2 * sin_b - f2 * k3 * sin_ab)
        lam_c[v, 0] += f1


@implements(cost, BothUp)
def _cost(loss, x):
    return like(x, 1.0) - (math.cos(x[2]) + math.cos(x[4])) / like(x, 2.0)


@implements(cost_vjp, BothUp)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[2] += cost_bar * math.sin(x[2]) / like(x, 2.0)
    x_bar[4] += cost_bar * math.sin(x[4]) / like(x, 2.0)


def hanging(random, count):
    """Both links within 30 degrees of hanging, everything moving a little."""
    states = random.uniform(-0.5, 0.5, (count, 3, 2))
    states[:, 1:, 0] = np.pi + states[:, 1:, 0] * (np.pi / 3)
    return states


def make_problem(steps=75, hidden=(64, 64), dtype="float32"):
    """Swing both links up within 1.5 s."""
    return sb.problem(
        system=DoublePendulum(), controller=hidden, loss=BothUp(), sample=hanging, steps=steps, dt=DoublePendulum.dt,
        dtype=dtype, output_init="zero", title="double pendulum on a cart", control_units="N",
    )  # fmt: skip
