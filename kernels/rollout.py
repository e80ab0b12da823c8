"""Rolling a controller out through a system, and what the path costs."""

from stablebptt.kernels.compiler import block, like
from stablebptt.kernels.generics import control_batch, cost, step_batch


@block
def rollout(system, controller, weights, states, controls, tape, keep, scratch):
    """Fill states (T+1, B, n_state) from states[0], and controls (T, B, n_control).

    With `keep` the activations of all steps go to the tape (T * B rows), else each step overwrites the first B rows.
    """
    steps, batch, _ = controls.shape
    for t in range(steps):
        control_batch(controller, weights, states[t], controls[t], tape, t * batch if keep else 0)
        step_batch(system, states[t], controls[t], states[t + 1], scratch)


@block
def path_cost(loss, states, controls, time_weights, physics, effort):
    """Per sample (in float64): the weighted sum of costs over x_1 .. x_T, and the sum of all squared controls."""
    steps, batch, n_control = controls.shape
    for b in range(batch):
        physics[b] = 0.0
        effort[b] = 0.0
        for t in range(steps):
            if time_weights[t + 1] != 0:
                physics[b] += time_weights[t + 1] * cost(loss, states[t + 1, b])
            squares = like(controls, 0.0)
            for q in range(n_control):
                squares += controls[t, b, q] * controls[t, b, q]
            effort[b] += squares
