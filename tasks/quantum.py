"""Quantum control as a problem; docs/quantum.md."""

from functools import partial
from typing import Any

import numpy as np

from stablebptt.data import initial_states
from stablebptt.kernels.network import cnn
from stablebptt.kernels.quantum import LENGTH, Overlap, eigenstate, quantum
from stablebptt.tasks import checks, titles
from stablebptt.tasks.problems import LOSSES, OUTPUT_INITS, Axis, Problem


def quantum_problem(
    points: int = 32,
    dt: float = 0.0625,
    steps: int = 128,
    target: int = 3,
    weights: Any = (1.0, 1.0),
    width: int = 60,
    loss: str = "continuous",
    dtype: Any = "float32",
    output_init: str = "glorot",
) -> Problem:
    """Bring a particle in a box from the two lowest states to eigenstate `target` (counted from 1) by tilting the box.

    points: Nx; weights: of the two states in the initial superposition; width: features of the convolutions.
    """
    points, steps = checks.size("points", points, 8), checks.whole("steps", steps, 1)
    dt, width = checks.real("dt", dt, above=0), checks.size("width", width)
    target = checks.whole("target", target, 1)
    if target > points:
        raise ValueError(f"target is {target}; with {points} points it must be at most {points}")
    first, second = checks.point("weights", weights)
    if min(first, second) < 0 or not 1e-9 <= max(first, second) <= 1e9:
        raise ValueError(f"weights are {(first, second)}; none may be negative, and the larger one must be between 1e-9 and 1e9")
    loss, kind = checks.choice("loss", loss, LOSSES), checks.precision(dtype)
    output_init = checks.choice("output_init", output_init, OUTPUT_INITS)
    time_weights = np.zeros(steps + 1)
    time_weights[1 if loss == "continuous" else steps :] = 1.0  # a sum over time, not a mean
    basis = np.stack([eigenstate(points, number) for number in (1, 2)])
    places = tuple((LENGTH / (points + 1) * np.arange(1, points + 1)).tolist())
    return Problem(
        task="quantum",
        options={
            "points": points, "dt": dt, "steps": steps, "target": target, "weights": [first, second], "width": width,
            "loss": loss, "dtype": np.dtype(kind).name, "output_init": output_init,
        },
        title=titles.quantum(target),
        system=quantum(points, dt, kind),
        controller=cnn(points, width),
        loss_function=Overlap(eigenstate(points, target).astype(kind)),
        state_shape=(points, 2),
        control_shape=(1,),
        steps=steps,
        dt=dt,
        time_weights=time_weights,
        dtype=kind,
        output_init=output_init,
        draw=partial(initial_states.quantum, basis=basis, weights=(first, second)),
        state_axes=(
            Axis("position", "place in the box", places),
            Axis("part", "real and imaginary part", ("re", "im")),
        ),
        control_axes=(Axis("tilt", "tilt of the box", (0,)),),
    )  # fmt: skip
