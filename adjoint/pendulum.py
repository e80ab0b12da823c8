"""Adjoint of the pendulum; mirror image of `stablebptt.kernels.pendulum`."""

import math

from stablebptt.adjoint.generics import cost_vjp, step_parameters_vjp, step_vjp
from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.pendulum import Pendulum, Standing


@implements(step_vjp, Pendulum)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    inertia = system.mass * system.length * system.length / like(x, 3.0)
    weight = system.mass * system.gravity * system.length / like(x, 2.0)
    stiffness = weight * math.cos(x[0])
    for v in range(lam.shape[0]):
        rate_bar = lam[v, 1] + system.dt * lam[v, 0]  # angle = q + dt rate
        torque_bar = system.dt * rate_bar / inertia  # rate = w + dt (weight sin q + torque) / inertia
        lam_x[v, 0] += lam[v, 0] + stiffness * torque_bar
        lam_x[v, 1] += rate_bar
        lam_c[v, 0] += torque_bar


@implements(step_parameters_vjp, Pendulum)
def _step_parameters_vjp(system, x, c, lam, p_bar):
    # rate = w + dt a with a = 3 g sin q / (2 l) + 3 torque / (m l^2); angle = q + dt rate
    length = system.length
    weight = like(x, 1.5) * math.sin(x[0]) / length
    push = like(x, 3.0) * c[0] / (system.mass * length * length)
    acceleration = system.gravity * weight + push
    rate = x[1] + system.dt * acceleration
    for v in range(lam.shape[0]):
        rate_bar = lam[v, 1] + system.dt * lam[v, 0]
        acceleration_bar = system.dt * rate_bar
        p_bar[v, 0] += rate_bar * acceleration + lam[v, 0] * rate
        p_bar[v, 1] += acceleration_bar * weight
        p_bar[v, 2] -= acceleration_bar * push / system.mass
        p_bar[v, 3] -= acceleration_bar * (system.gravity * weight + push + push) / length


@implements(cost_vjp, Standing)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += cost_bar * math.sin(x[0])
