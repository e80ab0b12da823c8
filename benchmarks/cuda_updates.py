"""Time of one update on a CUDA device, against the CPU and the floor: ``python benchmarks/cuda_updates.py``; under five minutes.

It first measures the device's own rates: multiply-adds and copies. Then it prints, per system, one table over the number of runs
(batch 8) and one over the batch of one run: milliseconds per update of variant C (medians) of the kernels, with the copies, and
with clipping and Adam on the host; the time of one core of this machine's CPU for the same work in the same process; and the
fraction of the floor, the larger of operations over the measured rate and bytes over the measured bandwidth.
"""

import argparse

import numpy as np
from common import PROBLEMS, seconds
from numba import cuda, float32
from updates import operations

import stablebptt as sb
from stablebptt.kernels.core import threads
from stablebptt.tasks.cuda import device_name, path_bytes
from stablebptt.tasks.variants import gates

SMALL = {"cartpole": {"hidden": (8,), "steps": 3}, "guidance": {"hidden": (8,), "steps": 3}, "quantum": {"width": 4, "steps": 2}}
SEEDS, BATCHES = (1, 8, 132, 1056), (8, 64, 512, 4096, 65536)


@cuda.jit
def _multiply_adds(times, out):
    """Eight independent chains per thread."""
    a, b = float32(0.999), float32(cuda.threadIdx.x)
    c, d, e, f, g, h, i, j = b, b, b, b, b, b, b, b
    for _ in range(times):
        c, d, e, f = a * c + b, a * d + b, a * e + b, a * f + b
        g, h, i, j = a * g + b, a * h + b, a * i + b, a * j + b
    out[cuda.grid(1)] = c + d + e + f + g + h + i + j


def rates(small):
    """Operations per second in single precision, and bytes per second of a copy on the device."""
    blocks = cuda.get_current_device().MULTIPROCESSOR_COUNT * 4
    out, times = cuda.device_array(blocks * 256, np.float32), 10 if small else 500_000

    def compute():
        _multiply_adds[blocks, 256](times, out)
        cuda.synchronize()

    source = cuda.device_array((1 << 10 if small else 1 << 30,), np.float32)
    target = cuda.device_array_like(source)

    def move():
        target.copy_to_device(source)
        cuda.synchronize()

    return 16 * times * blocks * 256 / seconds(compute, 10), 2 * source.nbytes / seconds(move, 10)


class Updates:
    """Updates of S runs with batch B, in parts that can be timed."""

    def __init__(self, problem, trainings, batch):
        self.problem, self.opened = problem, gates("C", problem.steps, problem.dtype)
        self.rule = sb.optimizers.adam(0.001)
        self.thetas = [problem.init(seed) for seed in range(trainings)]
        self.states = [self.rule.init(theta) for theta in self.thetas]
        self.x0s = [problem.sample(batch, seed) for seed in range(trainings)]
        self.queue = problem.engine.queue(0)

    def with_copies(self):
        return list(self.problem.engine.gradients(self.thetas, self.x0s, self.opened, queue=0))

    def complete(self):
        for theta, state, found in zip(self.thetas, self.states, self.with_copies()):
            self.rule.apply(theta, sb.clip(found.value, "norm", 1.0), state)

    def kernels(self, repeats):
        """Milliseconds between two events around the kernels and copies."""
        times = []
        for _ in range(repeats):
            begin, end = cuda.event(), cuda.event()
            begin.record(self.queue.stream)
            pending = self.problem.engine.gradients(self.thetas, self.x0s, self.opened, queue=0)
            end.record(self.queue.stream)
            list(pending)
            end.synchronize()
            times.append(cuda.event_elapsed_time(begin, end))
        return float(np.median(times))


def floor(problem, trainings, batch, flops, bandwidth):
    """Least milliseconds of a device with these rates: operations, and activations written once and read once."""
    samples = trainings * batch
    work, moved = operations(problem)[3] / 8 * samples, 2 * path_bytes(problem, 8) / 8 * samples
    return 1e3 * max(work / flops, moved / bandwidth)


def table(title, task, options, small, flops, bandwidth):
    more = SMALL[task] if small else {}
    gpu, cpu = (sb.problem(task, **options, **more, backend=backend) for backend in ("cuda", "cpu"))
    opened = gates("C", cpu.steps, cpu.dtype)
    print(f"{title}: T {cpu.steps}, {cpu.n_parameters} parameters, {np.dtype(cpu.dtype).name}, variant C")
    print(f"  {'runs':>9} {'batch':>6} {'device ms':>10} {'+ host ms':>10} {'+ Adam ms':>10} {'MB up':>7} {'MB down':>8}"
          f" {'CPU ms':>9} {'times':>7} {'floor ms':>9} {'of floor':>8}")  # fmt: skip
    cases = [(s, 8) for s in (SEEDS[:2] if small else SEEDS)] + [(1, b) for b in (BATCHES[:2] if small else BATCHES)[1:]]
    for trainings, batch in cases:
        theta, x0 = cpu.init(), cpu.sample(min(batch, 512))  # beyond, the CPU's time is scaled by the samples
        repeats = 3 if trainings * batch > 4096 or small else 20
        with threads.limit(1):
            alone = seconds(lambda theta=theta, x0=x0: next(cpu.engine.gradients([theta], [x0], opened)), repeats)
        alone *= 1e3 * trainings * batch / len(x0)
        updates = Updates(gpu, trainings, batch)
        updates.with_copies()
        up, down = updates.queue.bytes_up, updates.queue.bytes_down
        updates.with_copies()
        up, down = (updates.queue.bytes_up - up) / 1e6, (updates.queue.bytes_down - down) / 1e6
        queue, copies, whole = updates.kernels(repeats), seconds(updates.with_copies, repeats), seconds(updates.complete, repeats)
        least = floor(gpu, trainings, batch, flops, bandwidth)
        print(f"  {trainings:>9} {batch:>6} {queue:>10.3f} {1e3 * copies:>10.3f} {1e3 * whole:>10.3f} {up:>7.2f} {down:>8.2f}"
              f" {alone:>9.2f} {alone / (1e3 * copies):>7.1f} {least:>9.3f} {least / queue:>8.2f}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing")
    small = parser.parse_args().small
    if not cuda.is_available():
        parser.exit(1, "no CUDA device here\n")
    flops, bandwidth = rates(small)
    print(f"{device_name()}: {flops / 1e12:.1f} Tflop/s, copies {bandwidth / 1e9:.0f} GB/s")
    for title, (task, options) in PROBLEMS.items():
        table(title, task, options, small, flops, bandwidth)


if __name__ == "__main__":
    main()
