"""One and more threads: ``python benchmarks/threads.py``.

It prints one table, in milliseconds (medians): an update C with 8 and with 64 samples, the evaluation of 512 states, and ten
epochs (32 updates each, evaluation, optimizer and all), on one thread and on more, and how many times as fast they are. All
counts of threads take turns in one process, ten calls each, so drift hits all.
"""

import argparse
import time

import numpy as np
from common import PROBLEMS, times

import stablebptt as sb
from stablebptt.kernels.core import threads
from stablebptt.tasks import training
from stablebptt.tasks.variants import gates

IN_A_ROW = 10


def jobs(problem, epoch_count):
    """Functions to time, by name."""
    theta, opened = problem.init(), gates("C", problem.steps, problem.dtype)
    states = problem.sample(512)

    def update(batch):
        x0 = problem.sample(batch)
        return lambda: next(problem.engine.gradients([theta], [x0], opened))

    def epochs():
        settings = training.Settings(variant="C", epochs=epoch_count)
        training.advance([training.ActiveRun(problem, settings, None, resume=False, checkpoint_seconds=30.0, report=None)])

    return {
        "C, 8 samples": update(8),
        "C, 64 samples": update(64),
        "evaluation": lambda: next(problem.engine.evaluate([theta], [states])),
        f"{epoch_count} epochs": epochs,
    }


def medians(job, counts, seconds):
    """Median seconds of a job by the number of threads, over about so many seconds."""
    record = {count: [] for count in counts}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(record.values()):
        for count in counts:
            with threads.limit(count):
                record[count] += times(job, IN_A_ROW)[1:]  # the first call may have to wake threads
    return {count: float(np.median(found)) for count, found in record.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="per line of the table")
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, threads.available()}))
    parser.add_argument("--epochs", type=int, default=10, help="of the training")
    given = parser.parse_args()
    for name, (task, options) in PROBLEMS.items():
        print(name)
        for label, job in jobs(sb.problem(task, **options), given.epochs).items():
            for count in given.threads:
                with threads.limit(count):
                    job()
            found = medians(job, given.threads, given.seconds)
            first = found[given.threads[0]]
            told = (f"{count}: {second * 1e3:8.3f} ms ({first / second:.2f})" for count, second in found.items())
            print(f"  {label:14}", "  ".join(told), flush=True)


if __name__ == "__main__":
    main()
