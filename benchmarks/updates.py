"""Time of one update, against the floor: ``python benchmarks/updates.py``.

It prints one table: milliseconds (medians) for the forward pass, R, M and C and for a whole epoch; useful operations and their
rate; the fraction of the measured peak of one core (own inner kernel) and of NumPy's 1024 x 1024 sgemm on one thread, all in the
same process; C / R; and what the training loop adds around the gradients. Operations are those of the controller's matrix
products, counted once each, without padding; those of the simulators are left out.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
from common import PROBLEMS, times
from numba import njit

import stablebptt as sb
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.simd import NONE, pointer
from stablebptt.kernels.dense import aligned, matmul, matrix
from stablebptt.tasks import training
from stablebptt.tasks.variants import gates

BATCH = 8


def median(functions, repeats):
    """Median seconds of several functions. Each runs ten times in a row (as in training), then the next, so drift hits all."""
    rounds = [[times(function, 10) for function in functions] for _ in range(max(1, repeats // 10))]
    return [float(np.median(record)) for record in zip(*rounds)]


@njit(**OPTIONS)
def _products(times, a, b, out):
    for _ in range(times):
        left, right, result = matrix(pointer(a), a.shape[1]), matrix(pointer(b), b.shape[1]), matrix(pointer(out), out.shape[1])
        matmul((a.shape[0], b.shape[1], a.shape[1]), left, right, matrix(pointer(out), NONE), result)


def inner_kernel():
    """A product in the first-level cache: the peak of our own tile. Returns (function, operations)."""
    a, b, out = (aligned(shape, np.float32) for shape in ((8, 128), (128, 48), (8, 48)))
    return lambda: _products(2000, a, b, out), 2000 * 2 * 8 * 128 * 48


def sgemm():
    """NumPy's large product. Returns (function, operations)."""
    a, b = (np.random.default_rng(i).random((1024, 1024), np.float32) for i in (0, 1))
    return lambda: a @ b, 2 * 1024**3


def operations(problem, batch=BATCH):
    """Useful operations of the forward pass, R, M and C, for one update."""
    rows = batch * problem.steps
    layers = [2 * windows * window * outputs for _, window, windows, outputs in problem.controller.windows()]
    forward, weights, deltas, first = sum(layers), sum(layers), sum(layers[1:]), layers[0]
    shared = problem.n_control == 1  # one backward pass of the network serves R and M
    modified = forward + deltas + weights
    regular = modified + first
    combined = regular + weights + (0 if shared else deltas)
    return [rows * count for count in (forward, regular, modified, combined)]


def measure(name, task, options, repeats):
    problem = sb.problem(task, **options)
    x0, theta = problem.sample(BATCH), problem.init()
    theta = theta + np.float32(0.01) * np.random.default_rng(0).standard_normal(theta.shape).astype(np.float32)
    opened = {v: gates(v, problem.steps, problem.dtype) for v in "RMC"}
    settings = training.Settings(variant="C", epochs=1)
    states = problem.sample(256, 1), problem.sample(256, 2)

    def evaluation():
        for part in states:
            problem.losses(theta, part)

    def epoch():
        run = training.ActiveRun(problem, settings, None, resume=False, checkpoint_seconds=30.0, report=None)
        training.advance([run])

    jobs = [
        lambda: next(problem.engine.evaluate([theta], [x0])),
        *(lambda v=v: next(problem.engine.gradients([theta], [x0], opened[v])) for v in "RMC"),
    ]
    (peak, peak_ops), (blas, blas_ops) = inner_kernel(), sgemm()
    for job in (*jobs, peak, blas, epoch, evaluation):
        job()
    *seconds, peak_s, blas_s = median([*jobs, peak, blas], repeats)
    epoch_s, evaluation_s, updates_s = median(
        [epoch, evaluation, lambda: [jobs[3]() for _ in range(32)]], max(10, repeats // 10)
    )
    peak_rate, blas_rate = peak_ops / peak_s / 1e9, blas_ops / blas_s / 1e9
    print(f"{name}: T {problem.steps}, batch {BATCH}, {problem.n_parameters} parameters, {np.dtype(problem.dtype).name}")
    print(f"  peak of the inner kernel {peak_rate:.0f} Gflop/s, NumPy sgemm 1024 {blas_rate:.0f} Gflop/s, one thread")
    print(f"  {'':10}{'ms':>9}{'Mflop':>9}{'Gflop/s':>9}{'of peak':>9}{'of sgemm':>9}{'floor ms':>10}")
    for label, second, count in zip(("forward", "R", "M", "C"), seconds, operations(problem)):
        rate = count / second / 1e9
        floor = count / peak_rate / 1e6
        print(
            f"  {label:10}{second * 1e3:9.3f}{count / 1e6:9.1f}{rate:9.0f}{rate / peak_rate:9.2f}"
            f"{rate / blas_rate:9.2f}{floor:10.3f}"
        )
    around = epoch_s - evaluation_s - updates_s
    print(f"  C / R {seconds[3] / seconds[1]:.2f}")
    print(
        f"  epoch {epoch_s * 1e3:.1f} ms = 32 gradients {updates_s * 1e3:.1f} + evaluation of 512 states "
        f"{evaluation_s * 1e3:.1f} ({evaluation_s / epoch_s:.0%}) + training loop {around * 1e3:.1f} "
        f"({around / epoch_s:.0%})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    repeats = parser.parse_args().repeats
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name, (task, options) in PROBLEMS.items():
        measure(name, task, options, repeats)


if __name__ == "__main__":
    main()
