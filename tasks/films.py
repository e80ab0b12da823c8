"""Films of rollouts, untrained beside trained: GIF, or MP4 where ffmpeg is installed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data.atomic import replacing
from stablebptt.kernels.quantum import LENGTH
from stablebptt.tasks import checks
from stablebptt.tasks.figures import PALETTE, literally, new_figure
from stablebptt.tasks.rollout_figures import (
    curves,
    density,
    herd_window,
    look,
    overlap,
    plane_window,
    pole_tips,
    target_state,
    window,
)
from stablebptt.tasks.rollouts import Rollouts

FORMATS = (".gif", ".mp4")
TAIL = 12  # steps of the path that stay visible
REST = 1.0  # duration of the last picture [s]
Update = Callable[[int], None]


def film(rollouts: Rollouts, sample: int) -> tuple[Any, Update]:
    """A figure with one panel per controller, and a function that moves it to a time step."""
    checks.index("trajectory", sample, rollouts.count)
    stage = STAGES.get(rollouts.problem.task, _anything)
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


def save_film(rollouts: Rollouts, sample: int, path: Path, fps: int = 25, every: int = 1, dpi: int = 80) -> int:
    """Write a film of one initial state with a picture for every `every`-th time step; returns the number of pictures."""
    checks.choice("film format", path.suffix.lower(), FORMATS)
    for name, value in (("fps", fps), ("every", every), ("dpi", dpi)):
        checks.whole(name, value, 1, 1000)
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError("an .mp4 file needs the program ffmpeg, which is not installed; choose a .gif file")
    from matplotlib.animation import FFMpegWriter, PillowWriter

    figure, update = film(rollouts, sample)
    last = len(rollouts.time) - 1
    steps = [*range(0, last, every), *[last] * (1 + round(REST * fps))]

    writer = PillowWriter(fps=fps) if path.suffix.lower() == ".gif" else FFMpegWriter(fps=fps)
    with replacing(path) as beside, writer.saving(figure, str(beside), dpi):
        for step in steps:
            update(step)
            writer.grab_frame()
    return len(steps)


def _cartpole(panels: Any, rollouts: Rollouts, sample: int) -> list[Update]:
    states = rollouts.states[:, sample]
    carts = states[..., 0, 0]
    tips_x, tips_y = pole_tips(rollouts, states)
    limits = plane_window(rollouts, carts, tips_x)
    updates: list[Update] = []
    for axes, cart, x, y in zip(panels, carts, tips_x, tips_y):
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="place [m]", aspect="equal", xlim=limits, ylim=(-1.2, 1.2))
        poles = [axes.plot([], [], "-", color=PALETTE[k % len(PALETTE)], linewidth=2.5)[0] for k in range(x.shape[1])]
        body = axes.plot([], [], "s", color="black", markersize=9)[0]

        def move(step: int, cart: Any = cart, x: Any = x, y: Any = y, poles: Any = poles, body: Any = body) -> None:
            body.set_data([cart[step]], [0])
            for k, pole in enumerate(poles):
                pole.set_data([cart[step], x[step, k]], [0, y[step, k]])

        updates.append(move)
    panels[0].set_ylabel("height [m]")
    return updates


def _guidance(panels: Any, rollouts: Rollouts, sample: int) -> list[Update]:
    places, drivers = rollouts.states[:, sample, :, :, 0], rollouts.problem.options["drivers"]
    limits, notes = herd_window(rollouts, sample)
    updates: list[Update] = []
    for axes, path, note in zip(panels, places, notes):
        axes.text(0.03, 0.02, note, transform=axes.transAxes, fontsize="x-small", color="0.3")
        axes.plot(*rollouts.problem.options["target"], "*", color="black", markersize=11)
        axes.set(xlabel="x", aspect="equal", xlim=limits, ylim=limits)
        colours = [PALETTE[0] if k < drivers else PALETTE[1] for k in range(path.shape[1])]
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


def _quantum(panels: Any, rollouts: Rollouts, sample: int) -> list[Update]:
    states, controls = rollouts.states[:, sample], rollouts.controls[:, sample, :, 0]
    options, target = rollouts.problem.options, target_state(rollouts)
    places, values = density(states, options["points"])
    wanted = density(np.stack([target, 0 * target], axis=-1), options["points"])[1]
    shares = overlap(rollouts, states)
    top, steepest = 1.15 * max(np.nanmax(values), wanted.max()), np.nanmax(np.abs(controls)) or 1.0
    updates: list[Update] = []
    for axes, field, tilts, share in zip(panels, values, controls, shares):
        axes.plot(places, wanted, "--", color="black", linewidth=1.0, label=f"eigenstate {options['target']}")
        wave = axes.plot(places, field[0], color=PALETTE[0], linewidth=1.8, label=r"$|\psi|^2$")[0]
        floor = axes.plot([0, LENGTH], [0, 0], color=PALETTE[1], linewidth=1.5, label="tilt of the floor")[0]
        text = axes.text(0.03, 0.95, "", transform=axes.transAxes, fontsize="small", va="top")
        axes.set(xlabel="place in the box", xlim=(0, LENGTH), ylim=(-0.25 * top, top))

        def move(
            step: int, field: Any = field, tilts: Any = tilts, share: Any = share, wave: Any = wave, floor: Any = floor,
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


STAGES: dict[str, Any] = {"cartpole": _cartpole, "guidance": _guidance, "quantum": _quantum}
