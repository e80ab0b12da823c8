"""The gradient variants as gates of the adjoint recursion: R, M, S, N, C, or a schedule; docs/method.md, section 2."""

from typing import Any

import numpy as np

from stablebptt.adjoint.rollout import Gates
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

__all__ = ["GATES", "NAMES", "gates", "truncated"]

# Gates of the physics path and of the network path (through the network's input): open (1) or closed (0).
GATES = {"R": (1.0, 1.0), "M": (1.0, 0.0), "S": (0.0, 0.0), "N": (0.0, 1.0)}
NAMES = ("R", "M", "S", "N", "C")


def gates(variant: Any, steps: int, dtype: Any = np.float64) -> Gates:
    """The gates of a variant, physics and network (m, T): m = 2 for C, otherwise 1.

    Parameters
    ----------
    variant : "R", "M", "S", "N", "C", or a pair (a, b)
        Each part of a pair is a number or an array of length `steps` with values in [0, 1].
    steps : horizon T
    dtype : of the gates

    Examples
    --------
    >>> found = gates("C", 3)
    >>> found.physics.tolist(), found.network.tolist()
    ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    """
    if isinstance(variant, str):
        arguments.choice("variant", variant, NAMES)
        pairs = [GATES["R"], GATES["M"]] if variant == "C" else [GATES[variant]]
    elif isinstance(variant, tuple | list) and len(variant) == 2:
        pairs = [tuple(variant)]
    else:
        raise ArgumentError(
            f"variant is {arguments.told(variant)}; give one of {', '.join(NAMES)}, or a pair (a, b) of numbers or "
            f"arrays of length {steps} with values in [0, 1]"
        )
    physics = np.array([_schedule(a, steps, "a (physics)") for a, _ in pairs], dtype)
    network = np.array([_schedule(b, steps, "b (network)") for _, b in pairs], dtype)
    return Gates(physics, network, joined=isinstance(variant, str) and variant == "C")


def truncated(steps: int, window: int, variant: str = "R") -> tuple[np.ndarray, np.ndarray]:
    """Schedules (a, b), (T,) each, of truncated backpropagation: the variant's gates, closed at every `window`-th step.

    Parameters
    ----------
    steps : horizon T
    window : time steps between two closed ones
    variant : "R", "M", "S" or "N"

    Examples
    --------
    >>> a, b = truncated(6, 3)
    >>> a.tolist()
    [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    """
    if window < 1:
        raise ArgumentError(f"window is {window}; it must be at least 1")
    if variant not in GATES:
        raise ArgumentError(f"variant {variant!r} has no schedule of its own; choose from {', '.join(GATES)}")
    cut = np.arange(steps) % window == 0
    a, b = (np.where(cut, 0.0, gate) for gate in GATES[variant])
    return a, b


def _schedule(given: Any, steps: int, name: str) -> np.ndarray:
    arguments.unmasked(f"gate {name}", given)
    try:
        values = np.asarray(given)
        if values.dtype.kind not in "fiub":  # True is open, False closed
            raise TypeError
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"gate {name} is {arguments.told(given)}; it must be numeric") from None
    if values.ndim == 0:
        values = np.full(steps, values)
    if values.shape != (steps,):
        raise ArgumentError(f"gate {name} has shape {values.shape}; it must be one number or have shape ({steps},)")
    if not np.all((values >= 0) & (values <= 1)):
        raise ArgumentError(f"gate {name} has values outside [0, 1]")
    return values
