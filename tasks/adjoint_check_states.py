"""States and controls where `check` takes derivatives: along rollouts, near initial states, or given ones."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import storage
from stablebptt.tasks import arguments
from stablebptt.tasks.differences import Arrays
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.rollouts import load_rollouts

# Numbers in all states and controls together, and the least number of states.
NUMBERS, FEWEST = 6_000, 64
# Initial states to roll out, with the initial controller and with noise of these sizes on its parameters.
STARTS, NOISES = 12, (0.1, 1.0)
# Standard deviation of the distance from initial states.
NEAR = 0.1
# For a system without a problem: sizes of random states, and steps from there.
SIZES, STEPS = (0.1, 1.0, 10.0), 40
# Larger states say little: their rounding hides everything else.
GROWN = 1e4


def along_rollout(problem: Problem, theta: np.ndarray, seed: int) -> Arrays:
    """States (n, n_state) and controls (n, n_control) along rollouts from a few initial states."""
    path = problem.follow(theta, problem.sample(STARTS, seed))
    return _finite(path.states[:, :-1].reshape(-1, problem.n_state), path.controls.reshape(-1, problem.n_control))


def of_problem(problem: Problem, random: np.random.Generator, seed: int) -> Arrays:
    """States and controls: along rollouts of the initial and random controllers; near initial states, under random controls."""
    theta = problem.init(seed)
    parts = [along_rollout(problem, theta, seed)]
    parts += [along_rollout(problem, theta + noise * random.standard_normal(theta.shape), seed) for noise in NOISES]
    states = problem.sample(FEWEST, seed).reshape(FEWEST, -1)
    near = states + NEAR * random.standard_normal(states.shape)
    return _joined([_few(part, random, len(NOISES) + 2) for part in (*parts, of_states(near, problem.n_control, random))])


def of_system(step: Any, sizes: tuple[int, int], random: np.random.Generator) -> Arrays:
    """Random states and rollouts from there under random controls; sizes (n_state, n_control), ``step(inputs) -> states``."""
    starts = np.repeat(SIZES, FEWEST)[:, None]
    states = starts * random.standard_normal((len(starts), sizes[0]))
    parts = []
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            part = of_states(states, sizes[1], random)
            parts.append(part)
            states = step(part)
    found = _joined([_finite(part["state"], part["control"]) for part in parts])
    small = np.abs(found["state"]).max(axis=1) <= GROWN
    return _few({name: values[small] for name, values in found.items()}, random, 1)


def of_states(states: np.ndarray, n_control: int, random: np.random.Generator) -> Arrays:
    """Given states (n, n_state) under random controls."""
    return {"state": states, "control": random.standard_normal((len(states), n_control))}


def read_states(states: Any, state_shape: tuple[int, ...]) -> np.ndarray:
    """States (n, n_state) from an array (n, *state_shape), a .npy file with one, or a file with rollouts (a run, `simulate`).

    Raises
    ------
    ValueError, TypeError
        If the states do not fit.
    FileFormatError
        If the file is damaged or of another kind.
    """
    values, name = states, "states"
    if isinstance(states, str | os.PathLike):
        values, name = _of_file(Path(states), state_shape), str(states)
    return arguments.array(name, values, ("n", *state_shape), np.float64).reshape(len(values), -1)


def _of_file(path: Path, state_shape: tuple[int, ...]) -> np.ndarray:
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path} is no file")
    with path.open("rb") as file:
        start = file.read(len(storage.SIGNATURE))
    if start == storage.SIGNATURE:
        found = load_rollouts(path).states
        if found.shape[3:] != state_shape:
            raise ArgumentError(f"{path} has states of shape {found.shape[3:]}; they must be {state_shape}")
        return found.reshape(-1, *state_shape)
    if not start.startswith(storage.NPY):
        raise storage.FileFormatError(f"{path} holds no states: give an array (n, *state_shape) as .npy, or a run file")
    return storage.array_of(path)


def _finite(states: np.ndarray, controls: np.ndarray) -> Arrays:
    finite = np.isfinite(states).all(axis=1) & np.isfinite(controls).all(axis=1)
    return {"state": states[finite], "control": controls[finite]}


def _few(part: Arrays, random: np.random.Generator, parts: int) -> Arrays:
    """A random choice, in random order: the share of one of `parts` parts."""
    width = part["state"].shape[1] + part["control"].shape[1]
    rows = random.permutation(len(part["state"]))[: max(FEWEST, NUMBERS // width) // parts]
    return {name: values[rows] for name, values in part.items()}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
