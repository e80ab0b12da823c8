"""A system, a controller, a loss, an observation and noise that are compiled apart from whatever rolls them out.

In their place stand structs that know addresses: of their numbers, and of the machine code of their methods. Rollouts are
compiled once for these, for all systems and controllers.

    entries    part -> function -> kernel, types of its arguments        what has to be compiled
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numba import float64, from_dtype, intp, typeof

from stablebptt.kernels import rollout
from stablebptt.kernels.core.ahead import Entry
from stablebptt.kernels.core.dispatch import implements, kernel
from stablebptt.kernels.core.native import address_of, call
from stablebptt.kernels.core.structs import Reference, ReferenceType, Struct, loaded
from stablebptt.kernels.core.threads import NOBODY
from stablebptt.kernels.generics import (
    Loss,
    Observation,
    State,
    System,
    control_batch,
    cost_batch,
    draw,
    new_tape,
    observe_batch,
    pack,
    step_batch,
)
from stablebptt.kernels.noise import add_noise, disturb

Parts = dict[str, Reference]
Entries = dict[str, dict[str, Entry]]


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


class LinkedController(Struct):
    """Addresses of a controller, of `pack` and `control_batch`, and of the functions of its adjoint (0: not needed)."""

    controller: int
    pack: int
    control: int
    clear: int
    control_vjp: int
    state_vjp: int
    parameter_vjp: int
    unpack: int


class LinkedNoise(Struct):
    """Addresses of noise, of `add_noise` and of `disturb` (0: there is none)."""

    noise: int
    add: int
    disturb: int


# What takes longest to compile comes first.
LINKED: dict[str, type[Struct]] = {
    "controller": LinkedController,
    "system": LinkedSystem,
    "loss": LinkedLoss,
    "observation": LinkedObservation,
    "noise": LinkedNoise,
}


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


@kernel
def add_noise_entry(noise, keys, t, seen):
    """`add_noise` of a reference."""
    add_noise(noise, keys, t, seen)


@kernel
def disturb_entry(noise, keys, t, x):
    """`disturb` of a reference."""
    disturb(noise, keys, t, x)


@kernel
def pack_entry(controller, theta, weights):
    """`pack` of a reference."""
    pack(controller, theta, weights)


@kernel
def control_entry(controller, weights, x, c, tape, row):
    """`control_batch` of a reference."""
    control_batch(controller, weights, x, c, tape, row)


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


@implements(add_noise, LinkedNoise)
def _add_noise(noise, keys, t, seen):
    if noise.add != 0:
        call(noise.add, (noise.noise, keys, t, seen))


@implements(disturb, LinkedNoise)
def _disturb(noise, keys, t, x):
    if noise.disturb != 0:
        call(noise.disturb, (noise.noise, keys, t, x))


@implements(pack, LinkedController)
def _pack(controller, theta, weights):
    call(controller.pack, (controller.controller, theta, weights))


@implements(control_batch, LinkedController)
def _control_batch(controller, weights, x, c, tape, row):
    call(controller.control, (controller.controller, weights, x, c, tape, row))


def entries(parts: Parts, dtype: Any) -> Entries:
    """What a rollout of these parts needs."""
    controller, system, loss, observation, noise = (parts[name] for name in LINKED)
    numbers = from_dtype(np.dtype(dtype))
    line, rows, paths = numbers[::1], numbers[:, ::1], numbers[:, :, ::1]
    of_system: dict[str, Entry] = {"step": (step_entry, (typeof(system), rows, rows, rows, line))}
    if type(system.struct).value_count(system.struct) > 0:
        of_system["draw"] = draw_entry, (typeof(system), intp[::1], line)
    of_observation: dict[str, Entry] = {"observe": (observe_entry, (typeof(observation), intp, rows, rows))}
    if type(observation.struct) is State:  # the state itself needs no code
        of_observation = {}
    of_noise: dict[str, Entry] = {}
    if noise.struct.active:
        kinds = typeof(noise), intp[::1], intp, rows
        of_noise = {"add": (add_noise_entry, kinds), "disturb": (disturb_entry, kinds)}
    of_loss = {"cost": (cost_entry, (typeof(loss), intp, float64[::1], paths, paths, float64[::1]))}
    of_controller = {
        "pack": (pack_entry, (typeof(controller), line, line)),
        "control": (control_entry, (typeof(controller), line, rows, rows, tape_type(controller, dtype), intp)),
    }
    return dict(zip(LINKED, (of_controller, of_system, of_loss, of_observation, of_noise)))


def tape_type(controller: Reference, dtype: Any) -> ReferenceType:
    """Numba type of a controller's tape, in native memory."""
    return ReferenceType(typeof(new_tape(controller.struct, dtype, rows=1, chunk=1, adjoints=1, unit=True)))


def entry_point(episode: Any, linked: Reference, dtype: Any) -> Entry:
    """`evaluate` for an episode, in whose place stands a linked one."""
    numbers, work = from_dtype(np.dtype(dtype)), Reference(rollout.new_work(episode, 1, dtype, parts=1))
    return rollout.evaluate, (typeof(linked), numbers[::1], numbers[:, ::1], typeof(work), typeof(NOBODY))


def linked(episode: Any, parts: Parts, entries: Entries, find: Callable[..., int] = address_of) -> Reference:
    """An episode with addresses in place of its parts, which must live as long; what is not compiled yet is compiled.

    find : function (kernel, types) -> address of the machine code
    """
    structs: dict[str, Any] = {name: _linked(LINKED[name], part, entries[name], find) for name, part in parts.items()}
    return Reference(replace(episode, **structs))


def _linked(cls: Any, part: Reference, entries: dict[str, Entry], find: Callable[..., int]) -> Struct:
    struct: Struct = part.struct
    if type(struct) is not State:
        struct = cls(part.address, *(find(*entries[name]) if name in entries else 0 for name in cls.fields[1:]))
    return struct
