"""What the benchmarks share: the published problems, and medians of times."""

import time

import numpy as np

PROBLEMS = {
    "cart-pole, 2 poles": ("cartpole", {"poles": 2}),
    "guidance, 2 drivers, 4 evaders": ("guidance", {}),
    "quantum, 32 points": ("quantum", {}),
}


def times(function, repeats):
    """Seconds of every one of some calls."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return found


def seconds(function, repeats):
    """Median seconds, after one warm-up call."""
    function()
    return float(np.median(times(function, repeats)))
