"""Adjoint of the rollout with two gates per time step: every variant of the gradient is data; docs/method.md, section 2.

    Gates     physics, network (m, T)                    m pairs: open (1), closed (0) or between

    Arena     forward     the rollout's, see `stablebptt.kernels.rollout`
              bars        cotangents of the states of one time step, and of the controls and inputs of a chunk of time steps
    chunks    .. | t t+1 t+2 .. | .. T-1       n rows per chunk: time steps x B samples; the last chunk comes first

    Work      arenas      one per part of the batch; threads share the parts
              sums        group of samples | group | ..                 a part has whole groups
              gradients   R | M | ..   (m, n_parameters)                joined   C   (n_parameters,)

The batch alone decides its groups. Gradients are summed over each group, then over the groups in their order, so the bits do not
depend on the number of threads.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from stablebptt.adjoint.bounds import limit_vjp
from stablebptt.adjoint.combine import combine, inner
from stablebptt.adjoint.generics import (
    Rows,
    clear,
    control_batch_vjp,
    cost_batch_vjp,
    observe_batch_vjp,
    parameter_names,
    parameter_vjp,
    state_vjp,
    step_batch_vjp,
    step_parameters_batch_vjp,
    unpack,
)
from stablebptt.kernels import rollout as forward
from stablebptt.kernels.core.dispatch import block, inline, kernel, like
from stablebptt.kernels.core.simd import padded
from stablebptt.kernels.core.structs import Struct, StructArray, struct_at
from stablebptt.kernels.core.threads import cut, share_out, shared
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import State, control_batch, new_sums, new_tape, parameter_count, tape_width
from stablebptt.kernels.rollout import effort_weight

# Rows of a group of samples per chunk: enough to make reading and writing the group's sums cheap, few enough for the cache.
# If the sums of all groups do not stay in the cache, more rows. (Bytes of one gradient's sums; there may be two, R and M.)
GROUP_ROWS, MORE_ROWS, CACHED_SUMS = 64, 256, 4 << 20


class Gates(Struct):
    """Gates of m adjoints that run together: physics and network (m, T). `joined`: they are R and M, to combine into C."""

    physics: np.ndarray
    network: np.ndarray
    joined: bool


class Bars(Struct):
    """Cotangents; n rows per chunk.

    lam (B, m, n_state) : of the states of one time step
    lam_x (B, m, n_state), lam_c (B, m, n_control) : of state and control, from the vjp of the step
    parameters (B, m, fields) : of the system's parameters; without fields, if it gives none
    cost (B, n_state) : of the states, from the cost of one time step, the same for all adjoints
    c_bar (m, n, n_control) : of the controls, before their bounds
    ones (n, n_control), seen_bar (n, padded n_seen) : the cotangent 1 of a control, and its cotangent of what is seen
    x_bar (n, n_state or more) : that of the state; the same array, if the state is seen
    scratch (scratch_size,) : of the system, shared with the rollout
    batch : samples of the mean loss; the arena may hold some of them
    """

    lam: np.ndarray
    lam_x: np.ndarray
    lam_c: np.ndarray
    parameters: np.ndarray
    cost: np.ndarray
    c_bar: np.ndarray
    ones: np.ndarray
    seen_bar: np.ndarray
    x_bar: np.ndarray
    scratch: np.ndarray
    batch: int


class Arena(Struct):
    """Work space of `rollout_vjp`: the rollout's arena, and cotangents."""

    forward: forward.Arena
    bars: Bars


class Work(Struct):
    """Work space of a gradient of B samples, which threads share in parts.

    arenas, bounds, keys, physics, effort : as for the rollout
    sums : gradients, summed over the groups of samples; see `new_sums`
    gradients (m, n_parameters), joined (n_parameters,) : results
    x0_bar (B, n_state) : cotangents of the initial states, of the first adjoint
    products (4,) : inner products R.R, M.M, R.M and C.C, in float64
    """

    arenas: StructArray
    bounds: np.ndarray
    keys: np.ndarray
    physics: np.ndarray
    effort: np.ndarray
    sums: Struct
    gradients: np.ndarray
    joined: np.ndarray
    x0_bar: np.ndarray
    products: np.ndarray


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


def chunk_steps(batch: int, gradient_bytes: int) -> int:
    """Time steps per chunk. They depend on batch and parameters alone, so sums always have the same parts and the same bits."""
    groups = group_count(batch)
    rows = GROUP_ROWS if groups * gradient_bytes <= CACHED_SUMS else MORE_ROWS
    return max(1, rows * groups // batch)


def group_count(batch: int) -> int:
    """Groups of samples, and so the most threads that share a gradient. Groups of four and more keep products fast."""
    return min(batch, max(2, min(8, batch // 4), batch // 64))


def group_bounds(batch: int) -> np.ndarray:
    """Bounds (groups + 1,) of the groups of samples."""
    groups = group_count(batch)
    return np.array([batch * k // groups for k in range(groups + 1)])


def new_arena(episode: Any, adjoints: int, dtype: Any, *, batch: int, groups: np.ndarray, sums: Any, kept: bool) -> Arena:
    """An arena for m = `adjoints` of some samples of a batch.

    groups, sums : bounds of their groups, and space for the groups' gradients
    kept : the tape holds all time steps
    """
    n_state, n_control, controller, count = episode.n_state, episode.n_control, episode.controller, int(groups[-1])
    gradient_bytes = parameter_count(controller) * np.dtype(dtype).itemsize
    all_rows, rows = (len(episode.time_weights) - 1) * count, chunk_steps(batch, gradient_bytes) * count
    unit = n_control == 1
    sizes = {"rows": all_rows if kept else rows, "chunk": rows, "adjoints": adjoints}
    tape = new_tape(controller, dtype, **sizes, unit=unit, groups=groups, sums=sums)
    ahead = forward.new_arena(episode, count, dtype, tape=tape, kept=kept, adjoints=adjoints)
    seen_bar = aligned((rows, padded(episode.n_seen)), dtype)
    bars = Bars(
        lam=aligned((count, adjoints, n_state), dtype),
        lam_x=aligned((count, adjoints, n_state), dtype),
        lam_c=aligned((count, adjoints, n_control), dtype),
        parameters=aligned((count, adjoints, len(parameter_names(episode.system))), dtype),
        cost=aligned((count, n_state), dtype),
        c_bar=aligned((adjoints, rows, n_control), dtype),
        ones=aligned((rows, n_control), dtype),
        seen_bar=seen_bar,
        x_bar=seen_bar if isinstance(episode.observation, State) else aligned((rows, n_state), dtype),
        scratch=ahead.scratch,
        batch=batch,
    )
    return Arena(ahead, bars)


def new_work(episode: Any, batch: int, adjoints: int, dtype: Any, *, tape_bytes: int, parts: int) -> Work:
    """Work space for m = `adjoints` of a batch, in at most `parts` parts.

    The tape holds all time steps if they need at most `tape_bytes`.
    """
    controller, steps, groups = episode.controller, len(episode.time_weights) - 1, group_bounds(batch)
    kept = steps * batch * tape_width(controller) * np.dtype(dtype).itemsize <= tape_bytes
    parts = min(parts, len(groups) - 1)
    firsts = [(len(groups) - 1) * p // parts for p in range(parts + 1)]
    sums, arenas = new_sums(controller, dtype, groups=len(groups) - 1, adjoints=adjoints), []
    for first, end in itertools.pairwise(firsts):
        own = type(sums)(*(getattr(sums, name)[first:end] for name in type(sums).fields))
        bounds = groups[first : end + 1] - groups[first]
        arenas.append(new_arena(episode, adjoints, dtype, batch=batch, groups=bounds, sums=own, kept=kept))
    n = parameter_count(controller)
    return Work(
        arenas=StructArray(arenas),
        bounds=groups[firsts],
        keys=np.arange(batch),
        physics=np.zeros(batch),
        effort=np.zeros(batch),
        sums=sums,
        gradients=np.zeros((adjoints, n), dtype),
        joined=np.zeros(n, dtype),
        x0_bar=np.zeros((batch, episode.n_state), dtype),
        products=np.zeros(4),
    )


@inline
def _is_open(gates, first, end):
    """Whether any of the gates (m, T) is open in time steps first .. end."""
    for v in range(gates.shape[0]):
        for t in range(first, end):
            if gates[v, t] != 0:
                return True
    return False


@inline
def _add_cost(weights, t, bars):
    """Add the cotangents of x_t from the cost of time step t, which `_step_back` computed, to all adjoints."""
    lam, cost = bars.lam, bars.cost
    if _counts(weights, t):
        for b in range(lam.shape[0]):
            for v in range(lam.shape[1]):
                for k in range(lam.shape[2]):
                    lam[b, v, k] += cost[b, k]


@inline
def _counts(weights, t):
    """Whether the cost of the path depends on x_t or c_t: a cost may look at the control before."""
    return weights[t] != 0 or (t + 1 < weights.size and weights[t + 1] != 0)


@inline
def _cost_back(episode, path, bars, t):
    """Compute the cotangents of x_t and c_t from the cost of the path: `cost`, and the first numbers of lam_c."""
    weights = episode.time_weights
    bars.lam_c[:] = 0
    if _counts(weights, t):
        bars.cost[:] = 0
        cost_batch_vjp(episode.loss, t, weights, bars.batch, path.states, path.controls, bars.cost, bars.lam_c)


@inline
def _step_back(episode, gates, path, bars, t, start):
    """Compute the adjoints of x_t from those of x_t+1, without its own cost, and the network path if there are several controls.

    The cotangents of the controls go to rows start .. start + B of c_bar.
    """
    states, controls = path.states, path.controls
    lam, lam_x, lam_c, c_bar, x_bar = bars.lam, bars.lam_x, bars.lam_c, bars.c_bar, bars.x_bar
    batch, adjoints, n_state = lam.shape
    n_control = controls.shape[2]
    effort = lam.dtype.type(effort_weight(episode.regularization, controls.shape[0] * bars.batch * n_control))
    _add_cost(episode.time_weights, t + 1, bars)
    lam_x[:] = 0
    _cost_back(episode, path, bars, t)
    step_batch_vjp(episode.system, states[t], states[t + 1], controls[t], lam, lam_x, lam_c, bars.scratch)
    step_parameters_batch_vjp(episode.system, states[t], controls[t], lam, bars.parameters, bars.scratch)
    for b in range(batch):
        for v in range(adjoints):
            a = gates.physics[v, t]
            for q in range(n_control):
                c = controls[t, b, q]
                c_bar[v, start + b, q] = limit_vjp(episode.bounds, q, c, lam_c[b, v, q] + effort * c)
            for k in range(n_state):
                lam[b, v, k] = a * lam_x[b, v, k] if a != 0 else like(lam, 0.0)
            if n_control == 1 and gates.network[v, t] != 0:
                g = gates.network[v, t] * c_bar[v, start + b, 0]
                for k in range(n_state):
                    lam[b, v, k] += g * x_bar[start + b, k]


@inline
def _seen_back(episode, path, bars, t, first, end):
    """Cotangents of the states of time step t from those of what is seen of them, in rows first .. end."""
    observe_batch_vjp(episode.observation, episode.first + t, path.states[t], bars.seen_bar[first:end], bars.x_bar[first:end])


@block
def _network_path(episode, ahead, bars, rows, t, gate):
    """Add ``b N_x^T g`` to the adjoint of a slot at time step t. With several controls this part is sequential."""
    controller, weights, tape = episode.controller, ahead.weights, ahead.tape
    lam, seen_bar, x_bar, v = bars.lam, bars.seen_bar, bars.x_bar, rows.slot
    batch, _, n_state = lam.shape
    c_bar = bars.c_bar[v, rows.start : rows.start + batch]
    control_batch_vjp(controller, weights, tape, rows, c_bar)
    if gate != 0:
        x_bar[:batch] = 0
        seen_bar[:batch] = 0
        state_vjp(controller, weights, tape, rows, c_bar, seen_bar[:batch])
        _seen_back(episode, ahead.path, bars, t, 0, batch)
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
    seen, c_bar, ones, seen_bar = path.seen, bars.c_bar, bars.ones, bars.seen_bar
    adjoints, steps = network.shape
    batch, n_seen, scalar = seen.shape[1], seen.shape[2], c_bar.shape[2] == 1
    chunk = c_bar.shape[1] // batch
    clear(controller, tape)
    bars.lam[:] = 0
    bars.parameters[:] = 0
    _cost_back(episode, path, bars, steps)
    for first in range((steps - 1) // chunk * chunk, -1, -chunk):
        end = min(first + chunk, steps)
        n, row = (end - first) * batch, first * batch if kept else 0
        x = seen[first:end].reshape(n, n_seen)
        rows = Rows(x, row, 0, 0)
        if not kept:
            control_batch(controller, weights, x, c_bar[0, :n], tape, 0)
        if scalar:
            ones[:] = 1
            control_batch_vjp(controller, weights, tape, rows, ones[:n])
            if _is_open(network, first, end):
                bars.x_bar[:] = 0
                seen_bar[:] = 0
                state_vjp(controller, weights, tape, rows, ones[:n], seen_bar[:n])
                for t in range(first, end):
                    _seen_back(episode, path, bars, t, (t - first) * batch, (t - first + 1) * batch)
        for t in range(end - 1, first - 1, -1):
            start = (t - first) * batch
            _step_back(episode, gates, path, bars, t, start)
            if not scalar:
                for v in range(adjoints):
                    if _is_open(network[v : v + 1], first, end):
                        _network_path(episode, ahead, bars, Rows(seen[t], row + start, v, start), t, network[v, t])
        if not scalar:
            for v in range(adjoints):
                if not _is_open(network[v : v + 1], first, end):
                    control_batch_vjp(controller, weights, tape, Rows(x, row, v, 0), c_bar[v, :n])
        parameter_vjp(controller, weights, tape, rows, c_bar)
    _add_cost(episode.time_weights, 0, bars)


# Phases of a gradient: R, M, .. of each part; their sums; C; inner products.
BACK, SUM, JOIN, COMPARE, PHASES = range(5)


@shared
def _part_of_gradient(part, episode, theta, x0, gates, work):
    gradients = work.gradients
    if part.phase == BACK:
        arena = struct_at(work.arenas, part.index)
        forward.follow_part(part, episode, theta, x0, arena.forward, work)
        rollout_vjp(episode, gates, arena.forward, arena.bars)
        lam, first = arena.bars.lam, work.bounds[part.index]
        for b in range(lam.shape[0]):
            for k in range(lam.shape[2]):
                work.x0_bar[first + b, k] = lam[b, 0, k]
    elif part.phase == SUM:
        unpack(episode.controller, work.sums, gradients, part)
    elif part.phase == JOIN:
        if gates.joined:
            first, end = cut(work.joined.size, part)
            combine(gradients[1, first:end], gradients[0, first:end], work.joined[first:end])
    else:
        first, end = cut(4, part)
        for number in range(first, end):
            work.products[number] = _product(number, gates.joined, work)


@block
def _product(number, joined, work):
    """Inner product R.R, M.M, R.M or C.C; without M and C they are 0."""
    regular = work.gradients[0]
    if number == 0:
        return inner(regular, regular)
    if not joined:
        return 0.0
    modified = work.gradients[1]
    if number == 3:
        return inner(work.joined, work.joined)
    return inner(modified, modified) if number == 1 else inner(regular, modified)


@inline
def _mean(values):
    total = 0.0
    for b in range(values.size):
        total += values[b]
    return total / values.size


@kernel
def gradient(episode, theta, x0, gates, work, team):
    """The compiled entry point: loss and gradients of theta (n_parameters,) and x0 (B, n_state), combined if `gates.joined`.

    episode, work : references; threads of a team share the parts of the work

    It returns the numbers of `Results` as a plain tuple. Numba would call Python to make the named one. A signal that arrived
    during the computation would interrupt that call, and Numba does not expect it to fail.
    """
    parts = work.bounds.size - 1
    share_out(team, PHASES, parts, _part_of_gradient, (episode, theta, x0, gates, work))
    finite = True
    for p in range(parts):
        states = struct_at(work.arenas, p).forward.path.states
        for b in range(states.shape[1]):
            for k in range(states.shape[2]):
                finite = finite and math.isfinite(states[states.shape[0] - 1, b, k])
    r2, m2, rm, c2 = (work.products[0], work.products[1], work.products[2], work.products[3])
    return r2, m2, rm, c2, _mean(work.physics), _mean(work.effort), finite
