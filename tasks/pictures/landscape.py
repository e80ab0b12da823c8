"""Two pictures that explain the method; docs/method.md, section 5.

The first is a complete example of a custom system, loss and controller: three structs with two small functions each.
"""

from typing import Any

import numpy as np

from stablebptt.adjoint.combine import combine
from stablebptt.adjoint.generics import control_vjp, cost_vjp, step_vjp
from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.generics import Controller, Loss, System, control, cost, step
from stablebptt.tasks import arguments, optimizers
from stablebptt.tasks.bars import Tell, each
from stablebptt.tasks.pictures.curves import COLOURS, new_figure
from stablebptt.tasks.problems import Axis, Problem, mean_weights

START, STEPS, GOAL, REACH = -0.3, 4, 2.0, 4.0
SHOWN = (1e-3, 1e3)  # norms and losses in colour
ITERATIONS, LEARNING_RATE, FIRST_POINT, ROTATION = 200, 0.1, (2.0, 4.0), 2.0


class Walk(System):
    """``x' = x + c``: a point that goes where it is told."""


class Goal(Loss):
    """Loss ``(x - goal)^2 / 2``."""

    goal: float


class Parabola(Controller):
    """``c = theta_1 x^2 + theta_2 x``."""

    def layout(self) -> dict[str, tuple[int, ...]]:
        return {"theta": (2,)}


@implements(step, Walk)
def _step(system, x, c, x_next):
    x_next[0] = x[0] + c[0]


@implements(step_vjp, Walk)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        lam_x[v, 0] += lam[v, 0]
        lam_c[v, 0] += lam[v, 0]


@implements(cost, Goal)
def _cost(loss, x):
    return (x[0] - loss.goal) * (x[0] - loss.goal) / like(x, 2.0)


@implements(cost_vjp, Goal)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += cost_bar * (x[0] - loss.goal)


@implements(control, Parabola)
def _control(controller, theta, x, c):
    c[0] = theta[0] * x[0] * x[0] + theta[1] * x[0]


@implements(control_vjp, Parabola)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    theta_bar[0] += c_bar[0] * x[0] * x[0]
    theta_bar[1] += c_bar[0] * x[0]
    x_bar[0] += c_bar[0] * (like(x, 2.0) * theta[0] * x[0] + theta[1])


def walk_problem() -> Problem:
    """The problem of reaching 2 from -0.3 in four steps, in float64."""
    return Problem(
        task="landscape",
        options={},
        title="landscape",
        system=Walk(),
        controller=Parabola(),
        loss_function=Goal(GOAL),
        state_shape=(1,),
        control_shape=(1,),
        steps=STEPS,
        dt=1.0,
        time_weights=mean_weights("final", STEPS),
        dtype=np.float64,
        output_init="glorot",
        draw=lambda random, count: np.full((count, 1), START),
        state_axes=(Axis("place", "place", (0,)),),
        control_axes=(Axis("move", "move", (0,)),),
    )


def fields(resolution: int = 121, tell: Tell | None = None) -> dict[str, np.ndarray]:
    """Loss (n, n) and the fields R, M and C (n, n, 2) over theta in [-4, 4]^2; `tell` is told how many rows are done.

    Returns
    -------
    dict with "theta" (n,), "loss", "R", "M", "C"; the first axis is theta_2, the second theta_1
    """
    theta = np.linspace(-REACH, REACH, arguments.whole("resolution", resolution, 2, 2000))
    problem, x0 = walk_problem(), np.array([[START]])
    found: dict[str, np.ndarray] = {"theta": theta, "loss": np.empty((resolution, resolution))}
    found |= {name: np.empty((resolution, resolution, 2)) for name in "RMC"}
    for i, second in enumerate(each(theta.tolist(), tell)):
        for j, first in enumerate(theta):
            gradient = problem.gradient(np.array([first, second]), x0, "C")
            found["loss"][i, j] = gradient.loss.total
            for name, values in (("R", gradient.regular), ("M", gradient.modified), ("C", gradient.value)):
                found[name][i, j] = values
    return found


def rotation() -> dict[str, np.ndarray]:
    """Adam's paths (200, 2) on ``|theta|^2`` along three fields: divergence alone, with rotation, combined by sign.

    Iteration k + 1 takes its step at point k.
    """

    def divergence(theta: np.ndarray) -> np.ndarray:
        return theta

    def rotating(theta: np.ndarray) -> np.ndarray:
        return theta + ROTATION * np.array([theta[1], -theta[0]])

    def combined(theta: np.ndarray) -> np.ndarray:
        joined = np.empty_like(theta)
        combine(rotating(theta), divergence(theta), joined)
        return joined

    return {
        "divergence": _descend(divergence),
        "with rotation": _descend(rotating),
        "combined": _descend(combined),
    }


def _descend(field: Any) -> np.ndarray:
    rule = optimizers.adam(LEARNING_RATE)
    theta = np.array(FIRST_POINT)
    state, path = rule.init(theta), []
    for _ in range(ITERATIONS):
        path.append(theta)
        theta, state = rule.apply(theta, field(theta), state)
    return np.array(path)


def rotation_losses(paths: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``|theta|^2`` along the paths."""
    return {name: np.sum(path**2, axis=1) for name, path in paths.items()}


def draw_fields(found: dict[str, np.ndarray]) -> Any:
    """The loss, and the norms of R, M and C in logarithmic colour with flow lines down the field."""
    from matplotlib.colors import LogNorm

    theta = found["theta"]
    titles = {"loss": "loss L", "R": "regular R", "M": "modified M", "C": "combined C"}
    figure = new_figure(13.0, 3.6)
    panels = figure.subplots(1, 4, sharey=True)
    for axes, (name, title) in zip(panels, titles.items()):
        values = found[name] if name == "loss" else np.linalg.norm(found[name], axis=-1)
        shown = np.clip(values, *SHOWN)
        image = axes.pcolormesh(theta, theta, shown, norm=LogNorm(*SHOWN), cmap="viridis", shading="nearest", rasterized=True)
        if name != "loss":
            with np.errstate(invalid="ignore", divide="ignore"):
                down = np.where(values[..., None] > 0, -found[name] / values[..., None], 0.0)
            axes.streamplot(theta, theta, down[..., 0], down[..., 1], color="white", linewidth=0.6, density=1.2, arrowsize=0.7)
        axes.set(title=title, xlabel=r"$\theta_1$", xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    panels[0].set_ylabel(r"$\theta_2$")
    figure.colorbar(image, ax=list(panels), label="loss; norm of the field", extend="both", shrink=0.9)
    return figure


def draw_rotation(paths: dict[str, np.ndarray]) -> Any:
    """The three paths over the circles of equal loss, and the losses along them."""
    colours = dict(zip(paths, (COLOURS["R"], COLOURS["M"], COLOURS["C"])))
    figure = new_figure(9.5, 4.0)
    plane, curves = figure.subplots(1, 2)
    around = np.linspace(-5, 5, 201)
    squares = around[:, None] ** 2 + around[None, :] ** 2
    plane.contour(around, around, squares, levels=np.arange(1, 8) ** 2, colors="0.85", linewidths=0.8)
    iterations = np.arange(1, ITERATIONS + 1)
    for (name, path), losses in zip(paths.items(), rotation_losses(paths).values()):
        plane.plot(path[:, 0], path[:, 1], color=colours[name], linewidth=1.4, label=name)
        curves.plot(iterations, losses, color=colours[name], linewidth=1.4, label=f"{name}: {losses[-1]:.2g}")
    plane.plot(*FIRST_POINT, "o", color="black", markersize=5)
    plane.annotate("start", FIRST_POINT, xytext=(6, 4), textcoords="offset points")
    plane.plot(0, 0, "*", color="black", markersize=9)
    plane.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal", xlim=(-5, 5), ylim=(-5, 5), title="paths of Adam")
    curves.set(xlabel="iteration", ylabel=r"loss $|\theta|^2$", yscale="log", xlim=(0, ITERATIONS), title="loss")
    curves.grid(True, alpha=0.3)
    curves.legend(frameon=False, loc="lower left")
    return figure
