"""Adjoint of what is compiled apart: system, controller, loss, observation; mirror image of `stablebptt.kernels.linked`."""

from typing import Any

import numpy as np
from numba import float64, from_dtype, intp, typeof

from stablebptt.adjoint import rollout
from stablebptt.adjoint.generics import (
    Rows,
    clear,
    control_batch_vjp,
    cost_batch_vjp,
    observe_batch_vjp,
    parameter_names,
    parameter_vjp,
    state_vjp,
    step_batch_vjp,
    step_parameters_batch_vjp,
    unpack,
)
from stablebptt.kernels.core.ahead import Entry
from stablebptt.kernels.core.dispatch import implements, kernel
from stablebptt.kernels.core.native import call
from stablebptt.kernels.core.structs import Reference, ReferenceType, loaded
from stablebptt.kernels.core.threads import NOBODY, WHOLE
from stablebptt.kernels.generics import State
from stablebptt.kernels.linked import (
    Entries,
    LinkedController,
    LinkedLoss,
    LinkedObservation,
    LinkedSystem,
    Parts,
    tape_type,
)


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


@kernel
def clear_entry(controller, tape):
    """`clear` of a reference."""
    clear(controller, tape)


@kernel
def control_vjp_entry(controller, weights, tape, rows, c_bar):
    """`control_batch_vjp` of a reference."""
    control_batch_vjp(controller, weights, tape, rows, c_bar)


@kernel
def state_vjp_entry(controller, weights, tape, rows, c_bar, x_bar):
    """`state_vjp` of a reference."""
    state_vjp(controller, weights, tape, rows, c_bar, x_bar)


@kernel
def parameter_vjp_entry(controller, weights, tape, rows, c_bar):
    """`parameter_vjp` of a reference."""
    parameter_vjp(controller, weights, tape, rows, c_bar)


@kernel
def unpack_entry(controller, sums, gradients, part):
    """`unpack` of a reference."""
    unpack(controller, sums, gradients, part)


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


@implements(clear, LinkedController)
def _clear(controller, tape):
    call(controller.clear, (controller.controller, tape))


@implements(control_batch_vjp, LinkedController)
def _control_batch_vjp(controller, weights, tape, rows, c_bar):
    call(controller.control_vjp, (controller.controller, weights, tape, rows, c_bar))


@implements(state_vjp, LinkedController)
def _state_vjp(controller, weights, tape, rows, c_bar, x_bar):
    call(controller.state_vjp, (controller.controller, weights, tape, rows, c_bar, x_bar))


@implements(parameter_vjp, LinkedController)
def _parameter_vjp(controller, weights, tape, rows, c_bar):
    call(controller.parameter_vjp, (controller.controller, weights, tape, rows, c_bar))


@implements(unpack, LinkedController)
def _unpack(controller, sums, gradients, part):
    call(controller.unpack, (controller.controller, sums, gradients, part))


def entries(parts: Parts, dtype: Any) -> Entries:
    """What a gradient of these parts needs beside their rollout; see `stablebptt.kernels.linked`."""
    controller, system, loss, observation = (parts[name] for name in ("controller", "system", "loss", "observation"))
    numbers, tape = from_dtype(np.dtype(dtype)), tape_type(controller, dtype)
    line, rows, paths = numbers[::1], numbers[:, ::1], numbers[:, :, ::1]
    of_system: dict[str, Entry] = {"step_vjp": (step_vjp_entry, (typeof(system), rows, rows, rows, paths, paths, paths, line))}
    if parameter_names(system.struct):
        of_system["parameters_vjp"] = parameters_vjp_entry, (typeof(system), rows, rows, paths, paths, line)
    of_observation: dict[str, Entry] = {"observe_vjp": (observe_vjp_entry, (typeof(observation), intp, rows, rows, rows))}
    if type(observation.struct) is State:
        of_observation = {}
    of_loss = {"cost_vjp": (cost_vjp_entry, (typeof(loss), intp, float64[::1], intp, paths, paths, rows, paths))}
    these, of_tape = typeof(Rows(np.zeros((1, 1), dtype), 0, 0, 0)), dict[str, Any](tape.struct.fields)
    of_controller = {
        "parameter_vjp": (parameter_vjp_entry, (typeof(controller), line, tape, these, paths)),
        "control_vjp": (control_vjp_entry, (typeof(controller), line, tape, these, rows)),
        "state_vjp": (state_vjp_entry, (typeof(controller), line, tape, these, rows, rows)),
        "unpack": (unpack_entry, (typeof(controller), ReferenceType(of_tape["sums"]), rows, typeof(WHOLE))),
        "clear": (clear_entry, (typeof(controller), tape)),
    }
    return {"controller": of_controller, "system": of_system, "loss": of_loss, "observation": of_observation}


def entry_point(episode: Any, linked: Reference, dtype: Any) -> Entry:
    """`gradient` for an episode, in whose place stands a linked one."""
    numbers, work = from_dtype(np.dtype(dtype)), Reference(rollout.new_work(episode, 1, 1, dtype, tape_bytes=0, parts=1))
    gates = rollout.Gates(np.zeros((1, 1), dtype), np.zeros((1, 1), dtype), joined=False)
    kinds = typeof(linked), numbers[::1], numbers[:, ::1], typeof(gates), typeof(work), typeof(NOBODY)
    return rollout.gradient, kinds
