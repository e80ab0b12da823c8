"""Guidance by repulsion as a task; docs/guidance.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from stablebptt.tasks.task import DTYPE, HIDDEN, Option, Task, duration, loss, output_init, steps

if TYPE_CHECKING:
    import numpy as np

    from stablebptt.tasks.problems import Problem
    from stablebptt.tasks.rollouts import Rollouts

TAIL = 12  # time steps of a path that stay visible in a film


def make(
    *, drivers: int, evaders: int, steps: int, duration: float, regularization: float, target: list[float], loss: str,
    hidden: list[int], dtype: str, output_init: str,
) -> Problem:  # fmt: skip
    """The problem: D = `drivers` bring E = `evaders` to a target within `duration` and T = `steps` time steps.

    target (2,) is in the paper's lengths; `regularization` is rho.
    """
    import numpy as np

    from stablebptt.kernels.guidance import Gathering, guidance
    from stablebptt.kernels.network import mlp
    from stablebptt.tasks.problems import Axis, Problem, mean_weights

    kind = np.dtype(dtype).type
    return Problem(
        task="guidance",
        title=title(drivers, evaders, regularization),
        system=guidance(drivers, evaders, duration / steps, kind),
        controller=mlp((4 * (drivers + evaders), *hidden, 2 * drivers)),
        loss_function=Gathering(drivers, evaders, kind(target[0]), kind(target[1])),
        state_shape=(drivers + evaders, 2, 2),
        control_shape=(drivers, 2),
        steps=steps,
        dt=duration / steps,
        time_weights=mean_weights(loss, steps),
        dtype=kind,
        output_init=output_init,
        draw=partial(initial_states, drivers=drivers, evaders=evaders),
        state_axes=(
            Axis("object", "drivers, then evaders", ("driver",) * drivers + ("evader",) * evaders),
            Axis("quantity", "position, then velocity", ("position", "velocity")),
            Axis("axis", "direction in the plane", ("x", "y")),
        ),
        control_axes=(
            Axis("driver", "driver", tuple(range(drivers))),
            Axis("direction", "along and across the way from the evaders' sum", ("along", "across")),
        ),
        regularization=regularization,
    )


def initial_states(random: np.random.Generator, count: int, drivers: int, evaders: int) -> np.ndarray:
    """States (count, D+E, 2, 2) at rest.

    Drivers lie on the annulus 3 <= r <= 4 (radius and angle uniform). Evaders lie around a common centre on the annulus
    1 <= r <= 2, each offset uniformly by up to 0.5 in both directions.
    """
    import numpy as np

    states = np.zeros((count, drivers + evaders, 2, 2))
    states[:, :drivers, 0] = _on_annulus(random, (count, drivers), 3.0, 4.0)
    centre = _on_annulus(random, (count, 1), 1.0, 2.0)
    states[:, drivers:, 0] = centre + random.uniform(-0.5, 0.5, (count, evaders, 2))
    return states


def _on_annulus(random: np.random.Generator, shape: tuple[int, ...], inner: float, outer: float) -> np.ndarray:
    import numpy as np

    radius, angle = random.uniform(inner, outer, shape), random.uniform(0, 2 * np.pi, shape)
    return radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def title(drivers: int, evaders: int, regularization: float, **others: Any) -> str:
    """A few words for reports."""
    return f"guidance, {drivers} drivers, {evaders} evaders, rho {regularization:g}"


def herd_window(rollouts: Rollouts, sample: int) -> tuple[tuple[float, float], list[str]]:
    """Limits in the plane that hold all initial positions, the target and the paths of the evaders; and a note per column.

    The note counts the drivers that leave the limits: nothing holds a driver back once its work is done.
    """
    import numpy as np

    from stablebptt.tasks.pictures import rollouts as drawing

    places, drivers = rollouts.states[:, sample, :, :, 0], rollouts.problem.options["drivers"]
    held = [places[:, :, drivers:].ravel(), places[:, 0].ravel(), np.array(rollouts.problem.options["target"])]
    low, high = drawing.window(np.concatenate(held), 0.1)
    away = np.sum(np.any((places[:, :, :drivers] < low) | (places[:, :, :drivers] > high), axis=(1, 3)), axis=1)
    return (low, high), [f"{n} driver{'s' if n > 1 else ''} left the picture" if n else "" for n in away.tolist()]


def picture(rollouts: Rollouts, sample: int) -> Any:
    """Paths of drivers and evaders in the plane."""
    from stablebptt.tasks.pictures import rollouts as drawing

    places = rollouts.states[:, sample, :, :, 0]
    drivers = rollouts.problem.options["drivers"]
    figure, grid = drawing.columns(rollouts, sample, [1.0], 4.6, 4.6)
    limits, notes = herd_window(rollouts, sample)
    for axes, path, note in zip(grid[0], places, notes):
        for number in range(path.shape[1]):
            kind = "driver" if number < drivers else "evader"
            first = number in (0, drivers)
            colour = drawing.PALETTE[0] if kind == "driver" else drawing.PALETTE[1]
            axes.plot(*path[:, number].T, color=colour, linewidth=1.2, label=kind if first else None)
            axes.plot(*path[0, number], "o", color=colour, markerfacecolor="white", label="start" if number == 0 else None)
            axes.plot(*path[-1, number], "o", color=colour, label="end" if number == 0 else None)
        axes.plot(*rollouts.problem.options["target"], "*", color="black", markersize=11, label="target", linestyle="none")
        axes.set(xlabel="x", aspect="equal", xlim=limits, ylim=limits)
        axes.text(0.03, 0.02, note, transform=axes.transAxes, fontsize="small", color="0.3")
        axes.grid(True, alpha=0.3)
    grid[0][0].set_ylabel("y")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def film(panels: Any, rollouts: Rollouts, sample: int) -> list[Callable[[int], None]]:
    """Drivers and evaders in motion, with the last part of their paths."""
    from stablebptt.tasks.pictures import rollouts as drawing

    places, drivers = rollouts.states[:, sample, :, :, 0], rollouts.problem.options["drivers"]
    limits, notes = herd_window(rollouts, sample)
    updates: list[Callable[[int], None]] = []
    for axes, path, note in zip(panels, places, notes):
        axes.text(0.03, 0.02, note, transform=axes.transAxes, fontsize="x-small", color="0.3")
        axes.plot(*rollouts.problem.options["target"], "*", color="black", markersize=11)
        axes.set(xlabel="x", aspect="equal", xlim=limits, ylim=limits)
        colours = [drawing.PALETTE[0] if k < drivers else drawing.PALETTE[1] for k in range(path.shape[1])]
        tails = [axes.plot([], [], "-", color=colour, linewidth=1.2, alpha=0.6)[0] for colour in colours]
        heads = [axes.plot([], [], "o", color=colour, markersize=6)[0] for colour in colours]
        heads[0].set_label("drivers")
        heads[drivers].set_label("evaders")

        def move(step: int, path: Any = path, tails: Any = tails, heads: Any = heads) -> None:
            for k, (tail, head) in enumerate(zip(tails, heads)):
                tail.set_data(*path[max(0, step - TAIL) : step + 1, k].T)
                head.set_data(*path[step : step + 1, k].T)

        updates.append(move)
    panels[0].set_ylabel("y")
    panels[0].legend(loc="upper left", fontsize="x-small", framealpha=0.8)
    return updates


TASK = Task(
    name="guidance",
    summary="Let drivers that repel a herd of evaders bring it to a target.",
    options=(
        Option("drivers", "size", 2, "Drivers."),
        Option("evaders", "size", 4, "Evaders."),
        steps(60),
        duration(4.0),
        Option("regularization", "real", 0.001, "Weight rho of the mean squared control.", least=0),
        Option("target", "point", (0.0, 0.0), "Where the evaders are to go: x,y."),
        loss("continuous"),
        HIDDEN,
        DTYPE,
        output_init("zero"),
    ),
    make=make,
    title=title,
    solved=lambda **options: 1.0,
    picture=picture,
    film=film,
    published={"regularization": [1.0, 0.1, 0.01, 0.001]},
    small={"hidden": (5,), "drivers": 1, "evaders": 2},
)
guidance_problem = TASK
