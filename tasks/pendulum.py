"""The pendulum as a task: the smallest example; docs/pendulum.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stablebptt.tasks.task import DTYPE, HIDDEN, Task, duration, loss, output_init, steps

if TYPE_CHECKING:
    import numpy as np

    from stablebptt.tasks.problems import Problem
    from stablebptt.tasks.rollouts import Rollouts


def make(*, steps: int, duration: float, loss: str, hidden: list[int], dtype: str, output_init: str) -> Problem:
    """The problem: swing up a link by a torque within `duration` [s] and T = `steps` time steps."""
    import numpy as np

    from stablebptt.kernels.network import mlp
    from stablebptt.kernels.pendulum import Standing, pendulum
    from stablebptt.tasks.problems import Axis, Problem, mean_weights

    kind = np.dtype(dtype).type
    return Problem(
        task="pendulum",
        title=title(),
        system=pendulum(duration / steps, kind),
        controller=mlp((2, *hidden, 1)),
        loss_function=Standing(),
        state_shape=(1, 2),
        control_shape=(1,),
        steps=steps,
        dt=duration / steps,
        time_weights=mean_weights(loss, steps),
        dtype=kind,
        output_init=output_init,
        draw=initial_states,
        state_axes=(
            Axis("link", "link", (0,)),
            Axis("quantity", "angle (0: upright), then its rate", ("angle", "rate")),
        ),
        control_axes=(Axis("torque", "torque about the pivot", (0,)),),
        state_units="rad, rad/s",
        control_units="N m",
    )


def initial_states(random: np.random.Generator, count: int) -> np.ndarray:
    """States (count, 1, 2): angles uniform in pi +- pi/6 (hanging), rates uniform in [-1, 1] [rad, rad/s]."""
    states = random.uniform(-1.0, 1.0, (count, 1, 2))
    states[:, :, 0] = math.pi + states[:, :, 0] * (math.pi / 6)
    return states


def title(**options: Any) -> str:
    """A word for reports."""
    return "pendulum"


def picture(rollouts: Rollouts, sample: int) -> Any:
    """Angle [rad], rate [rad/s] and torque [N m] over time [s]."""
    from stablebptt.tasks.pictures import rollouts as drawing

    states = rollouts.states[:, sample, :, 0]
    figure, grid = drawing.columns(rollouts, sample, [1, 1, 1], 4.6, 6.0)
    drawing.over_time(grid[0], rollouts, states[..., :1], "angle [rad]", ["angle"])
    drawing.over_time(grid[1], rollouts, states[..., 1:], "rate [rad/s]", ["rate"])
    drawing.over_time(grid[2], rollouts, rollouts.controls[:, sample], "torque [N m]", ["torque"], step=True)
    for axes in grid[2]:
        axes.set_xlabel("time [s]")
    return figure


def film(panels: Any, rollouts: Rollouts, sample: int) -> list[Callable[[int], None]]:
    """The link in motion about its pivot [m]."""
    from stablebptt.tasks.pictures import rollouts as drawing

    updates: list[Callable[[int], None]] = []
    for axes, angles in zip(panels, rollouts.states[:, sample, :, 0, 0].astype(float)):
        axes.set(xlabel="place [m]", aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
        axes.plot(0, 0, "o", color="black", markersize=6)
        link = axes.plot([], [], "-", color=drawing.colour(0), linewidth=3)[0]

        def move(step: int, angles: Any = angles, link: Any = link) -> None:
            link.set_data([0, math.sin(angles[step])], [0, math.cos(angles[step])])

        updates.append(move)
    panels[0].set_ylabel("height [m]")
    return updates


TASK = Task(
    name="pendulum",
    summary="Swing up a link on a fixed pivot by a torque.",
    options=(steps(50), duration(1.0, " [s]"), loss("final"), HIDDEN, DTYPE, output_init("zero")),
    make=make,
    title=title,
    solved=lambda **options: 0.05,
    picture=picture,
    film=film,
    small={"hidden": (5,)},
)
