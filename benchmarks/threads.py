"""One and more threads: ``python benchmarks/threads.py``.

It prints one table, in milliseconds (medians): an update C with 8 and with 64 samples, the evaluation of 512 states, and ten
epochs (32 updates each, evaluation, optimizer and all), on one thread and on more, and how many times as fast they are. All
counts of threads take turns in one process, ten calls each, so drift hits all.

The last column is what the machine can give: as many processes as there were threads, each with the whole job on one thread,
and how many times as much work they do together. Cores that share a clock, a cache or a pipeline do less than their number.
"""

import argparse
import contextlib
import multiprocessing
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


class Companions:
    """Processes that do a job again and again while they are let."""

    def __init__(self, count, *job):
        context = multiprocessing.get_context("spawn")  # threads do not survive a fork
        self.going, self.busy = context.Event(), [context.Lock() for _ in range(count)]
        ready = context.Semaphore(0)
        given = [(self.going, busy, ready, *job) for busy in self.busy]
        self.processes = [context.Process(target=accompany, args=arguments, daemon=True) for arguments in given]
        for process in self.processes:
            process.start()
        for _ in self.processes:
            ready.acquire()

    @contextlib.contextmanager
    def working(self):
        self.going.set()
        try:
            yield
        finally:
            self.going.clear()
        for busy in self.busy:  # until the last job ends
            with busy:
                pass

    def end(self):
        for process in self.processes:
            process.terminate()
            process.join()


def accompany(going, busy, ready, task, options, label, epoch_count):
    """What a companion does."""
    job = jobs(sb.problem(task, **options), epoch_count)[label]
    with threads.limit(1):
        job()
        ready.release()
        while going.wait():
            with busy:
                if going.is_set():
                    job()


def medians(job, counts, seconds, companions):
    """Median seconds of a job by the number of threads, and on one thread beside companions, over about so many seconds."""
    record, beside = {count: [] for count in counts}, []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(record.values()):
        for count in counts:
            with threads.limit(count):
                record[count] += times(job, IN_A_ROW)[1:]  # the first call may have to wake threads
        with threads.limit(1), companions.working():
            beside += times(job, IN_A_ROW)[1:]
    return {count: float(np.median(found)) for count, found in record.items()}, float(np.median(beside))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="per line of the table")
    parser.add_argument("--threads", type=int, nargs="*", default=[threads.available()], help="besides one")
    parser.add_argument("--epochs", type=int, default=10, help="of the training")
    given = parser.parse_args()
    counts = sorted({1, *given.threads})
    for name, (task, options) in PROBLEMS.items():
        print(name)
        for label, job in jobs(sb.problem(task, **options), given.epochs).items():
            for count in counts:
                with threads.limit(count):
                    job()
            companions = Companions(counts[-1] - 1, task, options, label, given.epochs)
            found, beside = medians(job, counts, given.seconds, companions)
            companions.end()
            told = [f"{count}: {second * 1e3:8.3f} ms ({found[1] / second:.2f})" for count, second in found.items()]
            told.append(f"{counts[-1]} processes: ({counts[-1] * found[1] / beside:.2f})")
            print(f"  {label:14}", "  ".join(told), flush=True)


if __name__ == "__main__":
    main()
