"""Adjoint of the activations; their slopes: `stablebptt.kernels.activations`."""

from stablebptt.kernels.activations import keeps_slopes, slope
from stablebptt.kernels.core.dispatch import block
from stablebptt.kernels.core.simd import lanes, load, offset, store


@block
def activate_all_vjp(activation, shape, h, slopes, z_bar):
    """Multiply z_bar by the slopes, for numbers at addresses h, slopes and z_bar.

    shape : rows, padded columns, and numbers from one row to the next
    """
    rows, columns, line = shape
    if columns == line:
        rows, columns = 1, rows * columns
    for _ in range(rows):
        for j in range(0, columns, lanes(h)):
            values = load(h, j)
            factors = load(slopes, j) if keeps_slopes(activation) else slope(activation, values, values)
            store(z_bar, j, load(z_bar, j) * factors)
        h, slopes, z_bar = offset(h, line), offset(slopes, line), offset(z_bar, line)
