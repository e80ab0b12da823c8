"""Adjoint of the rollout on a CUDA device; mirror image of `stablebptt.kernels.cuda_rollout`; docs/gpu.md.

The cotangents of a tile ("bars") have the layout of the network's numbers, once per pair of gates. The state's rows hold the
adjoint.

    block's arena   that of the rollout | numbers 1 | numbers 2 | .. | lam_x | lam_c | cost        each number x TILE samples
                                          m times `rows`               from the vjp of the step
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from stablebptt.adjoint.bounds import limit_vjp
from stablebptt.adjoint.combine import agreeing
from stablebptt.adjoint.generics import cost_vjp, step_sample_vjp
from stablebptt.kernels.activations import keeps_slopes
from stablebptt.kernels.core.dispatch import inline, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.cuda_block import (
    QUAD,
    QUADS,
    SIMULATED,
    TILE,
    WARP,
    accumulate4,
    barrier,
    clear,
    column,
    columns,
    copy,
    device,
    gpu,
    load,
    load4,
    multiply4,
    multiply_add,
    slope4,
    spread,
    store,
    store4,
    thread,
    threads,
)  # fmt: skip
from stablebptt.kernels.cuda_rollout import (
    INPUTS,
    KERNEL,
    LINE,
    OUTPUTS,
    POSITIONS,
    SOURCE,
    STEP,
    TARGET,
    THETA,
    WINDOW,
    Shared,
    follow,
    kernel,
    load_weights,
    place_work,
    start,
    work_size,
)  # fmt: skip

# How `over_block` reduces one number per thread.
SUM, LARGEST = range(2)


class Gates(Struct):
    """Gates of the two paths, physics and network (m, T); weights in the mean loss: of the costs (T+1,), of the controls."""

    physics: np.ndarray
    network: np.ndarray
    cost_weights: np.ndarray
    effort_weight: float


class Bars(Struct):
    """Cotangents in a thread block, for m = `variants` pairs of gates.

    numbers (m * rows * TILE,) : of all rows
    lam_x (m * n_state * TILE,), lam_c (m * n_control * TILE,) : of state and control, from the vjp of the step
    cost (n_state * TILE,) : derivative of one cost
    gradient (m * n_parameters,) : sums so far
    """

    numbers: np.ndarray
    lam_x: np.ndarray
    lam_c: np.ndarray
    cost: np.ndarray
    gradient: np.ndarray
    gates: Gates
    variants: int
    rows: int
    n_parameters: int


@device
def input_vjp(network, layer, bars, base, k, first):
    """Cotangent of input k of a layer, for four samples: the sum over the windows that see it."""
    table, weights = network.table, network.weights
    step, window, outputs = table[layer, STEP], table[layer, WINDOW], table[layer, OUTPUTS]
    first_weight, line, target = table[layer, KERNEL], table[layer, LINE], table[layer, TARGET]
    z = spread(like(weights, 0.0))
    p, last = 0, 0
    if window < table[layer, INPUTS]:  # not every window sees every input, and some of the last inputs are seen by none
        p, last = max(0, k - window + step) // step, min(table[layer, POSITIONS] - 1, k // step)
    while p <= last:
        weight = first_weight + (k - p * step) * line
        place = base + (target + p * outputs) * TILE + first
        end = place + outputs * TILE
        while place < end:
            z = multiply_add(load(weights, weight), load4(bars.numbers, place), z)
            weight += 1
            place += TILE
        p += 1
    return z


@device
def layer_vjp(network, layer, bars):
    """Compute the cotangents of a layer's inputs, before their activation."""
    inputs, source, activation = network.table[layer, INPUTS], network.table[layer, SOURCE], network.activation
    for v in range(bars.variants):
        base, item = v * bars.rows * TILE, thread()
        while item < inputs * QUADS:
            first, k = item % QUADS * QUAD, item // QUADS
            place = (source + k) * TILE + first
            z = input_vjp(network, layer, bars, base, k, first)
            if keeps_slopes(activation):
                factors = load4(network.numbers, place + network.slopes * TILE)
            else:
                values = load4(network.numbers, place)
                factors = slope4(activation, values, values)
            store4(bars.numbers, base + place, multiply4(factors, z))
            item += threads()
    barrier()


@device
def state_vjp(network, bars, t):
    """Add the network path to the adjoints whose gate is open at time step t."""
    for v in range(bars.variants):
        gate, base, item = bars.gates.network[v, t], v * bars.rows * TILE, thread()
        while gate != 0 and item < network.n_state * QUADS:
            first, k = item % QUADS * QUAD, item // QUADS
            place = base + k * TILE + first
            z = input_vjp(network, 0, bars, base, k, first)
            store4(bars.numbers, place, multiply_add(gate, z, load4(bars.numbers, place)))
            item += threads()


@device
def row_vjp(numbers, row, low, high, total):
    """Add the inner product of a row's eight samples with low and high, four numbers each, to `total`."""
    return accumulate4(load4(numbers, row + QUAD), high, accumulate4(load4(numbers, row), low, total))


@device
def add_to(array, place, value):
    """Add a number at `place`."""
    store(array, place, load(array, place) + value)


@device
def parameter_vjp(network, layer, bars):
    """Add the share of one time step to the gradients.

    A warp takes four rows of the kernel, one remaining row, or the bias. A thread takes every 32nd column.
    """
    table = network.table
    window, outputs, target = table[layer, WINDOW], table[layer, OUTPUTS], table[layer, TARGET]
    fours, items = window // QUAD, window // QUAD + window % QUAD + 1
    item = thread() // WARP
    while item < bars.variants * items:
        v, number = item // items, item % items
        bar = (v * bars.rows + target) * TILE
        place = v * bars.n_parameters + table[layer, THETA]
        if number < fours:
            four_rows_vjp(network, layer, bars, number * QUAD, bar, place + number * QUAD * outputs)
        elif number < items - 1:
            k = number + fours * (QUAD - 1)
            one_row_vjp(network, layer, bars, k, bar, place + k * outputs)
        else:
            bias_vjp(network, layer, bars, bar, place + window * outputs)
        item += threads() // WARP


@device
def four_rows_vjp(network, layer, bars, k, bar, place):
    """Add to the gradients of rows k .. k + 3 of a kernel."""
    table, numbers, outputs = network.table, network.numbers, network.table[layer, OUTPUTS]
    first, step = (table[layer, SOURCE] + k) * TILE, table[layer, STEP] * TILE
    end = first + table[layer, POSITIONS] * step
    j = thread() % WARP
    while j < outputs:
        zero = like(numbers, 0.0)
        g0, g1, g2, g3 = zero, zero, zero, zero
        row, beside = first, bar + j * TILE
        while row < end:
            low, high = load4(bars.numbers, beside), load4(bars.numbers, beside + QUAD)
            g0 = row_vjp(numbers, row, low, high, g0)
            g1 = row_vjp(numbers, row + TILE, low, high, g1)
            g2 = row_vjp(numbers, row + 2 * TILE, low, high, g2)
            g3 = row_vjp(numbers, row + 3 * TILE, low, high, g3)
            row += step
            beside += outputs * TILE
        add_to(bars.gradient, place + j, g0)
        add_to(bars.gradient, place + outputs + j, g1)
        add_to(bars.gradient, place + 2 * outputs + j, g2)
        add_to(bars.gradient, place + 3 * outputs + j, g3)
        j += WARP


@device
def one_row_vjp(network, layer, bars, k, bar, place):
    """Add to the gradient of row k of a kernel."""
    table, numbers, outputs = network.table, network.numbers, network.table[layer, OUTPUTS]
    first, step = (table[layer, SOURCE] + k) * TILE, table[layer, STEP] * TILE
    end = first + table[layer, POSITIONS] * step
    j = thread() % WARP
    while j < outputs:
        total = like(numbers, 0.0)
        row, beside = first, bar + j * TILE
        while row < end:
            total = row_vjp(numbers, row, load4(bars.numbers, beside), load4(bars.numbers, beside + QUAD), total)
            row += step
            beside += outputs * TILE
        add_to(bars.gradient, place + j, total)
        j += WARP


@device
def bias_vjp(network, layer, bars, bar, place):
    """Add to the gradient of the bias of a layer."""
    outputs = network.table[layer, OUTPUTS]
    end = bar + network.table[layer, POSITIONS] * outputs * TILE
    ones = spread(like(network.numbers, 1.0))
    j = thread() % WARP
    while j < outputs:
        total, beside = like(network.numbers, 0.0), bar + j * TILE
        while beside < end:
            total = row_vjp(bars.numbers, beside, ones, ones, total)
            beside += outputs * TILE
        add_to(bars.gradient, place + j, total)
        j += WARP


@device
def step_back(episode, network, work, bars, t):
    """Run the adjoints of one sample back through cost and step of time step t, for all pairs of gates."""
    gates = bars.gates
    n_state, n_control, adjoints, b = network.n_state, network.n_control, bars.variants, thread()
    x, c = column(network.numbers, b, n_state), column(network.numbers, n_state * TILE + b, n_control)
    x_next, scratch = column(work.x_next, b, n_state), column(work.scratch, b, work.scratch.size // TILE)
    lam = columns(bars.numbers, b, adjoints, bars.rows, n_state)
    lam_x = columns(bars.lam_x, b, adjoints, n_state, n_state)
    lam_c = columns(bars.lam_c, b, adjoints, n_control, n_control)
    cost_bar, zero = column(bars.cost, b, n_state), like(network.numbers, 0.0)
    if gates.cost_weights[t + 1] != 0:
        for k in range(n_state):
            cost_bar[k] = zero
        cost_vjp(episode.loss, x_next, gates.cost_weights[t + 1], cost_bar)
        for v in range(adjoints):
            for k in range(n_state):
                lam[v, k] += cost_bar[k]
    for v in range(adjoints):
        for k in range(n_state):
            lam_x[v, k] = zero
        for q in range(n_control):
            lam_c[v, q] = zero
    step_sample_vjp(episode.system, x, x_next, c, lam, lam_x, lam_c, scratch)
    for v in range(adjoints):
        gate = gates.physics[v, t]
        for k in range(n_state):
            lam[v, k] = gate * lam_x[v, k] if gate != 0 else zero
        for q in range(n_control):
            c_bar = limit_vjp(episode.bounds, q, c[q], lam_c[v, q] + gates.effort_weight * c[q])
            bars.numbers[(v * bars.rows + n_state + q) * TILE + b] = c_bar


@device
def rollout_vjp(episode, network, work, bars, n, path):
    """Run the adjoints of n samples back along a path (T+1, rows * TILE) from `follow`; add to the gradients."""
    layers, n_state = network.table.shape[0], network.n_state
    clear(bars.variants * bars.rows * TILE, bars.numbers)
    for t in range(bars.gates.physics.shape[1] - 1, -1, -1):
        copy(n_state * TILE, network.numbers, work.x_next)
        barrier()
        copy(bars.rows * TILE, path[t], network.numbers)
        barrier()
        if thread() < n:
            step_back(episode, network, work, bars, t)
        barrier()
        for layer in range(layers - 1, 0, -1):
            layer_vjp(network, layer, bars)
        state_vjp(network, bars, t)
        for layer in range(layers):
            parameter_vjp(network, layer, bars)
        barrier()


@inline
def bars_size(episode, adjoints):
    """Numbers of the cotangents in a thread block; see `place_bars`."""
    return TILE * (adjoints * (episode.controller.rows + episode.n_state + episode.n_control) + episode.n_state)


@device
def place_bars(arena, sums, gates, episode):
    """Lay out the cotangents in the rest of a thread block's arena; sums (m * n_parameters,)."""
    rows, n_state, n_control, adjoints = episode.controller.rows, episode.n_state, episode.n_control, gates.physics.shape[0]
    a = adjoints * rows * TILE
    b = a + adjoints * n_state * TILE
    c = b + adjoints * n_control * TILE
    cost, n_parameters = arena[c : c + n_state * TILE], sums.size // adjoints
    return Bars(arena[:a], arena[a:b], arena[b:c], cost, sums, gates, adjoints, rows, n_parameters)


@functools.cache
def make_gradient(dtype: Any, shared: Shared) -> Any:
    """The kernel of gradients: rollout and adjoint in one launch; grid (groups, S).

    Arguments as in `make_evaluate`, with all rows in `paths`; gradients (S, groups, m * n_parameters) : each group's share,
    summed over its samples
    """
    shared_arena, shared_weights, shared_gradients = shared

    @kernel
    def gradient(episode, theta, x0, gates, paths, gradients):
        memory = gpu.shared.array(0, dtype) if SIMULATED else gpu.shared.array(0, dtype, 16)
        run, group, groups = gpu.blockIdx.y, gpu.blockIdx.x, gpu.gridDim.x
        batch, slot, n_weights = x0.shape[1], run * groups + group, episode.controller.n_weights
        adjoints, n_parameters = gates.physics.shape[0], theta.shape[1]
        first_size = work_size(episode)
        size = first_size + bars_size(episode, adjoints)
        arena = memory[:size] if shared_arena else paths.spill[slot]
        begin = size if shared_arena else 0
        weights = memory[begin : begin + n_weights] if shared_weights else theta[run]
        begin += n_weights if shared_weights else 0
        sums = memory[begin : begin + adjoints * n_parameters] if shared_gradients else gradients[run, group]
        if shared_weights:
            load_weights(episode.controller.table, theta[run], weights)
        clear(adjoints * n_parameters, sums)
        network, work = place_work(arena, weights, episode)
        bars = place_bars(arena[first_size:], sums, gates, episode)
        for tile in range(group, (batch + TILE - 1) // TILE, groups):
            first = tile * TILE
            n = start(x0[run], first, network, work)
            costs, efforts = follow(episode, network, work, n, paths, slot)
            if thread() < n:
                paths.physics[run, first + thread()] = costs
                paths.effort[run, first + thread()] = efforts
            rollout_vjp(episode, network, work, bars, n, paths.numbers[slot])
        if shared_gradients:
            copy(adjoints * n_parameters, sums, gradients[run, group])

    return gradient


@device
def over_block(value, places, what):
    """`SUM` (a fixed tree) or `LARGEST` of one number per thread; `places` (threads,) is scratch."""
    places[thread()] = value
    barrier()
    count = threads()
    while count > 1:
        rest = (count + 1) // 2
        if thread() + rest < count:
            a, b = places[thread()], places[thread() + rest]
            places[thread()] = larger(a, b) if what == LARGEST else a + b
        barrier()
        count = rest
    total = places[0]
    barrier()
    return total


@inline
def larger(a, b):
    """The larger of two numbers; NaN if one is NaN."""
    return a if a != a or a > b else b


@inline
def scaled(x, largest):
    """``x / largest``; 0 if all numbers are 0."""
    return x / largest if largest != 0 else x


class Results(NamedTuple):
    """Numbers of a gradient: the largest components of R and M; after division by these, |R|^2, |M|^2, R.M and |C|^2.

    (Squares of exploding gradients overflow float32.)
    """

    top_r: float
    top_m: float
    regular2: float
    modified2: float
    product: float
    joined2: float


@functools.cache
def make_join(dtype: Any) -> Any:
    """The kernel that adds the groups' shares and combines R and M; grid (S,).

    gradients (S, groups, m * n_parameters) -> sums (S, m, n_parameters); joined (S, n_parameters), unused if m is 1
    results (S, 6) : a row of `Results` per run
    """

    @kernel
    def join(gradients, sums, joined, results):
        places = gpu.shared.array(0, dtype)
        run, adjoints, n = gpu.blockIdx.x, sums.shape[1], sums.shape[2]
        zero = like(sums, 0.0)
        top_r, top_m = zero, zero
        for i in range(thread(), n, threads()):
            for v in range(adjoints):
                total = zero
                for group in range(gradients.shape[1]):
                    total += gradients[run, group, v * n + i]
                sums[run, v, i] = total
                if v == 0:
                    top_r = larger(top_r, abs(total))
                else:
                    top_m = larger(top_m, abs(total))
        top_r, top_m = over_block(top_r, places, LARGEST), over_block(top_m, places, LARGEST)
        rr, mm, rm, cc = zero, zero, zero, zero
        for i in range(thread(), n, threads()):
            r = scaled(sums[run, 0, i], top_r)
            rr += r * r
            if adjoints > 1:
                m = scaled(sums[run, 1, i], top_m)
                c = agreeing(sums[run, 1, i], sums[run, 0, i])
                joined[run, i] = c
                c = scaled(c, top_m)
                mm += m * m
                rm += r * m
                cc += c * c
        rr, mm = over_block(rr, places, SUM), over_block(mm, places, SUM)
        rm, cc = over_block(rm, places, SUM), over_block(cc, places, SUM)
        if thread() == 0:
            row = results[run]  # in the order of `Results`
            row[0], row[1], row[2], row[3], row[4], row[5] = top_r, top_m, rr, mm, rm, cc

    return join
