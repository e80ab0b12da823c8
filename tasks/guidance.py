"""Guidance by repulsion as a problem; docs/guidance.md."""

from functools import partial
from typing import Any

import numpy as np

from stablebptt.data import initial_states
from stablebptt.kernels.guidance import Gathering, guidance
from stablebptt.kernels.network import mlp
from stablebptt.tasks import checks, titles
from stablebptt.tasks.problems import LOSSES, OUTPUT_INITS, Axis, Problem, mean_weights


def guidance_problem(
    drivers: int = 2,
    evaders: int = 4,
    steps: int = 60,
    duration: float = 4.0,
    regularization: float = 0.001,
    target: Any = (0.0, 0.0),
    loss: str = "continuous",
    hidden: Any = (100, 100),
    dtype: Any = "float32",
    output_init: str = "zero",
) -> Problem:
    """Let D drivers bring E evaders to a target within `duration` and T = `steps` time steps; regularization is rho."""
    drivers, evaders = checks.size("drivers", drivers), checks.size("evaders", evaders)
    steps, duration = checks.whole("steps", steps, 1), checks.real("duration", duration, above=0)
    rho, goal = checks.real("regularization", regularization, least=0), checks.point("target", target)
    hidden, loss = checks.sizes("hidden", hidden), checks.choice("loss", loss, LOSSES)
    kind, output_init = checks.precision(dtype), checks.choice("output_init", output_init, OUTPUT_INITS)
    plane = Axis("axis", "direction in the plane", ("x", "y"))
    return Problem(
        task="guidance",
        options={
            "drivers": drivers, "evaders": evaders, "steps": steps, "duration": duration, "regularization": rho,
            "target": list(goal), "loss": loss, "hidden": list(hidden), "dtype": np.dtype(kind).name,
            "output_init": output_init,
        },
        title=titles.guidance(drivers, evaders, rho),
        system=guidance(drivers, evaders, duration / steps, kind),
        controller=mlp((4 * (drivers + evaders), *hidden, 2 * drivers)),
        loss_function=Gathering(drivers, evaders, kind(goal[0]), kind(goal[1])),
        state_shape=(drivers + evaders, 2, 2),
        control_shape=(drivers, 2),
        steps=steps,
        dt=duration / steps,
        time_weights=mean_weights(loss, steps),
        dtype=kind,
        output_init=output_init,
        draw=partial(initial_states.guidance, drivers=drivers, evaders=evaders),
        state_axes=(
            Axis("object", "drivers, then evaders", ("driver",) * drivers + ("evader",) * evaders),
            Axis("quantity", "position, then velocity", ("position", "velocity")),
            plane,
        ),
        control_axes=(
            Axis("driver", "driver", tuple(range(drivers))),
            Axis("direction", "along and across the way from the evaders' sum", ("along", "across")),
        ),
        regularization=rho,
    )  # fmt: skip
