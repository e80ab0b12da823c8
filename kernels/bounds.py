"""Limits of controls: a scaled hyperbolic tangent after the controller, ``c = centre + reach tanh(u)``."""

from typing import Any

import numpy as np

from stablebptt.kernels.core.dispatch import block, inline
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.dense import tanh


class Bounds(Struct):
    """Whether controls are limited; centre and reach (n_control,) of each control's range."""

    limited: bool
    centre: np.ndarray
    reach: np.ndarray


def bounds(limits: Any, n_control: int, dtype: type = np.float64) -> Bounds:
    """Bounds from the lowest and the highest value of each control, limits (2, n_control); None for no limits."""
    low, high = np.zeros((2, n_control)) if limits is None else np.asarray(limits, np.float64)
    return Bounds(limits is not None, ((low + high) / 2).astype(dtype), ((high - low) / 2).astype(dtype))


@inline
def limited(bounds, q, u):
    """Control q within its limits, from what the controller computes."""
    return bounds.centre[q] + bounds.reach[q] * tanh(u)


@block
def limit(bounds, c):
    """Limit controls c (B, n_control) in place."""
    if bounds.limited:
        for b in range(c.shape[0]):
            for q in range(c.shape[1]):
                c[b, q] = limited(bounds, q, c[b, q])
