"""Losses in windows, whose time steps are counted from the window's beginning; and a linear one, which measures growth."""

import numpy as np

from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Loss, cost, final_cost, running_cost


class Later(Loss):
    """A loss with running costs, as a window sees it that begins at time step `first`."""

    loss: Struct
    first: int


class Along(Loss):
    """The state's component along a direction (n_state,)."""

    direction: np.ndarray


@implements(running_cost, Later)
def _running_cost(loss, t, x, c):
    return running_cost(loss.loss, loss.first + t, x, c)


@implements(final_cost, Later)
def _final_cost(loss, x):
    return final_cost(loss.loss, x)


@implements(cost, Along)
def _cost(loss, x):
    total = like(x, 0.0)
    for k in range(x.size):
        total += loss.direction[k] * x[k]
    return total
