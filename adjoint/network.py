"""Adjoint of the networks; mirror image of `stablebptt.kernels.network`."""

from stablebptt.adjoint.dense import tanh_all_vjp
from stablebptt.adjoint.generics import clear, control_batch_vjp, parameter_vjp, state_vjp, unpack
from stablebptt.kernels.core.dispatch import block, implements, inline, like
from stablebptt.kernels.core.simd import NONE, ONE, PAD, offset, pointer
from stablebptt.kernels.dense import add, copy, matmul, scale
from stablebptt.kernels.network import Network, layer_of


@implements(control_batch_vjp, Network)
def _control_batch_vjp(network, weights, tape, rows, c_bar):
    n, n_control = c_bar.shape
    last = network.table.shape[0] - 1
    w, zeros, length, chunk, start = pointer(weights), pointer(tape.zeros), tape.rows, tape.chunk, rows.start
    h, d = pointer(tape.hidden), offset(pointer(tape.deltas), rows.slot * chunk * network.width)
    above = layer_of(network, last)
    for i in range(last - 1, -1, -1):
        layer = layer_of(network, i)
        span, bars = layer.span, offset(d, above.place * chunk + start * above.span)
        for q in range(layer.positions):
            z_bar = offset(d, layer.place * chunk + (q * chunk + start) * span)
            init, init_row = zeros, NONE
            if i == last - 1:  # c = sum_q h_q . kernel_q
                kernel = offset(w, above.kernel + q * span)
                matmul(n, span, n_control, pointer(c_bar), n_control, ONE, kernel, above.taps * span, init, init_row, z_bar, span)
                init_row = span
            else:  # sum over the windows above that see position q
                for tap in range(above.taps):
                    p = (q - tap) // above.stride
                    if q >= tap and p * above.stride == q - tap and p < above.positions:
                        back = offset(w, above.back + tap * above.outputs * span)
                        bar = offset(bars, p * chunk * above.span)
                        matmul(n, span, above.outputs, bar, above.span, ONE, back, span, init, init_row, z_bar, span)
                        init, init_row = z_bar, span
            if init_row == 0:  # no window sees it
                for k in range(n * span):
                    z_bar[k] = like(weights, 0.0)
            tanh_all_vjp(n * span, offset(h, layer.place * length + (q * length + rows.row) * span), z_bar)
        above = layer


@implements(state_vjp, Network)
def _state_vjp(network, weights, tape, rows, c_bar, x_bar):
    layer = layer_of(network, 0)
    n, below, length, out = rows.x.shape[0], layer.below, x_bar.shape[1], pointer(x_bar)
    back, seen = offset(pointer(weights), layer.back), pointer(tape.seen)
    if layer.positions == 1:
        bars = deltas(network, layer, tape, rows.slot, 0, rows.start)
        matmul(n, below, layer.outputs, bars, layer.span, ONE, back, below, out, length, out, length)
        return
    for q in range(layer.positions):  # window by window
        bars = deltas(network, layer, tape, rows.slot, q, rows.start)
        matmul(n, below, layer.outputs, bars, layer.span, ONE, back, below, pointer(tape.zeros), NONE, seen, below)
        for r in range(n):
            line, line_bar = offset(seen, r * below), offset(out, r * length + q * layer.stride * layer.inputs)
            for k in range(layer.taps * layer.inputs):
                line_bar[k] += line[k]


@implements(clear, Network)
def _clear(network, tape):
    tape.gradient[:] = 0
    tape.output[:] = 0
    tape.output_bias[:] = 0


@implements(parameter_vjp, Network)
def _parameter_vjp(network, weights, tape, rows, c_bar):
    last = network.table.shape[0] - 1
    output_vjp(layer_of(network, last), layer_of(network, last - 1), tape, rows, c_bar)
    for i in range(last):
        layer = layer_of(network, i)
        for p in range(layer.positions):
            if layer.by_window:
                windows_vjp(network, layer, p, tape, rows, c_bar)
            else:
                kernel_vjp(network, i, p, tape, rows, c_bar)


@block
def output_vjp(layer, below, tape, rows, c_bar):
    """Add the gradients of the output layer, ``c = sum_p h_p . kernel_p + bias``, for c_bar (m, .., n_control)."""
    n, (adjoints, length, n_control) = rows.x.shape[0], c_bar.shape
    span, h = below.span, offset(pointer(tape.hidden), below.place * tape.rows + rows.row * below.span)
    line = layer.taps * span
    for v in range(adjoints):
        bar = offset(pointer(c_bar), v * length * n_control)
        for p in range(layer.taps):
            out = offset(pointer(tape.output), v * n_control * line + p * span)
            seen = offset(h, p * tape.rows * span)
            matmul(n_control, span, n, bar, ONE, n_control, seen, span, out, line, out, line)
        for r in range(n):
            for q in range(n_control):
                tape.output_bias[v, q] += c_bar[v, r, q]


@block
def kernel_vjp(network, i, p, tape, rows, c_bar):
    """Add position p's share of the m gradients of layer i: its inputs times its scaled cotangents, all m side by side."""
    x, unit = rows.x, tape.unit
    layer, n, adjoints = layer_of(network, i), x.shape[0], c_bar.shape[0]
    length, outputs = tape.scaled.shape[1], layer.outputs
    columns = (adjoints * outputs + PAD - 1) // PAD * PAD
    scaled, g, one = pointer(tape.scaled), offset(pointer(tape.gradient), layer.gradient * length), like(x, 1.0)
    bias_bar = offset(g, layer.taps * layer.inputs * length)
    for r in range(n):
        line = offset(scaled, r * length)
        for v in range(adjoints):
            factor = c_bar[v, r, 0] if unit else one
            scale(outputs, factor, deltas(network, layer, tape, 0 if unit else v, p, r), offset(line, v * outputs))
        add(columns, line, bias_bar)
    if i == 0:
        window, inner = offset(pointer(x), p * layer.stride * layer.inputs), layer.taps * layer.inputs
        matmul(inner, columns, n, window, ONE, x.shape[1], scaled, length, g, length, g, length)
    else:
        below = layer_of(network, i - 1)
        for tap in range(layer.taps):
            elements = below.place * tape.rows + ((p * layer.stride + tap) * tape.rows + rows.row) * below.span
            seen, out = offset(pointer(tape.hidden), elements), offset(g, tap * layer.inputs * length)
            matmul(layer.inputs, columns, n, seen, ONE, below.span, scaled, length, out, length, out, length)


@block
def windows_vjp(network, layer, p, tape, rows, c_bar):
    """Add position p's share of the gradients of the first layer: its scaled window (1 for the bias) times its cotangents."""
    x, unit = rows.x, tape.unit
    n, adjoints, (wide, length) = x.shape[0], c_bar.shape[0], (tape.windows.shape[1], tape.gradient.shape[1])
    windows, inner = tape.windows, layer.taps * layer.inputs
    for v in range(adjoints):
        for r in range(n):
            factor = c_bar[v, r, 0] if unit else like(x, 1.0)
            for k in range(inner):
                windows[r, k] = factor * x[r, p * layer.stride * layer.inputs + k]
            windows[r, inner] = factor
        source = deltas(network, layer, tape, 0 if unit else v, p, 0)
        out = offset(pointer(tape.gradient), layer.gradient * length + v * layer.apart)
        matmul(layer.rows, layer.span, n, pointer(windows), ONE, wide, source, layer.span, out, length, out, length)


@inline
def deltas(network, layer, tape, slot, p, r):
    """Address of the cotangents (span,) of position p and row r in a layer."""
    elements = slot * tape.chunk * network.width + layer.place * tape.chunk + (p * tape.chunk + r) * layer.span
    return offset(pointer(tape.deltas), elements)


@implements(unpack, Network)
def _unpack(network, tape, gradients):
    last = network.table.shape[0] - 1
    length, below = tape.gradient.shape[1], layer_of(network, last - 1).span
    for v in range(gradients.shape[0]):
        for i in range(last + 1):
            layer = layer_of(network, i)
            outputs, window = layer.outputs, layer.taps * layer.inputs
            target = offset(pointer(gradients), v * network.n_parameters + layer.theta)
            if i < last:  # the bias is the last row
                source = offset(pointer(tape.gradient), layer.gradient * length + v * layer.apart)
                for k in range(window + 1):
                    copy(outputs, offset(source, k * length), offset(target, k * outputs))
            else:
                for q in range(outputs):
                    source = offset(pointer(tape.output), (v * outputs + q) * layer.taps * below)
                    for k in range(window):
                        target[k * outputs + q] = source[k // layer.inputs * below + k % layer.inputs]
                    target[window * outputs + q] = tape.output_bias[v, q]
