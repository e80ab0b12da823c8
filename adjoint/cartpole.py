"""Adjoint of the cart-pole; mirror image of `stablebptt.kernels.cartpole`."""

import math

from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.kernels.cartpole import CartPole, Upright, pole_terms
from stablebptt.kernels.core.dispatch import implements, inline, like


@inline
def pole_vjp(system, force, sin, cos, rate, acceleration_bar, pull_bar):
    """Cotangents of force, sin, cos and rate, from the cotangents of the two outputs of `pole`."""
    ml = system.pole_mass * system.half_length
    ratio = system.pole_mass / system.total_mass
    two = like(sin, 2.0)
    _, push, inertia, acceleration = pole_terms(system, force, sin, cos, rate)
    # pull = lift - acceleration cos
    total_bar = acceleration_bar - pull_bar * cos
    # acceleration = (g sin - cos push) / inertia
    over = total_bar / inertia
    push_bar = -over * cos
    inertia_bar = -over * acceleration
    # inertia = l (4/3 - m/M cos^2)
    cos_bar = -pull_bar * acceleration - over * push - two * inertia_bar * system.half_length * ratio * cos
    # push = (F + m l lift) / M
    force_bar = push_bar / system.total_mass
    lift_bar = pull_bar + ml * force_bar
    # lift = sin w^2
    sin_bar = over * system.gravity + lift_bar * rate * rate
    rate_bar = two * lift_bar * sin * rate
    return force_bar, sin_bar, cos_bar, rate_bar


@implements(step_vjp, CartPole)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    dt, total_mass = system.dt, system.total_mass
    weight = dt * system.pole_mass * system.half_length / total_mass
    for v in range(lam.shape[0]):
        velocity_bar = lam[v, 1] + dt * lam[v, 0]  # position = x + dt velocity
        lam_x[v, 0] += lam[v, 0]
        lam_x[v, 1] += velocity_bar
        lam_c[v, 0] += dt * velocity_bar / total_mass  # velocity = xdot + dt (F + m l pull) / M
    for j in range(2, x.shape[0], 2):
        sin, cos, rate = math.sin(x[j]), math.cos(x[j]), x[j + 1]
        for v in range(lam.shape[0]):
            next_rate_bar = lam[v, j + 1] + dt * lam[v, j]  # angle = q + dt rate
            pull_bar = weight * (lam[v, 1] + dt * lam[v, 0])
            force_bar, sin_bar, cos_bar, rate_bar = pole_vjp(
                system, c[0], sin, cos, rate, dt * next_rate_bar, pull_bar
            )
            lam_c[v, 0] += force_bar
            lam_x[v, j] += lam[v, j] + sin_bar * cos - cos_bar * sin
            lam_x[v, j + 1] += next_rate_bar + rate_bar


@implements(cost_vjp, Upright)
def _cost_vjp(loss, x, cost_bar, x_bar):
    poles = (x.shape[0] - 2) // 2
    share = cost_bar / x.dtype.type(poles)
    for j in range(2, x.shape[0], 2):
        x_bar[j] += share * math.sin(x[j])
