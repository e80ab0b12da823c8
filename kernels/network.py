"""Networks: each output of a layer sees a window of the layer below; an activation between layers, linear output.

One loop serves every kind. A dense layer has one window, which sees everything. A convolution has many, a few positions wide.
Source: docs/cartpole.md (multilayer perceptron), docs/quantum.md (convolutions).

The arenas (n rows: samples, or samples x time steps; P positions, J outputs per position, padded to a span, in lines):

    hidden    layer 0 | layer 1 | ..          a layer: P matrices (rows, line); number j of position p of row r lies at
    slopes    the same, or nothing            place * rows + (p * rows + r) * line + j
    weights   kernel (taps * inputs, line), bias (span), back (taps, J, line below): the transposed kernel, for the adjoint
              first layer: back (J, padded window); output layer: kernel (J, taps, line below), bias, no back

Padding holds zeros. A linear controller has one layer, the first, and no output layer: its numbers are the controls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stablebptt.kernels.activations import Activation, Identity, Tanh, activate_all, keeps_slopes, slope_count
from stablebptt.kernels.core.dispatch import implements, inline
from stablebptt.kernels.core.simd import NONE, ONE, offset, padded, pointer, spaced
from stablebptt.kernels.core.structs import Struct, row_reference
from stablebptt.kernels.dense import Matrix, aligned, copy, dot, matmul, matmul_runs, matrix
from stablebptt.kernels.generics import control_batch, pack

# Rows of a matrix product that fill the largest tile.
TILE_ROWS = 8
TANH = Tanh()


@dataclass(frozen=True)
class Dense:
    """A layer of `outputs` numbers; each sees all numbers below."""

    outputs: int


@dataclass(frozen=True)
class Convolution:
    """A layer of `features` per window. A window sees `taps` positions, `stride` further on than the last one; no padding."""

    features: int
    taps: int = 3
    stride: int = 2


class Layer(Struct):
    """What a layer computes, and where its numbers lie.

    taps, stride : positions below per window, and from window to window
    inputs : numbers per position below
    positions, outputs : windows, and numbers per window
    span, line : padded outputs; numbers from one row of them to the next
    below : numbers from one row of `back`, or of the output layer's kernel, to the next
    kernel, bias, back : offsets in the arena of the weights
    place : numbers of the hidden layers before this one, per row of the tape
    theta : offset in theta
    gradient, rows, apart : first row and number of rows in the arena of the gradients; columns between two of the m gradients
    by_window : 1 if its gradient scales the windows (a first layer with many small ones), 0 if it scales the cotangents
    convolution : 1 for a convolution, 0 for a dense layer
    """

    taps: int
    stride: int
    inputs: int
    positions: int
    outputs: int
    span: int
    line: int
    below: int
    kernel: int
    bias: int
    back: int
    place: int
    theta: int
    gradient: int
    rows: int
    apart: int
    by_window: int
    convolution: int


class Network(Struct):
    """A network as a controller.

    table (layers, fields of `Layer`) : one row per layer
    activation : of all layers but the last
    hidden : number of layers whose numbers are on the tape: all but the last, or the only one
    n_state, n_parameters, n_weights : numbers of an input, of theta, and of theta as `pack` arranges it
    width : hidden numbers per row of the tape
    """

    table: np.ndarray
    activation: Activation
    hidden: int
    n_state: int
    n_parameters: int
    n_weights: int
    width: int

    def sizes(self) -> tuple[int, int]:
        """Numbers of an input and of a control."""
        return self.n_state, int(self.layers()[-1].outputs)

    def tape_width(self) -> int:
        """Numbers per row of the tape."""
        return self.width * (1 + keeps_slopes(self.activation))

    def layers(self) -> list[Layer]:
        """The layers, from the state to the control."""
        return [Layer(*row) for row in self.table.tolist()]

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order of theta."""
        shapes: dict[str, tuple[int, ...]] = {}
        counts = {"conv": 0, "dense": 0}
        for layer in self.layers():
            kind = "conv" if layer.convolution else "dense"
            name, counts[kind] = f"{kind}_{counts[kind]}", counts[kind] + 1
            sides = (layer.taps, layer.inputs) if layer.convolution else (layer.taps * layer.inputs,)
            shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (*sides, layer.outputs), (layer.outputs,)
        return shapes

    def windows(self) -> list[tuple[int, int, int, int]]:
        """Per layer: numbers from window to window, numbers in a window, windows, outputs per window."""
        return [(a.stride * a.inputs, a.taps * a.inputs, a.positions, a.outputs) for a in self.layers()]

    def sums(self, dtype: type, *, groups: int, adjoints: int) -> "Sums":
        """Arenas for the sums of m = `adjoints` gradients; see `new_sums`."""
        layers = self.layers()
        below, last = layers[self.hidden - 1], layers[-1]
        return Sums(
            gradient=aligned((groups, below.gradient + below.rows, self.widest(adjoints)), dtype),
            output=aligned((groups, adjoints * last.outputs, last.taps * last.below), dtype),
            output_bias=aligned((groups, adjoints, padded(last.outputs)), dtype),
        )

    def widest(self, adjoints: int) -> int:
        """Numbers from one row to the next, where rows hold m = `adjoints` gradients of any hidden layer side by side."""
        return spaced(max(padded(adjoints * max(layer.apart, layer.outputs)) for layer in self.layers()[: self.hidden]))

    def tape(
        self, dtype: type, *, rows: int, chunk: int, adjoints: int, unit: bool, groups: np.ndarray, sums: "Sums"
    ) -> "Tape":
        """Arenas for `rows` stored rows, `chunk` rows per backward step and m = `adjoints` gradients; see `new_tape`."""
        hidden, widest = self.layers()[: self.hidden], self.widest(adjoints)
        seen = hidden[0].below
        return Tape(
            rows=rows,
            chunk=chunk,
            unit=unit,
            hidden=aligned((rows * self.width,), dtype),
            slopes=aligned((slope_count(self.activation, rows * self.width),), dtype),
            deltas=aligned((1 if unit else adjoints, chunk * self.width), dtype),
            scaled=aligned((chunk + 1, widest), dtype),  # `scale` may write beyond the last row
            windows=aligned((chunk, max(layer.rows for layer in hidden)), dtype),
            seen=aligned((chunk, seen), dtype),
            zeros=aligned((max(widest, seen),), dtype),
            groups=groups,
            sums=sums,
        )


class Sums(Struct):
    """Gradients, summed over groups of samples.

    gradient (groups, rows, widest) : per hidden layer its kernel, then its bias; the m gradients side by side
    output (groups, m * n_control, taps * line below), output_bias (groups, m, padded n_control) : gradients of the output layer
    """

    gradient: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray


class Tape(Struct):
    """Activations from the forward pass, and the arenas of the backward pass (m gradients, n rows at once).

    rows, chunk : rows of hidden, rows of deltas
    unit : True if one slot of deltas, for the cotangent 1 of the only control, serves all adjoints; False if each has its own
    hidden (rows * width,), slopes (the same, or 1) : activations, and their slopes, if they are kept
    deltas (1 or m, chunk * width) : cotangents of the activations, in the same layout
    scaled (chunk + 1, widest), windows (chunk, rows), seen (chunk, below) : scratch: scaled numbers, cotangents of windows
    zeros (max(widest, below),) : initial value of matrix products
    groups (groups + 1,), sums : bounds of the groups of samples of one time step, and the sums of their gradients
    """

    rows: int
    chunk: int
    unit: bool
    hidden: np.ndarray
    slopes: np.ndarray
    deltas: np.ndarray
    scaled: np.ndarray
    windows: np.ndarray
    seen: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray
    sums: Sums


def mlp(sizes: Sequence[int], activation: Activation = TANH) -> Network:
    """A multilayer perceptron with layer sizes (n_state, hidden .., n_control); without hidden layers, it is linear."""
    return network((1, sizes[0]), [Dense(size) for size in sizes[1:]], activation)


def cnn(points: int, features: int, activation: Activation = TANH) -> Network:
    """Two convolutions over the (points, 2) numbers of a wave function, each with `features`, and one control."""
    return network((points, 2), [Convolution(features), Convolution(features), Dense(1)], activation)


def network(shape: tuple[int, int], layers: Sequence[Dense | Convolution], activation: Activation = TANH) -> Network:
    """A network on inputs of `shape` (positions, numbers per position).

    Parameters
    ----------
    layers : from the input to the control, convolutions first; the last one is dense and linear
    activation : of the others

    Raises
    ------
    ValueError
        If there is no layer, a window does not fit, or a convolution follows a dense layer.
    """
    if not layers or not isinstance(layers[-1], Dense):
        raise ValueError(f"layers are {list(layers)}; give a dense one as the last")
    (positions, inputs), table, hidden = shape, [], max(1, len(layers) - 1)
    weights = theta = place = gradient = 0
    for number, given in enumerate(layers):
        last = number == hidden
        taps, stride, outputs = _window(given, positions, number)
        window, windows, span = taps * inputs, (positions - taps) // stride + 1, padded(outputs)
        line, below = spaced(span), padded(window) if number == 0 else spaced(padded(inputs))
        by_window = number == 0 and windows > 1 and window + 2 <= outputs
        rows = -(-(window + 1) // TILE_ROWS) * TILE_ROWS if by_window else window + 1
        bias = weights + (taps * below * outputs if last else window * line)
        back, products = bias + span, 1 if number == 0 else taps
        layer = Layer(
            taps, stride, inputs, windows, outputs, span, line, below, weights, bias, back, place, theta, gradient, rows,
            span if by_window else outputs, int(by_window), int(isinstance(given, Convolution)),
        )  # fmt: skip
        table.append([getattr(layer, name) for name in Layer.fields])
        weights = back if last else back + products * outputs * below
        theta += (window + 1) * outputs
        if not last:
            place += windows * line
            gradient += rows
        positions, inputs = windows, outputs
    used = activation if len(layers) > 1 else Identity()
    return Network(np.array(table, np.int64), used, hidden, shape[0] * shape[1], theta, weights, place)


def _window(layer: Dense | Convolution, positions: int, number: int) -> tuple[int, int, int]:
    """Taps, stride and outputs of a layer over `positions`."""
    if isinstance(layer, Dense):
        return positions, positions, layer.outputs
    if not 1 <= layer.taps <= positions or layer.stride < 1:
        raise ValueError(
            f"layer {number} has windows of {layer.taps} positions at distance {layer.stride}; there are {positions} below"
        )
    return layer.taps, layer.stride, layer.features


_layer_at = row_reference(Layer)


@inline
def layer_of(network, i):
    """Layer i, from its row of the table."""
    return _layer_at(network.table, i)


@inline
def stretches(n, layer):
    """Stretches of numbers in n rows of a layer, and the length of each: all, or a row, if there is space between rows."""
    return (1, n * layer.span) if layer.line == layer.span else (n, layer.span)


@implements(pack, Network)
def _pack(network, theta, weights):
    last = network.hidden
    w = pointer(weights)
    for i in range(network.table.shape[0]):
        layer = layer_of(network, i)
        source, outputs = offset(pointer(theta), layer.theta), layer.outputs
        kernel, back = offset(w, layer.kernel), offset(w, layer.back)
        window, below = layer.taps * layer.inputs, layer.below
        inputs = window if i == 0 else layer.inputs
        for k in range(window):
            line = offset(source, k * outputs)
            tap, j = k // inputs, k % inputs
            if i < last:
                copy(outputs, line, offset(kernel, k * layer.line))
                for q in range(outputs):
                    back[(tap * outputs + q) * below + j] = line[q]
            else:
                for q in range(outputs):
                    kernel[(q * layer.taps + tap) * below + j] = line[q]
        copy(outputs, offset(source, window * outputs), offset(w, layer.bias))


@implements(control_batch, Network)
def _control_batch(network, weights, x, c, tape, row):
    n, n_state = x.shape
    last = network.hidden
    w, h, slopes, rows = pointer(weights), pointer(tape.hidden), pointer(tape.slopes), tape.rows
    below = layer_of(network, 0)
    for i in range(last):
        layer = layer_of(network, i)
        span, line, kernel, bias = layer.span, layer.line, offset(w, layer.kernel), offset(w, layer.bias)
        for p in range(layer.positions):
            place = layer.place * rows + (p * rows + row) * line
            z = offset(h, place)
            if i == 0:
                window = offset(pointer(x), p * layer.stride * layer.inputs)
                inner = layer.taps * layer.inputs
                matmul((n, span, inner), matrix(window, n_state), matrix(kernel, line), matrix(bias, NONE), matrix(z, line))
            else:
                seen = offset(h, below.place * rows + (p * layer.stride * rows + row) * below.line)
                inner, run, tap = layer.taps * layer.inputs, layer.inputs, rows * below.line  # a run of the product: one tap
                a, b = Matrix(seen, below.line, ONE, tap), Matrix(kernel, line, ONE, run * line)
                matmul_runs((n, span, inner, run), a, b, matrix(bias, NONE), matrix(z, line))
            count, size = stretches(n, layer)
            for r in range(count):
                activate_all(network.activation, size, offset(z, r * line), offset(slopes, place + r * line))
        below = layer
    if network.table.shape[0] == last:
        for r in range(n):
            copy(below.outputs, offset(h, (row + r) * below.line), offset(pointer(c), r * below.outputs))
        return
    layer = layer_of(network, last)
    kernel, span, line, apart = offset(w, layer.kernel), below.span, below.line, layer.below
    for r in range(n):
        for q in range(layer.outputs):
            total = weights[layer.bias + q]
            for tap in range(layer.taps):
                seen = offset(h, below.place * rows + (tap * rows + row + r) * line)
                total += dot(span, seen, offset(kernel, (q * layer.taps + tap) * apart))
            c[r, q] = total
