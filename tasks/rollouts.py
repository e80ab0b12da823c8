"""Rollouts that a file holds, of one or several controllers from the same initial states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import run_file
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.training import problem_of


@dataclass(frozen=True)
class Rollouts:
    """What a run file or a file of `simulate` holds of rollouts.

    Attributes
    ----------
    problem, config : what was rolled out
    phases : names of the controllers
    time (T+1,), states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n)
    """

    problem: Problem
    config: dict[str, Any]
    phases: tuple[str, ...]
    time: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    loss: np.ndarray

    @property
    def count(self) -> int:
        return self.states.shape[1]


def load_rollouts(path: str | Path) -> Rollouts:
    """Rollouts of a run file (untrained and trained) or of a file of `simulate` (trained).

    Raises
    ------
    FileFormatError
        If the file is damaged, not ours, or its rollouts do not fit its configuration.
    """
    config, phases, arrays = run_file.load_trajectories(path)
    problem = problem_of(config, path)
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
    return Rollouts(problem, config, phases, **arrays)
