"""The adjoint sweep with two gates per time step: every gradient variant is data; docs/method.md, section 2."""

import numpy as np

from stablebptt.adjoint.generics import clear, control_batch_vjp, cost_vjp, parameter_vjp, step_batch_vjp
from stablebptt.kernels.compiler import block, inline, like
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import control_batch
from stablebptt.kernels.simd import padded
from stablebptt.kernels.structs import Struct

CHUNK_ROWS = 128


class SweepSpace(Struct):
    """Arenas of a sweep; see `sweep_space`."""

    lam: np.ndarray
    lam_x: np.ndarray
    lam_c: np.ndarray
    c_bar: np.ndarray
    ones: np.ndarray
    x_bar: np.ndarray
    cost_bar: np.ndarray
    unused: np.ndarray


def chunk_steps(batch: int) -> int:
    """Time steps that go backwards together; depends on the batch alone, so that sums are always cut alike."""
    return max(1, CHUNK_ROWS // batch)


def sweep_space(batch: int, variants: int, n_state: int, n_control: int, dtype: type) -> SweepSpace:
    """Arenas for `variants` adjoints of a batch: lam (B, m, n_state), lam_c (B, m, n_control), per chunk of rows the rest."""
    rows = chunk_steps(batch) * batch
    return SweepSpace(
        aligned((batch, variants, n_state), dtype),
        aligned((batch, variants, n_state), dtype),
        aligned((batch, variants, n_control), dtype),
        aligned((variants, rows, n_control), dtype),
        aligned((rows, n_control), dtype),
        aligned((rows, padded(n_state)), dtype),
        aligned((n_state,), dtype),
        aligned((rows, n_control), dtype),
    )


@inline
def _is_open(gates, v, first, end):
    for t in range(first, end):
        if gates[v, t] != 0:
            return True
    return False


@inline
def _add_cost(loss, x, weight, cost_bar, lam):
    """Add the weighted derivative of the cost at x (B, n_state) to all cotangents lam (B, m, n_state)."""
    batch, variants, n_state = lam.shape
    for b in range(batch):
        cost_bar[:] = 0
        cost_vjp(loss, x[b], weight, cost_bar)
        for v in range(variants):
            line = lam[b, v]
            for k in range(n_state):
                line[k] += cost_bar[k]


@block
def _network_path(controller, weights, tape, x, row, start, v, gate, space):
    """``lam += b N_x^T g`` of variant v at one time step (several controls: this part is sequential)."""
    lam, c_bar, x_bar = space.lam, space.c_bar, space.x_bar
    batch, _, n_state = lam.shape
    for b in range(batch):
        for k in range(x_bar.shape[1]):
            x_bar[b, k] = 0
    bars = c_bar[v, start : start + batch]
    control_batch_vjp(controller, weights, tape, x, row, bars, x_bar[:batch], gate != 0, v, start)
    if gate != 0:
        for b in range(batch):
            for k in range(n_state):
                lam[b, v, k] += gate * x_bar[b, k]


@block
def sweep(
    system, controller, loss, weights, states, controls, time_weights, effort_weight, physics_gates,
    network_gates, tape, kept, space, scratch,
):  # fmt: skip
    """Run m adjoints backwards together and leave their parameter gradients in the tape.

    Parameters
    ----------
    states (T+1, B, n_state), controls (T, B, n_control) : a rollout
    time_weights (T+1,) : weight of the mean cost at every time step
    effort_weight : number w; the loss contains the sum of ``w c^2 / 2`` over all controls
    physics_gates, network_gates (m, T) : a and b; a closed gate (0) stops the path altogether
    tape, kept : the controller's tape; whether it holds the activations of all steps (else they are computed again)
    space, scratch : see `sweep_space` and the system's `scratch_size`

    Notes
    -----
    With one control, dN/dx of every row does not depend on the adjoints: it comes from one batched pass per chunk that all
    variants share. With several, variants whose network gate is closed take one batched pass after the recursion.
    ``space.lam`` ends as the cotangent of states[0].
    """
    steps, batch, n_control = controls.shape
    n_state = states.shape[2]
    lam, lam_x, lam_c, c_bar = space.lam, space.lam_x, space.lam_c, space.c_bar
    x_bar, ones = space.x_bar, space.ones
    variants = lam.shape[1]
    chunk = c_bar.shape[1] // batch
    scalar = n_control == 1
    clear(controller, tape)
    lam[:] = 0
    first = (steps - 1) // chunk * chunk
    while first >= 0:
        end = min(first + chunk, steps)
        n = (end - first) * batch
        x = states[first:end].reshape(n, n_state)
        row = first * batch if kept else 0
        if not kept:
            control_batch(controller, weights, x, space.unused[:n], tape, 0)
        if scalar:
            want = False
            for v in range(variants):
                want = want or _is_open(network_gates, v, first, end)
            ones[:] = 1
            x_bar[:] = 0
            control_batch_vjp(controller, weights, tape, x, row, ones[:n], x_bar[:n], want, 0, 0)
        for t in range(end - 1, first - 1, -1):
            start = (t - first) * batch
            if time_weights[t + 1] != 0:
                weight = lam.dtype.type(time_weights[t + 1] / batch)
                _add_cost(loss, states[t + 1], weight, space.cost_bar, lam)
            lam_x[:] = 0
            lam_c[:] = 0
            step_batch_vjp(system, states[t], states[t + 1], controls[t], lam, lam_x, lam_c, scratch)
            for b in range(batch):
                for v in range(variants):
                    a = physics_gates[v, t]
                    for q in range(n_control):
                        c_bar[v, start + b, q] = lam_c[b, v, q] + effort_weight * controls[t, b, q]
                    for k in range(n_state):
                        lam[b, v, k] = a * lam_x[b, v, k] if a != 0 else like(lam, 0.0)
                    if scalar and network_gates[v, t] != 0:
                        g = network_gates[v, t] * c_bar[v, start + b, 0]
                        for k in range(n_state):
                            lam[b, v, k] += g * x_bar[start + b, k]
            if not scalar:
                for v in range(variants):
                    if _is_open(network_gates, v, first, end):
                        gate = network_gates[v, t]
                        _network_path(controller, weights, tape, states[t], row + start, start, v, gate, space)
        if not scalar:
            for v in range(variants):
                if not _is_open(network_gates, v, first, end):
                    control_batch_vjp(controller, weights, tape, x, row, c_bar[v, :n], x_bar[:n], False, v, 0)
        parameter_vjp(controller, weights, tape, x, row, c_bar, scalar)
        first -= chunk
