"""Learning curves, and what all pictures share; drawn with matplotlib."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stablebptt.data import run_file
from stablebptt.data.atomic import replacing
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.families import DIVERGED, Alike, groups, outcome, shown, trouble

if TYPE_CHECKING:
    from stablebptt.tasks.runs import Run

# Okabe and Ito's colours, which the colour-blind can tell apart; one per variant.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("", "s", "^", "D", "v")  # a point alone is "o"
COLOURS = {"R": PALETTE[1], "M": PALETTE[0], "C": PALETTE[2], "S": PALETTE[3], "N": PALETTE[4]}
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2, 2, 2, 2, 2)), (0, (3, 1, 1, 1)))
FORMATS = (".png", ".pdf", ".svg")
PANEL = 4.6  # width of a panel [inches]
ENTRY, LETTER, LINE = 0.85, 0.065, 0.2  # of a legend: an entry without its letters, a letter, and the height of a line [inches]
MOST_ROWS, WIDEST = 12, 13.8  # of a legend, before the figure becomes wider, and how wide [inches]
EMPTY = "no epoch with a finite value"
MOST_TITLES = 3  # of problems, in a heading
CURVES = {
    "test": ("test_loss", "test loss"),
    "train": ("train_loss", "training loss"),
    "update": ("gradient_norm2", "squared norm of the updates"),
    "cosine": ("cosine", "cosine of M and R"),
}


def new_figure(width: float, height: float) -> Any:
    """An empty figure [inches] that belongs to no window."""
    return _picture()(figsize=(width, height), layout="constrained")


@functools.cache
def _picture() -> Any:
    """A matplotlib figure that a notebook shows, whatever backend is chosen (matplotlib takes 0.3 s to import)."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png", dpi=100)
            return content.getvalue()

    return Picture


def literally(text: Any) -> Any:
    """A matplotlib text that shows a user's words as they are: a $ starts no formula."""
    text.set_parse_math(False)
    return text


def legend(axes: Any, names: list[str], **options: Any) -> Any:
    """A legend of the lines of a panel, under any names (matplotlib omits names that begin with _)."""
    drawn = axes.legend(axes.get_lines()[: len(names)], [str(k) for k in range(len(names))], **options)
    for text, name in zip(drawn.get_texts(), names):
        literally(text).set_text(name)
    return drawn


def learning_curves(runs: list[Run], curves: tuple[str, ...] = ("test", "update", "cosine"), smooth: int = 1) -> Any:
    """A panel per curve ("test", "train", "update", "cosine") over the epochs.

    Runs that differ only in the seed share a line, their mean, and a band from the lowest to the highest; a cross is where one
    of them diverged. `smooth` is the number of epochs of a centred running mean.
    """
    arguments.whole("smooth", smooth, 1)
    for name in curves:
        arguments.choice("curve", name, tuple(CURVES))
    drawn = [name for name in curves if name != "cosine" or any(_has_cosine(run) for run in runs)]
    if not drawn:
        raise ArgumentError("only runs of variant C, or of another join, have a cosine of M and R; choose another curve")
    found = groups(runs)
    swept = _swept(found)
    looks = _scaled(found, swept) if swept else distinct_looks([(alike.parts["variant"], alike.name) for alike in found])
    figure = new_figure(PANEL * len(drawn), 3.6)
    longest = max((len(run.history["epoch"]) for run in runs), default=0)
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
        column, label = CURVES[name]
        for alike, look in zip(found, looks):
            _curve(axes, column, alike, look, min(smooth, longest))
        epoch_axis(axes, longest)
        axes.set_ylabel(label)
        if name == "cosine":
            axes.set_ylim(-1.05, 1.05)
        elif log_helps([axes]):
            log_axis(axes)
    if swept:
        _colour_bar(figure, found, swept)
    entries = _entries(found, looks, scaled=bool(swept))
    legend_below(figure, [label for label, _ in entries], [look for _, look in entries])
    means = f"\nrunning means over {min(smooth, longest)} epochs, centred" if min(smooth, longest) > 1 else ""
    literally(figure.suptitle(_headings(runs) + means, fontsize="medium"))
    return figure


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draw and write a picture as a whole; the format follows the name."""
    arguments.choice("picture format", path.suffix.lower(), FORMATS)
    figure = draw()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150)


def distinct_looks(lines: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """How lines look, given as (variant, name): colours by variant and dashes by the rest, where these suffice.

    Else, and with a single variant, every line has a colour, dashes and marks of its own.
    """
    rests, variants = (list(dict.fromkeys(part)) for part in zip(*((n.partition(", ")[2], v) for v, n in lines)))
    others = [variant for variant in variants if variant not in COLOURS]  # a schedule is black
    if (len(variants) > 1 or len(lines) == 1) and len(rests) <= len(STYLES) and len(others) < 2:
        styles = dict(zip(rests, STYLES))
        return [{"color": COLOURS.get(v, PALETTE[-1]), "linestyle": styles[n.partition(", ")[2]]} for v, n in lines]
    looks: list[dict[str, Any]] = []
    for number in range(len(lines)):
        turn, place = divmod(number, len(PALETTE))
        look = {"color": PALETTE[place], "linestyle": STYLES[turn % len(STYLES)]}
        if mark := MARKS[turn // len(STYLES) % len(MARKS)]:
            look |= {"marker": mark, "markersize": 4}
        looks.append(look)
    return looks


def legend_below(figure: Any, names: list[str], looks: list[dict[str, Any]], **options: Any) -> None:
    """A legend of all lines below the panels, in as many columns as fit; the figure grows by its height."""
    if not names:
        return
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    wanted = (ENTRY + LETTER * max(map(len, names))) * math.ceil(len(names) / MOST_ROWS)
    width = max(width, min(wanted, WIDEST))
    names = [textwrap.fill(name, int((width - ENTRY) / LETTER)) for name in names]
    widest = max(len(part) for name in names for part in name.splitlines())
    columns = max(1, min(len(names), int(width / (ENTRY + LETTER * widest))))
    rows = math.ceil(len(names) / columns)
    tallest = max(sum(name.count("\n") + 1 for name in names[k : k + rows]) for k in range(0, len(names), rows))
    figure.set_size_inches(width, height + LINE * (tallest + 1))
    handles = [Line2D([], [], linewidth=1.4, **look) for look in looks]
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": "small", "handlelength": 3}
    place |= options
    for text, name in zip(figure.legend(handles, [str(k) for k in range(len(names))], **place).get_texts(), names):
        literally(text).set_text(name)


def _swept(found: list[Alike[Run]]) -> str:
    """The one number in which many lines differ, besides the variant; empty if dashes and colours must tell them apart."""
    names = {name for alike in found for name in alike.values}
    variants = {alike.parts["variant"] for alike in found}
    if len(found) <= len(PALETTE) or len(names) != 1 or len(variants) > len(STYLES):
        return ""
    (name,) = names
    values = [alike.values[name] for alike in found]
    return name if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) else ""


def _colour_scale(values: list[float]) -> Any:
    """Colours of numbers; by their logarithm if they span more than a decade."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    low, high = min(values), max(values)
    norm = LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)
    return ScalarMappable(norm, ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, 256))))  # its end is too pale for lines


def _scaled(found: list[Alike[Run]], swept: str) -> list[dict[str, Any]]:
    """Colours by a number, dashes by the variant."""
    styles = dict(zip(dict.fromkeys(alike.parts["variant"] for alike in found), STYLES))
    values = [float(alike.values[swept]) for alike in found]
    colours = _colour_scale(values).to_rgba(values)
    return [{"color": tuple(c), "linestyle": styles[alike.parts["variant"]]} for alike, c in zip(found, colours)]


def _colour_bar(figure: Any, found: list[Alike[Run]], swept: str) -> None:
    """The scale of a swept number beside the panels, with how many runs it stands for."""
    counts = sorted({len({run.config["seed"] for run in alike.runs}) for alike in found})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    words = f"{shown(swept)} ({len(found)} lines" + (f" of {seeds} seeds)" if counts[-1] > 1 else ")")
    literally(figure.colorbar(_colour_scale([float(a.values[swept]) for a in found]), ax=figure.axes, label=words).ax.yaxis.label)


def _entries(found: list[Alike[Run]], looks: list[dict[str, Any]], *, scaled: bool) -> list[tuple[str, dict[str, Any]]]:
    """What the legend names: every line; beside a colour scale the variants, and lines that are not complete."""
    if not scaled:
        return [(alike.label, look) for alike, look in zip(found, looks)]
    dashes = {alike.parts["variant"]: {"color": "black", "linestyle": look["linestyle"]} for alike, look in zip(found, looks)}
    return [*dashes.items(), *((alike.label, look) for alike, look in zip(found, looks) if trouble(alike.runs))]


def _headings(runs: list[Run]) -> str:
    """The titles of the problems, or how many there are."""
    titles = sorted({run.problem.title for run in runs})
    return "; ".join(titles) if len(titles) <= MOST_TITLES else f"{len(titles)} problems"


def _has_cosine(run: Run) -> bool:
    return bool(np.isfinite(run.history["cosine"]).any())


def epoch_axis(axes: Any, longest: int, empty: str = EMPTY) -> None:
    """An axis of whole numbers; a panel without a line says so."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    ticks: Any = "auto" if longest < 10_000 else 4  # matplotlib takes all numbers to be short
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if longest < 2:
        axes.set_xlim(0.5, 1.5)
    if not axes.get_lines():
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", color="0.4")
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def log_helps(panels: list[Any]) -> bool:
    """Whether all values are above zero and span more than half a decade."""
    values = np.concatenate([line.get_ydata() for axes in panels for line in axes.get_lines()] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 3 * values.min())


def log_axis(axes: Any) -> None:
    """A logarithmic axis with plain numbers; more of them where the values span less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def aligned(columns: list[np.ndarray]) -> np.ndarray:
    """Rows of equal length; NaN behind the shorter ones, and for what is not finite."""
    values = np.full((len(columns), max(len(column) for column in columns)), np.nan)
    for row, column in zip(values, columns):
        row[: len(column)] = np.where(np.isfinite(column), column, np.nan)
    return values


def epochs_of(runs: list[Any], column: str) -> np.ndarray:
    """The epochs that a line through a column of the histories meets: those in which no run lacks it for want of evaluation."""
    known = np.ones(max(len(run.history["epoch"]) for run in runs), bool)
    if column in run_file.LOSSES:
        for run in runs:
            known[: len(run.history["epoch"])] &= run_file.evaluated(run.history)
    return np.flatnonzero(known) + 1


def line(axes: Any, epochs: np.ndarray, values: np.ndarray, label: str, look: dict[str, Any]) -> None:
    """A line over some epochs, with points where a value stands alone, and marks, if any, at every eighth of it."""
    known = np.isfinite(values)
    beside = np.concatenate([[False], known, [False]])
    alone = np.flatnonzero(known & ~beside[:-2] & ~beside[2:])
    every = max(1, len(values) // 8) if "marker" in look else alone.tolist()
    axes.plot(epochs, values, label=label, linewidth=1.4, markevery=every, **({"marker": "o", "markersize": 4} | look))


def _curve(axes: Any, column: str, alike: Alike[Run], look: dict[str, Any], smooth: int) -> None:
    epochs = epochs_of(alike.runs, column)
    values = aligned([smoothed(run.history[column], smooth) for run in alike.runs])[:, epochs - 1]
    seen = np.isfinite(values).any(axis=0)
    if not seen.any():
        return
    means, low, high = (np.full(len(seen), np.nan) for _ in range(3))
    for row, function in ((means, np.nanmean), (low, np.nanmin), (high, np.nanmax)):
        row[seen] = function(values[:, seen], axis=0)
    line(axes, epochs, means, alike.label, look)
    if len(alike.runs) > 1:
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
    for run, row in zip(alike.runs, values):
        if outcome(run) == DIVERGED and np.isfinite(row).any():
            last = int(np.flatnonzero(np.isfinite(row))[-1])
            axes.scatter([epochs[last]], [row[last]], color=[look["color"]], marker="x", s=36, zorder=3)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over the finite values among `width`: fewer at both ends, and never more than there are.

    Of an even number, the two values at the ends count half, so that the middle is an epoch.
    """
    width = min(width, len(values))
    if width < 2:
        return values
    half = width // 2
    weights = np.ones(2 * half + 1)
    if width % 2 == 0:
        weights[[0, -1]] = 0.5
    finite = np.isfinite(values)
    sums, counts = (np.convolve(part, weights)[half : half + len(values)] for part in (np.where(finite, values, 0.0), finite))
    with np.errstate(invalid="ignore"):  # NaN where none is finite
        return sums / counts
