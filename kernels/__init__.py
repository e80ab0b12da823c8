"""Forward: typed structs, simulators' steps, controllers, losses, the rollout, small dense algebra.

Systems, controllers and losses are immutable structs (`structs`); generic functions (`generics`) choose their method by the
struct's type when they are compiled (`compiler`). Everything is generic over float32 and float64.
"""

from stablebptt.kernels.compiler import block, generic, implements, inline, kernel, like
from stablebptt.kernels.generics import (
    Controller,
    Loss,
    System,
    control,
    control_batch,
    cost,
    pack,
    step,
    step_batch,
    step_sample,
)
from stablebptt.kernels.structs import Struct

__all__ = [
    "Controller",
    "Loss",
    "Struct",
    "System",
    "block",
    "control",
    "control_batch",
    "cost",
    "generic",
    "implements",
    "inline",
    "kernel",
    "like",
    "pack",
    "step",
    "step_batch",
    "step_sample",
]
