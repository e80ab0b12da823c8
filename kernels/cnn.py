"""Convolutional controller for a wave function: two convolutions of width 3 and stride 2, tanh, and a linear output.

docs/quantum.md. Input (points, 2): a window of three points is six numbers side by side. Hidden numbers are kept
position by position, (positions, rows, padded features), so that every window is a product of rows that lie close together.
"""

import numpy as np

from stablebptt.kernels.compiler import implements
from stablebptt.kernels.dense import aligned, copy, dot, matmul, tanh_all
from stablebptt.kernels.generics import control_batch, pack
from stablebptt.kernels.simd import NONE, ONE, PAD, offset, padded, pointer
from stablebptt.kernels.structs import Struct

TAPS, CHANNELS, STRIDE = 3, 2, 2
WINDOW = TAPS * CHANNELS  # numbers that the first convolution sees at once
STEP = STRIDE * CHANNELS  # numbers from one window to the next


class CNN(Struct):
    """Sizes: features, span (padded features), positions after the two convolutions; places of the weights in their arena.

    Arena: kernel_0 (6, span), bias_0, kernel_1 (3 features, span), bias_1, output (positions_1, span), output bias; for the
    backward pass back_1 (3, features, span) and back_0 (features, PAD), the kernels transposed.
    """

    features: int
    span: int
    positions_0: int
    positions_1: int
    bias_0: int
    kernel_1: int
    bias_1: int
    output: int
    output_bias: int
    back_1: int
    back_0: int
    n_parameters: int
    n_weights: int
    width: int

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order of theta."""
        return {
            "conv_0/kernel": (TAPS, CHANNELS, self.features),
            "conv_0/bias": (self.features,),
            "conv_1/kernel": (TAPS, self.features, self.features),
            "conv_1/bias": (self.features,),
            "dense_0/kernel": (self.positions_1 * self.features, 1),
            "dense_0/bias": (1,),
        }

    def windows(self) -> list[tuple[int, int, int, int]]:
        """Per layer: step from window to window, numbers in a window, windows, outputs per window."""
        features, last = self.features, self.positions_1 * self.features
        return [
            (STEP, WINDOW, self.positions_0, features),
            (STRIDE * features, TAPS * features, self.positions_1, features),
            (last, last, 1, 1),
        ]

    def tape(self, rows: int, chunk: int, variants: int, slots: int, dtype: type) -> "CNNTape":
        """Arenas for `rows` stored rows and `chunk` rows at once backwards, of `variants` gradients."""
        first, second, span = self.positions_0, self.positions_1, self.span
        return CNNTape(
            aligned((first, rows, span), dtype),
            aligned((second, rows, span), dtype),
            aligned((slots, first, chunk, span), dtype),
            aligned((slots, second, chunk, span), dtype),
            aligned((chunk, span), dtype),
            aligned((chunk, WINDOW + 2), dtype),
            aligned((chunk, PAD), dtype),
            aligned((variants, WINDOW + 2, span), dtype),
            aligned((variants, TAPS * self.features + 1, span), dtype),
            aligned((variants, second, span), dtype),
            aligned((variants,), dtype),
            aligned((max(span, PAD),), dtype),
        )


class CNNTape(Struct):
    """Hidden numbers, their cotangents (slots first), scratch of a chunk, and per cotangent the gradients; see `CNN.tape`.

    gradient_0 (m, 8, span): six rows of the kernel, the bias, one unused; gradient_1 (m, 3 features + 1, span): the bias last.
    """

    hidden_0: np.ndarray
    hidden_1: np.ndarray
    deltas_0: np.ndarray
    deltas_1: np.ndarray
    scaled: np.ndarray
    windows: np.ndarray
    window_bar: np.ndarray
    gradient_0: np.ndarray
    gradient_1: np.ndarray
    gradient_output: np.ndarray
    gradient_bias: np.ndarray
    zeros: np.ndarray


def cnn(points: int, features: int) -> CNN:
    """The controller for Nx = points (at least 7) with `features` features in both convolutions."""
    span = padded(features)
    first = (points - TAPS) // STRIDE + 1
    second = (first - TAPS) // STRIDE + 1
    sizes = (WINDOW, 1, TAPS * features, 1, second)  # rows of kernel_0, bias_0, kernel_1, bias_1, output
    bias_0, kernel_1, bias_1, output, output_bias = (span * int(n) for n in np.cumsum(sizes))
    back_1 = output_bias + PAD
    back_0 = back_1 + TAPS * features * span
    parameters = WINDOW * features + features + TAPS * features * features + features + second * features + 1
    return CNN(
        features, span, first, second, bias_0, kernel_1, bias_1, output, output_bias, back_1, back_0,
        parameters, back_0 + features * PAD, (first + second) * span,
    )  # fmt: skip


@implements(pack, CNN)
def _pack(controller, theta, weights):
    features, span = controller.features, controller.span
    w, source = pointer(weights), pointer(theta)
    for k in range(WINDOW):
        copy(features, offset(source, k * features), offset(w, k * span))
        for j in range(features):
            weights[controller.back_0 + j * PAD + k] = theta[k * features + j]
    place = WINDOW * features
    copy(features, offset(source, place), offset(w, controller.bias_0))
    place += features
    for k in range(TAPS * features):
        line = offset(source, place + k * features)
        copy(features, line, offset(w, controller.kernel_1 + k * span))
        back = offset(w, controller.back_1 + k // features * features * span + k % features)
        for j in range(features):
            back[j * span] = line[j]
    place += TAPS * features * features
    copy(features, offset(source, place), offset(w, controller.bias_1))
    place += features
    for p in range(controller.positions_1):
        copy(features, offset(source, place + p * features), offset(w, controller.output + p * span))
    weights[controller.output_bias] = theta[place + controller.positions_1 * features]


@implements(control_batch, CNN)
def _control_batch(controller, weights, x, c, tape, row):
    n, n_state = x.shape
    features, span, rows = controller.features, controller.span, tape.hidden_0.shape[1]
    w, inputs = pointer(weights), pointer(x)
    first, second = offset(pointer(tape.hidden_0), row * span), offset(pointer(tape.hidden_1), row * span)
    bias = offset(w, controller.bias_0)
    for p in range(controller.positions_0):
        z = offset(first, p * rows * span)
        matmul(n, span, ONE * WINDOW, offset(inputs, p * STEP), n_state, ONE, w, span, bias, NONE, z, span)
        tanh_all(n * span, z)
    bias, kernel = offset(w, controller.bias_1), offset(w, controller.kernel_1)
    for p in range(controller.positions_1):
        z = offset(second, p * rows * span)
        below = offset(first, p * STRIDE * rows * span)
        matmul(n, span, features, below, span, ONE, kernel, span, bias, NONE, z, span)
        for tap in range(1, TAPS):
            line, weight = offset(below, tap * rows * span), offset(kernel, tap * features * span)
            matmul(n, span, features, line, span, ONE, weight, span, z, span, z, span)
        tanh_all(n * span, z)
    for r in range(n):
        total = weights[controller.output_bias]
        for p in range(controller.positions_1):
            total += dot(span, offset(second, (p * rows + r) * span), offset(w, controller.output + p * span))
        c[r, 0] = total
