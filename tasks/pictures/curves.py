"""Learning curves, and what all pictures share; drawn with matplotlib."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stablebptt.data.atomic import replacing
from stablebptt.data.run_file import Content
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

if TYPE_CHECKING:
    from stablebptt.tasks.runs import Run

# Okabe and Ito's colours, which the colour-blind can tell apart; one per variant.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOURS = {"R": PALETTE[1], "M": PALETTE[0], "C": PALETTE[2], "S": PALETTE[3], "N": PALETTE[4]}
STYLES = ("-", "--", ":", "-.")
FORMATS = (".png", ".pdf", ".svg")
AnyRun = TypeVar("AnyRun", "Run", Content)
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

    Runs that differ only in the seed share a line, their mean, and a band from the lowest to the highest. `smooth` is the number
    of epochs of a running mean.
    """
    arguments.whole("smooth", smooth, 1)
    for name in curves:
        arguments.choice("curve", name, tuple(CURVES))
    found = families(runs)
    looks = _looks(found)
    drawn = [name for name in curves if name != "cosine" or any(_has_cosine(run) for run in runs)]
    if not drawn:
        raise ArgumentError("only runs of variant C have a cosine of M and R; choose another curve")
    figure = new_figure(4.6 * len(drawn), 3.6)
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
        column, label = CURVES[name]
        for title, members in found.items():
            _curve(axes, column, members, title, looks[title], smooth)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if name == "cosine":
            axes.set_ylim(-1.05, 1.05)
        elif log_helps([axes]):
            log_axis(axes)
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    shown = figure.axes[0]
    if shown.get_lines():  # otherwise no epoch is done
        legend(shown, [line.get_label() for line in shown.get_lines()], frameon=False, fontsize="small")
    heading = "; ".join(sorted({run.problem.title for run in runs}))
    literally(figure.suptitle(heading + (f" (running means over {smooth} epochs)" if smooth > 1 else ""), fontsize="medium"))
    return figure


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draw and write a picture as a whole; the format follows the name."""
    arguments.choice("picture format", path.suffix.lower(), FORMATS)
    figure = draw()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150)


def variant_name(run: Run | Content) -> str:
    """The letter of a run's variant, or "schedule"."""
    variant = run.config["variant"]
    return variant if isinstance(variant, str) else "schedule"


def families(runs: list[AnyRun]) -> dict[str, list[AnyRun]]:
    """Runs that differ only in seed and epochs, named by the variant and by what distinguishes them from the others."""
    facts = [_facts(run) for run in runs]
    names = sorted({name for known in facts for name in known})
    telling = [name for name in names if len({known.get(name) for known in facts}) > 1 and name != "variant"]
    families: dict[str, list[AnyRun]] = {}
    for run, known in zip(runs, facts):
        parts = [variant_name(run)]
        parts += [f"{name.replace('_', ' ')} {known[name].strip(chr(34))}" for name in telling if name in known]
        families.setdefault(", ".join(parts), []).append(run)
    return families


def _facts(run: Run | Content) -> dict[str, str]:
    """The configuration without nesting, seed and epochs, as words that can be compared."""
    facts: dict[str, Any] = {name: value for name, value in run.config.items() if name not in ("seed", "epochs")}
    optimizer = facts.pop("optimizer", {})
    facts |= facts.pop("options", {})
    facts |= {name if name != "name" else "optimizer": value for name, value in optimizer.items()}
    return {name: json.dumps(value) for name, value in facts.items()}


def _looks(families: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Colour by variant and style by the rest; with a single variant, colours distinguish the rest."""
    variants = {title: variant_name(members[0]) for title, members in families.items()}
    if len(set(variants.values())) == 1 and len(families) > 1:
        return {title: {"color": PALETTE[i % len(PALETTE)]} for i, title in enumerate(families)}
    looks, seen = {}, dict.fromkeys(variants.values(), 0)
    for title, variant in variants.items():
        style = STYLES[seen[variant] % len(STYLES)]
        looks[title] = {"color": COLOURS.get(variant, PALETTE[-1]), "linestyle": style}
        seen[variant] += 1
    return looks


def _has_cosine(run: Run) -> bool:
    return bool(np.isfinite(run.history["cosine"]).any())


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


def _curve(axes: Any, column: str, members: list[Run], title: str, look: dict[str, Any], smooth: int) -> None:
    columns = [_smoothed(run.history[column], smooth) for run in members]
    longest = max(len(values) for values in columns)
    values = np.full((len(members), longest), np.nan)
    for row, known in zip(values, columns):
        row[: len(known)] = known
    seen = np.isfinite(values).any(axis=0)
    if not seen.any():
        return
    epochs, values = np.arange(1, longest + 1)[seen], values[:, seen]
    shorter = sum(len(known) < longest for known in columns)
    notes = [f"{len(members)} seeds"] * (len(members) > 1) + [f"{shorter} ended early"] * (shorter > 0)
    label = title + (f" ({', '.join(notes)})" if notes else "")
    axes.plot(epochs, np.nanmean(values, axis=0), label=label, linewidth=1.4, **look)
    if len(members) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the finite values among the last `width` (fewer at the beginning)."""
    if width == 1 or not len(values):
        return values
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(np.concatenate([[0.0], part])) for part in (np.where(finite, values, 0.0), finite))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)
    with np.errstate(invalid="ignore"):  # NaN where none is finite
        return (sums[end] - sums[begin]) / (counts[end] - counts[begin])
