"""Rollouts in a file, of one or several controllers from the same initial states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import run_file
from stablebptt.tasks import custom
from stablebptt.tasks.problems import Axis, Problem
from stablebptt.tasks.runs import check_same, problem_of
from stablebptt.tasks.task import Task

__all__ = ["Rollouts", "load_rollouts"]


@dataclass(frozen=True)
class Rollouts:
    """The rollouts in a run file or a file of `simulate`.

    Attributes
    ----------
    problem, config : the problem, and the configuration of the run
    phases : names of the controllers
    time (T+1,) [s], states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n)
    state_axes, control_axes : axes as stored in the file, even if the code of the system is not known

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> found = load_rollouts("run.h5")
    >>> found.phases, found.count
    (('before training', 'after training'), 4)
    """

    problem: Problem
    config: dict[str, Any]
    phases: tuple[str, ...]
    time: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    loss: np.ndarray
    state_axes: tuple[Axis, ...]
    control_axes: tuple[Axis, ...]

    @property
    def count(self) -> int:
        """Number n of initial states."""
        return self.states.shape[1]


def load_rollouts(path: str | Path, task: Task | None = None) -> Rollouts:
    """Rollouts of a run file (untrained and trained) or of a file of `simulate` (trained).

    `task` is the user's `Task` that made the problem. Without it, a custom problem is a description only.

    Parameters
    ----------
    path : of a run file, or of a file of `simulate`
    task : record of your own task, if it is one

    Raises
    ------
    FileFormatError
        If the file is damaged or foreign, or its rollouts do not fit its configuration.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> load_rollouts("run.h5").states.shape
    (2, 4, 6, 1, 2)
    """
    config, phases, arrays, axes = run_file.load_trajectories(path)
    problem = problem_of(config, path)
    if task is not None:
        own = custom.from_file(task, problem)
        check_same(path, problem, own, "give the task it was made with")
        problem = own
    count, steps = arrays["states"].shape[1:2], problem.steps
    wanted = {
        "time": (steps + 1,),
        "states": (len(phases), *count, steps + 1, *problem.state_shape),
        "controls": (len(phases), *count, steps, *problem.control_shape),
        "loss": (len(phases), *count),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise run_file.FileFormatError(f"{path}: {name} has shape {arrays[name].shape}; its configuration asks for {shape}")
    try:
        named = {name: tuple(Axis(s.dims[0], s.long_name, places, s.units) for s, places in axes[name]) for name in axes}
    except (TypeError, ValueError) as error:
        raise run_file.FileFormatError(f"{path}: {error}") from None
    return Rollouts(problem, config, phases, **arrays, state_axes=named["states"], control_axes=named["controls"])
