"""What the benchmarks share: the published problems, and medians of times."""

import time

import numpy as np

PROBLEMS = {
    "cart-pole, 2 poles": ("cartpole", {"poles": 2}),
    "guidance, 2 drivers, 4 evaders": ("guidance", {}),
    "quantum, 32 points": ("quantum", {}),
}


def times(function, repeats, clock=time.perf_counter):
    """Seconds of every one of some calls."""
    found = []
    for _ in range(repeats):
        begin = clock()
        function()
        found.append(clock() - begin)
    return found


def seconds(function, repeats):
    """Median seconds, after one warm-up call."""
    function()
    return float(np.median(times(function, repeats)))
