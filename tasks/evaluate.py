"""How a trained controller copes with other parameters of the system than those it was trained with."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from stablebptt.kernels.varied import Varied, varied
from stablebptt.tasks import additions, arguments
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.task import CUSTOM

__all__ = ["over_grid", "threshold", "with_fields"]

MOST_AXES = 2  # parameters that a picture shows


def with_fields(problem: Problem, given: Mapping[str, float]) -> Problem:
    """The problem with these numbers in its system, the same for all samples; a field that varied does so no more.

    Parameters
    ----------
    problem : whose system has them
    given : numbers by name

    Raises
    ------
    ValueError, TypeError
        If the system has no such number.

    Examples
    --------
    >>> float(with_fields(sb.problem("pendulum"), {"mass": 2.0}).system.mass)
    2.0
    """
    system: Any = problem.system
    inner: Any = type(system).inside(system)
    names = type(inner).parameter_names(inner)
    for name in given:
        if name not in names:
            raise ArgumentError(f"{type(inner).__name__} has no number {name!r}; choose from {', '.join(names) or 'none'}")
    values = {name: problem.dtype(arguments.real(name, value)) for name, value in given.items()}
    inner = dataclasses.replace(inner, **values)
    if isinstance(system, Varied):
        pairs: Any = zip(type(system).names, zip(system.low.tolist(), system.high.tolist()))
        left = {name: pair for name, pair in pairs if name not in given}
        inner = varied(inner, left, problem.dtype) if left else inner
    return dataclasses.replace(problem, system=inner)


def fields_of(given: Any) -> dict[str, float]:
    """Numbers by name, from a text such as "pole_mass=0.15,gravity=9.8"."""
    pairs = (part.strip().partition("=") for part in given.split(","))
    return {name: arguments.real(name, additions.numbers(name, value)) for name, _, value in pairs}


def axis_of(text: str) -> tuple[str, np.ndarray]:
    """Name and values of a parameter, from a text such as "pole_mass=0.05:0.2:7": lowest, highest, how many."""
    name, _, numbers = text.partition("=")
    parts = numbers.split(":")
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        raise ArgumentError(f"vary is {text!r}; give name=lowest:highest:count, such as pole_mass=0.05:0.2:7") from None
    if len(parts) != 3 or not low < high or not 2 <= count <= 1000:
        raise ArgumentError(f"vary is {text!r}; the lowest value must be below the highest, and the count from 2 to 1000")
    return name, np.linspace(arguments.real(name, low), arguments.real(name, high), count)


def threshold(problem: Problem) -> float:
    """The loss below which a rollout has solved its task; NaN where none is known.

    Parameters
    ----------
    problem : of a task of this package

    Examples
    --------
    >>> threshold(sb.problem("pendulum"))
    0.05
    """
    from stablebptt.tasks import TASKS

    if problem.task == CUSTOM or (solved := TASKS[problem.task].solved) is None:
        return float("nan")
    return float(solved(**problem.options))


def over_grid(
    problem: Problem, theta: np.ndarray, axes: Mapping[str, np.ndarray], x0: np.ndarray, *, seed: int = 0,
    tell: Callable[[int, int, str], None] | None = None,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Loss of a controller for every combination of values of some parameters, from the same initial states.

    Parameters
    ----------
    theta (n_parameters,) : the controller
    axes : values by name of the parameter
    x0 (B, *state_shape) : initial states
    seed : decides what else is random
    problem : whose system has the parameters
    tell : called with how many of how many are done, and a few words

    Yields
    ------
    the values, `loss` (mean over the states; NaN if one diverges), and `solved`, the share of states whose loss is below
    `threshold` (NaN if none is known)

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> theta, x0 = problem.init(seed=0), problem.sample(3, seed=0)
    >>> records = list(over_grid(problem, theta, {"mass": np.array([0.9, 1.1])}, x0))
    >>> [record["mass"] for record in records]
    [0.9, 1.1]
    """
    points, limit = list(itertools.product(*axes.values())), threshold(problem)
    for number, values in enumerate(points):
        here = dict(zip(axes, map(float, values)))
        losses, _ = with_fields(problem, here).losses(theta, x0, seed=seed)
        solved = float(np.mean(losses < limit)) if np.isfinite(limit) else float("nan")
        if tell is not None:
            tell(number + 1, len(points), "")
        yield {**here, "loss": float(losses.mean()), "solved": solved}


def draw(records: list[dict[str, float]], axes: Mapping[str, np.ndarray], title: str) -> Any:
    """A matplotlib figure of loss and solved share over one parameter or two."""
    from stablebptt.tasks.pictures import curves

    names = list(axes)
    if len(names) > MOST_AXES:
        raise ArgumentError(f"a picture shows at most {MOST_AXES} parameters; there are {len(names)}: {', '.join(names)}")
    shown = {"mean loss": np.array([record["loss"] for record in records])}
    solved = 100 * np.array([record["solved"] for record in records])
    if np.isfinite(solved).any():
        shown["solved [%]"] = solved
    figure = curves.new_figure(curves.PANEL * len(shown), 3.4)
    figure.suptitle(title, fontsize="medium")
    for panel, (label, values) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items()):
        panel.set_xlabel(names[-1])
        if len(names) == 1:
            panel.plot(axes[names[0]], values, "o-", color=curves.PALETTE[0], markersize=4)
            panel.set_ylabel(label)
            panel.set_ylim(*((0, 1.1 * np.nanmax([*values, 1e-9])) if label == "mean loss" else (-2, 102)))
            panel.grid(True, alpha=0.3)
        else:
            grid = values.reshape([len(axes[name]) for name in names])
            image = panel.pcolormesh(axes[names[1]], axes[names[0]], grid, shading="nearest", cmap="viridis")
            panel.set_ylabel(names[0])
            figure.colorbar(image, ax=panel, label=label)
    return figure
