"""Adjoint of the limits of controls; mirror image of `stablebptt.kernels.bounds`."""

from stablebptt.kernels.core.dispatch import inline, like


@inline
def limit_vjp(bounds, q, c, c_bar):
    """Cotangent of control q before its limits, from the limited control c and its cotangent c_bar."""
    if not bounds.limited:
        return c_bar
    share = (c - bounds.centre[q]) / bounds.reach[q]
    return c_bar * bounds.reach[q] * (like(c, 1.0) - share * share)
