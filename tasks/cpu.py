"""The engine "cpu": rollouts and gradients by the kernels of `kernels` and `adjoint`, one run after the other."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stablebptt.adjoint.gradient import PathSpace, evaluate, gradient
from stablebptt.adjoint.sweep import SweepSpace, chunk_steps, sweep_space
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import new_tape, scratch_size, tape_width, weight_count
from stablebptt.tasks.engine import ALONE, Evaluation, Gradient, Loss
from stablebptt.tasks.problems import EVALUATION_BATCH, Problem
from stablebptt.tasks.variants import Gates

# Arenas of so many sizes of batches are kept: odd sizes must not pile up.
MOST_ARENAS = 5


@dataclass(frozen=True)
class PathArena:
    """Where a rollout is computed."""

    tape: Any
    path: PathSpace


@dataclass(frozen=True)
class GradientArena:
    """Where a gradient is computed; `kept`: the tape holds the activations of all time steps."""

    tape: Any
    kept: bool
    path: PathSpace
    sweep: SweepSpace
    gradients: np.ndarray
    joined: np.ndarray


class _Arenas(threading.local):
    """Arenas by size, per thread: threads may share a problem."""

    def __init__(self) -> None:
        self.paths: dict[int, PathArena] = {}
        self.gradients: dict[tuple[int, int], GradientArena] = {}


class Engine:
    """What a problem's numbers are computed with."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._arenas = _Arenas()

    def evaluate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], *, paths: bool = False, queue: int = ALONE
    ) -> Iterator[Evaluation]:
        """Roll S controllers out, each from states of its own; see `engine.Engine`."""
        return (self._path(theta, x0) if paths else self._losses(theta, x0) for theta, x0 in zip(thetas, x0s))

    def gradients(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], gates: Gates, *, parts: bool = False, queue: int = ALONE
    ) -> Iterator[Gradient]:
        """Gradients of S controllers, each for states of its own; see `engine.Engine`."""
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
            physics[part][~np.isfinite(path.states[-1]).all(axis=1)] = np.nan  # a loss may not see every number
        return Evaluation(physics, effort)

    def _rolled_out(self, theta: np.ndarray, x0: np.ndarray) -> PathSpace:
        problem, arena = self.problem, self._path_arena(len(x0))
        flat = x0.reshape(len(x0), problem.n_state)
        parts = (problem.system, problem.controller, problem.loss_function)
        evaluate(*parts, theta, flat, problem.time_weights, arena.tape, arena.path)
        return arena.path

    def _gradient(self, theta: np.ndarray, x0: np.ndarray, gates: Gates) -> Gradient:
        problem, batch = self.problem, len(x0)
        arena = self._gradient_arena(batch, len(gates.physics))
        gradients, joined = arena.gradients, arena.joined
        results = np.zeros(7)
        gradient(
            problem.system, problem.controller, problem.loss_function, theta, x0.reshape(batch, problem.n_state),
            problem.time_weights, problem.effort_weight(batch), gates.physics, gates.network, arena.tape, arena.kept, arena.path,
            arena.sweep, gradients, joined if gates.joined else joined[:0], results,
        )  # fmt: skip
        regular2, modified2, product, joined2, physics, effort, finite = results.tolist()
        total, _ = problem.total(physics, effort)
        loss = Loss(total, physics) if finite else Loss(math.nan, math.nan)  # a loss may not see every number
        if not gates.joined:
            return Gradient(gradients[0], loss, regular2)
        norms = math.sqrt(regular2) * math.sqrt(modified2)
        cosine = product / norms if norms > 0 else math.nan
        return Gradient(joined, loss, joined2, gradients[0], gradients[1], cosine)

    def _path_space(self, batch: int, adjoints: int) -> PathSpace:
        problem = self.problem
        return PathSpace(
            aligned((weight_count(problem.controller),), problem.dtype),
            aligned((problem.steps + 1, batch, problem.n_state), problem.dtype),
            aligned((problem.steps, batch, problem.n_control), problem.dtype),
            np.zeros(batch),
            np.zeros(batch),
            aligned((scratch_size(problem.system, batch, adjoints),), problem.dtype),
        )

    def _path_arena(self, batch: int) -> PathArena:
        known = self._arenas.paths
        if batch not in known:
            if len(known) >= MOST_ARENAS:
                known.clear()
            tape = new_tape(self.problem.controller, batch, 1, 1, 1, self.problem.dtype)
            known[batch] = PathArena(tape, self._path_space(batch, 1))
        return known[batch]

    def _gradient_arena(self, batch: int, adjoints: int) -> GradientArena:
        problem, known, key = self.problem, self._arenas.gradients, (batch, adjoints)
        if key not in known:
            if len(known) >= MOST_ARENAS:
                known.clear()
            chunk = chunk_steps(batch) * batch
            row_bytes = tape_width(problem.controller) * np.dtype(problem.dtype).itemsize
            kept = problem.steps * batch * row_bytes <= problem.tape_bytes
            rows = problem.steps * batch if kept else chunk
            slots = 1 if problem.n_control == 1 else adjoints
            known[key] = GradientArena(
                new_tape(problem.controller, rows, chunk, adjoints, slots, problem.dtype),
                kept,
                self._path_space(batch, adjoints),
                sweep_space(batch, adjoints, problem.n_state, problem.n_control, problem.dtype),
                np.zeros((adjoints, problem.n_parameters), problem.dtype),
                np.zeros(problem.n_parameters, problem.dtype),
            )
        return known[key]
