"""The cart-pole as a problem; docs/cartpole.md."""

from functools import partial
from typing import Any

import numpy as np

from stablebptt.data import initial_states
from stablebptt.kernels.cartpole import Upright, cartpole
from stablebptt.kernels.network import mlp
from stablebptt.tasks import checks, titles
from stablebptt.tasks.problems import LOSSES, OUTPUT_INITS, Axis, Problem, mean_weights


def cartpole_problem(
    poles: int = 1,
    steps: int = 100,
    duration: float = 1.0,
    loss: str = "final",
    hidden: Any = (100, 100),
    dtype: Any = "float32",
    output_init: str = "zero",
) -> Problem:
    """Swing up P poles on one cart within `duration` [s] and T = `steps` time steps."""
    poles, steps = checks.size("poles", poles), checks.whole("steps", steps, 1)
    duration, hidden = checks.real("duration", duration, above=0), checks.sizes("hidden", hidden)
    loss, kind = checks.choice("loss", loss, LOSSES), checks.precision(dtype)
    output_init = checks.choice("output_init", output_init, OUTPUT_INITS)
    body = Axis("body", "cart, then the poles", tuple(range(1 + poles)))
    quantity = Axis("quantity", "position or angle (0: upright), then its rate", ("position", "rate"))
    return Problem(
        task="cartpole",
        options={
            "poles": poles, "steps": steps, "duration": duration, "loss": loss, "hidden": list(hidden),
            "dtype": np.dtype(kind).name, "output_init": output_init,
        },
        title=titles.cartpole(poles),
        system=cartpole(duration / steps, kind),
        controller=mlp((2 + 2 * poles, *hidden, 1)),
        loss_function=Upright(),
        state_shape=(1 + poles, 2),
        control_shape=(1,),
        steps=steps,
        dt=duration / steps,
        time_weights=mean_weights(loss, steps),
        dtype=kind,
        output_init=output_init,
        draw=partial(initial_states.cartpole, poles=poles),
        state_axes=(body, quantity),
        control_axes=(Axis("force", "force on the cart", (0,)),),
        state_units="m, m/s (cart); rad, rad/s (poles)",
        control_units="N",
    )  # fmt: skip
