"""The figures of docs/reproduction.md, from results."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import judgement
import numpy as np
from judgement import CLIPS, EPOCHS, LEVELS, NAMES, VARIANTS, Results, level_name

from stablebptt.data.results import Result
from stablebptt.tasks.pictures import curves

COLOURS = [curves.COLOURS[variant] for variant in VARIANTS]
ROWS = (("test loss", "test_loss"), ("share of seeds solved", ""), ("size of the updates", "gradient_norm2"))
GREY = "0.45"
NO_RUN = "no run yet"
MEANINGS = ("R: the gradient", "M: stopped at the input", "C: both, joined by sign", "S: one step")


def pictures(results: Results) -> dict[str, Any]:
    """Names of the figures that the results allow, and what draws them."""
    tasks = [task for task in LEVELS if results.levels(task)]
    found: dict[str, Any] = {"reproduction.png": summary}
    found |= {f"reproduction-{task}.png": partial(task_figure, task=task) for task in tasks}
    return found | {judgement.CLIPPING.format(task): partial(clipping_figure, task=task) for task in results.clipped_tasks()}


def draw(results: Results, folder: Path) -> None:
    for name, function in pictures(results).items():
        curves.save(partial(function, results), folder / name)


def summary(results: Results) -> Any:
    """Last losses as ratios to R's of the same seed, and seeds solved, for all levels of all tasks."""
    figure = curves.new_figure(9.2, 5.6)
    ratios, shares = figure.subplots(1, 2, sharey=True, width_ratios=[2.2, 1])
    places = _places()
    for (task, level), place in places.items():
        if not any(results.ended(task, level, variant) for variant in VARIANTS):
            ratios.text(1.15, place, NO_RUN, color=GREY, va="center", fontsize="small")
        for number, variant in enumerate(VARIANTS):
            _level(ratios, shares, results, (task, level, variant), place + 0.18 * (number - 1.5))
    ratios.axvline(1, color=COLOURS[0], linewidth=1.4)
    ratios.set_xscale("log")
    ratios.xaxis.set_major_formatter("{x:g}")
    ratios.set_xlabel(f"last test loss / that of R, same seed: mean, 95 % (open: fewer than {judgement.FEWEST} pairs)")
    ratios.text(0.98, 1.01, "better than R ", transform=ratios.get_xaxis_transform(), ha="right", fontsize="small", color=GREY)
    ratios.text(1.02, 1.01, " worse", transform=ratios.get_xaxis_transform(), ha="left", fontsize="small", color=GREY)
    shares.set(xlim=(-0.05, 1.05), xlabel="share of seeds solved")
    ratios.set_yticks(list(places.values()), [f"{NAMES[task]}, {level_name(task, level)}" for task, level in places])
    ratios.set_ylim(max(places.values()) + 0.6, -0.6)
    for axes in (ratios, shares):
        axes.grid(True, axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend_below(figure, list(MEANINGS), [{"color": colour, "marker": "o"} for colour in COLOURS])
    return figure


def _places() -> dict[tuple[str, float], float]:
    """Heights of all levels, with a gap between tasks."""
    found: dict[tuple[str, float], float] = {}
    for gap, (task, (_, levels)) in enumerate(LEVELS.items()):
        for level in levels:
            found[task, level] = len(found) + 0.5 * gap
    return found


def _level(ratios: Any, shares: Any, results: Results, place: tuple[str, float, str], height: float) -> None:
    """The marks of one variant on one level."""
    task, level, variant = place
    look: dict[str, Any] = {"color": curves.COLOURS[variant], "markersize": 5}
    if variant != "R" and (found := judgement.comparison(results, task, level, (variant, "R"))) is not None:
        low, middle, high = np.exp([found.low, found.mean, found.high])
        if known := len(found.values) >= judgement.FEWEST:
            ratios.plot([low, high], [height, height], linewidth=1.6, color=look["color"])
        ratios.plot([middle], [height], "o", **look, markerfacecolor=look["color"] if known else "white")
    if runs := results.ended(task, level, variant):
        shares.plot([np.mean([judgement.solved(run) for run in runs])], [height], "o", **look)


def task_figure(results: Results, task: str) -> Any:
    """Over the epochs, a column per level: losses (median, quartiles), seeds solved, size of the updates (median, quartiles)."""
    levels = results.levels(task)
    figure = curves.new_figure(max(3.0 * len(levels) + 0.6, 6.4), 7.2)
    grid = figure.subplots(len(ROWS), len(levels), squeeze=False, sharex=True, sharey="row")
    for level, panels in zip(levels, grid.T):
        for axes, (_, column) in zip(panels, ROWS):
            for variant in VARIANTS:
                if runs := results.ended(task, level, variant):
                    _line(axes, runs, column, curves.COLOURS[variant])
            curves.epoch_axis(axes, EPOCHS)
            axes.set_xlabel("")
        panels[0].set_title(level_name(task, level), fontsize="medium")
        panels[-1].set_xlabel("epoch")
    for row, (label, column) in zip(grid, ROWS):
        row[0].set_ylabel(label)
        if column and curves.log_helps(list(row)):
            curves.log_axis(row[0])
    grid[1, 0].set_ylim(-0.05, 1.05)
    drawn = [any(results.ended(task, level, variant) for level in levels) for variant in VARIANTS]
    looks = [{"color": colour} for colour in itertools.compress(COLOURS, drawn)]
    curves.legend_below(figure, list(itertools.compress(MEANINGS, drawn)), looks)
    return figure


def clipping_figure(results: Results, task: str) -> Any:
    """Test losses of the published runs: a column per level, a row per way of clipping."""
    levels = LEVELS[task][1]
    figure = curves.new_figure(max(3.0 * len(levels) + 0.6, 6.4), 6.6)
    grid = figure.subplots(len(CLIPS), len(levels), squeeze=False, sharex=True, sharey=True)
    for (clip, row), (number, level) in itertools.product(zip(CLIPS, grid), enumerate(levels)):
        for variant in VARIANTS:
            if (run := results.published(task, level, variant, clip)) is not None:
                _line(row[number], [run], "test_loss", curves.COLOURS[variant])
        curves.epoch_axis(row[number], EPOCHS, NO_RUN)
        row[number].set_xlabel("epoch" if clip == CLIPS[-1] else "")
        row[0].set_ylabel(f"test loss, clip {clip}")
        grid[0, number].set_title(level_name(task, level), fontsize="medium")
    if curves.log_helps(list(grid.flat)):
        curves.log_axis(grid[0, 0])
    curves.legend_below(figure, list(MEANINGS), [{"color": colour} for colour in COLOURS])
    return figure


def _line(axes: Any, runs: list[Result], column: str, colour: str) -> None:
    """A median with its quartiles, or the share of runs that are solved."""
    if not column:
        epochs = np.arange(1, EPOCHS + 1)
        firsts = np.array([run.numbers["first_epoch_solved"] if judgement.solved(run) else np.inf for run in runs])
        curves.line(axes, epochs, (firsts[:, None] <= epochs).mean(axis=0), "", {"color": colour})
        return
    epochs = runs[0].history["epoch"]
    whole = [run.history[column] for run in runs if np.array_equal(run.history["epoch"], epochs)]
    values = np.sqrt(whole) if column == "gradient_norm2" else np.maximum(whole, judgement.FLOOR)
    values[values == 0] = np.nan  # S has no update of guidance, and a logarithmic axis no 0
    low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
    curves.line(axes, epochs, middle, "", {"color": colour})
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
