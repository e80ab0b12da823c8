"""The cart-pole as a task; docs/cartpole.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from stablebptt.tasks.task import DTYPE, HIDDEN, Option, Task, duration, loss, output_init, steps

if TYPE_CHECKING:
    import numpy as np

    from stablebptt.tasks.problems import Problem
    from stablebptt.tasks.rollouts import Rollouts

INSTANTS = 12  # carts drawn in one picture


def make(*, poles: int, steps: int, duration: float, loss: str, hidden: list[int], dtype: str, output_init: str) -> Problem:
    """The problem: swing up P = `poles` poles on one cart within `duration` [s] and T = `steps` time steps."""
    import numpy as np

    from stablebptt.kernels.cartpole import Upright, cartpole
    from stablebptt.kernels.network import mlp
    from stablebptt.tasks.problems import Axis, Problem, mean_weights

    kind = np.dtype(dtype).type
    body = Axis("body", "cart, then the poles", tuple(range(1 + poles)))
    quantity = Axis("quantity", "position or angle (0: upright), then its rate", ("position", "rate"))
    return Problem(
        task="cartpole",
        title=title(poles),
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
        draw=partial(initial_states, poles=poles),
        state_axes=(body, quantity),
        control_axes=(Axis("force", "force on the cart", (0,)),),
        state_units="m, m/s (cart); rad, rad/s (poles)",
        control_units="N",
    )


def initial_states(random: np.random.Generator, count: int, poles: int) -> np.ndarray:
    """States (count, 1+P, 2): every entry uniform in [-1, 1], angles uniform in pi +- pi/6 (hanging) [m, m/s, rad, rad/s]."""
    states = random.uniform(-1.0, 1.0, (count, 1 + poles, 2))
    states[:, 1:, 0] = math.pi + states[:, 1:, 0] * (math.pi / 6)
    return states


def title(poles: int, **others: Any) -> str:
    """A few words for reports."""
    return f"cartpole, {poles} pole{'s' if poles > 1 else ''}"


def pole_length(rollouts: Rollouts) -> float:
    """Length of the cart-pole's poles [m]."""
    system: Any = rollouts.problem.system
    return 2 * float(system.half_length)


def pole_tips(rollouts: Rollouts, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y (.., P) [m] of the ends of the poles, from states (.., 1+P, 2); angle 0 points up."""
    import numpy as np

    length = pole_length(rollouts)
    angles = states[..., 1:, 0]
    return states[..., :1, 0] + length * np.sin(angles), length * np.cos(angles)


def plane_window(rollouts: Rollouts, carts: np.ndarray, tips: np.ndarray) -> tuple[float, float]:
    """Limits along the rail [m] that hold carts and ends of the poles; at least as wide as the poles are long."""
    import numpy as np

    from stablebptt.tasks.pictures import rollouts as drawing

    reach = 1.2 * pole_length(rollouts)
    low, high = drawing.window(np.concatenate([carts.ravel(), tips.ravel()]))
    middle, half = (low + high) / 2, max((high - low) / 2, reach)
    return middle - half, middle + half


def picture(rollouts: Rollouts, sample: int) -> Any:
    """Carts and poles at several instants; angles [rad], cart [m] and force [N] over time [s]."""
    import numpy as np

    from stablebptt.tasks.pictures import rollouts as drawing

    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample]
    figure, grid = drawing.columns(rollouts, sample, [1.6, 1, 1, 1], 4.6, 8.2)
    tips_x, tips_y = pole_tips(rollouts, states)
    carts = states[..., 0, 0]
    shown = np.unique(np.linspace(0, len(rollouts.time) - 1, INSTANTS).round().astype(int))
    for axes, cart, x, y in zip(grid[0], carts, tips_x, tips_y):
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for t in shown:
            strength = 0.15 + 0.85 * t / shown[-1] if shown[-1] else 1.0
            for number in range(x.shape[-1]):
                axes.plot([cart[t], x[t, number]], [0, y[t, number]], color=drawing.colour(number), alpha=strength)
            axes.plot(cart[t], 0, "s", color="black", alpha=strength, markersize=5)
        axes.set(xlabel="place [m] (pale: earlier)", aspect="equal", ylim=(-1.2, 1.2), xlim=plane_window(rollouts, carts, tips_x))
    grid[0][0].set_ylabel("height [m]")
    poles = [f"pole {number + 1}" for number in range(states.shape[2] - 1)]
    drawing.over_time(grid[1], rollouts, states[..., 1:, 0], "angle [rad]", poles)
    drawing.over_time(grid[2], rollouts, carts[..., None], "cart [m]", ["cart"])
    drawing.over_time(grid[3], rollouts, controls, "force [N]", ["force"], step=True)
    for axes in grid[3]:
        axes.set_xlabel("time [s]")
    return figure


def film(panels: Any, rollouts: Rollouts, sample: int) -> list[Callable[[int], None]]:
    """Cart and poles in motion [m]."""
    from stablebptt.tasks.pictures import rollouts as drawing

    states = rollouts.states[:, sample]
    carts = states[..., 0, 0]
    tips_x, tips_y = pole_tips(rollouts, states)
    limits = plane_window(rollouts, carts, tips_x)
    updates: list[Callable[[int], None]] = []
    for axes, cart, x, y in zip(panels, carts, tips_x, tips_y):
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="place [m]", aspect="equal", xlim=limits, ylim=(-1.2, 1.2))
        poles = [axes.plot([], [], "-", color=drawing.colour(k), linewidth=2.5)[0] for k in range(x.shape[1])]
        body = axes.plot([], [], "s", color="black", markersize=9)[0]

        def move(step: int, cart: Any = cart, x: Any = x, y: Any = y, poles: Any = poles, body: Any = body) -> None:
            body.set_data([cart[step]], [0])
            for k, pole in enumerate(poles):
                pole.set_data([cart[step], x[step, k]], [0, y[step, k]])

        updates.append(move)
    panels[0].set_ylabel("height [m]")
    return updates


TASK = Task(
    name="cartpole",
    summary="Swing up poles on one cart.",
    options=(
        Option("poles", "size", 1, "Poles on the cart."),
        steps(100),
        duration(1.0, " [s]"),
        loss("final"),
        HIDDEN,
        DTYPE,
        output_init("zero"),
    ),
    make=make,
    title=title,
    solved=lambda **options: 0.05,
    picture=picture,
    film=film,
    published={"poles": [1, 2, 3, 4]},
    small={"hidden": (5,)},
)
cartpole_problem = TASK
