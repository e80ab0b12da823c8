"""Multilayer perceptron: tanh layers, linear output; docs/cartpole.md.

Weights live in one padded arena: per hidden layer the kernel (inputs, padded outputs), the bias and a transposed copy for
the backward pass; the output layer as (outputs, padded inputs), so that both passes read it along rows.
Hidden activations of a row lie side by side in the tape, each layer padded; pads hold zeros.
"""

from itertools import pairwise

import numpy as np

from stablebptt.kernels.compiler import implements
from stablebptt.kernels.dense import aligned, copy, dot, matmul, tanh_all
from stablebptt.kernels.generics import control_batch, pack
from stablebptt.kernels.simd import NONE, ONE, offset, padded, pointer
from stablebptt.kernels.structs import Struct

# Columns of MLP.layers
INPUTS, OUTPUTS, SPAN, KERNEL, BIAS, BACK, BACK_SPAN, COLUMN, THETA, GRADIENT = range(10)


class MLP(Struct):
    """Sizes and places of the layers: one row per layer, columns as listed above; the last row is the output layer.

    SPAN: padded outputs (of the output layer: padded inputs). KERNEL, BIAS, BACK: places in the weights' arena.
    BACK_SPAN: padded inputs. COLUMN: first column of the activations in the tape. THETA: place in theta. GRADIENT:
    row of the gradient arena.
    """

    layers: np.ndarray
    n_parameters: int
    n_weights: int
    width: int

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order of theta."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (inputs, outputs) in enumerate(self.layers[:, :2].tolist()):
            shapes[f"dense_{i}/kernel"] = (inputs, outputs)
            shapes[f"dense_{i}/bias"] = (outputs,)
        return shapes

    def windows(self) -> list[tuple[int, int, int, int]]:
        """Per layer: step from window to window, numbers in a window, windows, outputs per window."""
        return [(inputs, inputs, 1, outputs) for inputs, outputs in self.layers[:, :2].tolist()]

    def tape(self, rows: int, chunk: int, variants: int, slots: int, dtype: type) -> "Tape":
        """Arenas for `rows` stored rows and `chunk` rows at once backwards, of `variants` gradients.

        hidden (rows, width); deltas (slots, chunk, width); scaled (chunk + 1, widest); gradient: per hidden layer inputs + 1 rows
        (the last one the bias) of all variants side by side; output (variants * n_control, span).
        """
        hidden, last = self.layers[:-1], self.layers[-1]
        widest = max(padded(variants * int(outputs)) for outputs in hidden[:, OUTPUTS])
        return Tape(
            aligned((rows, self.width), dtype),
            aligned((slots, chunk, self.width), dtype),
            aligned((chunk + 1, widest), dtype),  # `scale` may write beyond the last row
            aligned((int((hidden[:, INPUTS] + 1).sum()), widest), dtype),
            aligned((variants * int(last[OUTPUTS]), int(last[SPAN])), dtype),
            aligned((variants, int(last[OUTPUTS])), dtype),
            aligned((max(widest, int(self.layers[0, BACK_SPAN])),), dtype),
        )


class Tape(Struct):
    """What the forward pass leaves for the backward pass, and the backward pass's own arenas; see `MLP.tape`."""

    hidden: np.ndarray
    deltas: np.ndarray
    scaled: np.ndarray
    gradient: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray
    zeros: np.ndarray


def mlp(sizes: tuple[int, ...]) -> MLP:
    """An MLP with layer sizes (n_state, hidden .., n_control); at least one hidden layer."""
    layers = np.zeros((len(sizes) - 1, 10), np.int64)
    weights = theta = column = gradient = 0
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        span, back_span = padded(inputs if last else outputs), padded(inputs)
        kernel, bias = weights, weights + (outputs * span if last else inputs * span)
        back = bias + (padded(outputs) if last else span)
        weights = back if last else back + outputs * back_span
        layers[i] = inputs, outputs, span, kernel, bias, back, back_span, column, theta, gradient
        theta += inputs * outputs + outputs
        if not last:
            column += span
            gradient += inputs + 1
    return MLP(layers, theta, weights, column)


@implements(pack, MLP)
def _pack(controller, theta, weights):
    layers = controller.layers
    last = layers.shape[0] - 1
    for i in range(last + 1):
        inputs, outputs, span, kernel, bias, back, back_span, _, place, _ = layers[i]
        source, target = offset(pointer(theta), place), offset(pointer(weights), kernel)
        transposed = offset(pointer(weights), kernel if i == last else back)
        length = span if i == last else back_span
        for k in range(inputs):
            line = offset(source, k * outputs)
            if i < last:
                copy(outputs, line, offset(target, k * span))
            for j in range(outputs):
                transposed[j * length + k] = line[j]
        copy(outputs, offset(source, inputs * outputs), offset(pointer(weights), bias))


@implements(control_batch, MLP)
def _control_batch(controller, weights, x, c, tape, row):
    layers, width, n = controller.layers, controller.width, x.shape[0]
    last = layers.shape[0] - 1
    w, h = pointer(weights), offset(pointer(tape.hidden), row * width)
    for i in range(last):
        inputs, span, column = layers[i, INPUTS], layers[i, SPAN], layers[i, COLUMN]
        kernel, bias, z = offset(w, layers[i, KERNEL]), offset(w, layers[i, BIAS]), offset(h, column)
        if i == 0:
            matmul(n, span, inputs, pointer(x), inputs, ONE, kernel, span, bias, NONE, z, width)
        else:
            below = offset(h, layers[i - 1, COLUMN])
            matmul(n, span, inputs, below, width, ONE, kernel, span, bias, NONE, z, width)
        for r in range(n):
            tanh_all(span, offset(z, r * width))
    span, kernel, bias = layers[last, SPAN], offset(w, layers[last, KERNEL]), offset(w, layers[last, BIAS])
    top = offset(h, layers[last - 1, COLUMN])
    for r in range(n):
        for q in range(layers[last, OUTPUTS]):
            c[r, q] = dot(span, offset(top, r * width), offset(kernel, q * span)) + bias[q]
