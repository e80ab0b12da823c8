"""The compiled entry points: one update's gradient, and the loss of a batch."""

import numpy as np

from stablebptt.adjoint.combine import combine, inner
from stablebptt.adjoint.generics import unpack
from stablebptt.adjoint.sweep import sweep
from stablebptt.kernels.compiler import block, kernel
from stablebptt.kernels.generics import pack
from stablebptt.kernels.rollout import path_cost, rollout
from stablebptt.kernels.structs import Struct


class PathSpace(Struct):
    """Arenas of a rollout: weights, states (T+1, B, n_state), controls (T, B, n_control), loss parts (B,), scratch."""

    weights: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    physics: np.ndarray
    effort: np.ndarray
    scratch: np.ndarray


@block
def _follow(system, controller, loss, theta, x0, time_weights, tape, kept, space):
    pack(controller, theta, space.weights)
    first = space.states[0]
    for b in range(x0.shape[0]):
        for k in range(x0.shape[1]):
            first[b, k] = x0[b, k]
    rollout(system, controller, space.weights, space.states, space.controls, tape, kept, space.scratch)
    path_cost(loss, space.states, space.controls, time_weights, space.physics, space.effort)


@kernel
def evaluate(system, controller, loss, theta, x0, time_weights, tape, space):
    """Roll out from x0 (B, n_state); states, controls and the loss parts of every sample are left in `space`."""
    _follow(system, controller, loss, theta, x0, time_weights, tape, False, space)


@kernel
def gradient(
    system, controller, loss, theta, x0, time_weights, effort_weight, physics_gates, network_gates,
    tape, kept, space, sweep_space, gradients, joined, results,
):  # fmt: skip
    """`evaluate` and the gradients (m, n_parameters) of m pairs of gates, from one forward and one backward pass.

    If `joined` (n_parameters,) is not empty, the gradients are R and M, and it becomes C. `results` (7,), in float64, becomes
    R.R, M.M, R.M, C.C (of a single gradient: its square at 0), the means of the two loss parts, and 1 if the last states
    are finite, else 0.
    """
    _follow(system, controller, loss, theta, x0, time_weights, tape, kept, space)
    sweep(
        system, controller, loss, space.weights, space.states, space.controls, time_weights, effort_weight,
        physics_gates, network_gates, tape, kept, sweep_space, space.scratch,
    )  # fmt: skip
    unpack(controller, tape, gradients)
    results[0] = inner(gradients[0], gradients[0])
    if joined.size > 0:
        combine(gradients[1], gradients[0], joined)
        results[1] = inner(gradients[1], gradients[1])
        results[2] = inner(gradients[0], gradients[1])
        results[3] = inner(joined, joined)
    results[4] = np.mean(space.physics)
    results[5] = np.mean(space.effort)
    last = space.states[space.states.shape[0] - 1]
    results[6] = 1.0 if np.all(np.isfinite(last)) else 0.0
