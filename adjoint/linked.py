"""Adjoint of a system, an observation and a loss that are compiled apart; mirror image of `stablebptt.kernels.linked`."""

from typing import Any

import numpy as np
from numba import float64, from_dtype, intp, typeof

from stablebptt.adjoint.generics import (
    cost_batch_vjp,
    observe_batch_vjp,
    parameter_names,
    step_batch_vjp,
    step_parameters_batch_vjp,
)
from stablebptt.kernels import linked
from stablebptt.kernels.core.dispatch import implements, kernel
from stablebptt.kernels.core.native import address_of, call
from stablebptt.kernels.core.structs import Reference, loaded
from stablebptt.kernels.generics import State
from stablebptt.kernels.linked import LinkedLoss, LinkedObservation, LinkedSystem


@kernel
def step_vjp_entry(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_batch_vjp` of a reference."""
    step_batch_vjp(loaded(system), x, x_next, c, lam, lam_x, lam_c, scratch)


@kernel
def parameters_vjp_entry(system, x, c, lam, p_bar, scratch):
    """`step_parameters_batch_vjp` of a reference."""
    step_parameters_batch_vjp(loaded(system), x, c, lam, p_bar, scratch)


@kernel
def observe_vjp_entry(observation, t, x, seen_bar, x_bar):
    """`observe_batch_vjp` of a reference."""
    observe_batch_vjp(loaded(observation), t, x, seen_bar, x_bar)


@kernel
def cost_vjp_entry(loss, t, weights, batch, states, controls, x_bar, lam_c):
    """`cost_batch_vjp` of a reference."""
    cost_batch_vjp(loaded(loss), t, weights, batch, states, controls, x_bar, lam_c)


@implements(step_batch_vjp, LinkedSystem)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    call(system.step_vjp, (system.system, x, x_next, c, lam, lam_x, lam_c, scratch))


@implements(step_parameters_batch_vjp, LinkedSystem)
def _step_parameters_batch_vjp(system, x, c, lam, p_bar, scratch):
    if system.parameters_vjp != 0:
        call(system.parameters_vjp, (system.system, x, c, lam, p_bar, scratch))


@implements(cost_batch_vjp, LinkedLoss)
def _cost_batch_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    call(loss.cost_vjp, (loss.loss, t, weights, batch, states, controls, x_bar, lam_c))


@implements(observe_batch_vjp, LinkedObservation)
def _observe_batch_vjp(observation, t, x, seen_bar, x_bar):
    call(observation.observe_vjp, (observation.observation, t, x, seen_bar, x_bar))


def linked_system(system: Reference, dtype: Any) -> LinkedSystem:
    """The system behind a reference, with its adjoint; see `stablebptt.kernels.linked`."""
    numbers = from_dtype(np.dtype(dtype))
    rows, bars = numbers[:, ::1], numbers[:, :, ::1]
    entry = address_of(step_vjp_entry, typeof(system), rows, rows, rows, bars, bars, bars, numbers[::1])
    parameters = 0
    if parameter_names(system.struct):
        parameters = address_of(parameters_vjp_entry, typeof(system), rows, rows, bars, bars, numbers[::1])
    return linked.linked_system(system, dtype, step_vjp=entry, parameters_vjp=parameters)


def linked_loss(loss: Reference, dtype: Any) -> LinkedLoss:
    """The loss behind a reference, with its adjoint; see `stablebptt.kernels.linked`."""
    numbers = from_dtype(np.dtype(dtype))
    rows, paths = numbers[:, ::1], numbers[:, :, ::1]
    entry = address_of(cost_vjp_entry, typeof(loss), intp, float64[::1], intp, paths, paths, rows, paths)
    return linked.linked_loss(loss, dtype, cost_vjp=entry)


def linked_observation(observation: Reference, dtype: Any) -> Any:
    """The observation behind a reference, with its adjoint; see `stablebptt.kernels.linked`."""
    if type(observation.struct) is State:
        return observation.struct
    rows = from_dtype(np.dtype(dtype))[:, ::1]
    entry = address_of(observe_vjp_entry, typeof(observation), intp, rows, rows, rows)
    return linked.linked_observation(observation, dtype, observe_vjp=entry)
