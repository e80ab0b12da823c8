"""Pictures of rollouts, one column per controller (untrained, trained), in the way that suits each system."""

import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stablebptt.tasks import arguments
from stablebptt.tasks.pictures.curves import PALETTE, STYLES, legend, literally, new_figure
from stablebptt.tasks.problems import Axis
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.rollouts import Rollouts
from stablebptt.tasks.task import Task

MOST_LINES = 12  # numbers of an unknown system's state that are drawn
ENTRY_HEIGHT, LINE_HEIGHT = 0.2, 0.14  # of a legend: an entry, and what a second line adds [inches]


def draw(rollouts: Rollouts, sample: int, task: Task | None = None) -> Any:
    """The rollouts of one initial state, in the manner of their task; of a task that is not ours, give the record."""
    arguments.index("trajectory", sample, rollouts.count)
    task = task or TASKS.get(rollouts.problem.task)
    picture = task.picture if task is not None and task.picture is not None else _anything
    figure = picture(rollouts, sample)
    literally(figure.suptitle(f"{rollouts.problem.title}, initial state {sample}", fontsize="medium"))
    return figure


def headings(rollouts: Rollouts, sample: int) -> list[str]:
    """Titles of the columns: which controller, and the loss of its rollout."""
    return [f"{phase}: loss {loss:.3g}" for phase, loss in zip(rollouts.phases, rollouts.loss[:, sample])]


def window(values: np.ndarray, margin: float = 0.05) -> tuple[float, float]:
    """Limits of an axis around all finite values."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = margin * (high - low) or 0.5
    return low - room, high + room


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


def colour(number: int) -> str:
    """Colour of one of many things."""
    return PALETTE[number % len(PALETTE)]


def look(number: int) -> dict[str, Any]:
    """Colour and style of one of many lines."""
    return {"color": colour(number), "linestyle": STYLES[number // len(PALETTE) % len(STYLES)]}


def columns(rollouts: Rollouts, sample: int, heights: list[float], width: float, height: float) -> tuple[Any, Any]:
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


def over_time(row: Any, rollouts: Rollouts, values: np.ndarray, label: str, names: list[str], *, step: bool = False) -> None:
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


def _anything(rollouts: Rollouts, sample: int) -> Any:
    """States and controls of a custom system."""
    parts = [curves(rollouts, what, sample) for what in ("state", "control")]
    heights = [part.height for part in parts]
    figure, grid = columns(rollouts, sample, heights, 4.6 + 2.0 / len(rollouts.phases), sum(heights) + 0.6)
    for row, part, step in zip(grid, parts, (False, True)):
        over_time(row, rollouts, part.values, "", [], step=step)
        literally(row[0].set_ylabel(part.label))
        part.legend(row[-1], "small")
    for axes in grid[1]:
        axes.set_xlabel("time")
    return figure
