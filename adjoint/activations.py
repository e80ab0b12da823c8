"""Adjoint of the activations; their slopes: `stablebptt.kernels.activations`."""

from stablebptt.kernels.activations import keeps_slopes, slope
from stablebptt.kernels.core.dispatch import block
from stablebptt.kernels.core.simd import lanes, load, store


@block
def activate_all_vjp(activation, n, h, slopes, z_bar):
    """Multiply z_bar by the slopes, for n (padded) elements at addresses h, slopes and z_bar."""
    for j in range(0, n, lanes(h)):
        values = load(h, j)
        factors = load(slopes, j) if keeps_slopes(activation) else slope(activation, values, values)
        store(z_bar, j, load(z_bar, j) * factors)
