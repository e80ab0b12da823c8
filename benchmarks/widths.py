"""A gradient C of the cart-pole (2 poles) by the width of its two hidden layers: ``python benchmarks/widths.py``.

One thread, medians; the peak is that of our inner kernel, measured in turns with every line, and the floor the operations at it.
"""

import argparse
import os

import numpy as np
from updates import inner_kernel, median, operations

import stablebptt as sb
from stablebptt.tasks.variants import gates


def gradient(width, batch):
    """(function that computes C, its useful operations)."""
    problem = sb.problem("cartpole", poles=2, hidden=(width, width))
    x0, theta = problem.sample(batch), problem.init()
    theta = theta + np.float32(0.01) * np.random.default_rng(0).standard_normal(theta.shape).astype(np.float32)
    opened = gates("C", problem.steps, problem.dtype)
    return lambda: next(problem.engine.gradients([theta], [x0], opened)), operations(problem, batch)[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", nargs="*", type=int, default=[32, 64, 100, 128, 192, 256, 384, 512])
    parser.add_argument("--batch", nargs="*", type=int, default=[8, 64])
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peak, peak_count = inner_kernel()
    print(f"{'width':>5}{'batch':>7}{'ms':>10}{'Gflop/s':>9}{'of peak':>9}{'floor ms':>10}")
    for batch in given.batch:
        for width in given.width:
            job, count = gradient(width, batch)
            job(), peak()
            seconds, peak_s = median([job, peak], given.repeats)
            rate, peak_rate = count / seconds / 1e9, peak_count / peak_s / 1e9
            print(f"{width:5}{batch:7}{seconds * 1e3:10.3f}{rate:9.0f}{rate / peak_rate:9.2f}{count / peak_rate / 1e6:10.3f}")


if __name__ == "__main__":
    main()
