"""Adjoint of the rollout with two gates per time step: every variant of the gradient is data; docs/method.md, section 2.

    Gates     physics, network (m, T)                    m pairs: open (1), closed (0) or between

    Arena     forward     the rollout's, see `stablebptt.kernels.rollout`
              bars        cotangents of the states of one time step, and of the controls and inputs of a chunk of time steps
              gradients   R | M | ..   (m, n_parameters)          joined   C   (n_parameters,)

    chunks    .. | t t+1 t+2 .. | .. T-1       n rows per chunk: time steps x B samples; the last chunk comes first
"""

from typing import Any, NamedTuple

import numpy as np

from stablebptt.adjoint.combine import combine, inner
from stablebptt.adjoint.generics import (
    Rows,
    clear,
    control_batch_vjp,
    cost_vjp,
    parameter_vjp,
    state_vjp,
    step_batch_vjp,
    unpack,
)
from stablebptt.kernels import rollout as forward
from stablebptt.kernels.core.dispatch import block, inline, kernel, like
from stablebptt.kernels.core.simd import padded
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import control_batch, new_tape, parameter_count, tape_width
from stablebptt.kernels.rollout import effort_weight, follow

CHUNK_ROWS = 128


class Gates(Struct):
    """Gates of m adjoints that run together: physics and network (m, T). `joined`: they are R and M, to combine into C."""

    physics: np.ndarray
    network: np.ndarray
    joined: bool


class Bars(Struct):
    """Cotangents; n rows per chunk.

    lam (B, m, n_state) : of the states of one time step
    lam_x (B, m, n_state), lam_c (B, m, n_control) : of state and control, from the vjp of the step
    c_bar (m, n, n_control) : of the controls
    ones (n, n_control), x_bar (n, padded n_state) : the cotangent 1 of a control, and its cotangent of the state
    cost_bar (n_state,) : derivative of one cost
    scratch (scratch_size,) : of the system, shared with the rollout
    """

    lam: np.ndarray
    lam_x: np.ndarray
    lam_c: np.ndarray
    c_bar: np.ndarray
    ones: np.ndarray
    x_bar: np.ndarray
    cost_bar: np.ndarray
    scratch: np.ndarray


class Arena(Struct):
    """Work space of a gradient: the rollout's arena, cotangents, gradients (m, n_parameters), joined (n_parameters,)."""

    forward: forward.Arena
    bars: Bars
    gradients: np.ndarray
    joined: np.ndarray


class Results(NamedTuple):
    """Numbers of a gradient, in float64.

    regular2, modified2, joined2 : squared norms of R (or the only gradient), M and C
    product : inner product of R and M
    physics, effort : mean parts of the loss
    finite : whether all last states are finite (a loss may ignore some numbers)
    """

    regular2: float
    modified2: float
    product: float
    joined2: float
    physics: float
    effort: float
    finite: bool


def chunk_steps(batch: int) -> int:
    """Time steps per chunk. They depend on the batch alone, so sums always have the same parts and the same bits."""
    return max(1, CHUNK_ROWS // batch)


def new_arena(episode: Any, batch: int, adjoints: int, dtype: Any, *, tape_bytes: int) -> Arena:
    """An arena for m = `adjoints` of a batch. The tape holds all time steps if they need at most `tape_bytes`."""
    n_state, n_control, controller = episode.n_state, episode.n_control, episode.controller
    all_rows, rows = (len(episode.time_weights) - 1) * batch, chunk_steps(batch) * batch
    kept = all_rows * tape_width(controller) * np.dtype(dtype).itemsize <= tape_bytes
    tape = new_tape(controller, dtype, rows=all_rows if kept else rows, chunk=rows, adjoints=adjoints, unit=n_control == 1)
    ahead = forward.new_arena(episode, batch, dtype, tape=tape, kept=kept, adjoints=adjoints)
    bars = Bars(
        lam=aligned((batch, adjoints, n_state), dtype),
        lam_x=aligned((batch, adjoints, n_state), dtype),
        lam_c=aligned((batch, adjoints, n_control), dtype),
        c_bar=aligned((adjoints, rows, n_control), dtype),
        ones=aligned((rows, n_control), dtype),
        x_bar=aligned((rows, padded(n_state)), dtype),
        cost_bar=aligned((n_state,), dtype),
        scratch=ahead.scratch,
    )
    n = parameter_count(controller)
    return Arena(ahead, bars, np.zeros((adjoints, n), dtype), np.zeros(n, dtype))


@inline
def _is_open(gates, first, end):
    """Whether any of the gates (m, T) is open in time steps first .. end."""
    for v in range(gates.shape[0]):
        for t in range(first, end):
            if gates[v, t] != 0:
                return True
    return False


@inline
def _add_cost(loss, x, weight, cost_bar, lam):
    """Add the weighted derivative of the cost at x (B, n_state) to all adjoints lam (B, m, n_state)."""
    batch, adjoints, n_state = lam.shape
    for b in range(batch):
        cost_bar[:] = 0
        cost_vjp(loss, x[b], weight, cost_bar)
        for v in range(adjoints):
            line = lam[b, v]
            for k in range(n_state):
                line[k] += cost_bar[k]


@inline
def _step_back(episode, gates, path, bars, t, start):
    """Compute the adjoints of x_t from those of x_t+1, without the network path if there are several controls.

    The cotangents of the controls go to rows start .. start + B of c_bar.
    """
    time_weights, states, controls = episode.time_weights, path.states, path.controls
    lam, lam_x, lam_c, c_bar, x_bar = bars.lam, bars.lam_x, bars.lam_c, bars.c_bar, bars.x_bar
    batch, adjoints, n_state = lam.shape
    n_control = controls.shape[2]
    effort = lam.dtype.type(effort_weight(episode.regularization, controls.size))
    if time_weights[t + 1] != 0:
        _add_cost(episode.loss, states[t + 1], lam.dtype.type(time_weights[t + 1] / batch), bars.cost_bar, lam)
    lam_x[:] = 0
    lam_c[:] = 0
    step_batch_vjp(episode.system, states[t], states[t + 1], controls[t], lam, lam_x, lam_c, bars.scratch)
    for b in range(batch):
        for v in range(adjoints):
            a = gates.physics[v, t]
            for q in range(n_control):
                c_bar[v, start + b, q] = lam_c[b, v, q] + effort * controls[t, b, q]
            for k in range(n_state):
                lam[b, v, k] = a * lam_x[b, v, k] if a != 0 else like(lam, 0.0)
            if n_control == 1 and gates.network[v, t] != 0:
                g = gates.network[v, t] * c_bar[v, start + b, 0]
                for k in range(n_state):
                    lam[b, v, k] += g * x_bar[start + b, k]


@block
def _network_path(controller, weights, tape, rows, gate, bars):
    """Add ``b N_x^T g`` to the adjoint of a slot at one time step. With several controls this part is sequential."""
    lam, x_bar, v = bars.lam, bars.x_bar, rows.slot
    batch, _, n_state = lam.shape
    c_bar = bars.c_bar[v, rows.start : rows.start + batch]
    control_batch_vjp(controller, weights, tape, rows, c_bar)
    if gate != 0:
        for b in range(batch):
            for k in range(x_bar.shape[1]):
                x_bar[b, k] = 0
        state_vjp(controller, weights, tape, rows, c_bar, x_bar[:batch])
        for b in range(batch):
            for k in range(n_state):
                lam[b, v, k] += gate * x_bar[b, k]


@block
def rollout_vjp(episode, gates, ahead, bars):
    """Run m adjoints backwards together along the path of the arena `ahead`. Its tape receives their parameter gradients.

    A closed gate (0) cuts its path completely. ``bars.lam`` ends as the cotangent of states[0].

    Notes
    -----
    With one control, dN/dx of a row does not depend on the adjoints: all of them share one batched pass per chunk. With several
    controls, adjoints whose network gate is closed take one batched pass after the recursion.
    """
    controller, network = episode.controller, gates.network
    weights, tape, kept, path = ahead.weights, ahead.tape, ahead.kept, ahead.path
    states, c_bar, ones, x_bar = path.states, bars.c_bar, bars.ones, bars.x_bar
    adjoints, steps = network.shape
    batch, n_state, scalar = states.shape[1], states.shape[2], c_bar.shape[2] == 1
    chunk = c_bar.shape[1] // batch
    clear(controller, tape)
    bars.lam[:] = 0
    for first in range((steps - 1) // chunk * chunk, -1, -chunk):
        end = min(first + chunk, steps)
        n, row = (end - first) * batch, first * batch if kept else 0
        x = states[first:end].reshape(n, n_state)
        rows = Rows(x, row, 0, 0)
        if not kept:
            control_batch(controller, weights, x, c_bar[0, :n], tape, 0)
        if scalar:
            ones[:] = 1
            control_batch_vjp(controller, weights, tape, rows, ones[:n])
            if _is_open(network, first, end):
                x_bar[:] = 0
                state_vjp(controller, weights, tape, rows, ones[:n], x_bar[:n])
        for t in range(end - 1, first - 1, -1):
            start = (t - first) * batch
            _step_back(episode, gates, path, bars, t, start)
            if not scalar:
                for v in range(adjoints):
                    if _is_open(network[v : v + 1], first, end):
                        _network_path(controller, weights, tape, Rows(states[t], row + start, v, start), network[v, t], bars)
        if not scalar:
            for v in range(adjoints):
                if not _is_open(network[v : v + 1], first, end):
                    control_batch_vjp(controller, weights, tape, Rows(x, row, v, 0), c_bar[v, :n])
        parameter_vjp(controller, weights, tape, rows, c_bar)


@kernel
def gradient(episode, theta, x0, gates, arena):
    """The compiled entry point: loss and gradients of theta (n_parameters,) and x0 (B, n_state), combined if `gates.joined`.

    It returns the numbers of `Results` as a plain tuple. Numba would call Python to make the named one. A signal that arrived
    during the computation would interrupt that call, and Numba does not expect it to fail.
    """
    ahead, gradients, joined = arena.forward, arena.gradients, arena.joined
    follow(episode, theta, x0, ahead)
    rollout_vjp(episode, gates, ahead, arena.bars)
    unpack(episode.controller, ahead.tape, gradients)
    regular2, modified2, product, joined2 = inner(gradients[0], gradients[0]), 0.0, 0.0, 0.0
    if gates.joined:
        combine(gradients[1], gradients[0], joined)
        modified2 = inner(gradients[1], gradients[1])
        product = inner(gradients[0], gradients[1])
        joined2 = inner(joined, joined)
    path = ahead.path
    finite = np.all(np.isfinite(path.states[path.states.shape[0] - 1]))
    return regular2, modified2, product, joined2, np.mean(path.physics), np.mean(path.effort), finite
