"""Adjoint of a step for registers full of samples; mirror image of `stablebptt.kernels.in_lanes`."""

from stablebptt.adjoint.generics import step_batch_vjp, step_sample_vjp
from stablebptt.kernels.core.dispatch import compiled_as, implements, like
from stablebptt.kernels.core.lanes import Lanes, LanesOf, add_from_lanes, padded_batch, to_lanes, view_type
from stablebptt.kernels.core.simd import lanes, offset, pointer
from stablebptt.kernels.generics import System
from stablebptt.kernels.in_lanes import fits


def step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_batch_vjp` of any system."""
    for b in range(x.shape[0]):
        step_sample_vjp(system, x[b], x_next[b], c[b], lam[b], lam_x[b], lam_c[b], scratch)


def _step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    view, views = view_type(x.dtype), view_type(x.dtype, several=True)
    return _registers if fits(step_sample_vjp, system, view, view, view, views, views, views, view) else step_all_vjp


def _registers(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    batch, m, n_state = lam.shape
    n_control, stride, base = c.shape[1], padded_batch(batch), pointer(scratch)
    after = offset(base, n_state * stride)
    controls = offset(after, n_state * stride)
    bars = offset(controls, n_control * stride)
    x_bars = offset(bars, m * n_state * stride)
    c_bars = offset(x_bars, m * n_state * stride)
    space = offset(c_bars, m * n_control * stride)
    size = scratch.size // stride - 2 * n_state - n_control - m * (2 * n_state + n_control)
    to_lanes(batch, n_state, pointer(x), base, stride)
    to_lanes(batch, n_state, pointer(x_next), after, stride)
    to_lanes(batch, n_control, pointer(c), controls, stride)
    to_lanes(batch, m * n_state, pointer(lam), bars, stride)
    for k in range(m * (n_state + n_control) * stride):
        x_bars[k] = like(lam, 0.0)
    for b in range(0, batch, lanes(base)):
        step_sample_vjp(
            system,
            Lanes(offset(base, b), stride, n_state),
            Lanes(offset(after, b), stride, n_state),
            Lanes(offset(controls, b), stride, n_control),
            LanesOf(offset(bars, b), stride, m, n_state),
            LanesOf(offset(x_bars, b), stride, m, n_state),
            LanesOf(offset(c_bars, b), stride, m, n_control),
            Lanes(offset(space, b), stride, size),
        )
    add_from_lanes(batch, m * n_state, pointer(lam_x), x_bars, stride)
    add_from_lanes(batch, m * n_control, pointer(lam_c), c_bars, stride)


compiled_as(step_all_vjp, _step_all_vjp, forceinline=True)


@implements(step_batch_vjp, System)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)
