"""The rollout of a controller through a system, and the cost of its path; letters: `stablebptt.kernels`.

    Episode   system | observation | controller | bounds | loss | time weights | rho | ..       the same during a whole run

    Arena     weights           theta, as `pack` arranges it
              path    states    x_0   x_1   ..   x_T-1   x_T          x_t+1 = S(x_t, c_t)
                      seen      y_0   y_1   ..   y_T-1                y_t = O(t, x_t); the states themselves, if they are seen
                      controls  c_0   c_1   ..   c_T-1                c_t = N(theta, y_t), within bounds
                      physics, effort                                 cost of every sample's path
              tape              activations of all time steps (kept), or of the last one
              scratch           of the system
"""

from typing import Any

import numpy as np

from stablebptt.kernels.bounds import Bounds, limit
from stablebptt.kernels.core.dispatch import block, inline, kernel, like
from stablebptt.kernels.core.structs import Struct, StructArray, struct_at
from stablebptt.kernels.core.threads import share_out, shared
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import (
    Observation,
    State,
    control_batch,
    cost_batch,
    draw,
    new_tape,
    observe_batch,
    pack,
    scratch_size,
    step_batch,
    weight_count,
)
from stablebptt.kernels.noise import Noise, add_noise, disturb


class Episode(Struct):
    """What stays the same during a run.

    system, observation, controller, loss : structs with methods for the generic functions
    bounds : limits of the controls
    noise : what is random on the way
    time_weights (T+1,) : weight of the mean cost at every time step
    regularization : rho, weight of the mean square of the controls
    n_state, n_seen, n_control : numbers of one state, of what is seen of it, and of one control
    first : time step at which it begins; t below counts from there
    """

    system: Struct
    observation: Observation
    controller: Any
    bounds: Bounds
    loss: Struct
    noise: Noise
    time_weights: np.ndarray
    regularization: float
    n_state: int
    n_seen: int
    n_control: int
    first: int


class Path(Struct):
    """What happens to B samples.

    states (T+1, B, n_state), seen (T or T+1, B, n_seen), controls (T, B, n_control)
    physics, effort (B,) : loss parts, see `path_cost`
    keys (B,) : of the samples' random numbers
    """

    states: np.ndarray
    seen: np.ndarray
    controls: np.ndarray
    keys: np.ndarray
    physics: np.ndarray
    effort: np.ndarray


class Arena(Struct):
    """Work space of a rollout.

    weights (n_weights,) : theta, as `pack` arranges it
    path, tape : states and controls; activations
    kept : True if the tape holds all time steps
    scratch (scratch_size,) : of the system
    """

    weights: np.ndarray
    path: Path
    tape: Struct
    kept: bool
    scratch: np.ndarray


def new_arena(episode: Any, batch: int, dtype: Any, *, tape: Any = None, kept: bool = False, adjoints: int = 1) -> Arena:
    """An arena for B = `batch` samples. A backward pass with m = `adjoints` gives its `tape` (`kept`: it has T * B rows)."""
    steps, controller = len(episode.time_weights) - 1, episode.controller
    states = aligned((steps + 1, batch, episode.n_state), dtype)
    path = Path(
        states=states,
        seen=states if isinstance(episode.observation, State) else aligned((steps, batch, episode.n_seen), dtype),
        controls=aligned((steps, batch, episode.n_control), dtype),
        keys=np.arange(batch),
        physics=np.zeros(batch),
        effort=np.zeros(batch),
    )
    if tape is None:
        tape = new_tape(controller, dtype, rows=batch, chunk=1, adjoints=1, unit=True)
    weights = aligned((weight_count(controller),), dtype)
    scratch = aligned((scratch_size(episode.system, batch, adjoints, episode.n_state, episode.n_control),), dtype)
    return Arena(weights=weights, path=path, tape=tape, kept=kept, scratch=scratch)


@inline
def effort_weight(regularization, count):
    """Weight w of `count` controls: the mean loss contains ``w c^2 / 2`` of each."""
    return 2.0 * regularization / count


@block
def rollout(episode, arena):
    """Fill the path from states[0]. Activations go to rows t * B of the tape (`kept`), or always to the first B."""
    system, controller, weights, tape, scratch = episode.system, episode.controller, arena.weights, arena.tape, arena.scratch
    path, kept, first = arena.path, arena.kept, episode.first
    states, seen, controls, keys = path.states, path.seen, path.controls, path.keys
    steps, batch, _ = controls.shape
    for t in range(steps):
        observe_batch(episode.observation, first + t, states[t], seen[t])
        add_noise(episode.noise, keys, first + t, seen[t])
        control_batch(controller, weights, seen[t], controls[t], tape, t * batch if kept else 0)
        limit(episode.bounds, controls[t])
        step_batch(system, states[t], controls[t], states[t + 1], scratch)
        disturb(episode.noise, keys, first + t, states[t + 1])


@block
def path_cost(episode, path):
    """Compute, per sample (B,) in float64, the weighted sum of costs over time and the sum of all squared controls."""
    loss, time_weights = episode.loss, episode.time_weights
    states, controls, physics, effort = path.states, path.controls, path.physics, path.effort
    steps, batch, n_control = controls.shape
    physics[:] = 0
    effort[:] = 0
    for t in range(steps + 1):
        if time_weights[t] != 0:
            cost_batch(loss, t, time_weights, states, controls, physics)
    for t in range(steps):
        for b in range(batch):
            squares = like(controls, 0.0)
            for q in range(n_control):
                squares += controls[t, b, q] * controls[t, b, q]
            effort[b] += squares


@block
def follow(episode, theta, x0, arena):
    """Roll theta (n_parameters,) out from x0 (B, n_state). The arena receives path and loss."""
    pack(episode.controller, theta, arena.weights)
    path = arena.path
    draw(episode.system, path.keys, arena.scratch)
    first = path.states[0]
    for b in range(x0.shape[0]):
        for k in range(x0.shape[1]):
            first[b, k] = x0[b, k]
    rollout(episode, arena)
    path_cost(episode, path)


class Work(Struct):
    """Work space of a batch of B samples, which threads share in parts.

    arenas : of every part
    bounds (parts + 1,) : samples bounds[p] .. bounds[p + 1] are those of part p
    keys (B,) : of the samples' random numbers
    physics, effort (B,) : loss parts of all samples
    """

    arenas: StructArray
    bounds: np.ndarray
    keys: np.ndarray
    physics: np.ndarray
    effort: np.ndarray


def new_work(episode: Any, batch: int, dtype: Any, *, parts: int) -> Work:
    """Work space of rollouts of B = `batch` samples in parts."""
    ends = np.array([batch * p // parts for p in range(parts + 1)])
    arenas = [new_arena(episode, int(count), dtype) for count in np.diff(ends)]
    return Work(StructArray(arenas), ends, np.arange(batch), np.zeros(batch), np.zeros(batch))


@inline
def follow_part(part, episode, theta, x0, arena, work):
    """`follow` for the samples of one part of x0 (B, n_state)."""
    first, end = work.bounds[part.index], work.bounds[part.index + 1]
    for b in range(first, end):
        arena.path.keys[b - first] = work.keys[b]
    follow(episode, theta, x0[first:end], arena)
    for b in range(first, end):
        work.physics[b], work.effort[b] = arena.path.physics[b - first], arena.path.effort[b - first]


@shared
def _part_of_evaluation(part, episode, theta, x0, work):
    follow_part(part, episode, theta, x0, struct_at(work.arenas, part.index), work)


@kernel
def evaluate(episode, theta, x0, work, team):
    """The compiled entry point: roll theta (n_parameters,) out from x0 (B, n_state), in parts that a team of threads shares.

    episode, work : references
    """
    share_out(team, 1, work.bounds.size - 1, _part_of_evaluation, (episode, theta, x0, work))
