"""The place where a computation stopped being finite."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stablebptt.tasks.engine import Evaluation, Gradient, Keys, Path
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.variants import Gates


def check_gradient(
    problem: Any, result: Gradient, theta: np.ndarray, x0: np.ndarray, gates: Gates, keys: np.ndarray | None = None
) -> None:
    """Raise DivergedError, with the first bad time step, if a gradient or its loss is not finite.

    `result` is the gradient at theta (n_parameters,) for x0 (B, *state_shape), with gates (m, T) and keys (B,).
    """
    if math.isfinite(result.loss.total) and math.isfinite(result.norm2):
        return
    own = None if keys is None else [keys]
    check_path(_path(problem, theta, x0, own), problem.first)
    if not math.isfinite(result.loss.total):
        step = first_step(lambda t: not _finite_until(problem, theta, x0, t, own), problem.steps) + problem.first
        raise DivergedError(f"the loss is not finite from time step {step} on, though all states are", step=step)
    back = first_step(lambda t: not _finite_backwards(problem, theta, x0, gates, problem.steps - t, own), problem.steps)
    step = problem.first + problem.steps - back
    raise DivergedError(f"the gradient is not finite from time step {step} backwards, though all states are", step=step)


def check_path(path: Path | Evaluation, first: int = 0) -> None:
    """Raise DivergedError if a state (B, T+1, ..) or control (B, T, ..) is not finite; the path begins at time step `first`."""
    for name, values in (("control", path.controls), ("state", path.states)):
        finite = np.isfinite(values).all(axis=(0, *range(2, np.ndim(values))))
        if not finite.all():
            step = first + int(np.argmin(finite))
            raise DivergedError(f"a {name} is not finite from time step {step} on", step=step)


def first_step(bad: Callable[[int], bool], last: int) -> int:
    """The first bad step of 1 .. last by bisection, if all later steps are bad too; `last` if no step is bad."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bad(middle) else (middle + 1, high)
    return low


def _path(problem: Any, theta: np.ndarray, x0: np.ndarray, keys: Keys) -> Evaluation:
    return next(problem.engine.evaluate([theta], [x0], keys=keys, paths=True))


def _finite_until(problem: Any, theta: np.ndarray, x0: np.ndarray, step: int, keys: Keys) -> bool:
    """Whether the costs of x_1 .. x_step and the controls before x_step are all finite."""
    weights = np.where(np.arange(problem.steps + 1) <= step, problem.time_weights, 0.0)
    part = _path(replace(problem, time_weights=weights), theta, x0, keys)
    efforts = np.square(part.controls[:, :step]).sum(axis=-1).sum(axis=1) if problem.regularization else np.zeros(1)
    return bool(np.all(np.isfinite(part.physics)) and np.all(np.isfinite(efforts)))


def _finite_backwards(problem: Any, theta: np.ndarray, x0: np.ndarray, gates: Gates, step: int, keys: Keys) -> bool:
    """Whether the gradient is finite if the adjoints stop at time step `step`."""
    closed = np.arange(problem.steps) <= step
    physics, network = (np.where(closed, 0, opening) for opening in (gates.physics, gates.network))
    part = replace(gates, physics=physics.astype(problem.dtype), network=network.astype(problem.dtype))
    return math.isfinite(next(problem.engine.gradients([theta], [x0], part, keys=keys)).norm2)
