"""What activations cost beside tanh: ``python benchmarks/activations.py``.

Nanoseconds per eight numbers, value and slope, and an update of C (cart-pole, 2 poles) relative to that of tanh. All activations
take turns, and the 10th percentile of many turns counts, because others use the machine, too.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from common import times
from numba import njit

import stablebptt as sb
from stablebptt.kernels.activations import ACTIVATIONS, activate_all
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.simd import pointer
from stablebptt.kernels.dense import aligned

COUNT, TIMES = 832, 50  # a batch of 8 in a layer of 100, padded


@njit(**OPTIONS)
def _activated(activation, given, z, slopes, times):
    for _ in range(times):
        for k in range(z.size):
            z[k] = given[k]
        activate_all(activation, z.size, pointer(z), pointer(slopes))


def alone(activation):
    """A function that activates `COUNT` numbers `TIMES` times."""
    given, z, slopes = (aligned((COUNT,), np.float32) for _ in range(3))
    given[:] = np.random.default_rng(0).standard_normal(COUNT)
    return lambda: _activated(activation, given, z, slopes, TIMES)


def updates(name, batch):
    """A function that computes one gradient of C."""
    problem = sb.problem("cartpole", poles=2, activation=name)
    theta, x0 = problem.init(), problem.sample(batch)
    return lambda: problem.gradient(theta, x0, "C", threads=1)


def fast(functions, count, turns):
    """10th percentiles of the seconds of functions that take turns, each `count` times in a row."""
    for function in functions:
        function()
    rounds = [[min(times(function, count)) for function in functions] for _ in range(turns)]
    return np.percentile(rounds, 10, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=100)
    turns = parser.parse_args().turns
    print("| | ns per 8 numbers | C, batch 8 / tanh's | batch 64 / tanh's |\n| --- | --- | --- | --- |")
    own = fast([alone(activation) for activation in ACTIVATIONS.values()], 10, turns) / TIMES / (COUNT / 8) * 1e9
    small, large = (fast([updates(name, batch) for name in ACTIVATIONS], count, turns) for batch, count in ((8, 10), (64, 2)))
    for name, *row in zip(ACTIVATIONS, own, small / small[0], large / large[0]):
        print(f"| {name} | {row[0]:.1f} | {row[1]:.2f} | {row[2]:.2f} |")


if __name__ == "__main__":
    main()
