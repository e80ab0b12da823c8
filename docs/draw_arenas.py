"""Draw the memory of a gradient: ``python docs/draw_arenas.py``; docs/core.md, "Structs as arguments".

Sizes are those of the arrays that an update of the published cart-pole (two poles, variant C, 8 samples) really uses.
"""

from pathlib import Path
from typing import Any

import numpy as np

import stablebptt as sb
from stablebptt.adjoint.rollout import new_arena
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks.pictures.curves import new_figure, save
from stablebptt.tasks.pictures.rollouts import colour

PICTURE = Path(__file__).resolve().parent / "images" / "arena.png"
BATCH, ADJOINTS, SMALLEST = 8, 2, 64  # bytes; smaller arrays are left out
# Who writes an array, by the beginning of its place: in the order in which a gradient uses them.
WRITERS = {
    "forward.weights": "theta, packed once",
    "forward.path": "rollout, states and controls",
    "forward.tape": "rollout, activations; adjoint pass, cotangents of them",
    "forward.scratch": "the system's own",
    "bars": "adjoint pass, cotangents of states and controls",
}


def arrays(part: Any, place: str = "") -> list[tuple[str, np.ndarray]]:
    """All arrays of a struct of structs, by their places in it."""
    found = []
    for name in type(part).fields:
        value, here = getattr(part, name), f"{place}.{name}".lstrip(".")
        if isinstance(value, Struct):
            found += arrays(value, here)
        elif isinstance(value, np.ndarray) and value.nbytes >= SMALLEST:
            found.append((here, value))
    return found


def figure() -> Any:
    """A bar for every array, as long as it is large."""
    problem = sb.problem("cartpole", poles=2)
    bounds = np.array([0, BATCH])
    arena = new_arena(problem.episode(), ADJOINTS, problem.dtype, batch=BATCH, groups=bounds, sums=None, kept=True)
    rows = arrays(arena)
    drawn = new_figure(8.4, 0.27 * len(rows) + 1.2)
    axes = drawn.subplots()
    for number, (place, values) in enumerate(rows):
        writer = next(k for k, start in enumerate(WRITERS) if place.startswith(start))
        axes.barh(number, values.nbytes / 1024, color=colour(writer), label=list(WRITERS.values())[writer])
        axes.text(values.nbytes / 1024 * 1.1, number, " x ".join(map(str, values.shape)), va="center", fontsize="x-small")
    axes.set(xscale="log", xlabel="KiB", yticks=range(len(rows)), xlim=(None, 4000))
    axes.set_yticklabels([place for place, _ in rows], fontsize="x-small", family="monospace")
    axes.invert_yaxis()
    known = dict(zip(*reversed(axes.get_legend_handles_labels())))
    drawn.legend(known.values(), known.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize="x-small")
    return drawn


if __name__ == "__main__":
    save(figure, PICTURE)
