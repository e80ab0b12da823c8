"""Backward: the mirror image of `stablebptt.kernels`.

Every differentiable function ``f`` of kernels has a partner ``f_vjp`` in the file of the same name here. The contract:

- Scalar vjps take the inputs of ``f`` and the cotangents of its outputs, and return cotangents in the order of the inputs.
- Array vjps add into buffers that the caller zeroed; they never overwrite.
- Several cotangents (m of them) go through one call, so that sines, distances and factorisations are computed once.
- Nothing here checks its arguments; `stablebptt.tasks` does.

Importing this room registers all its rules. Letters: `stablebptt.kernels`.
"""

import importlib
import pkgutil

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

for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("cuda_"):  # what needs a device is imported where one is asked for
        importlib.import_module(f"{__name__}.{_file.name}")
