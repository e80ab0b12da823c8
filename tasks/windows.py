"""Training in windows of a few time steps with the state carried on; docs/training.md, "Windows".

    whole rollout   x_0 ........................................ x_T      one update
    windows         x_0 ..... x_h   x_h ..... x_2h   x_2h ...... x_T      one update each; the next begins where the last ended
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stablebptt.kernels.generics import is_of_states, is_running
from stablebptt.kernels.later import Later
from stablebptt.tasks.errors import ArgumentError, BackendError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.settings import Settings
from stablebptt.tasks.variants import Gates


@dataclass(frozen=True)
class Window:
    """Time steps first .. end of a problem, as a problem of their own."""

    problem: Problem
    first: int
    end: int

    def during(self, gates: Gates) -> Gates:
        """The gates of these time steps."""
        if gates.physics.shape[1] == self.problem.steps:
            return gates
        physics, network = (np.ascontiguousarray(each[:, self.first : self.end]) for each in (gates.physics, gates.network))
        return replace(gates, physics=physics, network=network)


def split(problem: Problem, settings: Settings) -> list[Window]:
    """The windows of every rollout of a training, in their order; without windows, the whole.

    Raises
    ------
    ValueError
        If the window is longer than the rollouts, or the loss does not tell how it counts time steps.
    BackendError
        On a device.
    """
    length, steps = settings.window, problem.steps
    if length is None:
        if settings.terminal is not None:
            raise ArgumentError("terminal is the weight of the cost at the end of every window; give window, too")
        return [Window(problem, 0, steps)]
    if length > steps:
        raise ArgumentError(f"window is {length}; it must be at most {steps}, the time steps of the problem")
    if problem.backend != "cpu":
        raise BackendError(f"backend '{problem.backend}' does not train in windows; use the CPU, or leave window out")
    ends = [(first, min(first + length, steps)) for first in range(0, steps, length)]
    return [Window(part(problem, first, end, settings.terminal), first, end) for first, end in ends]


def share_work(windows: list[Window]) -> None:
    """Let windows of one length share the memory of the first."""
    engine: Any = windows[0].problem.engine
    for window in windows[1:]:
        if window.problem.steps == windows[0].problem.steps:
            engine.lend(window.problem.engine)


def part(problem: Problem, first: int, end: int, terminal: float | None = None) -> Problem:
    """Time steps first .. end of a problem, as a problem whose loss is that of a rollout of so many steps.

    terminal : weight of the cost at its end; by default as in the problem, see `weights`
    """
    return replace(
        problem,
        steps=end - first,
        time_weights=weights(problem, first, end, terminal),
        loss_function=later(problem.loss_function, first),
        first=first,
    )


def weights(problem: Problem, first: int, end: int, terminal: float | None) -> np.ndarray:
    """Time weights of a window.

    Costs on the way have the problem's weights times T / h: what was a mean over T steps is a mean over h steps. The last state
    counts apart if it alone has a cost, or if the loss has costs of time steps and a final cost. Then its weight is that of the
    problem's last state, in every window. `terminal` takes the place of this weight, which is 0 for other losses.
    """
    of_states, costs = is_of_states(problem.loss_function), problem.time_weights.copy()
    apart = not of_states or not costs[:-1].any()
    own = 0.0
    if apart:
        own, costs[-1] = costs[-1], 0.0
    found = costs[first : end + 1] * (problem.steps / (end - first))
    if of_states and first > 0:
        found[0] = 0.0  # counted at the end of the window before
    if not of_states:
        found[-1] = 0.0  # counted at the beginning of the next window
    found[-1] += own if terminal is None else terminal
    return found


def later(loss: Any, first: int) -> Any:
    """A loss as a window sees it that begins at time step `first`; a class may define its own ``later(first)``."""
    if hasattr(type(loss), "later"):
        return type(loss).later(loss, first)
    if first == 0 or is_of_states(loss):
        return loss
    if is_running(type(loss)):
        return Later(loss, first)
    name = type(loss).__name__
    raise ArgumentError(f"windows cannot shift the time steps of {name}; give it a method later(first) that returns such a loss")
