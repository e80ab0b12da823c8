"""Quantum control as a task; docs/quantum.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.task import DTYPE, Option, Task, loss, output_init, steps

if TYPE_CHECKING:
    import numpy as np

    from stablebptt.tasks.problems import Problem
    from stablebptt.tasks.rollouts import Rollouts


def make(
    *, points: int, dt: float, steps: int, target: int, weights: list[float], width: int, loss: str, dtype: str,
    output_init: str,
) -> Problem:  # fmt: skip
    """The problem: tilt a box to bring a particle from the two lowest states to eigenstate `target` (counted from 1).

    points is Nx, dt the time step, weights (2,) those of the two states in the initial superposition, and width the number of
    features of the convolutions.
    """
    import numpy as np

    from stablebptt.kernels.network import cnn
    from stablebptt.kernels.quantum import LENGTH, Overlap, eigenstate, quantum
    from stablebptt.tasks.problems import Axis, Problem

    if target > points:
        raise ArgumentError(f"target is {target}; with {points} points it must be at most {points}")
    if min(weights) < 0 or not 1e-9 <= max(weights) <= 1e9:
        allowed = "none may be negative, and the larger one must be between 1e-9 and 1e9"
        raise ArgumentError(f"weights are {tuple(weights)}; {allowed}")
    kind = np.dtype(dtype).type
    time_weights = np.zeros(steps + 1)
    time_weights[1 if loss == "continuous" else steps :] = 1.0  # a sum over time, not a mean
    basis = np.stack([eigenstate(points, number) for number in (1, 2)])
    places = tuple((LENGTH / (points + 1) * np.arange(1, points + 1)).tolist())
    return Problem(
        task="quantum",
        title=title(target),
        system=quantum(points, dt, kind),
        controller=cnn(points, width),
        loss_function=Overlap(eigenstate(points, target).astype(kind)),
        state_shape=(points, 2),
        control_shape=(1,),
        steps=steps,
        dt=dt,
        time_weights=time_weights,
        dtype=kind,
        output_init=output_init,
        draw=partial(initial_states, basis=basis, weights=weights),
        state_axes=(
            Axis("position", "place in the box", places),
            Axis("part", "real and imaginary part", ("re", "im")),
        ),
        control_axes=(Axis("tilt", "tilt of the box", (0,)),),
    )


def initial_states(random: np.random.Generator, count: int, basis: np.ndarray, weights: list[float]) -> np.ndarray:
    """States (count, Nx, 2): normalised superpositions of two eigenstates, `basis` (2, Nx).

    Magnitudes are normal times the weights (2,); phases are uniform.
    """
    import numpy as np

    magnitudes = random.standard_normal((count, 2)) * weights
    phases = random.uniform(0, 2 * np.pi, (count, 2))
    psi = (magnitudes * np.exp(1j * phases)) @ basis
    psi /= np.linalg.norm(psi, axis=1, keepdims=True)
    return np.stack([psi.real, psi.imag], axis=-1)


def title(target: int, **others: Any) -> str:
    """A few words for reports."""
    return f"quantum, target {target}"


def solved(loss: str, steps: int, **others: Any) -> float:
    """The loss of an overlap of three quarters; a continuous loss is a sum over time."""
    return 0.25 * float(steps if loss == "continuous" else 1)


def target_state(rollouts: Rollouts) -> np.ndarray:
    """The target eigenstate (Nx,)."""
    import numpy as np

    loss: Any = rollouts.problem.loss_function
    return loss.target.astype(np.float64)


def density(states: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid points (Nx+2,), walls included, and the probability density (.., Nx+2) there, of states (.., Nx, 2)."""
    import numpy as np

    from stablebptt.kernels.quantum import LENGTH

    dx = LENGTH / (points + 1)
    inside = np.sum(np.square(states, dtype=np.float64), axis=-1) / dx
    walls = [(0, 0)] * (inside.ndim - 1) + [(1, 1)]
    return dx * np.arange(points + 2), np.pad(inside, walls)


def overlap(rollouts: Rollouts, states: np.ndarray) -> np.ndarray:
    """``|<psi, target>|^2`` (..) of states (.., Nx, 2)."""
    import numpy as np

    return np.sum((target_state(rollouts) @ states.astype(np.float64)) ** 2, axis=-1)


def picture(rollouts: Rollouts, sample: int) -> Any:
    """Density, tilt and overlap with the target over time."""
    import numpy as np

    from stablebptt.kernels.quantum import LENGTH
    from stablebptt.tasks.pictures import rollouts as drawing

    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample]
    options = rollouts.problem.options
    places, values = density(states, options["points"])
    figure, grid = drawing.columns(rollouts, sample, [1.6, 0.8, 0.8], 4.6, 6.6)
    for axes, field in zip(grid[0], values):
        image = axes.pcolormesh(
            rollouts.time, places, field.T, vmin=0, vmax=np.nanmax(values), cmap="viridis", shading="nearest", rasterized=True
        )
        axes.set(xlim=(0, rollouts.time[-1]), ylim=(0, LENGTH))
    grid[0][0].set_ylabel("place in the box")
    figure.colorbar(image, ax=list(grid[0]), label=r"density $|\psi|^2$")
    drawing.over_time(grid[1], rollouts, controls, "tilt (control)", ["tilt"], step=True)
    shares, label = overlap(rollouts, states)[..., None], f"overlap with\neigenstate {options['target']}"
    drawing.over_time(grid[2], rollouts, shares, label, [""])
    for axes in grid[2]:
        axes.set(xlabel="time", ylim=(-0.03, 1.03))
    return figure


def film(panels: Any, rollouts: Rollouts, sample: int) -> list[Callable[[int], None]]:
    """Density and tilt in motion, with the target density."""
    import numpy as np

    from stablebptt.kernels.quantum import LENGTH
    from stablebptt.tasks.pictures import rollouts as drawing

    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample, :, 0]
    options, target = rollouts.problem.options, target_state(rollouts)
    places, values = density(states, options["points"])
    wanted = density(np.stack([target, 0 * target], axis=-1), options["points"])[1]
    shares = overlap(rollouts, states)
    top, steepest = 1.15 * max(np.nanmax(values), wanted.max()), np.nanmax(np.abs(controls)) or 1.0
    updates: list[Callable[[int], None]] = []
    for axes, field, tilts, share in zip(panels, values, controls, shares):
        axes.plot(places, wanted, "--", color="black", linewidth=1.0, label=f"eigenstate {options['target']}")
        wave = axes.plot(places, field[0], color=drawing.PALETTE[0], linewidth=1.8, label=r"$|\psi|^2$")[0]
        floor = axes.plot([0, LENGTH], [0, 0], color=drawing.PALETTE[1], linewidth=1.5, label="tilt of the floor")[0]
        text = axes.text(0.03, 0.95, "", transform=axes.transAxes, fontsize="small", va="top")
        axes.set(xlabel="place in the box", xlim=(0, LENGTH), ylim=(-0.25 * top, top))

        def move(
            step: int, *, field: Any = field, tilts: Any = tilts, share: Any = share, wave: Any = wave, floor: Any = floor,
            text: Any = text,
        ) -> None:  # fmt: skip
            wave.set_ydata(field[step])
            slope = 0.12 * top * tilts[min(step, len(tilts) - 1)] / steepest
            floor.set_ydata([-0.125 * top - slope, -0.125 * top + slope])
            text.set_text(f"overlap {share[step]:.3f}")

        updates.append(move)
    panels[0].set_ylabel(r"density $|\psi|^2$")
    panels[-1].legend(loc="upper right", fontsize="x-small", framealpha=0.8)
    return updates


TASK = Task(
    name="quantum",
    summary="Bring a particle in a box from its lowest states to a higher one by tilting the box.",
    options=(
        Option("points", "size", 32, "Grid points Nx inside the box.", least=8),
        Option("dt", "real", 0.0625, "Time step.", above=0),
        steps(128),
        Option("target", "whole", 3, "Eigenstate to reach, counted from 1.", least=1),
        Option("weights", "point", (1.0, 1.0), "Weights of eigenstates 1 and 2 in the initial states."),
        Option("width", "size", 60, "Features of the convolutions."),
        loss("continuous"),
        DTYPE,
        output_init("glorot"),
    ),
    make=make,
    title=title,
    solved=solved,
    picture=picture,
    film=film,
    published={"target": [3, 4, 5]},
    small={"points": 8, "width": 3},
)
quantum_problem = TASK
