"""Adjoint code: the mirror image of `stablebptt.kernels`.

Every differentiable function ``f`` of `kernels` has a partner ``f_vjp`` here, in the file of the same name. The contract:

- Scalar vjps take the inputs of ``f`` and the cotangents of its outputs, and return cotangents in the order of the inputs.
- Array vjps add to buffers that the caller has zeroed; they never overwrite.
- One call takes m cotangents, so sines, distances and factorisations are computed once.
- Functions here do not check their arguments; `stablebptt.tasks` does.

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
    final_cost_vjp,
    observe_vjp,
    parameter_vjp,
    state_vjp,
    step_batch_vjp,
    step_parameters_vjp,
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
    "final_cost_vjp",
    "observe_vjp",
    "parameter_vjp",
    "state_vjp",
    "step_batch_vjp",
    "step_parameters_vjp",
    "step_sample_vjp",
    "step_vjp",
    "unpack",
]

for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("cuda_"):  # the backend "cuda" imports what needs a device
        importlib.import_module(f"{__name__}.{_file.name}")
