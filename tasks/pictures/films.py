"""Films of rollouts, untrained beside trained: GIF, or MP4 where ffmpeg is installed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stablebptt.data.atomic import replacing
from stablebptt.tasks import arguments
from stablebptt.tasks.bars import Tell, each
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.pictures.curves import literally, new_figure
from stablebptt.tasks.pictures.rollouts import curves, look, window
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.rollouts import Rollouts
from stablebptt.tasks.task import Task

FORMATS = (".gif", ".mp4")
REST = 1.0  # how long the last picture stays [s]
Update = Callable[[int], None]


def film(rollouts: Rollouts, sample: int, task: Task | None = None) -> tuple[Any, Update]:
    """A figure with one panel per controller, and a function that moves it to a time step; for `task` see `draw`."""
    arguments.index("trajectory", sample, rollouts.count)
    task = task or TASKS.get(rollouts.problem.task)
    stage = task.film if task is not None and task.film is not None else _anything
    figure = new_figure(3.6 * len(rollouts.phases), 3.4)
    panels = figure.subplots(1, len(rollouts.phases), squeeze=False, sharey=True)[0]
    for axes, phase in zip(panels, rollouts.phases):
        axes.set_title(phase)
    updates = stage(panels, rollouts, sample)
    clock = literally(figure.suptitle("", fontsize="medium", family="monospace"))

    def update(step: int) -> None:
        clock.set_text(f"{rollouts.problem.title}   t = {rollouts.time[step]:5.2f}")
        for move in updates:
            move(step)

    update(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keeps positions as they are now
    return figure, update


def save_film(
    rollouts: Rollouts, sample: int, path: Path, fps: int = 25, every: int = 1, *, dpi: int = 80, task: Task | None = None,
    tell: Tell | None = None,
) -> int:  # fmt: skip
    """Write a film of one initial state, a picture for every `every`-th time step; returns the number of pictures.

    `tell` is told how many of them are written.
    """
    arguments.choice("film format", path.suffix.lower(), FORMATS)
    for name, value in (("fps", fps), ("every", every), ("dpi", dpi)):
        arguments.whole(name, value, 1, 1000)
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise ArgumentError("an .mp4 file needs the program ffmpeg, which is not installed; choose a .gif file")
    from matplotlib.animation import FFMpegWriter, PillowWriter

    figure, update = film(rollouts, sample, task)
    last = len(rollouts.time) - 1
    steps = [*range(0, last, every), *[last] * (1 + round(REST * fps))]

    writer = PillowWriter(fps=fps) if path.suffix.lower() == ".gif" else FFMpegWriter(fps=fps)
    with replacing(path) as beside, writer.saving(figure, str(beside), dpi):
        for step in each(steps, tell):
            update(step)
            writer.grab_frame()
    return len(steps)


def _anything(panels: Any, rollouts: Rollouts, sample: int) -> list[Update]:
    """The numbers of a custom system's state as curves that grow over time."""
    times, states = rollouts.time, curves(rollouts, "state", sample, 20, 1)
    limits = window(states.values)
    updates: list[Update] = []
    for axes, values in zip(panels, states.values):
        axes.set(xlabel="time", xlim=(0, times[-1]), ylim=limits)
        lines = [axes.plot([], [], **look(k))[0] for k in range(values.shape[1])]

        def move(step: int, values: Any = values, lines: Any = lines) -> None:
            for k, line in enumerate(lines):
                line.set_data(times[: step + 1], values[: step + 1, k])

        updates.append(move)
    literally(panels[0].set_ylabel(states.label))
    states.legend(panels[-1], "x-small")
    return updates
