"""A system, an observation and a loss that are compiled apart from whatever rolls them out.

In their place stand structs that know addresses: of their numbers, and of the machine code of their methods. Rollouts are
compiled once for these, for all systems.
"""

from typing import Any

import numpy as np
from numba import float64, from_dtype, intp, typeof

from stablebptt.kernels.core.dispatch import implements, kernel
from stablebptt.kernels.core.native import address_of, call
from stablebptt.kernels.core.structs import Reference, loaded
from stablebptt.kernels.generics import Loss, Observation, State, System, cost_batch, draw, observe_batch, step_batch


class LinkedSystem(System):
    """Addresses of a system, of `step_batch` and `draw`, of `step_batch_vjp` and `step_parameters_batch_vjp` (0: not needed)."""

    system: int
    step: int
    draw: int
    step_vjp: int
    parameters_vjp: int


class LinkedObservation(Observation):
    """Addresses of an observation, of `observe_batch` and of `observe_batch_vjp` (0: not needed)."""

    observation: int
    observe: int
    observe_vjp: int


class LinkedLoss(Loss):
    """Addresses of a loss, of `cost_batch` and of `cost_batch_vjp` (0: not needed)."""

    loss: int
    cost: int
    cost_vjp: int


@kernel
def step_entry(system, x, c, x_next, scratch):
    """`step_batch` of a reference."""
    step_batch(loaded(system), x, c, x_next, scratch)


@kernel
def draw_entry(system, keys, scratch):
    """`draw` of a reference."""
    draw(loaded(system), keys, scratch)


@kernel
def observe_entry(observation, t, x, seen):
    """`observe_batch` of a reference."""
    observe_batch(loaded(observation), t, x, seen)


@kernel
def cost_entry(loss, t, weights, states, controls, total):
    """`cost_batch` of a reference."""
    cost_batch(loaded(loss), t, weights, states, controls, total)


@implements(step_batch, LinkedSystem)
def _step_batch(system, x, c, x_next, scratch):
    call(system.step, (system.system, x, c, x_next, scratch))


@implements(draw, LinkedSystem)
def _draw(system, keys, scratch):
    if system.draw != 0:
        call(system.draw, (system.system, keys, scratch))


@implements(cost_batch, LinkedLoss)
def _cost_batch(loss, t, weights, states, controls, total):
    call(loss.cost, (loss.loss, t, weights, states, controls, total))


@implements(observe_batch, LinkedObservation)
def _observe_batch(observation, t, x, seen):
    call(observation.observe, (observation.observation, t, x, seen))


def linked_system(system: Reference, dtype: Any, *, step_vjp: int = 0, parameters_vjp: int = 0) -> LinkedSystem:
    """The system behind a reference, which must live as long as the result; its step is compiled if need be."""
    numbers = from_dtype(np.dtype(dtype))
    rows = numbers[:, ::1]
    entry, drawn = address_of(step_entry, typeof(system), rows, rows, rows, numbers[::1]), 0
    if type(system.struct).value_count(system.struct) > 0:
        drawn = address_of(draw_entry, typeof(system), intp[::1], numbers[::1])
    return LinkedSystem(system.address, entry, drawn, step_vjp, parameters_vjp)


def linked_loss(loss: Reference, dtype: Any, *, cost_vjp: int = 0) -> LinkedLoss:
    """The loss behind a reference, which must live as long as the result; its cost is compiled if need be."""
    rows = from_dtype(np.dtype(dtype))[:, :, ::1]
    return LinkedLoss(loss.address, address_of(cost_entry, typeof(loss), intp, float64[::1], rows, rows, float64[::1]), cost_vjp)


def linked_observation(observation: Reference, dtype: Any, *, observe_vjp: int = 0) -> Any:
    """The observation behind a reference, which must live as long as the result; the state itself needs no code."""
    if type(observation.struct) is State:
        return observation.struct
    rows = from_dtype(np.dtype(dtype))[:, ::1]
    entry = address_of(observe_entry, typeof(observation), intp, rows, rows)
    return LinkedObservation(observation.address, entry, observe_vjp)
