"""Pictures of rollouts, one column per controller (untrained, trained): what each system looks like on paper."""

from typing import Any

import numpy as np

from stablebptt.kernels.quantum import LENGTH
from stablebptt.tasks import checks
from stablebptt.tasks.figures import PALETTE, new_figure
from stablebptt.tasks.rollouts import Rollouts

INSTANTS = 12  # carts that are drawn above each other
MOST_LINES = 12  # numbers of an unknown system's state that are drawn


def draw(rollouts: Rollouts, sample: int) -> Any:
    """The rollouts of one initial state, in the manner of their task."""
    checks.index("trajectory", sample, rollouts.count)
    picture = PICTURES.get(rollouts.problem.task, _anything)
    figure = picture(rollouts, sample)
    figure.suptitle(f"{rollouts.problem.title}, initial state {sample}", fontsize="medium")
    return figure


def headings(rollouts: Rollouts, sample: int) -> list[str]:
    """Of each column: which controller, and what its rollout cost."""
    return [f"{phase}: loss {loss:.3g}" for phase, loss in zip(rollouts.phases, rollouts.loss[:, sample])]


def pole_length(rollouts: Rollouts) -> float:
    """Length of the cart-pole's poles [m]."""
    system: Any = rollouts.problem.system
    return 2 * float(system.half_length)


def target_state(rollouts: Rollouts) -> np.ndarray:
    """The eigenstate (Nx,) that quantum control is to reach."""
    loss: Any = rollouts.problem.loss_function
    return loss.target.astype(np.float64)


def pole_tips(rollouts: Rollouts, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the poles (.., P) in the plane, of states (.., 1+P, 2) [m]; angle 0 points up."""
    length = pole_length(rollouts)
    angles = states[..., 1:, 0]
    return states[..., :1, 0] + length * np.sin(angles), length * np.cos(angles)


def density(states: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (Nx+2,) with the walls, and the probability density (.., Nx+2) there, of states (.., Nx, 2)."""
    dx = LENGTH / (points + 1)
    inside = np.sum(np.square(states, dtype=np.float64), axis=-1) / dx
    walls = [(0, 0)] * (inside.ndim - 1) + [(1, 1)]
    return dx * np.arange(points + 2), np.pad(inside, walls)


def overlap(rollouts: Rollouts, states: np.ndarray) -> np.ndarray:
    """``|<psi, target>|^2`` (..) of states (.., Nx, 2)."""
    return np.sum((target_state(rollouts) @ states.astype(np.float64)) ** 2, axis=-1)


def window(values: np.ndarray, margin: float = 0.05) -> tuple[float, float]:
    """Limits of an axis around all finite values."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = margin * (high - low) or 0.5
    return low - room, high + room


def plane_window(rollouts: Rollouts, carts: np.ndarray, tips: np.ndarray) -> tuple[float, float]:
    """Limits along the rail [m] that hold the carts and the ends of the poles; never narrower than the poles are long."""
    reach = 1.2 * pole_length(rollouts)
    low, high = window(np.concatenate([carts.ravel(), tips.ravel()]))
    middle, half = (low + high) / 2, max((high - low) / 2, reach)
    return middle - half, middle + half


def herd_window(rollouts: Rollouts, sample: int) -> tuple[tuple[float, float], list[str]]:
    """Limits in the plane that hold all starts, the target and the ways of the evaders; and per column what to say of drivers
    that leave them (nothing holds a driver back once its work is done)."""
    places, drivers = rollouts.states[:, sample, :, :, 0], rollouts.problem.options["drivers"]
    held = [places[:, :, drivers:].ravel(), places[:, 0].ravel(), np.array(rollouts.problem.options["target"])]
    low, high = window(np.concatenate(held), 0.1)
    away = np.sum(np.any((places[:, :, :drivers] < low) | (places[:, :, :drivers] > high), axis=(1, 3)), axis=1)
    return (low, high), [f"{n} driver{'s' if n > 1 else ''} left the picture" if n else "" for n in away.tolist()]


def _columns(rollouts: Rollouts, sample: int, heights: list[float], width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure(width * len(rollouts.phases), height)
    grid = figure.subplots(
        len(heights), len(rollouts.phases), squeeze=False, sharey="row", sharex=False, height_ratios=heights
    )
    for axes, heading in zip(grid[0], headings(rollouts, sample)):
        axes.set_title(heading)
    for row in grid:
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _over_time(row: Any, rollouts: Rollouts, values: np.ndarray, label: str, names: list[str], step: bool = False) -> None:
    """Curves of values (phases, times, n) over time in a row of panels."""
    for axes, curves in zip(row, values):
        for number, (curve, name) in enumerate(zip(curves.T, names)):
            colour = PALETTE[number % len(PALETTE)]
            times = rollouts.time[: len(curve)]
            axes.plot(times, curve, color=colour, label=name, linewidth=1.3, drawstyle="steps-post" if step else "default")
        axes.set_xlim(0, rollouts.time[-1])
        axes.grid(True, alpha=0.3)
    row[0].set_ylabel(label)
    if len(names) > 1:
        row[-1].legend(fontsize="small", framealpha=0.8, ncols=1 + (len(names) > 4))


def _cartpole(rollouts: Rollouts, sample: int) -> Any:
    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample]
    figure, grid = _columns(rollouts, sample, [1.6, 1, 1, 1], 4.6, 8.2)
    tips_x, tips_y = pole_tips(rollouts, states)
    carts = states[..., 0, 0]
    shown = np.unique(np.linspace(0, len(rollouts.time) - 1, INSTANTS).round().astype(int))
    for axes, cart, x, y in zip(grid[0], carts, tips_x, tips_y):
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for t in shown:
            strength = 0.15 + 0.85 * t / shown[-1] if shown[-1] else 1.0
            for number in range(x.shape[-1]):
                axes.plot([cart[t], x[t, number]], [0, y[t, number]], color=PALETTE[number % len(PALETTE)], alpha=strength)
            axes.plot(cart[t], 0, "s", color="black", alpha=strength, markersize=5)
        axes.set(xlabel="place [m] (pale: earlier)", aspect="equal", ylim=(-1.2, 1.2), xlim=plane_window(rollouts, carts, tips_x))
    grid[0][0].set_ylabel("height [m]")
    poles = [f"pole {number + 1}" for number in range(states.shape[2] - 1)]
    _over_time(grid[1], rollouts, states[..., 1:, 0], "angle [rad]", poles)
    _over_time(grid[2], rollouts, carts[..., None], "cart [m]", ["cart"])
    _over_time(grid[3], rollouts, controls, "force [N]", ["force"], step=True)
    for axes in grid[3]:
        axes.set_xlabel("time [s]")
    return figure


def _guidance(rollouts: Rollouts, sample: int) -> Any:
    places = rollouts.states[:, sample, :, :, 0]
    drivers = rollouts.problem.options["drivers"]
    figure, grid = _columns(rollouts, sample, [1.0], 4.6, 4.6)
    limits, notes = herd_window(rollouts, sample)
    for axes, path, note in zip(grid[0], places, notes):
        for number in range(path.shape[1]):
            kind = "driver" if number < drivers else "evader"
            first = number in (0, drivers)
            colour = PALETTE[0] if kind == "driver" else PALETTE[1]
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


def _quantum(rollouts: Rollouts, sample: int) -> Any:
    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample]
    options = rollouts.problem.options
    places, values = density(states, options["points"])
    figure, grid = _columns(rollouts, sample, [1.6, 0.8, 0.8], 4.6, 6.6)
    for axes, field in zip(grid[0], values):
        image = axes.pcolormesh(
            rollouts.time, places, field.T, vmin=0, vmax=np.nanmax(values), cmap="viridis", shading="nearest", rasterized=True
        )
        axes.set(xlim=(0, rollouts.time[-1]), ylim=(0, LENGTH))
    grid[0][0].set_ylabel("place in the box")
    figure.colorbar(image, ax=list(grid[0]), label=r"density $|\psi|^2$")
    _over_time(grid[1], rollouts, controls, "tilt (control)", ["tilt"], step=True)
    _over_time(grid[2], rollouts, overlap(rollouts, states)[..., None], f"overlap with\neigenstate {options['target']}", [""])
    for axes in grid[2]:
        axes.set(xlabel="time", ylim=(-0.03, 1.03))
    return figure


def _anything(rollouts: Rollouts, sample: int) -> Any:
    """States and controls of a system that is not ours."""
    problem = rollouts.problem
    phases = len(rollouts.phases)
    states = rollouts.states[:, sample].reshape(phases, len(rollouts.time), -1)[..., :MOST_LINES]
    controls = rollouts.controls[:, sample].reshape(phases, len(rollouts.time) - 1, -1)[..., :MOST_LINES]
    figure, grid = _columns(rollouts, sample, [1.0, 1.0], 4.6, 5.2)
    _over_time(grid[0], rollouts, states, f"state [{problem.state_units}]", [f"{k}" for k in range(states.shape[-1])])
    names = [f"{k}" for k in range(controls.shape[-1])]
    _over_time(grid[1], rollouts, controls, f"control [{problem.control_units}]", names, step=True)
    for axes in grid[1]:
        axes.set_xlabel("time")
    return figure


PICTURES: dict[str, Any] = {"cartpole": _cartpole, "guidance": _guidance, "quantum": _quantum}
