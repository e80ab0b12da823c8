"""Paths that go on step by step under controls from outside, with the kernels of a rollout; NumPy arrays in and out."""

from typing import Any

import numpy as np

from stablebptt.kernels.core.structs import Reference
from stablebptt.kernels.generics import State, is_of_states
from stablebptt.kernels.linked import add_noise_entry, cost_entry, disturb_entry, draw_entry, observe_entry, step_entry
from stablebptt.kernels.rollout import new_arena
from stablebptt.tasks import arguments, plain_python
from stablebptt.tasks.errors import ArgumentError, DivergedError
from stablebptt.tasks.problems import Problem


class Paths:
    """B paths of a problem: `begin`, then `step` T times. With the controls of a rollout they are that rollout, bit for bit.

    Attributes
    ----------
    problem : what they are paths of
    count : B
    t : time steps done; None if they have not begun, or left the finite numbers
    """

    def __init__(self, problem: Problem, count: int) -> None:
        if problem.backend != "cpu":
            raise ArgumentError(f"the problem is on {problem.backend!r}; make one with backend='cpu' to go step by step")
        self.problem, self.count = problem, arguments.whole("the number of paths", count, 1)
        self.t: int | None = None
        self._paid = 0  # costs of time steps that are part of what `step` has returned
        self._make_room()

    def _make_room(self) -> None:
        """Make what kernels refer to by address."""
        problem = self.problem
        self._arena = new_arena(problem.episode(), self.count, problem.dtype)
        self._system, self._loss, self._observation = map(Reference, (problem.system, problem.loss_function, problem.observation))
        self._noise = Reference(problem.noise())

    def _numbers(self) -> tuple[np.ndarray, ...]:
        """All numbers that decide how the paths go on."""
        path = self._arena.path
        return path.states, path.controls, path.keys, self._arena.scratch

    def __getstate__(self) -> dict[str, Any]:
        """Leave out addresses: a copy has memory of its own."""
        kept = {name: getattr(self, name) for name in ("problem", "count", "t", "_paid")}
        return kept | {"numbers": [numbers.copy() for numbers in self._numbers()]}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        numbers = kept.pop("numbers")
        vars(self).update(kept)
        self._make_room()
        for mine, theirs in zip(self._numbers(), numbers):
            mine[:] = theirs

    @property
    def over(self) -> bool:
        """Whether all T time steps are done."""
        return self.t == self.problem.steps

    @property
    def states(self) -> np.ndarray:
        """A copy of the states (B, *state_shape)."""
        return self._arena.path.states[self._begun()].reshape(self.count, *self.problem.state_shape).copy()

    def begin(self, x0: np.ndarray, seed: int) -> None:
        """Begin at x0 (B, *state_shape); the seed decides what else is random, as in `Problem.rollout`."""
        problem, path = self.problem, self._arena.path
        x0 = arguments.array("states", x0, (self.count, *problem.state_shape), problem.dtype)
        path.states[0] = x0.reshape(self.count, problem.n_state)
        if problem.is_random:
            path.keys[:] = problem.keys(self.count, seed)
        if type(problem.system).value_count(problem.system) > 0:
            draw_entry(self._system, path.keys, self._arena.scratch)
        self.t, self._paid = 0, 0

    def seen(self) -> np.ndarray:
        """What a controller sees (B, n_seen); of the last states, what it would have seen in the last time step.

        A rollout never observes at time T, so an observation of your own may have nothing to say about it.
        """
        problem, path, t = self.problem, self._arena.path, self._begun()
        if type(problem.observation) is State:
            return path.states[t].copy()
        seen = np.empty((self.count, problem.n_seen), problem.dtype)
        with plain_python.explained(problem, path.states[0, 0]):
            observe_entry(self._observation, min(t, problem.steps - 1), path.states[t], seen)
        if self._noise.struct.active:
            add_noise_entry(self._noise, path.keys, t, seen)
        return seen

    def step(self, controls: np.ndarray) -> np.ndarray:
        """Do a time step under controls (B, *control_shape), clipped to their limits. Return its shares of the losses (B,).

        All T shares of a path add up to its loss.

        Raises
        ------
        DivergedError
            If a state is not finite; the paths must begin anew.
        """
        problem, path, t = self.problem, self._arena.path, self._begun()
        if self.over:
            raise ArgumentError(f"all {problem.steps} time steps are done; begin anew (reset) before the next step")
        controls = arguments.array("controls", controls, (self.count, *problem.control_shape), problem.dtype)
        limits: Any = (None, None) if problem.limits is None else np.asarray(problem.limits, problem.dtype)
        path.controls[t] = np.clip(controls.reshape(self.count, problem.n_control), *limits)
        with plain_python.explained(problem, path.states[0, 0]):
            step_entry(self._system, path.states[t], path.controls[t], path.states[t + 1], self._arena.scratch)
        if self._noise.struct.active:
            disturb_entry(self._noise, path.keys, t, path.states[t + 1])
        self.t = t + 1
        if not np.isfinite(path.states[t + 1]).all():
            self.t = None
            raise DivergedError(f"a state is not finite after time step {t}; smaller controls (bound=) may help", step=t + 1)
        efforts = np.square(path.controls[t], dtype=np.float64).sum(axis=1)
        shares: np.ndarray = problem.total(self._costs(), efforts)[0]
        return shares

    def _begun(self) -> int:
        if self.t is None:
            raise ArgumentError("there is no path to go on with; begin one first (reset)")
        return self.t

    def _costs(self) -> np.ndarray:
        """Weighted costs (B,) of the time steps that are known by now and were not before.

        A cost of states is known when the state is; one of a state and its control, when the step with this control is done.
        """
        problem, path, t = self.problem, self._arena.path, self._begun()
        known = t + 1 if self.over or is_of_states(problem.loss_function) else t
        costs = np.zeros(self.count)
        for due in range(self._paid, known):
            if problem.time_weights[due] != 0:
                with plain_python.explained(problem, path.states[0, 0]):
                    cost_entry(self._loss, due, problem.time_weights, path.states, path.controls, costs)
        self._paid = known
        return costs
