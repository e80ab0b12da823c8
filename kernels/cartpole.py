"""Cart-pole with P poles: state (1+P, 2), flat ``x, xdot, q_1, w_1, ..`` [m, m/s, rad, rad/s]; control: a force [N].

Angle 0 is upright. Source: docs/cartpole.md; semi-implicit Euler, rates before positions.
"""

import math

import numpy as np

from stablebptt.kernels.core.dispatch import implements, inline, like
from stablebptt.kernels.generics import Loss, System, cost, step


class CartPole(System):
    """Cart with poles. dt [s], gravity [m/s^2], pole_mass [kg], total_mass of cart and one pole [kg], half_length [m]."""

    dt: float
    gravity: float
    pole_mass: float
    total_mass: float
    half_length: float


class Upright(Loss):
    """Loss ``1 - mean(cos q)`` over the poles."""


def cartpole(dt: float, dtype: type = np.float64) -> CartPole:
    """The published cart-pole with time step dt [s]."""
    return CartPole(*(dtype(value) for value in (dt, 9.8, 0.1, 1.1, 0.5)))


@inline
def pole_terms(system, force, sin, cos, rate):
    """Terms of one pole: lift ``sin w^2``, push A_i on the cart [m/s^2], inertia [m], acceleration [rad/s^2]."""
    lift = sin * rate * rate
    push = (force + system.pole_mass * system.half_length * lift) / system.total_mass
    ratio = system.pole_mass / system.total_mass
    inertia = system.half_length * (like(sin, 4 / 3) - ratio * cos * cos)
    return lift, push, inertia, (system.gravity * sin - cos * push) / inertia


@inline
def pole(system, force, sin, cos, rate):
    """Acceleration of one pole [rad/s^2], and its pull on the cart over m l: ``sin w^2 - qdd cos`` [rad/s^2]."""
    lift, _, _, acceleration = pole_terms(system, force, sin, cos, rate)
    return acceleration, lift - acceleration * cos


@implements(step, CartPole)
def _step(system, x, c, x_next):
    force, dt = c[0], system.dt
    pull = like(force, 0.0)
    for j in range(2, x.shape[0], 2):
        angle, rate = x[j], x[j + 1]
        acceleration, share = pole(system, force, math.sin(angle), math.cos(angle), rate)
        pull += share
        rate += dt * acceleration
        x_next[j + 1] = rate
        x_next[j] = angle + dt * rate
    velocity = x[1] + dt * (force + system.pole_mass * system.half_length * pull) / system.total_mass
    x_next[1] = velocity
    x_next[0] = x[0] + dt * velocity


@implements(cost, Upright)
def _cost(loss, x):
    total = like(x, 0.0)
    for j in range(2, x.shape[0], 2):
        total += math.cos(x[j])
    poles = (x.shape[0] - 2) // 2
    return like(x, 1.0) - total / x.dtype.type(poles)
