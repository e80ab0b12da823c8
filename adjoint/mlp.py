"""Adjoint of the multilayer perceptron; mirror image of `stablebptt.kernels.mlp`."""

from stablebptt.adjoint.generics import clear, control_batch_vjp, parameter_vjp, unpack
from stablebptt.kernels.compiler import implements, like
from stablebptt.kernels.dense import add, copy, matmul, scale, tanh_all_vjp
from stablebptt.kernels.mlp import (
    BACK,
    BACK_SPAN,
    COLUMN,
    GRADIENT,
    INPUTS,
    KERNEL,
    MLP,
    OUTPUTS,
    SPAN,
    THETA,
)
from stablebptt.kernels.simd import NONE, ONE, PAD, offset, pointer


@implements(control_batch_vjp, MLP)
def _control_batch_vjp(controller, weights, tape, x, row, c_bar, x_bar, want_x, slot, start):
    layers, width = controller.layers, controller.width
    n, n_control = c_bar.shape
    last = layers.shape[0] - 1
    chunk = tape.deltas.shape[1]
    w, zeros = pointer(weights), pointer(tape.zeros)
    h = offset(pointer(tape.hidden), row * width)
    d = offset(pointer(tape.deltas), (slot * chunk + start) * width)
    for i in range(last - 1, -1, -1):
        span, column = layers[i, SPAN], layers[i, COLUMN]
        z_bar = offset(d, column)
        if i == last - 1:
            kernel = offset(w, layers[last, KERNEL])
            matmul(n, span, n_control, pointer(c_bar), n_control, ONE, kernel, span, zeros, NONE, z_bar, width)
        else:
            above, back = offset(d, layers[i + 1, COLUMN]), offset(w, layers[i + 1, BACK])
            matmul(n, span, layers[i + 1, OUTPUTS], above, width, ONE, back, span, zeros, NONE, z_bar, width)
        for r in range(n):
            tanh_all_vjp(span, offset(h, r * width + column), offset(z_bar, r * width))
    if want_x:
        back, span, out = offset(w, layers[0, BACK]), layers[0, BACK_SPAN], pointer(x_bar)
        length = x_bar.shape[1]
        matmul(n, span, layers[0, OUTPUTS], d, width, ONE, back, span, out, length, out, length)


@implements(clear, MLP)
def _clear(controller, tape):
    tape.gradient[:] = 0
    tape.output[:] = 0
    tape.output_bias[:] = 0


@implements(parameter_vjp, MLP)
def _parameter_vjp(controller, weights, tape, x, row, c_bar, unit):
    layers, width = controller.layers, controller.width
    n, (variants, rows, n_control) = x.shape[0], c_bar.shape
    last = layers.shape[0] - 1
    length, chunk = tape.scaled.shape[1], tape.deltas.shape[1]
    h = offset(pointer(tape.hidden), row * width)
    s, g, d = pointer(tape.scaled), pointer(tape.gradient), pointer(tape.deltas)
    one = like(s, 1.0)

    # Output layer: c = H P^T + bias.
    above = offset(h, layers[last - 1, COLUMN])
    span = layers[last, SPAN]
    for v in range(variants):
        bar, out = offset(pointer(c_bar), v * rows * n_control), offset(pointer(tape.output), v * n_control * span)
        matmul(n_control, span, n, bar, ONE, n_control, above, width, out, span, out, span)
        for r in range(n):
            for q in range(n_control):
                tape.output_bias[v, q] += c_bar[v, r, q]

    # Hidden layers, all cotangents side by side: z = A W + bias.
    for i in range(last):
        inputs, outputs, column = layers[i, INPUTS], layers[i, OUTPUTS], layers[i, COLUMN]
        place = layers[i, GRADIENT]
        columns = -(-variants * outputs // PAD) * PAD
        bias_bar = offset(g, (place + inputs) * length)
        for r in range(n):
            line = offset(s, r * length)
            for v in range(variants):
                factor = c_bar[v, r, 0] if unit else one
                slot = 0 if unit else v
                scale(outputs, factor, offset(d, (slot * chunk + r) * width + column), offset(line, v * outputs))
            add(columns, line, bias_bar)
        out = offset(g, place * length)
        if i == 0:
            matmul(inputs, columns, n, pointer(x), ONE, inputs, s, length, out, length, out, length)
        else:
            below = offset(h, layers[i - 1, COLUMN])
            matmul(inputs, columns, n, below, ONE, width, s, length, out, length, out, length)


@implements(unpack, MLP)
def _unpack(controller, tape, gradients):
    layers = controller.layers
    last = layers.shape[0] - 1
    length = tape.gradient.shape[1]
    for v in range(gradients.shape[0]):
        for i in range(last + 1):
            inputs, outputs, span, place = layers[i, INPUTS], layers[i, OUTPUTS], layers[i, SPAN], layers[i, THETA]
            target = offset(pointer(gradients), v * controller.n_parameters + place)
            if i < last:  # the bias is the last row
                source = offset(pointer(tape.gradient), layers[i, GRADIENT] * length + v * outputs)
                for k in range(inputs + 1):
                    copy(outputs, offset(source, k * length), offset(target, k * outputs))
            else:
                source = offset(pointer(tape.output), v * outputs * span)
                for j in range(outputs):
                    for k in range(inputs):
                        target[k * outputs + j] = source[j * span + k]
                    target[inputs * outputs + j] = tape.output_bias[v, j]
