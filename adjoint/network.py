"""Adjoint of the networks; mirror image of `stablebptt.kernels.network`."""

import numpy as np

from stablebptt.adjoint.activations import activate_all_vjp
from stablebptt.adjoint.generics import clear, control_batch_vjp, parameter_vjp, state_vjp, unpack
from stablebptt.kernels.core.dispatch import block, implements, inline, like
from stablebptt.kernels.core.simd import NONE, ONE, PAD, offset, pointer
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.threads import cut
from stablebptt.kernels.dense import Matrix, add, add_rows, copy, matmul, matmul_runs, matrix, scale
from stablebptt.kernels.network import Network, layer_of, stretches


@implements(control_batch_vjp, Network)
def _control_batch_vjp(network, weights, tape, rows, c_bar):
    n, n_control = c_bar.shape
    last = network.hidden
    w, zeros, length, chunk, start = pointer(weights), pointer(tape.zeros), tape.rows, tape.chunk, rows.start
    h, slopes, d = pointer(tape.hidden), pointer(tape.slopes), offset(pointer(tape.deltas), rows.slot * chunk * network.width)
    if network.table.shape[0] == last:
        line = layer_of(network, 0).line
        for r in range(n):
            copy(n_control, offset(pointer(c_bar), r * n_control), offset(d, (start + r) * line))
        return
    above = layer_of(network, last)
    for i in range(last - 1, -1, -1):
        layer = layer_of(network, i)
        span, line, bars = layer.span, layer.line, offset(d, above.place * chunk + start * above.line)
        for q in range(layer.positions):
            z_bar = offset(d, layer.place * chunk + (q * chunk + start) * line)
            init, out = matrix(zeros, NONE), matrix(z_bar, line)
            if i == last - 1:  # c = sum_q h_q . kernel_q
                kernel = matrix(offset(w, above.kernel + q * above.below), above.taps * above.below)
                matmul((n, span, n_control), matrix(pointer(c_bar), n_control), kernel, init, out)
                init = out
            else:  # sum over the windows above that see position q
                for tap in range(above.taps):
                    p = (q - tap) // above.stride
                    if q >= tap and p * above.stride == q - tap and p < above.positions:
                        back = matrix(offset(w, above.back + tap * above.outputs * above.below), above.below)
                        bar = matrix(offset(bars, p * chunk * above.line), above.line)
                        matmul((n, span, above.outputs), bar, back, init, out)
                        init = out
            if init.row == 0:  # no window sees it
                for k in range(n * line):
                    z_bar[k] = like(weights, 0.0)
            place = layer.place * length + (q * length + rows.row) * line
            count, size = stretches(n, layer)
            for r in range(count):
                at = place + r * line
                activate_all_vjp(network.activation, size, offset(h, at), offset(slopes, at), offset(z_bar, r * line))
        above = layer


@implements(state_vjp, Network)
def _state_vjp(network, weights, tape, rows, c_bar, x_bar):
    layer = layer_of(network, 0)
    n, below, length, out = rows.x.shape[0], layer.below, x_bar.shape[1], pointer(x_bar)
    back, seen = matrix(offset(pointer(weights), layer.back), below), pointer(tape.seen)
    if layer.positions == 1:
        bars = matrix(deltas(network, layer, tape, rows.slot, 0, rows.start), layer.line)
        matmul((n, below, layer.outputs), bars, back, matrix(out, length), matrix(out, length))
        return
    for q in range(layer.positions):  # window by window
        bars = matrix(deltas(network, layer, tape, rows.slot, q, rows.start), layer.line)
        matmul((n, below, layer.outputs), bars, back, matrix(pointer(tape.zeros), NONE), matrix(seen, below))
        for r in range(n):
            line, line_bar = offset(seen, r * below), offset(out, r * length + q * layer.stride * layer.inputs)
            for k in range(layer.taps * layer.inputs):
                line_bar[k] += line[k]


@implements(clear, Network)
def _clear(network, tape):
    tape.sums.gradient[:] = 0
    tape.sums.output[:] = 0
    tape.sums.output_bias[:] = 0


class Runs(Struct):
    """The rows of one group of samples: runs of consecutive rows, one per time step.

    group : number of the group
    count, length : runs, and rows of each
    apart, first : rows from one run to the next; the first row
    rows : of all runs
    c_bar (m, .., n_control) : cotangents of the controls, of all samples
    """

    group: int
    count: int
    length: int
    apart: int
    first: int
    rows: int
    c_bar: np.ndarray


@implements(parameter_vjp, Network)
def _parameter_vjp(network, weights, tape, rows, c_bar):
    last, n, groups = network.hidden, rows.x.shape[0], tape.groups
    batch = groups[groups.size - 1]
    for k in range(groups.size - 1):
        first, length = groups[k], groups[k + 1] - groups[k]
        runs = Runs(k, n // batch, length, batch, first, n // batch * length, c_bar)
        if length == batch:
            runs = Runs(k, ONE, n, n, NONE, n, c_bar)
        if network.table.shape[0] > last:
            output_vjp(layer_of(network, last), layer_of(network, last - 1), tape, rows, runs)
        for i in range(last):
            layer = layer_of(network, i)
            for p in range(layer.positions):
                if layer.by_window:
                    windows_vjp(network, layer, p, tape, rows, runs)
                else:
                    kernel_vjp(network, i, p, tape, rows, runs)


@inline
def outer(runs, m, columns, a, b, out):
    """Add ``a^T b`` to out (m, columns), summed over the rows of a group, in a and b."""
    matmul_runs((m, columns, runs.rows, runs.length), Matrix(a.start, ONE, a.row, a.run), b, out, out)


@inline
def among_others(runs, start, row):
    """A matrix whose runs of rows lie as on the tape."""
    return Matrix(start, row, ONE, runs.apart * row)


@inline
def together(runs, start, row):
    """A matrix that holds the rows of one group only."""
    return Matrix(start, row, ONE, runs.length * row)


@block
def output_vjp(layer, below, tape, rows, runs):
    """Add the gradients of the output layer, ``c = sum_p h_p . kernel_p + bias``."""
    c_bar = runs.c_bar
    adjoints, length, n_control = c_bar.shape
    output, output_bias = tape.sums.output[runs.group], tape.sums.output_bias[runs.group]
    h, line = offset(pointer(tape.hidden), below.place * tape.rows + rows.row * below.line), layer.taps * layer.below
    for v in range(adjoints):
        bar = offset(pointer(c_bar), v * length * n_control)
        for p in range(layer.taps):
            out = matrix(offset(pointer(output), v * n_control * line + p * layer.below), line)
            bars = among_others(runs, offset(bar, runs.first * n_control), n_control)
            seen = among_others(runs, offset(h, (p * tape.rows + runs.first) * below.line), below.line)
            outer(runs, n_control, below.span, bars, seen, out)
        for t in range(runs.count):
            first = runs.first + t * runs.apart
            for r in range(first, first + runs.length):
                for q in range(n_control):
                    output_bias[v, q] += c_bar[v, r, q]


@block
def kernel_vjp(network, i, p, tape, rows, runs):
    """Add position p's share of the m gradients of layer i: its inputs times its scaled cotangents, all m side by side."""
    x, c_bar, unit = rows.x, runs.c_bar, tape.unit
    layer, adjoints = layer_of(network, i), c_bar.shape[0]
    length, outputs = tape.scaled.shape[1], layer.outputs
    columns = (adjoints * outputs + PAD - 1) // PAD * PAD
    scaled, one = pointer(tape.scaled), like(x, 1.0)
    g = offset(pointer(tape.sums.gradient[runs.group]), layer.gradient * length)
    line, slot = scaled, 0 if unit else tape.chunk * network.width
    for t in range(runs.count):
        first = runs.first + t * runs.apart
        bar = deltas(network, layer, tape, 0, p, first)
        for r in range(first, first + runs.length):
            for v in range(adjoints):
                scale(outputs, c_bar[v, r, 0] if unit else one, offset(bar, v * slot), offset(line, v * outputs))
            bar, line = offset(bar, layer.line), offset(line, length)
    add_rows(runs.rows, columns, scaled, length, offset(g, layer.taps * layer.inputs * length))
    bars = together(runs, scaled, length)
    if i == 0:
        wide, inner = x.shape[1], layer.taps * layer.inputs
        window = among_others(runs, offset(pointer(x), runs.first * wide + p * layer.stride * layer.inputs), wide)
        outer(runs, inner, columns, window, bars, matrix(g, length))
    else:
        below = layer_of(network, i - 1)
        for tap in range(layer.taps):
            elements = below.place * tape.rows + ((p * layer.stride + tap) * tape.rows + rows.row + runs.first) * below.line
            seen = among_others(runs, offset(pointer(tape.hidden), elements), below.line)
            outer(runs, layer.inputs, columns, seen, bars, matrix(offset(g, tap * layer.inputs * length), length))


@block
def windows_vjp(network, layer, p, tape, rows, runs):
    """Add position p's share of the gradients of the first layer: its scaled window (1 for the bias) times its cotangents."""
    x, c_bar, unit, gradient = rows.x, runs.c_bar, tape.unit, tape.sums.gradient[runs.group]
    inner, wide, length = layer.taps * layer.inputs, tape.windows.shape[1], gradient.shape[1]
    for v in range(c_bar.shape[0]):
        window = pointer(tape.windows)
        for t in range(runs.count):
            first = runs.first + t * runs.apart
            for r in range(first, first + runs.length):
                factor = c_bar[v, r, 0] if unit else like(x, 1.0)
                seen = offset(pointer(x), r * x.shape[1] + p * layer.stride * layer.inputs)
                for k in range(inner):
                    window[k] = factor * seen[k]
                window[inner] = factor
                window = offset(window, wide)
        bars = among_others(runs, deltas(network, layer, tape, 0 if unit else v, p, runs.first), layer.line)
        out = matrix(offset(pointer(gradient), layer.gradient * length + v * layer.apart), length)
        outer(runs, layer.rows, layer.span, together(runs, pointer(tape.windows), wide), bars, out)


@inline
def deltas(network, layer, tape, slot, p, r):
    """Address of the cotangents (span,) of position p and row r in a layer."""
    elements = slot * tape.chunk * network.width + layer.place * tape.chunk + (p * tape.chunk + r) * layer.line
    return offset(pointer(tape.deltas), elements)


@implements(unpack, Network)
def _unpack(network, sums, gradients, part):
    last = network.hidden
    groups, height, length = sums.gradient.shape
    g = pointer(sums.gradient)
    for i in range(last):
        layer = layer_of(network, i)
        first, end = cut(layer.taps * layer.inputs + 1, part)  # the bias is the last row
        for k in range(first, end):
            line = offset(g, (layer.gradient + k) * length)
            for group in range(1, groups):
                add(length, offset(line, group * height * length), line)
            for v in range(gradients.shape[0]):
                target = offset(pointer(gradients), v * network.n_parameters + layer.theta + k * layer.outputs)
                copy(layer.outputs, offset(line, v * layer.apart), target)
    if part.index == 0 and network.table.shape[0] > last:
        layer = layer_of(network, last)
        outputs, window, taps, below = layer.outputs, layer.taps * layer.inputs, layer.taps, layer.below
        for part_of_layer in (sums.output, sums.output_bias):
            size = part_of_layer.size // groups
            for group in range(1, groups):
                add(size, offset(pointer(part_of_layer), group * size), pointer(part_of_layer))
        for v in range(gradients.shape[0]):
            target = offset(pointer(gradients), v * network.n_parameters + layer.theta)
            for q in range(outputs):
                source = offset(pointer(sums.output), (v * outputs + q) * taps * below)
                for k in range(window):
                    target[k * outputs + q] = source[k // layer.inputs * below + k % layer.inputs]
                target[window * outputs + q] = sums.output_bias[0, v, q]
