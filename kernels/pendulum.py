"""One link on a fixed pivot: state (1, 2), flat ``q, w`` [rad, rad/s]; control: a torque [N m] about the pivot.

Angle 0 is upright. Source: docs/pendulum.md; semi-implicit Euler, the rate before the angle. Without a torque the energy then
stays near its initial value over any horizon, while explicit Euler increases it.
"""

import math

import numpy as np

from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.generics import Loss, System, cost, step


class Pendulum(System):
    """A uniform rod that turns about its end. dt [s], gravity [m/s^2], mass [kg], length [m]."""

    dt: float
    gravity: float
    mass: float
    length: float


class Standing(Loss):
    """Loss ``1 - cos q``: 0 for the upright link, 2 for the hanging one."""


def pendulum(dt: float, dtype: type = np.float64) -> Pendulum:
    """A link of 1 kg and 1 m with time step dt [s]."""
    return Pendulum(*(dtype(value) for value in (dt, 9.8, 1.0, 1.0)))


@implements(step, Pendulum)
def _step(system, x, c, x_next):
    inertia = system.mass * system.length * system.length / like(x, 3.0)
    weight = system.mass * system.gravity * system.length / like(x, 2.0)
    x_next[1] = x[1] + system.dt * (weight * math.sin(x[0]) + c[0]) / inertia
    x_next[0] = x[0] + system.dt * x_next[1]


@implements(cost, Standing)
def _cost(loss, x):
    return like(x, 1.0) - math.cos(x[0])
