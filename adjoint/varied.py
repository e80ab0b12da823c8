"""Adjoint of a system with fields that differ between samples; mirror image of `stablebptt.kernels.varied`."""

from stablebptt.adjoint.generics import step_batch_vjp, step_parameters_batch_vjp, step_sample_vjp, step_vjp
from stablebptt.adjoint.in_lanes import step_all_vjp, step_parameters_each_vjp
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.varied import Varied


@implements(step_batch_vjp, Varied)
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    size = x.shape[0] * system.low.size
    step_all_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch[size:], scratch[:size])


@implements(step_sample_vjp, Varied)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_sample_vjp(system.system, x, x_next, c, lam, lam_x, lam_c, scratch)


@implements(step_vjp, Varied)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    step_vjp(system.system, x, c, lam, lam_x, lam_c)


@implements(step_parameters_batch_vjp, Varied)
def _step_parameters_batch_vjp(system, x, c, lam, p_bar, scratch):
    step_parameters_each_vjp(system, x, c, lam, p_bar, scratch[: x.shape[0] * system.low.size])
