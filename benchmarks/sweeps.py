"""Speed-up of two workers over one: ``python benchmarks/sweeps.py [RUNS] [EPOCHS] [ROUNDS]``.

One worker and two train the same batch of equal runs in turn, in one call. It prints the ratio of the wall times in each round
and the median over rounds. A batch of runs cannot be more than twice as fast, and the start of the workers counts.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from stablebptt.tasks import sweeps


def seconds(runs, folder, jobs):
    begin = time.perf_counter()
    outcomes = sweeps.sweep(runs, folder, jobs=jobs)
    assert all(outcome.status == "complete" for outcome in outcomes)
    return time.perf_counter() - begin


def main():
    count, epochs, rounds = (int(word) for word in (*sys.argv[1:], "8", "300", "3")[:3])
    plan = {"task": "cartpole", "options": {"poles": 2}, "train": {"variant": "C", "epochs": epochs, "seed": f"0:{count}"}}
    runs = sweeps.make_plan(plan)
    ratios = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            one, two = (seconds(runs, Path(name) / str(jobs), jobs) for jobs in (1, 2))
        ratios.append(one / two)
        print(f"{count} runs of {epochs} epochs: 1 worker {one:.1f} s, 2 workers {two:.1f} s, ratio {one / two:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
