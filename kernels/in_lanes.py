"""The text of a step for one sample, for registers full of samples.

A system's `step_sample` (or `step`) is compiled for vectors in place of numbers if it can be; otherwise it is called sample by
sample. Most often an ``if`` on a number that differs between samples is in the way; see `where`.
"""

from typing import Any

from numba.core.registry import cpu_target
from numba.core.target_extension import current_target

from stablebptt.kernels.core.dispatch import class_of, compiled_as, generic, implements
from stablebptt.kernels.core.lanes import Lanes, from_lanes, to_lanes, view_type
from stablebptt.kernels.core.simd import lanes, offset, pointer
from stablebptt.kernels.generics import System, step_batch, step_sample


def fits(function: Any, *kinds: Any) -> bool:
    """Whether a generic function compiles for these types: a system and views of vectors."""
    if current_target() != "cpu":
        return False
    context = cpu_target.typing_context
    context.refresh()
    try:
        context.resolve_value_type(function).get_call_type(context, kinds, {})
    except Exception:  # the compiler may fail in any way; the scalar form tells of what is wrong with that, too
        return False
    return True


@generic
def of_sample(system, values, b):
    """The system of sample b, whose fields may differ from those of others; values: of all samples."""


@generic
def of_samples(system, values, b, n):
    """The system of n samples from b on, a register full of them; fields that differ are vectors."""


@implements(of_sample, System)
def _same(system, values, b):
    return system


@implements(of_samples, System)
def _the_same(system, values, b, n):
    return system


def register_type(system: Any, dtype: Any) -> Any:
    """Numba type of what `of_samples` returns."""
    cls: Any = class_of(system)
    return cls.register_type(system, dtype)


def step_all(system, x, c, x_next, scratch, values):
    """`step_batch` of any system."""
    for b in range(x.shape[0]):
        step_sample(of_sample(system, values, b), x[b], c[b], x_next[b], scratch)


def _step_all(system, x, c, x_next, scratch, values):
    view = view_type(x.dtype)
    return _step_registers if fits(step_sample, register_type(system, x.dtype), view, view, view, view) else step_all


def _step_registers(system, x, c, x_next, scratch, values):
    batch, n_state = x.shape
    n_control, base = c.shape[1], pointer(scratch)
    width = lanes(base)
    controls = offset(base, n_state * width)
    after = offset(controls, n_control * width)
    space, size = offset(after, n_state * width), scratch.size // width - 2 * n_state - n_control
    for b in range(0, batch, width):
        n = min(width, batch - b)
        to_lanes(n, n_state, offset(pointer(x), b * n_state), base)
        to_lanes(n, n_control, offset(pointer(c), b * n_control), controls)
        many = of_samples(system, values, b, n)
        step_sample(many, Lanes(base, n_state), Lanes(controls, n_control), Lanes(after, n_state), Lanes(space, size))
        from_lanes(n, n_state, offset(pointer(x_next), b * n_state), after)


compiled_as(step_all, _step_all, forceinline=True)


@implements(step_batch, System)
def _step_batch(system, x, c, x_next, scratch):
    step_all(system, x, c, x_next, scratch, scratch)
