"""Adjoint of a system and a loss that are compiled apart; mirror image of `stablebptt.kernels.linked`."""

from typing import Any

import numpy as np
from numba import from_dtype, typeof

from stablebptt.adjoint.generics import cost_batch_vjp, step_batch_vjp
from stablebptt.kernels import linked
from stablebptt.kernels.core.dispatch import implements, kernel
from stablebptt.kernels.core.native import address_of, call
from stablebptt.kernels.core.structs import Reference, loaded
from stablebptt.kernels.linked import LinkedLoss, LinkedSystem


@kernel
def step_vjp_entry(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_batch_vjp` of a reference."""
    step_batch_vjp(loaded(system), x, x_next, c, lam, lam_x, lam_c, scratch)


@kernel
def cost_vjp_entry(loss, x, weight, lam):
    """`cost_batch_vjp` of a reference."""
    cost_batch_vjp(loaded(loss), x, weight, lam)


@implements(step_batch_vjp, LinkedSystem)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    call(system.step_vjp, (system.system, x, x_next, c, lam, lam_x, lam_c, scratch))


@implements(cost_batch_vjp, LinkedLoss)
def _cost_batch_vjp(loss, x, weight, lam):
    call(loss.cost_vjp, (loss.loss, x, weight, lam))


def linked_system(system: Reference, dtype: Any) -> LinkedSystem:
    """The system behind a reference, with its adjoint; see `stablebptt.kernels.linked`."""
    numbers = from_dtype(np.dtype(dtype))
    rows, bars = numbers[:, ::1], numbers[:, :, ::1]
    entry = address_of(step_vjp_entry, typeof(system), rows, rows, rows, bars, bars, bars, numbers[::1])
    return linked.linked_system(system, dtype, step_vjp=entry)


def linked_loss(loss: Reference, dtype: Any) -> LinkedLoss:
    """The loss behind a reference, with its adjoint; see `stablebptt.kernels.linked`."""
    numbers = from_dtype(np.dtype(dtype))
    entry = address_of(cost_vjp_entry, typeof(loss), numbers[:, ::1], numbers, numbers[:, :, ::1])
    return linked.linked_loss(loss, dtype, cost_vjp=entry)
