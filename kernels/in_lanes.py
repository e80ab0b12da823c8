"""The text of a step for one sample, for registers full of samples.

A system's `step_sample` (or `step`) is compiled for vectors in place of numbers if it can be; otherwise it is called sample by
sample. Most often an ``if`` on a number that differs between samples is in the way; see `where`.
"""

from typing import Any

from numba.core.errors import NumbaError, UnsupportedBytecodeError
from numba.core.registry import cpu_target
from numba.core.target_extension import current_target

from stablebptt.kernels.core.dispatch import compiled_as, implements
from stablebptt.kernels.core.lanes import Lanes, from_lanes, padded_batch, to_lanes, view_type
from stablebptt.kernels.core.simd import lanes, offset, pointer
from stablebptt.kernels.generics import System, step_batch, step_sample


def fits(function: Any, *kinds: Any) -> bool:
    """Whether a generic function compiles for these types: a system and views of vectors."""
    if current_target() != "cpu":
        return False
    context = cpu_target.typing_context
    try:
        context.resolve_value_type(function).get_call_type(context, kinds, {})
    except (NumbaError, UnsupportedBytecodeError, NotImplementedError):
        return False
    return True


def step_all(system, x, c, x_next, scratch):
    """`step_batch` of any system."""
    for b in range(x.shape[0]):
        step_sample(system, x[b], c[b], x_next[b], scratch)


def _step_all(system, x, c, x_next, scratch):
    view = view_type(x.dtype)
    return _step_registers if fits(step_sample, system, view, view, view, view) else step_all


def _step_registers(system, x, c, x_next, scratch):
    batch, n_state = x.shape
    n_control, stride, base = c.shape[1], padded_batch(batch), pointer(scratch)
    controls = offset(base, n_state * stride)
    after = offset(controls, n_control * stride)
    space, size = offset(after, n_state * stride), scratch.size // stride - 2 * n_state - n_control
    to_lanes(batch, n_state, pointer(x), base, stride)
    to_lanes(batch, n_control, pointer(c), controls, stride)
    for b in range(0, batch, lanes(base)):
        step_sample(
            system,
            Lanes(offset(base, b), stride, n_state),
            Lanes(offset(controls, b), stride, n_control),
            Lanes(offset(after, b), stride, n_state),
            Lanes(offset(space, b), stride, size),
        )
    from_lanes(batch, n_state, pointer(x_next), after, stride)


compiled_as(step_all, _step_all, forceinline=True)


@implements(step_batch, System)
def _step_batch(system, x, c, x_next, scratch):
    step_all(system, x, c, x_next, scratch)
