"""An acrobot: two links hang from a fixed hinge, only the joint between them has a motor, and its torque is limited.

State (2, 2): upper and lower link, each (angle [rad], rate [rad/s]); absolute angles, 0 is upright. Control: torque at the joint
[N m]. Point masses sit at the ends of the links; the integrator is semi-implicit Euler. docs/acrobot.md has more.
"""

import math

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, inline, like, step

LIMIT = 2.0  # of the torque [N m]; the weight of both links, held level, turns them about the hinge with 2.9 N m


class Acrobot(System):
    """Time step [s], masses [kg] and lengths [m] of the links, gravity [m/s^2], friction of the motor [N m s]."""

    dt: float = 0.02
    mass_1: float = 0.2
    mass_2: float = 0.2
    length_1: float = 0.5
    length_2: float = 0.5
    gravity: float = 9.8
    friction: float = 0.05

    state_shape = (2, 2)
    control_shape = (1,)


class Standing(Loss):
    """Weights of the squared torque along the way, and of the squared rates at the end, beside ``1 - mean(cos)``."""

    effort: float = 0.01
    rates: float = 0.01


@inline
def moments(s):
    """The moments in the mass matrix ``((k1 l1, k3 cos(a - b)), (k3 cos(a - b), k2 l2))``."""
    return (s.mass_1 + s.mass_2) * s.length_1, s.mass_2 * s.length_2, s.mass_2 * s.length_1 * s.length_2


@inline
def solve(s, cos_ab, f1, f2):
    """Solution of ``M y = f``."""
    k1, k2, k3 = moments(s)
    m11, m12, m22 = k1 * s.length_1, k3 * cos_ab, k2 * s.length_2
    determinant = m11 * m22 - m12 * m12
    return (m22 * f1 - m12 * f2) / determinant, (m11 * f2 - m12 * f1) / determinant


@inline
def accelerations(s, x, torque):
    """Accelerations of the links; the torque turns the lower one against the upper one."""
    k1, k2, k3 = moments(s)
    turn = k3 * math.sin(x[0] - x[2])
    torque = torque - s.friction * (x[3] - x[1])
    f1 = k1 * s.gravity * math.sin(x[0]) - turn * x[3] * x[3] - torque
    f2 = k2 * s.gravity * math.sin(x[2]) + turn * x[1] * x[1] + torque
    return solve(s, math.cos(x[0] - x[2]), f1, f2)


@implements(step, Acrobot)
def _step(s, x, c, x_next):
    acceleration = accelerations(s, x, c[0])
    for k in range(2):
        rate = x[2 * k + 1] + s.dt * acceleration[k]
        x_next[2 * k + 1] = rate
        x_next[2 * k] = x[2 * k] + s.dt * rate


@implements(step_vjp, Acrobot)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    k1, k2, k3 = moments(s)
    wa, wb = x[1], x[3]
    sin_ab, cos_ab = math.sin(x[0] - x[2]), math.cos(x[0] - x[2])
    acc1, acc2 = accelerations(s, x, c[0])
    two = like(x, 2.0)
    for v in range(lam.shape[0]):
        # rate' = rate + dt acc; angle' = angle + dt rate'
        bar1, bar2 = lam[v, 1] + s.dt * lam[v, 0], lam[v, 3] + s.dt * lam[v, 2]
        # acc = M^-1 f: f_bar = M^-1 acc_bar, M_bar = -f_bar acc^T
        f1, f2 = solve(s, cos_ab, s.dt * bar1, s.dt * bar2)
        difference = k3 * (sin_ab * (f1 * acc2 + f2 * acc1) + cos_ab * (f2 * wa * wa - f1 * wb * wb))
        lam_x[v, 0] += lam[v, 0] + difference + f1 * k1 * s.gravity * math.cos(x[0])
        lam_x[v, 1] += bar1 + two * wa * f2 * k3 * sin_ab + s.friction * (f2 - f1)
        lam_x[v, 2] += lam[v, 2] - difference + f2 * k2 * s.gravity * math.cos(x[2])
        lam_x[v, 3] += bar2 - two * wb * f1 * k3 * sin_ab + s.friction * (f1 - f2)
        lam_c[v, 0] += f2 - f1


@implements(cost, Standing)
def _cost(loss, t, x, c):
    return loss.effort * c[0] * c[0]


@implements(cost_vjp, Standing)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    c_bar[0] += cost_bar * 2 * loss.effort * c[0]


@implements(final_cost, Standing)
def _final_cost(loss, x):
    return like(x, 1.0) - (math.cos(x[0]) + math.cos(x[2])) / like(x, 2.0) + loss.rates * (x[1] * x[1] + x[3] * x[3])


@implements(final_cost_vjp, Standing)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    for k in range(2):
        x_bar[2 * k] += cost_bar * math.sin(x[2 * k]) / like(x, 2.0)
        x_bar[2 * k + 1] += cost_bar * 2 * loss.rates * x[2 * k + 1]


def hanging(random, count):
    """Both links within 15 degrees of hanging, moving a little."""
    return random.uniform(-0.25, 0.25, (count, 2, 2)) + np.array([np.pi, 0.0])


def make_problem(steps=100, hidden=(32, 32), limit=LIMIT):
    """Swing up within two seconds; the controller sees sines and cosines of the angles."""
    return sb.problem(
        system=Acrobot(),
        controller=hidden,
        loss=Standing(),
        sample=hanging,
        steps=steps,
        dt=Acrobot.dt,
        when="continuous",
        observe="angles=0:2",
        bound=limit,
        title="acrobot",
        state_axes=[["upper", "lower"], ["angle", "rate"]],
        control_axes=["torque"],
        control_units="N m",
    )
