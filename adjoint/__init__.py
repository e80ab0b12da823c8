"""Backward: the mirror image of `stablebptt.kernels`.

Every differentiable function ``f`` of kernels has a partner ``f_vjp`` in the file of the same name here. The contract:

- Scalar vjps take the inputs of ``f`` and the cotangents of its outputs, and return cotangents in the order of the inputs.
- Array vjps add into buffers that the caller zeroed; they never overwrite.
- Several cotangents (m of them) go through one call, so that sines, distances and factorisations are computed once.
- Nothing here checks its arguments; `stablebptt.tasks` does.

Importing this room registers all its rules. Letters: `stablebptt.kernels`.
"""

from stablebptt.adjoint import cartpole, guidance, network, quantum  # noqa: F401  (registers the methods)
from stablebptt.adjoint.generics import (
    Rows,
    clear,
    control_batch_vjp,
    control_vjp,
    cost_vjp,
    parameter_vjp,
    state_vjp,
    step_batch_vjp,
    step_sample_vjp,
    step_vjp,
    unpack,
)

__all__ = [
    "Rows",
    "clear",
    "control_batch_vjp",
    "control_vjp",
    "cost_vjp",
    "parameter_vjp",
    "state_vjp",
    "step_batch_vjp",
    "step_sample_vjp",
    "step_vjp",
    "unpack",
]
