"""Adjoint of the convolutional controller; mirror image of `stablebptt.kernels.cnn`."""

from stablebptt.adjoint.generics import clear, control_batch_vjp, parameter_vjp, unpack
from stablebptt.kernels.cnn import CNN, STEP, STRIDE, TAPS, WINDOW
from stablebptt.kernels.compiler import implements, like
from stablebptt.kernels.dense import add, copy, matmul, scale, tanh_all_vjp
from stablebptt.kernels.simd import NONE, ONE, PAD, offset, pointer


@implements(control_batch_vjp, CNN)
def _control_batch_vjp(controller, weights, tape, x, row, c_bar, x_bar, want_x, slot, start):
    n = c_bar.shape[0]
    features, span, rows = controller.features, controller.span, tape.hidden_0.shape[1]
    first, second, chunk = controller.positions_0, controller.positions_1, tape.deltas_0.shape[2]
    w, zeros = pointer(weights), pointer(tape.zeros)
    d0 = offset(pointer(tape.deltas_0), (slot * first * chunk + start) * span)
    d1 = offset(pointer(tape.deltas_1), (slot * second * chunk + start) * span)
    for p in range(second):  # c = sum_p h_p . output_p
        z_bar = offset(d1, p * chunk * span)
        output = offset(w, controller.output + p * span)
        for r in range(n):
            scale(span, c_bar[r, 0], output, offset(z_bar, r * span))
        tanh_all_vjp(n * span, offset(pointer(tape.hidden_1), (p * rows + row) * span), z_bar)
    for q in range(first):  # position q was seen by position p through tap q - 2 p
        z_bar = offset(d0, q * chunk * span)
        init, init_row = zeros, NONE
        for tap in range(q % STRIDE, TAPS, STRIDE):
            p = (q - tap) // STRIDE
            if q >= tap and p < second:
                back = offset(w, controller.back_1 + tap * features * span)
                above = offset(d1, p * chunk * span)
                matmul(n, span, features, above, span, ONE, back, span, init, init_row, z_bar, span)
                init, init_row = z_bar, span
        if init_row == 0:  # no window ended here
            scale(n * span, like(w, 0.0), z_bar, z_bar)
        tanh_all_vjp(n * span, offset(pointer(tape.hidden_0), (q * rows + row) * span), z_bar)
    if want_x:
        back, seen = offset(w, controller.back_0), pointer(tape.window_bar)
        for q in range(first):
            matmul(n, ONE * PAD, features, offset(d0, q * chunk * span), span, ONE, back, ONE * PAD, zeros, NONE, seen, ONE * PAD)
            for r in range(n):
                line, line_bar = offset(seen, r * PAD), offset(pointer(x_bar), r * x_bar.shape[1] + q * STEP)
                for k in range(WINDOW):
                    line_bar[k] += line[k]


@implements(clear, CNN)
def _clear(controller, tape):
    tape.gradient_0[:] = 0
    tape.gradient_1[:] = 0
    tape.gradient_output[:] = 0
    tape.gradient_bias[:] = 0


@implements(parameter_vjp, CNN)
def _parameter_vjp(controller, weights, tape, x, row, c_bar, unit):
    n, (variants, length, _) = x.shape[0], c_bar.shape
    features, span, rows = controller.features, controller.span, tape.hidden_0.shape[1]
    first, second, chunk = controller.positions_0, controller.positions_1, tape.deltas_0.shape[2]
    scaled, windows, one = pointer(tape.scaled), tape.windows, like(x, 1.0)
    wide = windows.shape[1]
    h0, h1 = offset(pointer(tape.hidden_0), row * span), offset(pointer(tape.hidden_1), row * span)
    for v in range(variants):
        slot = 0 if unit else v
        bar = offset(pointer(c_bar), v * length)
        # Output: c = sum_p h_p . output_p + bias
        for p in range(second):
            out = offset(pointer(tape.gradient_output), (v * second + p) * span)
            matmul(ONE, span, n, bar, ONE, ONE, offset(h1, p * rows * span), span, out, span, out, span)
        for r in range(n):
            tape.gradient_bias[v] += bar[r]
        # Second convolution
        out = offset(pointer(tape.gradient_1), v * (TAPS * features + 1) * span)
        for p in range(second):
            source = offset(pointer(tape.deltas_1), (slot * second + p) * chunk * span)
            for r in range(n):
                line = offset(scaled, r * span)
                scale(span, bar[r] if unit else one, offset(source, r * span), line)
                add(span, line, offset(out, TAPS * features * span))
            for tap in range(TAPS):
                below, place = offset(h0, (p * STRIDE + tap) * rows * span), offset(out, tap * features * span)
                matmul(features, span, n, below, ONE, span, scaled, span, place, span, place, span)
        # First convolution: here it is the window that is scaled, with a one for the bias
        out = offset(pointer(tape.gradient_0), v * wide * span)
        for p in range(first):
            for r in range(n):
                factor = bar[r] if unit else one
                for k in range(WINDOW):
                    windows[r, k] = factor * x[r, p * STEP + k]
                windows[r, WINDOW] = factor
            source = offset(pointer(tape.deltas_0), (slot * first + p) * chunk * span)
            matmul(wide, span, n, pointer(windows), ONE, wide, source, span, out, span, out, span)


@implements(unpack, CNN)
def _unpack(controller, tape, gradients):
    features, span, second = controller.features, controller.span, controller.positions_1
    wide = tape.windows.shape[1]
    for v in range(gradients.shape[0]):
        target = offset(pointer(gradients), v * controller.n_parameters)
        for k in range(WINDOW + 1):  # kernel, then bias
            copy(features, offset(pointer(tape.gradient_0), (v * wide + k) * span), offset(target, k * features))
        target = offset(target, (WINDOW + 1) * features)
        rows = TAPS * features + 1
        for k in range(rows):
            copy(features, offset(pointer(tape.gradient_1), (v * rows + k) * span), offset(target, k * features))
        target = offset(target, rows * features)
        for p in range(second):
            source = offset(pointer(tape.gradient_output), (v * second + p) * span)
            copy(features, source, offset(target, p * features))
        target[second * features] = tape.gradient_bias[v]
