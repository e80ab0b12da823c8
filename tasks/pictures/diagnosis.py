"""The picture of a diagnosis: adjoints over time, agreement of R and M by layer, exponents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stablebptt.tasks.pictures.curves import COLOURS, PALETTE, PANEL, literally, log_axis, new_figure

if TYPE_CHECKING:
    from stablebptt.tasks.diagnose import Diagnosis

BAND = (10, 90)  # percent of the samples
MEASURES = {
    "cosine": ("cosine of R and M", "o", PALETTE[0]),
    "same_sign": ("share of equal signs", "s", PALETTE[2]),
    "zeroed": ("share that C sets to zero", "^", PALETTE[1]),
}


def draw(found: Any) -> Any:
    """A figure of three panels."""
    figure = new_figure(3 * PANEL, 3.8)
    adjoints, layers, exponents = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1.1, 1.3, 0.8)})
    _adjoints(adjoints, found)
    _layers(layers, found)
    _exponents(exponents, found)
    for axes in (adjoints, layers, exponents):
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    literally(figure.suptitle(found.title, fontsize="medium"))
    return figure


def _adjoints(axes: Any, found: Diagnosis) -> None:
    drawn = []
    for letter, label, norms in (("R", "R: all paths", found.regular), ("M", "M: without the network's input", found.modified)):
        values = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
        known = np.isfinite(values).any(axis=1)
        if not known.any():
            continue
        low, middle, high = np.nanpercentile(values[known], (BAND[0], 50, BAND[1]), axis=1)
        style = "-" if letter == "R" else "--"
        axes.plot(found.time[known], middle, style, color=COLOURS[letter], label=label, linewidth=1.6)
        axes.fill_between(found.time[known], low, high, color=COLOURS[letter], alpha=0.15, linewidth=0)
        drawn += [*low, *high]
    axes.set_xlabel("time [s]")
    axes.set_ylabel(r"$|\lambda_t|$, median and 80 % of the samples")
    if drawn:
        if max(drawn) > 3 * min(drawn):
            log_axis(axes)
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "both adjoints are zero", transform=axes.transAxes, ha="center", color="0.4")


def _layers(axes: Any, found: Diagnosis) -> None:
    rows = found.table()
    places = np.arange(len(rows))[::-1]
    for number, (name, (label, mark, colour)) in enumerate(MEASURES.items()):
        values = [row[name] for row in rows]
        axes.plot(values, places + 0.18 * (1 - number), mark, color=colour, label=label, markersize=5)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.axhline(0.5, color="0.6", linewidth=0.8)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(places, [row["layer"] for row in rows], fontsize="small", parse_math=False)
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3, columnspacing=1)


def _exponents(axes: Any, found: Diagnosis) -> None:
    """A point per sample, and the medians."""
    for place, (name, values, colour) in enumerate(
        (("closed loop", found.closed_loop, COLOURS["R"]), ("physics alone", found.physics, COLOURS["M"]))
    ):
        values = values[np.isfinite(values)]
        if values.size:
            axes.plot(place + np.linspace(-0.12, 0.12, values.size), values, ".", color=colour, alpha=0.5)
            axes.plot([place - 0.25, place + 0.25], 2 * [np.median(values)], color=colour, linewidth=2)
        axes.text(place, -0.06, name, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize="small")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlim(-0.6, 1.6)
    axes.set_xticks([])
    axes.set_ylabel("largest Lyapunov exponent [1/s]")
