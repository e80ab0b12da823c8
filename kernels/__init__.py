"""Forward code: simulator steps, controllers, losses, the rollout, small dense algebra.

Systems, controllers and losses are immutable structs (`core.structs`). Generic functions (`generics`) choose their method by the
struct's type at compile time (`core.dispatch`). Everything is generic over float32 and float64.

Letters, in shapes and loops, here and in `stablebptt.adjoint`:

    S  runs computed together               B, b  samples of a batch        T, t  time steps
    m, v  adjoints (cotangents) at once     n, r  rows: samples, or samples x time steps
    n_state, k    numbers of a state        n_control, q  numbers of a control
    n_parameters  numbers of theta          n_weights     numbers of theta as `pack` arranges them
    n_seen, seen  what the controller sees of a state
    x  state    c  control    lam  adjoint    y_bar  cotangent of y    theta  parameters
"""

from stablebptt.kernels import in_lanes  # `step_batch` of all systems
from stablebptt.kernels.core.dispatch import block, generic, implements, inline, kernel, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.vector_math import where
from stablebptt.kernels.generics import (
    Controller,
    Loss,
    Observation,
    System,
    control,
    control_batch,
    cost,
    final_cost,
    observe,
    pack,
    step,
    step_batch,
    step_sample,
)

__all__ = [
    "Controller",
    "Loss",
    "Observation",
    "Struct",
    "System",
    "block",
    "control",
    "control_batch",
    "cost",
    "final_cost",
    "generic",
    "implements",
    "in_lanes",
    "inline",
    "kernel",
    "like",
    "observe",
    "pack",
    "step",
    "step_batch",
    "step_sample",
    "where",
]
