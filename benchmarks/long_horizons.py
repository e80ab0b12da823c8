"""Memory and time of a gradient over the horizon: ``python benchmarks/long_horizons.py``.

Cart-pole, one pole, controller 100 x 100, batch 8, variant C. Kept: the activations of all steps stay in memory. Lean: tape_bytes
is 16 MiB; beyond, they are computed again, chunk by chunk. Memory is that of all arenas of the gradient, and the growth of the
process's peak. Times are medians of pairs taken in turn; the bits of both gradients are compared.
"""

import argparse
import dataclasses
import resource
import statistics

import numpy as np
from common import times

import stablebptt as sb
from stablebptt.kernels.core.structs import StructArray

LEAN = 16 << 20


def arena_bytes(problem):
    """Bytes of all arrays that a gradient of this problem uses."""

    def total(item):
        if isinstance(item, np.ndarray):
            return item.nbytes
        if isinstance(item, StructArray):
            return sum(map(total, item))
        names = getattr(item, "fields", None) or getattr(item, "__dataclass_fields__", ())
        return sum(total(getattr(item, name)) for name in names)

    return sum(map(total, problem.engine._works.gradients.values()))


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    horizons = parser.parse_args().steps
    print("      T    kept MB   lean MB   peak of the process grew by MB    kept s    lean s   lean / kept   same bits")
    small = sb.problem("cartpole", steps=10)
    small.gradient(small.init(1), small.sample(8), "C")  # loads or compiles the code
    for steps in horizons:
        lean = sb.problem("cartpole", steps=steps, duration=0.01 * steps, tape_bytes=LEAN)
        theta, x0 = 0.1 * lean.init(1), lean.sample(8)
        before = peak()
        results = {"lean": lean.gradient(theta, x0, "C").value}
        grown = peak() - before
        kept = dataclasses.replace(lean, tape_bytes=1 << 40)
        results["kept"] = kept.gradient(theta, x0, "C").value
        seconds = {"kept": [], "lean": []}
        for _ in range(max(3, min(40, 40_000 // steps))):
            for name, problem in (("kept", kept), ("lean", lean)):
                seconds[name] += times(lambda: problem.gradient(theta, x0, "C"), 1)  # noqa: B023
        a, b = (statistics.median(seconds[name]) for name in ("kept", "lean"))
        ratio = statistics.median(y / x for x, y in zip(seconds["kept"], seconds["lean"]))
        same = results["kept"].tobytes() == results["lean"].tobytes()
        memory = f"{arena_bytes(kept) / 1e6:9.1f} {arena_bytes(lean) / 1e6:9.1f} {grown / 1e6:32.1f}"
        print(f"{steps:>7} {memory} {a:9.4f} {b:9.4f} {ratio:13.2f}   {same}", flush=True)


if __name__ == "__main__":
    main()
