"""Pictures of rollouts, one column per controller (untrained, trained), in the way that suits each system."""

import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stablebptt.kernels.quantum import LENGTH
from stablebptt.tasks import checks
from stablebptt.tasks.figures import PALETTE, STYLES, legend, literally, new_figure
from stablebptt.tasks.problems import Axis
from stablebptt.tasks.rollouts import Rollouts

INSTANTS = 12  # carts drawn above each other
MOST_LINES = 12  # most numbers of an unknown system's state in one picture
ENTRY_HEIGHT, LINE_HEIGHT = 0.2, 0.14  # of a legend: an entry, and what a second line adds [inches]


def draw(rollouts: Rollouts, sample: int) -> Any:
    """The rollouts of one initial state, drawn as suits their task."""
    checks.index("trajectory", sample, rollouts.count)
    picture = PICTURES.get(rollouts.problem.task, _anything)
    figure = picture(rollouts, sample)
    literally(figure.suptitle(f"{rollouts.problem.title}, initial state {sample}", fontsize="medium"))
    return figure


def headings(rollouts: Rollouts, sample: int) -> list[str]:
    """Titles of the columns: which controller, and the loss of its rollout."""
    return [f"{phase}: loss {loss:.3g}" for phase, loss in zip(rollouts.phases, rollouts.loss[:, sample])]


def pole_length(rollouts: Rollouts) -> float:
    """Length of the cart-pole's poles [m]."""
    system: Any = rollouts.problem.system
    return 2 * float(system.half_length)


def target_state(rollouts: Rollouts) -> np.ndarray:
    """The eigenstate (Nx,) that quantum control should reach."""
    loss: Any = rollouts.problem.loss_function
    return loss.target.astype(np.float64)


def pole_tips(rollouts: Rollouts, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the poles (.., P) in the plane [m] for states (.., 1+P, 2); angle 0 points up."""
    length = pole_length(rollouts)
    angles = states[..., 1:, 0]
    return states[..., :1, 0] + length * np.sin(angles), length * np.cos(angles)


def density(states: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (Nx+2,) with the walls, and the probability density (.., Nx+2) there, for states (.., Nx, 2)."""
    dx = LENGTH / (points + 1)
    inside = np.sum(np.square(states, dtype=np.float64), axis=-1) / dx
    walls = [(0, 0)] * (inside.ndim - 1) + [(1, 1)]
    return dx * np.arange(points + 2), np.pad(inside, walls)


def overlap(rollouts: Rollouts, states: np.ndarray) -> np.ndarray:
    """``|<psi, target>|^2`` (..) for states (.., Nx, 2)."""
    return np.sum((target_state(rollouts) @ states.astype(np.float64)) ** 2, axis=-1)


def window(values: np.ndarray, margin: float = 0.05) -> tuple[float, float]:
    """Limits of an axis around all finite values."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = margin * (high - low) or 0.5
    return low - room, high + room


def plane_window(rollouts: Rollouts, carts: np.ndarray, tips: np.ndarray) -> tuple[float, float]:
    """Limits along the rail [m] that contain the carts and the ends of the poles; never narrower than the poles are long."""
    reach = 1.2 * pole_length(rollouts)
    low, high = window(np.concatenate([carts.ravel(), tips.ravel()]))
    middle, half = (low + high) / 2, max((high - low) / 2, reach)
    return middle - half, middle + half


def herd_window(rollouts: Rollouts, sample: int) -> tuple[tuple[float, float], list[str]]:
    """Limits in the plane that contain all starts, the target and the paths of the evaders; and a note per column on drivers that
    leave them (a driver is free to go once its work is done)."""
    places, drivers = rollouts.states[:, sample, :, :, 0], rollouts.problem.options["drivers"]
    held = [places[:, :, drivers:].ravel(), places[:, 0].ravel(), np.array(rollouts.problem.options["target"])]
    low, high = window(np.concatenate(held), 0.1)
    away = np.sum(np.any((places[:, :, :drivers] < low) | (places[:, :, :drivers] > high), axis=(1, 3)), axis=1)
    return (low, high), [f"{n} driver{'s' if n > 1 else ''} left the picture" if n else "" for n in away.tolist()]


@dataclass(frozen=True)
class Curves:
    """The states or controls of an unknown system, or the first of their numbers: what to draw, and its labels.

    Attributes
    ----------
    values (phases, times, n) : the numbers
    names : of the n numbers
    label : of the axis
    note : how many of them are drawn; empty if all are
    """

    values: np.ndarray
    names: list[str]
    label: str
    note: str

    def legend(self, axes: Any, fontsize: str) -> None:
        """Name the lines beside a panel; a single line gets no legend."""
        if len(self.names) > 1:
            options = {"loc": "upper left", "bbox_to_anchor": (1.04, 1.0), "borderaxespad": 0.0, "frameon": False}
            legend(axes, self.names, fontsize=fontsize, title=self.note or None, title_fontsize=fontsize, **options)

    @property
    def height(self) -> float:
        """Height that a panel beside the legend needs [inches]."""
        return max(2.4, ENTRY_HEIGHT * (4 + len(self.names)) + LINE_HEIGHT * sum(name.count("\n") for name in self.names))


def curves(rollouts: Rollouts, what: str, sample: int, letters: int = 30, lines: int = 2) -> Curves:
    """The states (`what` "state") or controls ("control") of an unknown system from one initial state.

    Names are cut to fit into `lines` lines of `letters` letters.
    """
    given = rollouts.states if what == "state" else rollouts.controls
    axes, units = getattr(rollouts, f"{what}_axes"), getattr(rollouts.problem, f"{what}_units")
    flat = given[:, sample].reshape(*given.shape[:1], given.shape[2], -1)
    count = flat.shape[-1]
    first = itertools.islice(_names(axes), MOST_LINES)
    names = [textwrap.fill(_cut(name, letters * lines), letters) for name in first]
    note = f"the first {MOST_LINES} of {count}" if count > MOST_LINES else ""
    single = count == 1 and isinstance(axes[0].places[0], str)
    label = f"{names[0] if single else what} [{units}]" + (f"\n({note} numbers)" if note else "")
    return Curves(flat[..., :MOST_LINES], names, label, note)


def _names(axes: tuple[Axis, ...]) -> Iterator[str]:
    """The places along the axes of every number of a state or control, in their order."""
    words = ([f"{place:g}" if isinstance(place, float) else str(place) for place in axis.places] for axis in axes)
    return map(", ".join, itertools.product(*words))


def _cut(name: str, most: int) -> str:
    """A name without its middle, if it is longer than `most` letters: ends distinguish names."""
    tail = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - tail].rstrip()}…{name[-tail:].lstrip()}"


def look(number: int) -> dict[str, str]:
    """Colour and style of a line, by its number."""
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": STYLES[number // len(PALETTE) % len(STYLES)]}


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
    """Curves of values (phases, times, n) over time in a row of panels; without names, no legend."""
    for axes, curves in zip(row, values):
        for number, (curve, name) in enumerate(zip(curves.T, names or itertools.repeat(None))):
            if step:  # the last control acts until the end
                curve = np.append(curve, curve[-1:])
            times = rollouts.time[: len(curve)]
            axes.plot(times, curve, label=name, linewidth=1.3, drawstyle="steps-post" if step else "default", **look(number))
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
    """States and controls of a custom system."""
    parts = [curves(rollouts, what, sample) for what in ("state", "control")]
    heights = [part.height for part in parts]
    figure, grid = _columns(rollouts, sample, heights, 4.6 + 2.0 / len(rollouts.phases), sum(heights) + 0.6)
    for row, part, step in zip(grid, parts, (False, True)):
        _over_time(row, rollouts, part.values, "", [], step=step)
        literally(row[0].set_ylabel(part.label))
        part.legend(row[-1], "small")
    for axes in grid[1]:
        axes.set_xlabel("time")
    return figure


PICTURES: dict[str, Any] = {"cartpole": _cartpole, "guidance": _guidance, "quantum": _quantum}
