"""Pictures of what was learned, drawn with matplotlib."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.tasks import checks
from stablebptt.tasks.training import Run

# Okabe and Ito's colours, which the colour-blind can tell apart, one per variant.
COLOURS = {"R": "#D55E00", "M": "#0072B2", "C": "#009E73", "S": "#CC79A7", "N": "#E69F00"}
OTHER = "#000000"
STYLES = ("-", "--", ":")  # one per way of clipping
FORMATS = (".png", ".pdf", ".svg")


def learning_curves(runs: list[Run]) -> Any:
    """Test loss, size of the updates and (where there is one) the cosine of M and R over the epochs.

    Runs that differ in nothing but the seed share a curve: mean, and a band from the lowest to the highest.
    """
    from matplotlib.figure import Figure

    families = _families(runs)
    clips = sorted({run.config["clip"] for run in runs})
    with_cosine = any(np.isfinite(run.history["cosine"]).any() for run in runs)
    panels = [("test_loss", "test loss"), ("gradient_norm2", "squared norm of the update's gradient")]
    panels += [("cosine", "cosine of M and R")] if with_cosine else []
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for place, (name, label) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for title, members in families.items():
            _curve(axes, name, members, title, STYLES[clips.index(members[0].config["clip"])])
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if name != "cosine" and all(np.nanmin(line.get_ydata(), initial=1.0) > 0 for line in axes.get_lines()):
            axes.set_yscale("log")
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 1:
            axes.legend(frameon=False, fontsize="small")
    figure.suptitle(", ".join(sorted({_title(run) for run in runs})), fontsize="medium")
    return figure


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draw and write a picture as a whole; the format follows the name."""
    kind = checks.choice("picture format", path.suffix.lower(), FORMATS)
    figure = draw()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=kind, delete=False) as file:
        try:
            figure.savefig(file, dpi=150)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _families(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by what they have in common besides the seed, named by variant and clipping."""
    families: dict[str, list[Run]] = {}
    several_tasks = len({_title(run) for run in runs}) > 1
    several_clips = len({run.config["clip"] for run in runs}) > 1
    for run in runs:
        name = _variant(run) + (f", clip {run.config['clip']}" if several_clips else "")
        families.setdefault(f"{_title(run)}: {name}" if several_tasks else name, []).append(run)
    return families


def _variant(run: Run) -> str:
    variant = run.config["variant"]
    return variant if isinstance(variant, str) else "schedule"


def _title(run: Run) -> str:
    options = run.config["options"]
    if run.config["task"] == "cartpole":
        return f"cartpole, {options['poles']} pole{'s' if options['poles'] > 1 else ''}"
    if run.config["task"] == "guidance":
        herd = f"{options['drivers']} drivers, {options['evaders']} evaders"
        return f"guidance, {herd}, rho {options['regularization']:g}"
    return f"quantum, target {options['target']}"


def _curve(axes: Any, name: str, members: list[Run], title: str, style: str) -> None:
    shortest = min(len(run.history["epoch"]) for run in members)
    epochs = members[0].history["epoch"][:shortest]
    values = np.array([run.history[name][:shortest] for run in members])
    if not np.isfinite(values).any():
        return
    colour = COLOURS.get(_variant(members[0]), OTHER)
    label = title + (f" ({len(members)} seeds)" if len(members) > 1 else "")
    axes.plot(epochs, values.mean(axis=0), style, color=colour, label=label, linewidth=1.4)
    if len(members) > 1:
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
