"""Adjoints of the losses in windows; mirror image of `stablebptt.kernels.later`."""

from stablebptt.adjoint.generics import cost_vjp, final_cost_vjp, running_cost_vjp
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.later import Along, Later


@implements(running_cost_vjp, Later)
def _running_cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    running_cost_vjp(loss.loss, loss.first + t, x, c, cost_bar, x_bar, c_bar)


@implements(final_cost_vjp, Later)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    final_cost_vjp(loss.loss, x, cost_bar, x_bar)


@implements(cost_vjp, Along)
def _cost_vjp(loss, x, cost_bar, x_bar):
    for k in range(x.size):
        x_bar[k] += cost_bar * loss.direction[k]
