"""The generic functions on whole batches, as entry points of compiled code; their declarations tell the shapes."""

from stablebptt.adjoint import generics as backward
from stablebptt.kernels import generics as forward
from stablebptt.kernels.core.dispatch import kernel


@kernel
def step_each(system, x, c, x_next, scratch):
    for b in range(x.shape[0]):
        forward.step(system, x[b], c[b], x_next[b])


@kernel
def step_each_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    for b in range(x.shape[0]):
        backward.step_vjp(system, x[b], c[b], lam[b], lam_x[b], lam_c[b])


@kernel
def step_batch(system, x, c, x_next, scratch):
    forward.step_batch(system, x, c, x_next, scratch)


@kernel
def step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    backward.step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


@kernel
def step_samples(system, x, c, x_next, scratch):
    for b in range(x.shape[0]):
        forward.step_sample(system, x[b], c[b], x_next[b], scratch)


@kernel
def step_samples_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    for b in range(x.shape[0]):
        backward.step_sample_vjp(system, x[b], x_next[b], c[b], lam[b], lam_x[b], lam_c[b], scratch)


@kernel
def costs(loss, x, values):
    for b in range(x.shape[0]):
        values[b] = forward.cost(loss, x[b])


@kernel
def costs_vjp(loss, x, cost_bars, x_bar):
    for b in range(x.shape[0]):
        backward.cost_vjp(loss, x[b], cost_bars[b], x_bar[b])


@kernel
def path_costs(loss, weights, states, controls, total):
    """Weighted costs of whole paths: states (T+1, B, n_state), controls (T, B, n_control), total (B,)."""
    for t in range(weights.size):
        if weights[t] != 0:
            forward.cost_batch(loss, t, weights, states, controls, total)


@kernel
def path_costs_vjp(loss, weights, states, controls, x_bar, c_bar):
    """Derivatives of their mean, in the arrays' shapes; c_bar (T+1, B, 1, n_control), with nothing for the last state."""
    for t in range(weights.size):
        backward.cost_batch_vjp(loss, t, weights, states.shape[1], states, controls, x_bar[t], c_bar[t])


@kernel
def observations(observation, times, x, seen):
    for b in range(x.shape[0]):
        forward.observe(observation, times[b], x[b], seen[b])


@kernel
def observations_vjp(observation, times, x, seen_bar, x_bar):
    for b in range(x.shape[0]):
        backward.observe_vjp(observation, times[b], x[b], seen_bar[b], x_bar[b])


@kernel
def controls(controller, thetas, x, c):
    """Each state has its own parameters: thetas (B, n_parameters)."""
    for b in range(x.shape[0]):
        forward.control(controller, thetas[b], x[b], c[b])


@kernel
def controls_vjp(controller, thetas, x, c_bar, theta_bar, x_bar):
    for b in range(x.shape[0]):
        backward.control_vjp(controller, thetas[b], x[b], c_bar[b], theta_bar[b], x_bar[b])
