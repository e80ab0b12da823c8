"""The engine "cpu": the kernels of `kernels` and `adjoint` compute rollouts and gradients, run by run."""

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import typeof

from stablebptt.adjoint import rollout as backward
from stablebptt.kernels import rollout as forward
from stablebptt.tasks import plain_python
from stablebptt.tasks.engine import ALONE, Evaluation, Gradient, Loss
from stablebptt.tasks.problems import EVALUATION_BATCH, Problem
from stablebptt.tasks.variants import Gates

# Arenas are stored for at most this many batch sizes, so unusual sizes do not pile up.
MOST_ARENAS = 5


class _Arenas(threading.local):
    """Arenas by batch size, per thread: threads may share a problem."""

    def __init__(self) -> None:
        self.paths: dict[int, forward.Arena] = {}
        self.gradients: dict[tuple[int, int], backward.Arena] = {}


class Engine:
    """Computes a problem's rollouts and gradients on the CPU; see `engine.Engine`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.episode = forward.Episode(
            system=problem.system,
            controller=problem.controller,
            loss=problem.loss_function,
            time_weights=problem.time_weights,
            regularization=float(problem.regularization),
            n_state=problem.n_state,
            n_control=problem.n_control,
        )
        self._arenas = _Arenas()

    def evaluate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], *, paths: bool = False, queue: int = ALONE
    ) -> Iterator[Evaluation]:
        """Roll out S controllers, each from its own states (B, *state_shape); see `engine.Engine`."""
        return (self._path(theta, x0) if paths else self._losses(theta, x0) for theta, x0 in zip(thetas, x0s))

    def gradients(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], gates: Gates, *, parts: bool = False, queue: int = ALONE
    ) -> Iterator[Gradient]:
        """Gradients (n_parameters,) of S controllers, each for its own states (B, *state_shape); see `engine.Engine`."""
        typeof(gates)  # compute the type now: in a kernel's call, Numba would mistake an interrupt for a missing type
        return (self._gradient(theta, x0, gates) for theta, x0 in zip(thetas, x0s))

    def _path(self, theta: np.ndarray, x0: np.ndarray) -> Evaluation:
        problem, batch, path = self.problem, len(x0), self._rolled_out(theta, x0)
        states = path.states.reshape(problem.steps + 1, batch, *problem.state_shape).swapaxes(0, 1).copy()
        controls = path.controls.reshape(problem.steps, batch, *problem.control_shape).swapaxes(0, 1).copy()
        return Evaluation(path.physics.copy(), path.effort.copy(), states, controls)

    def _losses(self, theta: np.ndarray, x0: np.ndarray) -> Evaluation:
        physics, effort = np.empty(len(x0)), np.empty(len(x0))
        for first in range(0, len(x0), EVALUATION_BATCH):
            part = slice(first, min(first + EVALUATION_BATCH, len(x0)))
            path = self._rolled_out(theta, x0[part])
            physics[part], effort[part] = path.physics, path.effort
            physics[part][~np.isfinite(path.states[-1]).all(axis=1)] = np.nan  # a loss may ignore some numbers
        return Evaluation(physics, effort)

    def _rolled_out(self, theta: np.ndarray, x0: np.ndarray) -> forward.Path:
        arena = self._path_arena(len(x0))
        self._call(forward.evaluate, theta, x0.reshape(len(x0), self.problem.n_state), arena)
        return arena.path

    def _gradient(self, theta: np.ndarray, x0: np.ndarray, gates: Gates) -> Gradient:
        arena = self._gradient_arena(len(x0), len(gates.physics))
        found = backward.Results(*self._call(backward.gradient, theta, x0.reshape(len(x0), self.problem.n_state), gates, arena))
        total, physics = self.problem.total(found.physics, found.effort)
        loss = Loss(total, physics) if found.finite else Loss(math.nan, math.nan)  # a loss may ignore some numbers
        if not gates.joined:
            return Gradient(arena.gradients[0], loss, found.regular2)
        norms = math.sqrt(found.regular2) * math.sqrt(found.modified2)
        cosine = found.product / norms if norms > 0 else math.nan
        return Gradient(arena.joined, loss, found.joined2, arena.gradients[0], arena.gradients[1], cosine)

    def _call(self, kernel: Any, *arguments: Any) -> Any:
        """Call an entry point; what the compiler has against a user's function is told in the user's terms."""
        try:
            return kernel(self.episode, *arguments)
        except plain_python.COMPILER_ERRORS as error:
            raise plain_python.why_not_compiled(self.problem, error) from error

    def _path_arena(self, batch: int) -> forward.Arena:
        known = self._arenas.paths
        if batch not in known:
            if len(known) >= MOST_ARENAS:
                known.clear()
            known[batch] = forward.new_arena(self.episode, batch, self.problem.dtype)
        return known[batch]

    def _gradient_arena(self, batch: int, adjoints: int) -> backward.Arena:
        problem, known, key = self.problem, self._arenas.gradients, (batch, adjoints)
        if key not in known:
            if len(known) >= MOST_ARENAS:
                known.clear()
            known[key] = backward.new_arena(self.episode, batch, adjoints, problem.dtype, tape_bytes=problem.tape_bytes)
        return known[key]
