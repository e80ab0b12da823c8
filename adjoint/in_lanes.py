"""Adjoint of a step for registers full of samples; mirror image of `stablebptt.kernels.in_lanes`."""

from stablebptt.adjoint.generics import (
    has_parameters_vjp,
    step_batch_vjp,
    step_parameters_batch_vjp,
    step_parameters_vjp,
    step_sample_vjp,
)
from stablebptt.kernels.core.dispatch import class_of, compiled_as, implements, like
from stablebptt.kernels.core.lanes import Lanes, LanesOf, add_from_lanes, to_lanes, view_type
from stablebptt.kernels.core.simd import lanes, offset, pointer
from stablebptt.kernels.generics import System
from stablebptt.kernels.in_lanes import fits, of_sample, of_samples, register_type


def step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch, values):
    """`step_batch_vjp` of any system."""
    for b in range(x.shape[0]):
        step_sample_vjp(of_sample(system, values, b), x[b], x_next[b], c[b], lam[b], lam_x[b], lam_c[b], scratch)


def _step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch, values):
    view, views = view_type(x.dtype), view_type(x.dtype, several=True)
    many = register_type(system, x.dtype)
    return _registers if fits(step_sample_vjp, many, view, view, view, views, views, views, view) else step_all_vjp


def _registers(system, x, x_next, c, lam, lam_x, lam_c, scratch, values):
    batch, m, n_state = lam.shape
    n_control, base = c.shape[1], pointer(scratch)
    width = lanes(base)
    after = offset(base, n_state * width)
    controls = offset(after, n_state * width)
    bars = offset(controls, n_control * width)
    x_bars = offset(bars, m * n_state * width)
    c_bars = offset(x_bars, m * n_state * width)
    space = offset(c_bars, m * n_control * width)
    size = scratch.size // width - 2 * n_state - n_control - m * (2 * n_state + n_control)
    for b in range(0, batch, width):
        n = min(width, batch - b)
        to_lanes(n, n_state, offset(pointer(x), b * n_state), base)
        to_lanes(n, n_state, offset(pointer(x_next), b * n_state), after)
        to_lanes(n, n_control, offset(pointer(c), b * n_control), controls)
        to_lanes(n, m * n_state, offset(pointer(lam), b * m * n_state), bars)
        for k in range(m * (n_state + n_control) * width):
            x_bars[k] = like(lam, 0.0)
        step_sample_vjp(
            of_samples(system, values, b, n),
            Lanes(base, n_state),
            Lanes(after, n_state),
            Lanes(controls, n_control),
            LanesOf(bars, m, n_state),
            LanesOf(x_bars, m, n_state),
            LanesOf(c_bars, m, n_control),
            Lanes(space, size),
        )
        add_from_lanes(n, m * n_state, offset(pointer(lam_x), b * m * n_state), x_bars)
        add_from_lanes(n, m * n_control, offset(pointer(lam_c), b * m * n_control), c_bars)


compiled_as(step_all_vjp, _step_all_vjp, forceinline=True)


@implements(step_batch_vjp, System)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch, scratch)


def step_parameters_each_vjp(system, x, c, lam, p_bar, values):
    """`step_parameters_batch_vjp` of any system that has `step_parameters_vjp`."""
    for b in range(x.shape[0]):
        step_parameters_vjp(of_sample(system, values, b), x[b], c[b], lam[b], p_bar[b])


def _none(system, x, c, lam, p_bar, values):
    pass


def _if_there(system, x, c, lam, p_bar, values):
    return step_parameters_each_vjp if has_parameters_vjp(class_of(register_type(system, x.dtype))) else _none


compiled_as(step_parameters_each_vjp, _if_there, forceinline=True)


@implements(step_parameters_batch_vjp, System)
def _step_parameters_batch_vjp(system, x, c, lam, p_bar, scratch):
    step_parameters_each_vjp(system, x, c, lam, p_bar, scratch)
