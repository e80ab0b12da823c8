"""The generic functions of the backward pass; see `stablebptt.adjoint` for the contract."""

import numpy as np

from stablebptt.kernels.core.dispatch import generic, generic_block, implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.threads import cut
from stablebptt.kernels.generics import Controller, System


class Rows(Struct):
    """n rows that go backwards together.

    x (n, n_state) : their states
    row : rows row .. row + n of the tape hold their activations, from `control_batch`
    slot, start : rows start .. start + n of this slot of the tape receive their cotangents, from `control_batch_vjp`
    """

    x: np.ndarray
    row: int
    slot: int
    start: int


@generic
def step_vjp(system, x, c, lam, lam_x, lam_c):
    """Add ``S_x^T lam`` to lam_x and ``S_c^T lam`` to lam_c, for m cotangents at once.

    x (n_state,), c (n_control,), lam and lam_x (m, n_state), lam_c (m, n_control).
    """


@generic
def step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_vjp` without allocating: x_next (n_state,) from the step; scratch (sample_scratch,)."""


@generic
def step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_vjp` of a batch.

    x, x_next (B, n_state), c (B, n_control), lam and lam_x (B, m, n_state), lam_c (B, m, n_control), scratch (scratch_size,);
    x_next comes from the step.
    """


@generic
def cost_vjp(loss, x, cost_bar, x_bar):
    """Add cost_bar, a number, times the derivative of `cost` at x (n_state,) to x_bar (n_state,)."""


@generic
def cost_batch_vjp(loss, x, weight, lam):
    """Add weight, a number, times the derivative of the loss of every state x (B, n_state) to all of lam (B, m, n_state)."""


@generic
def control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    """Add ``N_theta^T c_bar`` to theta_bar (n_parameters,) and ``N_x^T c_bar`` to x_bar (n_state,), for one state."""


@generic_block
def control_batch_vjp(controller, weights, tape, rows, c_bar):
    """Write the cotangents inside the network, for c_bar (n, n_control), to the tape; `control_batch` wrote the activations.

    `state_vjp` and `parameter_vjp` read them.
    """


@generic_block
def state_vjp(controller, weights, tape, rows, c_bar, x_bar):
    """Add ``N_x^T c_bar`` to x_bar (n, padded n_state), after `control_batch_vjp` of the same rows and c_bar (n, n_control)."""


@generic_block
def parameter_vjp(controller, weights, tape, rows, c_bar):
    """Add ``N_theta^T c_bar`` to the tape's sums of gradients, for m cotangents: the first n rows of c_bar (m, .., n_control).

    The rows are whole time steps of the samples in the tape's groups.
    It follows `control_batch_vjp` of all n rows: for cotangent v in slot v, or, with a `unit` tape, for the cotangent 1 in
    slot 0.
    """


@generic_block
def clear(controller, tape):
    """Set the tape's sums of gradients to zero."""


@generic_block
def unpack(controller, sums, gradients, part):
    """Write a part of the total of the sums to gradients (m, n_parameters), in the users' order.

    The groups are added up in their order, in the first one.
    """


@implements(step_sample_vjp, System)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_vjp(system, x, c, lam, lam_x, lam_c)


@implements(cost_batch_vjp, Struct)
def _cost_each_vjp(loss, x, weight, lam):
    batch, adjoints, n_state = lam.shape
    x_bar = np.empty_like(x[0])
    for b in range(batch):
        x_bar[:] = 0
        cost_vjp(loss, x[b], weight, x_bar)
        for v in range(adjoints):
            for k in range(n_state):
                lam[b, v, k] += x_bar[k]


@implements(clear, Controller)
def _clear(controller, tape):
    tape.sums.gradient[:] = 0


@implements(unpack, Controller)
def _unpack(controller, sums, gradients, part):
    first, end = cut(gradients.shape[1], part)
    for v in range(gradients.shape[0]):
        for k in range(first, end):
            total = sums.gradient[0, v, k]
            for group in range(1, sums.gradient.shape[0]):
                total += sums.gradient[group, v, k]
            gradients[v, k] = total


@implements(control_batch_vjp, Controller)
def _control_batch_vjp(controller, weights, tape, rows, c_bar):
    pass


@implements(state_vjp, Controller)
def _state_each_vjp(controller, weights, tape, rows, c_bar, x_bar):
    x, unused = rows.x, np.zeros_like(weights)
    for r in range(x.shape[0]):
        control_vjp(controller, weights, x[r], c_bar[r], unused, x_bar[r, : x.shape[1]])


@implements(parameter_vjp, Controller)
def _parameters_each_vjp(controller, weights, tape, rows, c_bar):
    x, groups = rows.x, tape.groups
    unused, last = np.zeros_like(x[0]), groups.size - 1
    for group in range(last):
        for v in range(c_bar.shape[0]):
            for first in range(0, x.shape[0], groups[last]):
                for r in range(first + groups[group], first + groups[group + 1]):
                    control_vjp(controller, weights, x[r], c_bar[v, r], tape.sums.gradient[group, v], unused)
