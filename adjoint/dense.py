"""Backward of the dense algebra on addresses; the transposes of `matmul` are products themselves (see `network`)."""

from stablebptt.kernels.core.dispatch import inline, like
from stablebptt.kernels.core.simd import lanes, load, store


@inline
def tanh_all_vjp(n, h, z_bar):
    """Multiply z_bar by ``1 - h^2``, with h = tanh(z), for n (padded) elements at addresses h and z_bar."""
    one = like(h, 1.0)
    for j in range(0, n, lanes(h)):
        value = load(h, j)
        store(z_bar, j, load(z_bar, j) * (one - value * value))
