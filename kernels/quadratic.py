"""A quadratic cost of states and controls around references, with a penalty on changes of the controls."""

import dataclasses
from typing import Any

import numpy as np

from stablebptt.kernels.core.dispatch import implements, inline, like
from stablebptt.kernels.generics import Loss, cost_batch


class Quadratic(Loss):
    """``sum q (x_t - r_t)^2 + sum p (c_t - s)^2 + sum d (c_t - c_t-1)^2``, all halved; the last state counts ``final`` times.

    state (n_state,), control, rate (n_control,) : weights q, p and d
    final : factor of the last state's cost
    reference (N, n_state) : r, one row per time step; the last one goes on
    rest (n_control,) : s
    """

    state: np.ndarray
    control: np.ndarray
    rate: np.ndarray
    final: float
    reference: np.ndarray
    rest: np.ndarray

    def later(self, first: int) -> "Quadratic":
        """The same cost in a window that begins at time step `first`; the change of the first control there is free."""
        return dataclasses.replace(self, reference=self.reference[min(first, len(self.reference) - 1) :])


def quadratic(
    state: Any, control: Any, *, rate: Any = None, final: float = 1.0, reference: Any = None, rest: Any = None
) -> Quadratic:
    """A quadratic cost.

    Parameters
    ----------
    state (n_state,), control, rate (n_control,) : weights of states, of controls, and of changes of controls (by default 0)
    final : factor of the last state's cost
    reference : (n_state,), or (N, n_state) for one row per time step, whose last one goes on; by default 0
    rest (n_control,) : control that costs nothing; by default 0

    Examples
    --------
    >>> loss = sb.quadratic([1.0, 0.1], 0.01, final=10.0)
    >>> loss.state.tolist(), loss.final
    ([1.0, 0.1], 10.0)
    """
    weights, controls = np.atleast_1d(np.asarray(state, float)), np.atleast_1d(np.asarray(control, float))
    rows = np.zeros_like(weights) if reference is None else np.asarray(reference, float)
    changes, still = (np.zeros_like(controls) if each is None else np.asarray(each, float) for each in (rate, rest))
    wanted = [("reference", np.atleast_2d(rows), weights.size), ("rate", changes, controls.size), ("rest", still, controls.size)]
    for name, values, size in wanted:
        if values.shape[-1:] != (size,):
            raise ValueError(f"{name} has shape {values.shape}; its last axis must have {size} numbers")
    return Quadratic(weights, controls, changes, float(final), np.atleast_2d(rows), still)


@inline
def reference_at(loss, t):
    """Number of the reference's row for time step t."""
    return min(t, loss.reference.shape[0] - 1)


@implements(cost_batch, Quadratic)
def _cost_batch(loss, t, weights, states, controls, total):
    steps, batch, n_control = controls.shape
    row = reference_at(loss, t)
    for b in range(batch):
        value = like(states, 0.0)
        for k in range(states.shape[2]):
            off = states[t, b, k] - loss.reference[row, k]
            value += loss.state[k] * off * off
        if t == steps:
            value *= loss.final
        else:
            for q in range(n_control):
                off = controls[t, b, q] - loss.rest[q]
                value += loss.control[q] * off * off
                if t > 0:
                    change = controls[t, b, q] - controls[t - 1, b, q]
                    value += loss.rate[q] * change * change
        total[b] += weights[t] * 0.5 * value
