"""Rollouts on a CUDA device: one launch for all time steps; docs/gpu.md.

A thread block rolls out one tile of samples of one run. Its threads share the products of the network. The simulator uses one
thread per sample and the same functions as the CPU.

    block's arena   state | control | hidden 0 | .. | slopes 0 | ..  | partial sums | x_next | scratch     each x TILE samples
                    `rows` numbers, stored in the path                 of the last    of the simulator
                    (slopes only if they are kept)                     layer
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

from stablebptt.kernels.activations import Activation, keeps_slopes
from stablebptt.kernels.bounds import limited
from stablebptt.kernels.core.dispatch import inline, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.cuda_block import (
    QUAD,
    QUADS,
    SIMULATED,
    TILE,
    activate4,
    barrier,
    column,
    copy,
    device,
    gpu,
    load,
    load4,
    multiply_add,
    slope4,
    spread,
    store,
    store4,
    thread,
    threads,
)  # fmt: skip
from stablebptt.kernels.generics import cost, sample_scratch, step_sample

# Columns of a table of layers.
SOURCE, INPUTS, STEP, WINDOW, POSITIONS, OUTPUTS, TARGET, KERNEL, BIAS, LINE, THETA = range(11)
# The long sums of the last layer are split into this many parts.
PARTS = 16


class Layout(Struct):
    """How a controller fills a thread block; the controller of an `Episode` on a device.

    table (layers, 11) : columns `SOURCE` .. `THETA`
    activation : of the hidden layers
    rows : numbers of a sample: state, control, hidden layers, and slopes, if they are kept
    slopes : rows from a hidden number to its slope
    n_weights, n_scratch : numbers of the weights, and of the scratch of `step_sample`
    """

    table: np.ndarray
    activation: Activation
    rows: int
    slopes: int
    n_weights: int
    n_scratch: int


class Shared(NamedTuple):
    """Which arrays lie in the shared memory of a thread block: its arena, the weights, the gradients."""

    arena: bool
    weights: bool
    gradients: bool = False


class Paths(Struct):
    """Output of rollouts.

    numbers (slots, T+1, kept * TILE) : the first `kept` rows of every step, states before controls; one slot per thread block
    physics, effort (S, B) : loss parts
    spill (slots, ..) : arena of a thread block where shared memory is too small; otherwise one number
    """

    numbers: np.ndarray
    kept: int
    physics: np.ndarray
    effort: np.ndarray
    spill: np.ndarray


class Network(Struct):
    """A controller in a thread block.

    table (layers, 11), activation, slopes : see `Layout`
    weights (n_weights,) : kernels and biases
    numbers (rows * TILE,) : row by row: state, control, then the hidden layers in order, then slopes
    partial (PARTS * n_control * TILE,) : partial sums of the last layer
    """

    table: np.ndarray
    activation: Activation
    slopes: int
    weights: np.ndarray
    numbers: np.ndarray
    partial: np.ndarray
    n_state: int
    n_control: int


class Work(Struct):
    """Scratch of the simulator in a thread block: x_next (n_state * TILE,), scratch (n_scratch * TILE,) of `step_sample`."""

    x_next: np.ndarray
    scratch: np.ndarray


class Arguments:
    """Numba extension that passes structs to kernels as tuples of their fields, which have the same memory layout."""

    @staticmethod
    def prepare_args(kind: Any, value: Any, **unused: Any) -> tuple[Any, Any]:
        """Numba type and value of an argument, as the launch takes them."""
        if isinstance(value, Struct):
            return types.Tuple([kind for _, kind in kind.fields]), tuple(getattr(value, name) for name in type(value).fields)
        return kind, value


def kernel(function: Any) -> Any:
    """Compile an entry point for the device."""
    options: Any = {} if SIMULATED else {"extensions": [Arguments]}
    return cuda.jit(**options)(function)


def new_layout(episode: Any, *, padded: bool) -> Layout:
    """The layout of an episode's network.

    Output ``p * OUTPUTS + j`` of a layer sees the window of inputs that begins at ``p * STEP``. `padded` gives the rows of the
    weights odd length, so neighbouring threads read different banks of shared memory in both directions.
    """
    n_state, windows = episode.n_state, episode.controller.windows()
    table, rows, offset, theta = [], n_state + episode.n_control, 0, 0
    source, inputs = 0, n_state
    for number, (step, window, positions, outputs) in enumerate(windows):
        last = number == len(windows) - 1
        target, line = n_state if last else rows, outputs | 1 if padded else outputs
        bias = offset + window * line
        table.append((source, inputs, step, window, positions, outputs, target, offset, bias, line, theta))
        source, inputs = target, positions * outputs
        rows += 0 if last else inputs
        offset += window * line + outputs
        theta += window * outputs + outputs
    hidden, activation = rows - n_state - episode.n_control, episode.controller.activation
    rows += hidden if keeps_slopes(activation) else 0
    return Layout(np.array(table, np.int64), activation, rows, hidden, offset, sample_scratch(episode.system))


@device
def load_weights(table, theta, weights):
    """Copy theta (n_parameters,), in the users' order, to weights (n_weights,)."""
    for layer in range(table.shape[0]):
        window, outputs, line = table[layer, WINDOW], table[layer, OUTPUTS], table[layer, LINE]
        source, target = table[layer, THETA], table[layer, KERNEL]
        i = thread()
        while i < (window + 1) * outputs:  # the bias is one more row
            store(weights, target + i // outputs * line + i % outputs, load(theta, source + i))
            i += threads()


@device
def hidden_layer(network, layer):
    """One layer and its activation. Each thread sums four samples of one output."""
    table, weights, numbers, activation = network.table, network.weights, network.numbers, network.activation
    window, positions, outputs = table[layer, WINDOW], table[layer, POSITIONS], table[layer, OUTPUTS]
    source, target, step = table[layer, SOURCE], table[layer, TARGET], table[layer, STEP]
    first_weight, bias, line = table[layer, KERNEL], table[layer, BIAS], table[layer, LINE]
    item = thread()
    while item < positions * outputs * QUADS:
        row, first = item // QUADS, item % QUADS * QUAD
        position = row // outputs if positions > 1 else 0
        j = row - position * outputs
        weight, place = first_weight + j, (source + position * step) * TILE + first
        end = place + window * TILE
        z = spread(load(weights, bias + j))
        while place < end:
            z = multiply_add(load(weights, weight), load4(numbers, place), z)
            weight += line
            place += TILE
        place, values = (target + row) * TILE + first, activate4(activation, z)
        store4(numbers, place, values)
        if keeps_slopes(activation):
            store4(numbers, place + network.slopes * TILE, slope4(activation, z, values))
        item += threads()
    barrier()


@device
def output_layer(network, layer):
    """The last, linear layer. It has few outputs with long sums, so different threads take parts of a sum."""
    table, weights, numbers, partial = network.table, network.weights, network.numbers, network.partial
    window, outputs = table[layer, WINDOW], table[layer, OUTPUTS]
    source, target = table[layer, SOURCE], table[layer, TARGET]
    first_weight, bias, line = table[layer, KERNEL], table[layer, BIAS], table[layer, LINE]
    items = outputs * QUADS
    item = thread()
    while item < PARTS * items:
        first, j, part = item % QUADS * QUAD, item // QUADS % outputs, item // items
        weight, place = first_weight + part * line + j, (source + part) * TILE + first
        z = spread(like(weights, 0.0))
        while place < (source + window) * TILE:
            z = multiply_add(load(weights, weight), load4(numbers, place), z)
            weight += PARTS * line
            place += PARTS * TILE
        store4(partial, item * QUAD, z)
        item += threads()
    barrier()
    item = thread()
    while item < items:
        z = spread(load(weights, bias + item // QUADS))
        for part in range(PARTS):
            z = multiply_add(like(weights, 1.0), load4(partial, (part * items + item) * QUAD), z)
        store4(numbers, target * TILE + item * QUAD, z)
        item += threads()
    barrier()


@device
def run_network(network):
    """Compute the controls of a tile from its states."""
    last = network.table.shape[0] - 1
    for layer in range(last):
        hidden_layer(network, layer)
    output_layer(network, last)


@device
def start(x0, first, network, work):
    """Copy states first, first + 1, .. of x0 (B, n_state) to the thread block; fill the rest of the tile with zeros.

    Returns the number of samples in the tile.
    """
    batch, n_state = x0.shape
    n = min(TILE, batch - first)
    i = thread()
    while i < n_state * TILE:
        b = i % TILE
        network.numbers[i] = x0[first + b, i // TILE] if b < n else like(x0, 0.0)
        work.x_next[i] = like(x0, 0.0)
        i += threads()
    barrier()
    return n


@device
def follow(episode, network, work, n, paths, slot):
    """Roll n samples out and store the first `paths.kept` rows of every step in a slot.

    Returns the weighted cost and the sum of squared controls of this thread's sample. The cost is NaN if its last state is not
    finite. The network's numbers end as the last states.
    """
    time_weights, path_rows, path = episode.time_weights, paths.kept, paths.numbers
    numbers, n_state, n_control, b = network.numbers, network.n_state, network.n_control, thread()
    physics, effort = like(numbers, 0.0), like(numbers, 0.0)
    steps = time_weights.size - 1
    for t in range(steps):
        run_network(network)
        if b < n:
            x, c = column(numbers, b, n_state), column(numbers, n_state * TILE + b, n_control)
            if episode.bounds.limited:
                for q in range(n_control):
                    c[q] = limited(episode.bounds, q, c[q])
            x_next = column(work.x_next, b, n_state)
            step_sample(episode.system, x, c, x_next, column(work.scratch, b, work.scratch.size // TILE))
            if time_weights[t + 1] != 0:
                physics += time_weights[t + 1] * cost(episode.loss, x_next)
            for q in range(n_control):
                effort += c[q] * c[q]
        if episode.bounds.limited:
            barrier()  # the controls of all samples are limited before any thread copies them
        if path_rows > 0:
            copy(path_rows * TILE, numbers, path[slot, t])
        barrier()
        copy(n_state * TILE, work.x_next, numbers)
        barrier()
    if path_rows > 0:
        copy(n_state * TILE, numbers, path[slot, steps])
    if b < n:
        zero = like(numbers, 0.0)
        for k in range(n_state):  # 0 for finite numbers, otherwise NaN
            physics += zero * numbers[k * TILE + b]
    return physics, effort


@inline
def work_size(episode):
    """Numbers in the arena of a thread block; see `place_work`."""
    layout = episode.controller
    return TILE * (layout.rows + PARTS * episode.n_control + episode.n_state + layout.n_scratch)


@device
def place_work(arena, weights, episode):
    """Lay out the arrays of a thread block in its arena."""
    layout, n_state, n_control = episode.controller, episode.n_state, episode.n_control
    a = layout.rows * TILE
    b = a + PARTS * n_control * TILE
    c = b + n_state * TILE
    network = Network(layout.table, layout.activation, layout.slopes, weights, arena[:a], arena[a:b], n_state, n_control)
    return network, Work(arena[b:c], arena[c : c + layout.n_scratch * TILE])


@functools.cache
def make_evaluate(dtype: Any, shared: Shared) -> Any:
    """The kernel that rolls controllers out; grid (groups, S).

    episode : with a `Layout` as controller
    theta (S, n_parameters), x0 (S, B, n_state)
    """
    shared_arena, shared_weights = shared.arena, shared.weights

    @kernel
    def evaluate(episode, theta, x0, paths):
        memory = gpu.shared.array(0, dtype) if SIMULATED else gpu.shared.array(0, dtype, 16)
        run, group, groups = gpu.blockIdx.y, gpu.blockIdx.x, gpu.gridDim.x
        batch, slot, n_weights = x0.shape[1], run * groups + group, episode.controller.n_weights
        size = work_size(episode)
        arena = memory[:size] if shared_arena else paths.spill[slot]
        begin = size if shared_arena else 0
        weights = memory[begin : begin + n_weights] if shared_weights else theta[run]
        if shared_weights:
            load_weights(episode.controller.table, theta[run], weights)
        network, work = place_work(arena, weights, episode)
        for tile in range(group, (batch + TILE - 1) // TILE, groups):
            first = tile * TILE
            n = start(x0[run], first, network, work)
            costs, efforts = follow(episode, network, work, n, paths, slot)
            if thread() < n:
                paths.physics[run, first + thread()] = costs
                paths.effort[run, first + thread()] = efforts
            barrier()

    return evaluate
