"""Our update beside the same in JAX and PyTorch: ``python benchmarks/peers.py``; needs the extras jax and torch, and gcc.

Forward pass (the loss), R and C of the published tasks, for some batches and widths of the network, on one core and on all. Every
program has processes of its own, pinned, one for one core and one for all, with its threads set by its own means. Before it is
timed, its loss and gradient are compared with ours. The programs then take turns, a few calls each, so drift hits all. The table
holds medians: our milliseconds, and how many times as long the others take.

    JAX first        scan, value_and_grad, stop_gradient, jit; C is two gradients
    JAX tuned        `peer_jax.Tuned`: adjoints by hand, R and M of one forward pass, products over all time steps; the fastest of
                     a few forms per case
    PyTorch eager    a loop and autograd; R and M run back through one graph
    PyTorch compiled `peer_torch.Compiled`: the same adjoints as JAX tuned, parts of the loops under torch.compile

Most of the time goes to torch.compile. Options choose a part of the table; `--out` collects parts in a file, `--show` prints it.
"""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import PROBLEMS, times
from peer_physics import CartPole, Guidance, Quantum

import stablebptt as sb

OURS = "ours"
PROGRAMS = {
    OURS: None,
    "JAX first": ("peer_jax", "first"),
    "JAX tuned": ("peer_jax", "tuned"),
    "PyTorch eager": ("peer_torch", "eager"),
    "PyTorch compiled": ("peer_torch", "compiled"),
}
QUANTITIES = ("forward", "R", "C")
# The quantum controller's channels for a hidden width: as published, and wider.
CHANNELS = {100: 60, 256: 160}
# Relative to the largest component of R or M; float32.
TOLERANCE = 1e-4
IN_A_ROW, ROUNDS = 10, 3


class Case(NamedTuple):
    """What is computed: numbers and arrays only, so that the peers need nothing of ours."""

    task: str
    options: dict[str, Any]
    theta: np.ndarray
    system: Any
    layers: list[tuple[np.ndarray, np.ndarray]]
    x0: np.ndarray
    steps: int
    continuous: bool
    weight: float
    rho: float
    control_shape: tuple[int, ...]


def make_case(task, options, batch):
    """A problem at weights near its initial ones, where R and M differ."""
    problem = sb.problem(task, **options)
    theta = problem.init()
    theta = theta + np.float32(0.01) * np.random.default_rng(0).standard_normal(theta.shape).astype(np.float32)
    parts = list(problem.layers(theta).values())
    layers = list(zip(parts[::2], parts[1::2]))
    weights = problem.time_weights
    return Case(
        task, options, theta, peer_system(problem), layers, problem.sample(batch), problem.steps, bool(weights[1]),
        float(weights[-1]), problem.regularization, problem.control_shape,
    )  # fmt: skip


def peer_system(problem):
    ours: Any = problem.system
    if problem.task == "cartpole":
        return CartPole(problem.dt)
    if problem.task == "guidance":
        return Guidance(problem.dt, ours.drivers)
    tilts = (ours.tilt * np.arange(1, ours.points + 1)).astype(np.float32)
    return Quantum(float(ours.hopping), tilts, problem.loss_function.target, None)


class Found(NamedTuple):
    """A loss and a gradient (n_parameters,); for ours also R and M."""

    loss: float
    gradient: np.ndarray | None = None
    regular: np.ndarray | None = None
    modified: np.ndarray | None = None


def our_programs(case):
    """Our functions, as a training calls them; and what they find."""
    from stablebptt.tasks.variants import gates

    problem = sb.problem(case.task, **case.options)
    opened = {v: gates(v, problem.steps, problem.dtype) for v in "RC"}
    jobs = {
        "forward": lambda: next(problem.engine.evaluate([case.theta], [case.x0])),
        "R": lambda: next(problem.engine.gradients([case.theta], [case.x0], opened["R"])),
        "C": lambda: next(problem.engine.gradients([case.theta], [case.x0], opened["C"])),
    }
    loss = problem.loss(case.theta, case.x0).total
    both = {v: problem.gradient(case.theta, case.x0, v) for v in "RC"}
    found = {v: Found(g.loss.total, g.value, g.regular, g.modified) for v, g in both.items()}
    return jobs, {"forward": Found(loss), **found}


def peer_found(value):
    """A loss, or a loss and a gradient in layers, as arrays of NumPy."""
    if not isinstance(value, tuple):
        return Found(float(value))
    loss, gradient = value
    parts = [part for layer in gradient for part in (layer if isinstance(layer, tuple) else (layer,))]
    return Found(float(loss), np.concatenate([np.asarray(part).ravel() for part in parts]))


def differences(quantity, found, ours):
    """Why a peer's loss or gradient is not ours: words, empty if it is.

    Where the sign of R or M is within the tolerance of zero, C may be 0 or M's component.
    """
    if not abs(found.loss - ours.loss) <= TOLERANCE * abs(ours.loss):
        return f"{quantity}: its loss is {found.loss}; ours is {ours.loss}"
    if ours.gradient is None:
        return ""
    regular = ours.gradient if quantity == "R" else ours.regular
    near = TOLERANCE * max(np.abs(regular).max(), np.abs(ours.gradient).max())
    good = np.abs(found.gradient - ours.gradient) <= near
    if quantity == "C":
        unsure = (np.abs(ours.regular) <= near) | (np.abs(ours.modified) <= near)
        good |= unsure & ((found.gradient == 0) | (np.abs(found.gradient - ours.modified) <= near))
    wrong = int((~good).sum())
    return f"{quantity}: {wrong} of {good.size} components differ from ours" if wrong else ""


def serve(pipe, name, cores, clock):
    """A process of one program: it makes its functions for a case, then times them when told."""
    os.sched_setaffinity(0, cores)
    if len(cores) == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    jobs: dict[str, Any] = {}
    while True:
        try:
            match pipe.recv():
                case ("make", case):
                    jobs, found = make_programs(name, case, len(cores))
                    pipe.send(found)
                case ("time", quantity, count):
                    pipe.send(times(jobs[quantity], count, clock))
                case _:
                    return
        except EOFError:
            return
        except Exception:
            pipe.send(traceback.format_exc())


def make_programs(name, case, cores):
    """The functions of a program, and what they find."""
    if name == OURS:
        from stablebptt.kernels.core import threads

        threads.limit(cores).__enter__()  # for as long as the process lives
        return our_programs(case)
    module, form = PROGRAMS[name]
    if module == "peer_torch":
        import torch

        torch.set_num_threads(cores)
    jobs = __import__(module).programs(form, case)
    return jobs, {quantity: peer_found(job()) for quantity, job in jobs.items()}


class Worker:
    """The process of one program."""

    def __init__(self, name, cores, clock):
        self.name = name
        self.pipe, there = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, name, cores, clock), daemon=True)
        self.process.start()

    def ask(self, *words):
        self.pipe.send(words)
        answer = self.pipe.recv()
        if isinstance(answer, str):
            raise SystemExit(f"{self.name}: {answer}")
        return answer


def measure(workers, case, seconds):
    """Seconds (medians and minima) by quantity and program, all checked against ours."""
    found = {worker.name: worker.ask("make", case) for worker in workers}
    for name in found:
        for quantity in QUANTITIES:
            wrong = differences(quantity, found[name][quantity], found[OURS][quantity])
            if wrong:
                raise SystemExit(f"{name}: {wrong}")
    return {quantity: in_turns(workers, quantity, seconds) for quantity in QUANTITIES}


def in_turns(workers, quantity, seconds):
    """Seconds of every program, which take turns for about so many seconds: (median, minimum)."""
    record: dict[str, list[float]] = {worker.name: [] for worker in workers}
    # A slow program is called once a turn; a fast one a few times, and what its first call has to wake does not count.
    slow = {worker.name: worker.ask("time", quantity, 2)[1] > seconds / 20 for worker in workers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(record[OURS]) < ROUNDS:
        for worker in workers:
            time.sleep(0.005)  # the threads of the one before go to sleep
            count = 1 if slow[worker.name] else 1 + IN_A_ROW
            record[worker.name] += worker.ask("time", quantity, count)[-IN_A_ROW:]
    return {name: (float(np.median(some)), min(some)) for name, some in record.items()}


def report(records, minima):
    """The table: a line per task, width, number of cores, batch and quantity. Parts that were measured apart share lines."""
    names = [name for name in PROGRAMS if name != OURS]
    lines = []
    for title, cores in dict.fromkeys((r["title"], r["cores"]) for r in records):
        lines.append(f"{title}, {cores} core{'s' if cores > 1 else ''}")
        lines.append(f"  batch         {OURS + ' ms':>10}" + "".join(f"{name:>18}" for name in names))
        some = [r for r in records if (r["title"], r["cores"]) == (title, cores)]
        for batch in sorted({r["batch"] for r in some}):
            for quantity in QUANTITIES:
                both = [r["seconds"][quantity] for r in some if r["batch"] == batch]
                parts = [{name: pair[minima] for name, pair in part.items()} for part in both]
                ratios = {name: part[name] / part[OURS] for part in parts for name in part}
                shown = (f"{ratios[name]:18.2f}" if name in ratios else f"{'-':>18}" for name in names)
                lines.append(f"  {batch:5} {quantity:8}{parts[0][OURS] * 1e3:10.3f}" + "".join(shown))
    return "\n".join(lines)


def parser():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--task", nargs="*", default=[task for task, _ in PROBLEMS.values()])
    made.add_argument("--batch", nargs="*", type=int, default=[8, 64, 512])
    made.add_argument("--hidden", nargs="*", type=int, choices=CHANNELS, default=list(CHANNELS))
    made.add_argument("--cores", nargs="*", type=int, default=sorted({1, cores}))
    made.add_argument("--program", nargs="*", choices=PROGRAMS, default=list(PROGRAMS), help="ours is always there")
    made.add_argument("--seconds", type=float, default=4.0, help="per quantity and case, for all programs together")
    made.add_argument("--quick", action="store_true", help="a first look: half a second instead")
    made.add_argument("--out", type=Path, help="a file that collects the results, one JSON object a line")
    made.add_argument("--minima", action="store_true", help="show minima instead of medians")
    made.add_argument("--processor-time", action="store_true", help="on one core of a machine that others use: not wall time")
    made.add_argument("--show", type=Path, help="print the table of such a file, and measure nothing")
    return made


def cases(given):
    """(title, task, options, batch) of the chosen part of the table."""
    for hidden in given.hidden:
        for name, (task, options) in PROBLEMS.items():
            width = {"width": CHANNELS[hidden]} if task == "quantum" else {"hidden": (hidden, hidden)}
            title = f"{name}, {CHANNELS[hidden]} channels" if task == "quantum" else f"{name}, hidden {hidden}"
            for batch in given.batch:
                if task in given.task:
                    yield title, task, {**options, **width}, batch


def main():
    given = parser().parse_args()
    if given.show:
        print(report([json.loads(line) for line in given.show.read_text().splitlines()], given.minima))
        return
    cores = sorted(os.sched_getaffinity(0))
    names = [name for name in PROGRAMS if name == OURS or name in given.program]
    clock = time.process_time if given.processor_time else time.perf_counter
    workers = {count: [Worker(name, cores[-count:], clock) for name in names] for count in given.cores}
    records = []
    for title, task, options, batch in cases(given):
        case = make_case(task, options, batch)
        for count, some in workers.items():
            found = measure(some, case, 0.5 if given.quick else given.seconds)
            records.append({"title": title, "cores": count, "batch": batch, "seconds": found})
            print(report(records[-1:], given.minima), flush=True)
            if given.out:
                with given.out.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print(report(records, given.minima))


if __name__ == "__main__":
    main()
