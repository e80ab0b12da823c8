"""What a run begins with where its seed does not decide it: parameters and states; docs/training.md."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from stablebptt.data import storage
from stablebptt.kernels.core.fingerprints import describe
from stablebptt.tasks import arguments
from stablebptt.tasks.custom import Described
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem

COUNTS = {"train_count": "train_states", "test_count": "test_states"}


@dataclass(frozen=True, eq=False)
class Start:
    """What a run begins with; None where the seed decides.

    Attributes
    ----------
    theta (n_parameters,) : initial parameters
    train_states, test_states (n, *state_shape) : initial states to train and to test on
    """

    theta: np.ndarray | None = None
    train_states: np.ndarray | None = None
    test_states: np.ndarray | None = None

    def given(self) -> dict[str, np.ndarray]:
        """All arrays that are given, by name."""
        return {each.name: values for each in fields(self) if (values := getattr(self, each.name)) is not None}

    def counts(self) -> dict[str, int]:
        """The settings that the states decide."""
        return {name: len(values) for name, states in COUNTS.items() if (values := getattr(self, states)) is not None}

    def describe(self) -> dict[str, Any]:
        """What is given by type, shape and hash, for a configuration."""
        return {"start" if name == "theta" else name: describe(values) for name, values in self.given().items()}

    def check(self, settings: Any) -> None:
        """Raise an error if the settings count other states."""
        for name, count in self.counts().items():
            if getattr(settings, name) != count:
                raise ArgumentError(f"{name} is {getattr(settings, name)}, and {COUNTS[name]} are {count}; leave {name} out")

    def or_else(self, there: Mapping[str, np.ndarray]) -> Self:
        """The same, with what is not given from the arrays of a file."""
        known = {each.name: there[each.name] for each in fields(self) if each.name in there}
        return type(self)(**{**known, **self.given()})


NOTHING = Start()


def make(problem: Problem, start: Any = None, train_states: Any = None, test_states: Any = None) -> Start:
    """A checked start for a problem.

    Parameters
    ----------
    start : a run with the same network, for its parameters after the last epoch; or parameters (n_parameters,)
    train_states, test_states : (n, *state_shape) each
    """
    found = {} if start is None else {"theta": _parameters(problem, start)}
    for name, states in (("train_states", train_states), ("test_states", test_states)):
        if states is not None:
            found[name] = arguments.array(name, states, ("n", *problem.state_shape), problem.dtype).copy()
    return Start(**found)


def in_file(problem: Problem, arrays: Mapping[str, np.ndarray], path: Any) -> Start:
    """The start in a file, if it fits the problem."""
    there = Start().or_else(arrays)
    try:
        return make(problem, there.theta, there.train_states, there.test_states)
    except ArgumentError as error:
        raise storage.FileFormatError(f"{path}: {error}") from None


def _parameters(problem: Problem, start: Any) -> np.ndarray:
    """Parameters of a run, or given ones."""
    other = getattr(start, "problem", None)
    if other is not None and not isinstance(other, Described):
        here, there = arguments.layout(problem.controller), arguments.layout(other.controller)
        if here != there:
            name = next(name for name in (*here, *there) if here.get(name) != there.get(name))
            sizes = (f"has shape {layout[name]}" if name in layout else "is absent" for layout in (there, here))
            told = " there, and ".join(sizes)
            raise ArgumentError(f"start has another network: {name} {told} here; only one of the same layers can go on")
    values = start if other is None else start.theta
    return arguments.array("start", values, (problem.n_parameters,), problem.dtype).copy()


def states_in(path: Path, state_shape: tuple[int, ...]) -> np.ndarray:
    """States (n, *state_shape) in a .npy file, in the dataset `states` of an HDF5 file, or where rollouts in ours begin.

    Raises
    ------
    ValueError, TypeError
        If the states do not fit.
    FileFormatError
        If the file is damaged or of another kind.
    """
    values = storage.array_of(path) if storage.is_npy(path) else _states(path)
    return arguments.array(str(path), values, ("n", *state_shape), np.float64)


def _states(path: Path) -> np.ndarray:
    _, groups = storage.read(path)
    if "trajectories" in groups and "states" in groups["trajectories"]:
        rollouts = groups["trajectories"]["states"].values
        if rollouts.ndim < 3 or 0 in rollouts.shape:
            raise storage.FileFormatError(f"{path} holds no rollouts")
        return rollouts[0, :, 0]
    found = [variables["states"].values for variables in groups.values() if "states" in variables]
    if len(found) != 1:
        names = ", ".join(f"{group}/{name}" for group, variables in groups.items() for name in variables) or "nothing"
        raise storage.FileFormatError(f"{path} has {len(found)} datasets 'states'; it must have one (there is: {names:.200})")
    return found[0]
