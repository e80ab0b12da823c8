"""The adjoint sweep on a CUDA device; mirror image of `stablebptt.kernels.cuda_rollout`; docs/gpu.md.

The cotangents of a tile ("bars") lie like the network's numbers, once per pair of gates: the state's rows hold the adjoint.
"""

import functools
from typing import Any

import numpy as np

from stablebptt.adjoint.combine import agreeing
from stablebptt.adjoint.generics import cost_vjp, step_sample_vjp
from stablebptt.kernels.compiler import inline, like
from stablebptt.kernels.cuda_block import (
    QUAD,
    QUADS,
    TILE,
    WARP,
    barrier,
    clear,
    column,
    columns,
    copy,
    device,
    gpu,
    inner4,
    load4,
    multiply_add,
    spread,
    store4,
    tanh4_vjp,
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
    follow,
    kernel,
    load_weights,
    place_work,
    start,
    work_size,
)  # fmt: skip
from stablebptt.kernels.structs import Struct


class Bars(Struct):
    """Cotangents in a block: of all rows, of m pairs of gates; of what the step gave back; of one cost; the gradients so far."""

    numbers: np.ndarray
    lam_x: np.ndarray
    lam_c: np.ndarray
    cost: np.ndarray
    gradient: np.ndarray
    variants: int
    rows: int


class Gates(Struct):
    """Gates (m, T) of the two paths, weights (T+1,) of the cost in the mean loss, and of the controls in the regulariser."""

    physics: np.ndarray
    network: np.ndarray
    cost_weights: np.ndarray
    effort_weight: float


@device
def input_vjp(network, layer, bars, base, k, first):
    """Cotangent of input k of a layer, for four samples: the sum over the windows that saw it."""
    table, weights = network.table, network.weights
    step, window, outputs = table[layer, STEP], table[layer, WINDOW], table[layer, OUTPUTS]
    kernel, line, target = table[layer, KERNEL], table[layer, LINE], table[layer, TARGET]
    z = spread(like(weights, 0.0))
    for p in range(max(0, k - window + step) // step, min(table[layer, POSITIONS], k // step + 1)):
        weight = kernel + (k - p * step) * line
        place = base + (target + p * outputs) * TILE + first
        for j in range(outputs):
            z = multiply_add(weights[weight + j], load4(bars.numbers, place + j * TILE), z)
    return z


@device
def layer_vjp(network, layer, bars):
    """Cotangents of the hidden numbers that a layer read, before their tanh."""
    inputs, source = network.table[layer, INPUTS], network.table[layer, SOURCE]
    for item in range(thread(), bars.variants * inputs * QUADS, threads()):
        first, k, v = item % QUADS * QUAD, item // QUADS % inputs, item // QUADS // inputs
        base, place = v * bars.rows * TILE, (source + k) * TILE + first
        z = input_vjp(network, layer, bars, base, k, first)
        store4(bars.numbers, base + place, tanh4_vjp(load4(network.numbers, place), z))
    barrier()


@device
def state_vjp(network, bars, gates, t):
    """Add the open gates' share of the network's path to the adjoints."""
    for item in range(thread(), bars.variants * network.n_state * QUADS, threads()):
        first, k, v = item % QUADS * QUAD, item // QUADS % network.n_state, item // QUADS // network.n_state
        gate = gates.network[v, t]
        if gate != 0:
            base = v * bars.rows * TILE
            place = base + k * TILE + first
            z = input_vjp(network, 0, bars, base, k, first)
            store4(bars.numbers, place, multiply_add(gate, z, load4(bars.numbers, place)))


@device
def parameter_vjp(network, layer, bars, n_parameters):
    """Add a time step's share to the gradients: a thread owns four rows of a column of the kernel."""
    table, numbers, gradient = network.table, network.numbers, bars.gradient
    step, window, positions = table[layer, STEP], table[layer, WINDOW], table[layer, POSITIONS]
    source, target, outputs = table[layer, SOURCE], table[layer, TARGET], table[layer, OUTPUTS]
    groups, zero = (window + QUAD - 1) // QUAD, like(numbers, 0.0)
    for item in range(thread() // WARP, bars.variants * groups, threads() // WARP):
        v, k0 = item // groups, item % groups * QUAD
        k1, k2, k3 = min(k0 + 1, window - 1), min(k0 + 2, window - 1), min(k0 + 3, window - 1)
        base, place = (v * bars.rows + target) * TILE, v * n_parameters + table[layer, THETA]
        for j in range(thread() % WARP, outputs, WARP):
            g0, g1, g2, g3, total = zero, zero, zero, zero, zero
            for p in range(positions):
                row, bar_row = source + p * step, base + (p * outputs + j) * TILE
                for first in range(0, TILE, QUAD):
                    bar = load4(bars.numbers, bar_row + first)
                    g0 += inner4(load4(numbers, (row + k0) * TILE + first), bar)
                    g1 += inner4(load4(numbers, (row + k1) * TILE + first), bar)
                    g2 += inner4(load4(numbers, (row + k2) * TILE + first), bar)
                    g3 += inner4(load4(numbers, (row + k3) * TILE + first), bar)
                    total += (bar[0] + bar[1]) + (bar[2] + bar[3])
            gradient[place + k0 * outputs + j] += g0
            if k0 + 1 < window:
                gradient[place + k1 * outputs + j] += g1
            if k0 + 2 < window:
                gradient[place + k2 * outputs + j] += g2
            if k0 + 3 < window:
                gradient[place + k3 * outputs + j] += g3
            if k0 == 0:
                gradient[place + window * outputs + j] += total  # the bias


@device
def step_back(system, loss, network, work, bars, gates, t):
    """One sample's way back through the cost and the step of time step t, for all pairs of gates."""
    n_state, n_control, variants, b = network.n_state, network.n_control, bars.variants, thread()
    x, c = column(network.numbers, b, n_state), column(network.numbers, n_state * TILE + b, n_control)
    x_next, scratch = column(work.x_next, b, n_state), column(work.scratch, b, work.scratch.size // TILE)
    lam = columns(bars.numbers, b, variants, bars.rows, n_state)
    lam_x = columns(bars.lam_x, b, variants, n_state, n_state)
    lam_c = columns(bars.lam_c, b, variants, n_control, n_control)
    cost_bar, zero = column(bars.cost, b, n_state), like(network.numbers, 0.0)
    if gates.cost_weights[t + 1] != 0:
        for k in range(n_state):
            cost_bar[k] = zero
        cost_vjp(loss, x_next, gates.cost_weights[t + 1], cost_bar)
        for v in range(variants):
            for k in range(n_state):
                lam[v, k] += cost_bar[k]
    for v in range(variants):
        for k in range(n_state):
            lam_x[v, k] = zero
        for q in range(n_control):
            lam_c[v, q] = zero
    step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)
    for v in range(variants):
        gate = gates.physics[v, t]
        for k in range(n_state):
            lam[v, k] = gate * lam_x[v, k] if gate != 0 else zero
        for q in range(n_control):
            bars.numbers[(v * bars.rows + n_state + q) * TILE + b] = lam_c[v, q] + gates.effort_weight * c[q]


@device
def sweep(system, loss, network, work, bars, gates, n, path, slot, n_parameters):
    """Run the adjoints of n samples back through a path that `follow` has just left, and add to the gradients."""
    layers, n_state = network.table.shape[0], network.n_state
    clear(bars.variants * bars.rows * TILE, bars.numbers)
    for t in range(gates.physics.shape[1] - 1, -1, -1):
        copy(n_state * TILE, network.numbers, work.x_next)
        barrier()
        copy(bars.rows * TILE, path[slot, t], network.numbers)
        barrier()
        if thread() < n:
            step_back(system, loss, network, work, bars, gates, t)
        barrier()
        for layer in range(layers - 1, 0, -1):
            layer_vjp(network, layer, bars)
        state_vjp(network, bars, gates, t)
        for layer in range(layers):
            parameter_vjp(network, layer, bars, n_parameters)
        barrier()


@inline
def bars_size(rows, n_state, n_control, variants):
    """Numbers that a block needs for its cotangents; see `place_bars`."""
    return TILE * (variants * (rows + n_state + n_control) + n_state)


@device
def place_bars(arena, sums, variants, rows, n_state, n_control):
    """Lay the cotangents out in what is left of a block's arena."""
    a = variants * rows * TILE
    b = a + variants * n_state * TILE
    c = b + variants * n_control * TILE
    return Bars(arena[:a], arena[a:b], arena[b:c], arena[c : c + n_state * TILE], sums, variants, rows)


@functools.cache
def make_gradient(dtype: Any, shared_work: bool, shared_weights: bool, shared_gradient: bool) -> Any:
    """The kernel of gradients: rollout and sweep in one launch; grid (groups, trainings).

    As `make_evaluate`, and: path (slots, T+1, rows * TILE) for all rows; gates; gradients (S, groups, m * n_parameters), each
    group's share of the sum over its samples.
    """

    @kernel
    def gradient(
        system, loss, theta, x0, time_weights, table, rows, n_weights, n_control, n_scratch, path, physics, effort, spill,
        gates, gradients,
    ):  # fmt: skip
        shared = gpu.shared.array(0, dtype)
        training, group, groups = gpu.blockIdx.y, gpu.blockIdx.x, gpu.gridDim.x
        batch, n_state, slot = x0.shape[1], x0.shape[2], training * groups + group
        variants, n_parameters = gates.physics.shape[0], theta.shape[1]
        first_size = work_size(rows, n_state, n_control, n_scratch)
        size = first_size + bars_size(rows, n_state, n_control, variants)
        arena = shared[:size] if shared_work else spill[slot]
        begin = size if shared_work else 0
        weights = shared[begin : begin + n_weights] if shared_weights else theta[training]
        begin += n_weights if shared_weights else 0
        sums = shared[begin : begin + variants * n_parameters] if shared_gradient else gradients[training, group]
        if shared_weights:
            load_weights(table, theta[training], weights)
        clear(variants * n_parameters, sums)
        network, work = place_work(arena, table, weights, rows, n_state, n_control, n_scratch)
        bars = place_bars(arena[first_size:], sums, variants, rows, n_state, n_control)
        for tile in range(group, (batch + TILE - 1) // TILE, groups):
            first = tile * TILE
            n = start(x0[training], first, network, work)
            costs, efforts = follow(system, loss, network, work, n, time_weights, path, slot, rows)
            if thread() < n:
                physics[training, first + thread()] = costs
                effort[training, first + thread()] = efforts
            sweep(system, loss, network, work, bars, gates, n, path, slot, n_parameters)
        if shared_gradient:
            copy(variants * n_parameters, sums, gradients[training, group])

    return gradient


@device
def block_sum(value, places):
    """Sum of one number of every thread, in a fixed tree; `places` holds one number per thread."""
    places[thread()] = value
    barrier()
    count = threads()
    while count > 1:
        rest = (count + 1) // 2
        if thread() + rest < count:
            places[thread()] += places[thread() + rest]
        barrier()
        count = rest
    total = places[0]
    barrier()
    return total


@device
def block_max(value, places):
    """Largest of one number >= 0 of every thread; NaN if one is NaN."""
    places[thread()] = value
    barrier()
    count = threads()
    while count > 1:
        rest = (count + 1) // 2
        if thread() + rest < count:
            places[thread()] = larger(places[thread()], places[thread() + rest])
        barrier()
        count = rest
    largest = places[0]
    barrier()
    return largest


@inline
def larger(a, b):
    """The larger of two numbers, NaN if one is NaN."""
    return a if a != a or a > b else b


@inline
def scaled(x, largest):
    """``x / largest``; 0 if all numbers are 0."""
    return x / largest if largest != 0 else x


@functools.cache
def make_join(dtype: Any) -> Any:
    """The kernel that adds the groups' shares and joins R and M; grid (trainings,).

    gradients (S, groups, m * n_parameters) -> sums (S, m, n_parameters); joined (S, n_parameters), of one gradient unused.
    results (S, 6): the largest components of both gradients, and, of both divided by theirs, the squares of R, M, the product
    R.M and the square of C. (Squares of exploding gradients do not fit into float32.)
    """

    @kernel
    def join(gradients, sums, joined, results):
        places = gpu.shared.array(0, dtype)
        training, variants, n = gpu.blockIdx.x, sums.shape[1], sums.shape[2]
        zero = like(sums, 0.0)
        top_r, top_m = zero, zero
        for i in range(thread(), n, threads()):
            for v in range(variants):
                total = zero
                for group in range(gradients.shape[1]):
                    total += gradients[training, group, v * n + i]
                sums[training, v, i] = total
                if v == 0:
                    top_r = larger(top_r, abs(total))
                else:
                    top_m = larger(top_m, abs(total))
        top_r, top_m = block_max(top_r, places), block_max(top_m, places)
        rr, mm, rm, cc = zero, zero, zero, zero
        for i in range(thread(), n, threads()):
            r = scaled(sums[training, 0, i], top_r)
            rr += r * r
            if variants > 1:
                m = scaled(sums[training, 1, i], top_m)
                c = agreeing(sums[training, 1, i], sums[training, 0, i])
                joined[training, i] = c
                c = scaled(c, top_m)
                mm += m * m
                rm += r * m
                cc += c * c
        rr, mm, rm, cc = block_sum(rr, places), block_sum(mm, places), block_sum(rm, places), block_sum(cc, places)
        if thread() == 0:
            results[training, 0] = top_r
            results[training, 1] = top_m
            results[training, 2] = rr
            results[training, 3] = mm
            results[training, 4] = rm
            results[training, 5] = cc

    return join
