"""The backend "cuda" against the CPU.

Every test here runs on a device, if there is one; else in Numba's simulator, and, where numba-cuda is installed, compiled
on a machine that executes the PTX instruction by instruction (both in processes of their own; see the last tests).
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import golden_checks
import numpy as np
import pytest
from conftest import Golden, golden_cases
from devices import (
    DEVICE,
    EMULATED,
    INSTALLED,
    PROBLEMS,
    SETTINGS,
    SIMULATED,
    SMALL,
    STEPS,
    TOLERANCE,
    assert_same_gradient,
    error,
    long_simulated,
    loss_error,
    on_device,
    pair,
)  # fmt: skip

import stablebptt as sb
from stablebptt import cli
from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.kernels.activations import ACTIVATIONS
from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Controller, System, cost, step
from stablebptt.kernels.network import Convolution, Dense, Network, mlp, network
from stablebptt.tasks.errors import BackendError

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
FILES = [str(HERE / name) for name in ("test_cuda.py", "test_engines.py")]


@on_device
@long_simulated
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_rollouts(name, dtype, batch):
    cpu, gpu = pair(name, dtype)
    theta, x0 = cpu.init(1), cpu.sample(batch, 2)
    path, truth = gpu.rollout(theta, x0), cpu.rollout(theta, x0)
    assert path.states.dtype == np.dtype(dtype) and path.states.shape == truth.states.shape
    assert error(path.states, truth.states) < TOLERANCE[dtype]
    assert error(path.controls, truth.controls) < 10 * TOLERANCE[dtype]
    for values, right in zip(gpu.losses(theta, x0), cpu.losses(theta, x0)):
        assert values.dtype == np.float64 and loss_error(values, right) < TOLERANCE[dtype]


SCHEDULE = (np.linspace(0, 1, STEPS), np.arange(STEPS) % 2)


# C is R and M at once.
FIRST = [
    pytest.param(name, marks=pytest.mark.slow if SIMULATED and name in ("cartpole continuous", "quantum final") else ())
    for name in PROBLEMS
]
VARIANTS = ["C", SCHEDULE, *(pytest.param(name, marks=pytest.mark.slow if SIMULATED else ()) for name in "RMSN")]


@on_device
@pytest.mark.parametrize("variant", VARIANTS, ids=["C", "schedule", "R", "M", "S", "N"])
@pytest.mark.parametrize("name", FIRST)
def test_gradients(name, variant):
    cpu, gpu = pair(name)
    theta, x0 = cpu.init(1), cpu.sample(3, 2)
    assert_same_gradient(gpu.gradient(theta, x0, variant), cpu.gradient(theta, x0, variant), TOLERANCE["float64"])


DEEP = [Convolution(5), Convolution(4, taps=2, stride=1), Convolution(3), Dense(4), Dense(1)]
MANY = [Convolution(5, taps=2, stride=1), Convolution(3, taps=2), Dense(2)]  # convolutions over objects, two controls
NETWORKS = {
    "third convolution": ("quantum", {"points": 19}, network((19, 2), DEEP)),
    "several controls": ("guidance", {"drivers": 1, "evaders": 4}, network((5, 4), MANY)),
    "linear": ("cartpole", {}, mlp((4, 1))),
    "gelu": ("cartpole", {}, mlp((4, 3, 2, 1), ACTIVATIONS["gelu"])),
}


LONG = ("linear",) if SIMULATED else ()
FEW = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in NETWORKS]


@on_device
@pytest.mark.parametrize("name", FEW)
def test_networks_of_any_layers(name):
    task, options, controller = NETWORKS[name]
    cpu = dataclasses.replace(sb.problem(task, steps=3, dtype="float64", **options), controller=controller)
    gpu = sb.tasks.on_backend(cpu, "cuda")
    theta, x0 = 0.3 * np.random.default_rng(0).standard_normal(cpu.n_parameters), cpu.sample(3)
    np.testing.assert_allclose(gpu.rollout(theta, x0).states, cpu.rollout(theta, x0).states, rtol=1e-10, atol=1e-12)
    assert_same_gradient(gpu.gradient(theta, x0, "C"), cpu.gradient(theta, x0, "C"), TOLERANCE["float64"])


@on_device
@pytest.mark.parametrize("task", [pytest.param("cartpole", marks=pytest.mark.slow if SIMULATED else ()), "guidance"])
def test_bounds(task):
    small = {"hidden": (3,), "steps": 2, "dtype": "float64", "output_init": "glorot"}
    cpu = sb.problem(task, bound=(-0.3, 0.2), **small, **({"drivers": 1, "evaders": 1} if task == "guidance" else {}))
    gpu = sb.tasks.on_backend(cpu, "cuda")
    theta, x0 = 2 * cpu.init(1), cpu.sample(3)
    np.testing.assert_allclose(gpu.rollout(theta, x0).controls, cpu.rollout(theta, x0).controls, rtol=1e-10, atol=1e-12)
    assert_same_gradient(gpu.gradient(theta, x0, "C"), cpu.gradient(theta, x0, "C"), TOLERANCE["float64"])


@on_device
@pytest.mark.parametrize(
    "given, word", [({"observe": "time"}, "observe"), ({"vary": "gravity=9:10"}, "vary, disturb"), ({"disturb": 0.1}, "disturb")]
)
def test_what_a_device_does_not_compute_is_refused(given, word):
    with pytest.raises(BackendError, match=f"backend 'cuda' does not compute .*{word}.*; use the CPU"):
        sb.problem("cartpole", backend="cuda", **given)


@on_device
@long_simulated
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_in_float32(name):
    cpu, gpu = pair(name, "float32")
    theta, x0 = cpu.init(1).astype(np.float32), cpu.sample(3, 2).astype(np.float32)
    for variant in "RM":
        assert_same_gradient(gpu.gradient(theta, x0, variant), cpu.gradient(theta, x0, variant), TOLERANCE["float32"])


@on_device
@pytest.mark.parametrize("batch", [1, 8, 17, 33] if SMALL else [1, 7, 8, 9, 33, 1000])
def test_odd_batches(batch):
    cpu, gpu = pair("cartpole")
    theta, x0 = cpu.init(1), cpu.sample(batch, 2)
    assert_same_gradient(gpu.gradient(theta, x0, "C"), cpu.gradient(theta, x0, "C"), TOLERANCE["float64"])


# --- sizes that nobody chose --------------------------------------------------------------------------------------


class Ring(System):
    """Angles that pull at their left neighbours."""

    dt: float


class Squares(Struct):
    """Loss: half the sum of squares."""


@implements(step, Ring)
def _step(system, x, c, x_next):
    for k in range(x.shape[0]):
        x_next[k] = x[k] + system.dt * (c[k % c.shape[0]] - math.sin(x[k] - x[k - 1 if k > 0 else x.shape[0] - 1]))


@implements(step_vjp, Ring)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for k in range(x.shape[0]):
        left = k - 1 if k > 0 else x.shape[0] - 1
        slope = math.cos(x[k] - x[left])
        for v in range(lam.shape[0]):
            bar = system.dt * lam[v, k]
            lam_c[v, k % c.shape[0]] += bar
            lam_x[v, k] += lam[v, k] - slope * bar
            lam_x[v, left] += slope * bar


@implements(cost, Squares)
def _cost(loss, x):
    total = like(x, 0.0)
    for k in range(x.shape[0]):
        total += like(x, 0.5) * x[k] * x[k]
    return total


@implements(cost_vjp, Squares)
def _cost_vjp(loss, x, cost_bar, x_bar):
    for k in range(x.shape[0]):
        x_bar[k] += cost_bar * x[k]


def ring(angles, forces, hidden, loss, **options):
    """A system of one's own of any size, odd ones too."""
    return sb.problem(
        system=Ring(0.1), controller=hidden, loss=Squares(), when=loss, dt=0.1, regularization=0.1, state_shape=(angles,),
        control_shape=(forces,), sample=lambda random, count: random.standard_normal((count, angles)), **options,
    )  # fmt: skip


# Multiply-adds of a rollout's network, by which the time of a draw is limited.
MOST_WORK = {"quick": 400, "slow": 2000} if SIMULATED else {"quick": 10_000, "slow": 300_000}
QUICK, DRAWS = 1, {"cartpole": 6, "guidance": 6, "quantum": 33, "ring": 6}
if SIMULATED:  # the PTX machine has them all
    DRAWS = dict.fromkeys(DRAWS, 2)
SIZES = [
    pytest.param(task, number, id=f"{task}-{number}", marks=[] if number < QUICK and task != "ring" else [pytest.mark.slow])
    for task, count in DRAWS.items()
    for number in range(count)
]


def draw_size(task, number):
    """A problem on the CPU, how many samples, and a share of the shared memory that the device wants; all from one seed."""
    random = np.random.default_rng([number, *task.encode()])

    def up_to(most):
        return int(random.integers(1, most, endpoint=True))

    while True:
        hidden = [up_to(20) for _ in range(up_to(3))]
        options = {
            "cartpole": {"poles": up_to(5), "hidden": hidden},
            "guidance": {"drivers": up_to(3), "evaders": up_to(4), "hidden": hidden},
            "quantum": {"points": 8 + (13 * number + 2) % 33, "width": up_to(70)},  # 10 first; every number once
            "ring": {"angles": up_to(7), "forces": up_to(4), "hidden": hidden},
        }[task]
        options |= {"steps": up_to(3), "loss": ["final", "continuous"][up_to(2) - 1], "dtype": "float64", "output_init": "glorot"}
        batch, share = up_to(40), [1.0, random.random(), 0.0][up_to(3) - 1]
        problem = ring(**options) if task == "ring" else sb.problem(task, **options)
        products = sum(window * windows * outputs for _, window, windows, outputs in problem.controller.windows())
        if products * options["steps"] * -(-batch // 8) <= MOST_WORK["quick" if number < QUICK else "slow"]:
            return problem, batch, share


GUARD = 9


def guarded_layout(episode, *, padded):
    """`new_layout` with numbers that nobody writes around every layer's weights, and behind its rows.

    (The PTX machine would find that rows that nobody wrote are copied.)
    """
    from stablebptt.kernels import cuda_rollout as columns

    layout = columns.new_layout(episode, padded=padded)
    table, rows, weights = layout.table, layout.rows, layout.n_weights
    before = GUARD * np.arange(1, len(table) + 1)
    if padded:
        table[:, columns.KERNEL] += before
        table[:, columns.BIAS] += before
        weights += GUARD * (len(table) + 1)
    if SIMULATED:
        table[:-1, columns.TARGET] += before[:-1]
        table[1:, columns.SOURCE] += before[:-1]
        rows += GUARD * len(table)
    return dataclasses.replace(layout, rows=rows, n_weights=weights)


@on_device
@pytest.mark.parametrize(("task", "number"), SIZES)
def test_any_size(task, number, monkeypatch):
    """Of every size nothing outside of an array is read or written, and all numbers are the CPU's."""
    from stablebptt.tasks import cuda

    cpu, batch, share = draw_size(task, number)
    gpu = sb.tasks.on_backend(cpu, "cuda")
    monkeypatch.setattr(cuda, "new_layout", guarded_layout)
    capacity = int(share * cuda.plan(gpu, 2, 1 << 30).shared_bytes)
    monkeypatch.setattr(cuda, "shared_capacity", lambda: min(capacity, 227 << 10))
    theta = cpu.init(1) + 0.1 * np.random.default_rng(number).standard_normal(cpu.n_parameters)  # no bias is 0
    x0, tolerance = cpu.sample(batch, 2), TOLERANCE["float64"]
    path, truth = gpu.rollout(theta, x0), cpu.rollout(theta, x0)
    assert error(path.states, truth.states) < tolerance and error(path.controls, truth.controls) < tolerance
    for values, right in zip(gpu.losses(theta, x0), cpu.losses(theta, x0)):
        assert loss_error(values, right) < tolerance
    for variant in "RMSNC":
        assert_same_gradient(gpu.gradient(theta, x0, variant), cpu.gradient(theta, x0, variant), tolerance)


@on_device
def test_wherever_the_memory_is(monkeypatch):
    """Work space, weights and gradients in shared memory or outside: the same bits."""
    from stablebptt.tasks import cuda

    _, gpu = pair("cartpole", "float32")
    theta, x0 = gpu.init(1), gpu.sample(3, 2)
    shared, found = set(), []
    full = cuda.plan(gpu, 2, 1 << 20)
    assert full.shared == (True, True, True) and full.spill == 1
    without_gradient = full.shared_bytes - 4 * 2 * gpu.n_parameters
    capacities = (full.shared_bytes, full.shared_bytes - 1, without_gradient - 1, 4 * full.episode.controller.n_weights, 0)
    for capacity in capacities:
        monkeypatch.setattr(cuda, "shared_capacity", lambda capacity=capacity: capacity)
        shared.add(cuda.plan(gpu, 2, capacity).shared)
        found.append((gpu.gradient(theta, x0, "C").value, gpu.losses(theta, x0)[0]))
    assert shared == {(True, True, True), (True, True, False), (True, False, False), (False, True, False), (False, False, False)}
    for gradient, losses in found[1:]:
        assert np.array_equal(gradient, found[0][0]) and np.array_equal(losses, found[0][1])


@on_device
@long_simulated
def test_groups_share_a_large_batch(monkeypatch):
    from stablebptt.tasks import cuda

    monkeypatch.setattr(cuda, "MOST_GROUPS", 2)
    cpu, gpu = pair("cartpole")
    theta, x0 = cpu.init(1), cpu.sample(33, 2)  # five tiles for two blocks
    for variant in "RC":
        assert_same_gradient(gpu.gradient(theta, x0, variant), cpu.gradient(theta, x0, variant), TOLERANCE["float64"])


@on_device
def test_bits_do_not_depend_on_the_threads(monkeypatch):
    from stablebptt.tasks import cuda

    _, gpu = pair("cartpole", "float32")
    theta, x0 = gpu.init(1), gpu.sample(3, 2)
    found = []
    for threads in (32, 64):
        monkeypatch.setattr(cuda, "THREADS", threads)
        found.append(gpu.gradient(theta, x0, "C"))
    assert np.array_equal(found[0].value, found[1].value)
    assert found[0].norm2 == pytest.approx(found[1].norm2, rel=1e-6)


@on_device
@long_simulated
def test_squares_of_exploding_gradients():
    """They do not fit into float32; the gradient does."""
    _, gpu = pair("cartpole", "float32")
    theta, x0 = gpu.init(1), gpu.sample(3, 2)
    large = dataclasses.replace(gpu, time_weights=gpu.time_weights * 1e25)
    for variant in "RC":
        one, other = gpu.gradient(theta, x0, variant), large.gradient(theta, x0, variant)
        assert other.norm2 > np.finfo(np.float32).max and other.norm2 == pytest.approx(1e50 * one.norm2, rel=1e-4)
        assert other.cosine == pytest.approx(one.cosine, rel=1e-5, nan_ok=True)


@on_device
@long_simulated
def test_a_run_goes_on_where_it_was_begun(tmp_path):
    _, gpu = pair("cartpole", "float32", steps=2)
    path = tmp_path / "run.h5"
    sb.train(gpu, out=path, **{**SETTINGS, "epochs": 1})
    here = sb.problem("cartpole", **{**PROBLEMS["cartpole"], "steps": 2})
    with pytest.raises(ValueError, match="backend: 'cuda' in the file, 'cpu' given"):
        sb.train(here, out=path, resume=True, **SETTINGS)
    resumed = sb.train(gpu, out=path, resume=True, **SETTINGS)
    assert np.array_equal(resumed.theta, sb.train(gpu, **SETTINGS).theta)
    assert sb.load(path).problem.backend == "cpu"  # a file can be looked at anywhere


GOLDEN = [(task, case) for task in ("cartpole", "guidance", "quantum") for case in golden_cases(task)]
GOLDEN = [pytest.param(*pair, marks=[pytest.mark.slow] if SMALL and number else []) for number, pair in enumerate(GOLDEN)]


# A golden tolerance is ten times the error of one computation in float32. In this case that was a lucky one: on the CPU,
# changes of the inputs by their last bits alone (40 draws) reach 1.3 times the tolerance of S and 1.6 times that of N.
SLACK = {"ts4_FINAL_w7-1": 2}


@on_device
@pytest.mark.skipif(SIMULATED, reason="too slow in the simulator")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("task", "case"), GOLDEN)
def test_golden_numbers(task, case, dtype, monkeypatch):
    golden, make = Golden(task, case), golden_checks.problem_of
    monkeypatch.setattr(golden_checks, "problem_of", lambda *given: sb.tasks.on_backend(make(*given), "cuda"))
    golden_checks.check_rollout(task, golden, dtype)
    for variant in golden_checks.VARIANTS:
        golden_checks.check_gradient(task, golden, variant, dtype, SLACK.get(case, 1))


@on_device
@long_simulated
def test_a_system_of_ones_own():
    from stablebptt.tasks import custom

    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    try:
        made = custom.from_source("double_pendulum:make_problem", steps=STEPS, dtype="float64")
    finally:
        sys.path.pop(0)
    gpu = sb.tasks.on_backend(made, "cuda")
    theta, x0 = made.init(1) + 0.1, made.sample(3, 2)
    assert_same_gradient(gpu.gradient(theta, x0, "C"), made.gradient(theta, x0, "C"), TOLERANCE["float64"])


@on_device
def test_a_controller_of_ones_own_is_refused():
    class Constant(Controller):
        def layout(self):
            return {"force": (1,)}

    class Bounded(Network):
        """May have a `control_batch` of its own, which the device would not run."""

    problem = sb.problem("cartpole")
    network = problem.controller
    for controller in (Constant(), Bounded(*(getattr(network, name) for name in network.fields))):
        with pytest.raises(BackendError, match=f"{type(controller).__name__} is a controller of your own"):
            sb.tasks.on_backend(dataclasses.replace(problem, controller=controller), "cuda")


@on_device
def test_the_command_line(tmp_path, capsys):
    options = ["--steps", "2", "--hidden", "4", "--epochs", "1", "--train-count", "8", "--test-count", "3", "--backend", "cuda"]
    cli_call = ["cartpole", "train", *options, "--seeds", "0:2", "--out", str(tmp_path / "runs")]
    cli.main([*cli_call, "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and '"seed": 1' in lines[-1] and "complete" in lines[-1]
    assert sorted(p.name for p in (tmp_path / "runs").glob("*")) == ["seed_0.h5", "seed_1.h5"]
    with pytest.raises(SystemExit) as ended:
        cli.main(cli_call)
    assert ended.value.code == 5
    run = str(tmp_path / "runs" / "seed_1.h5")
    cli.main(["cartpole", "simulate", run, "--backend", "cuda", "--count", "3", "--out", str(tmp_path / "paths.h5")])


# --- the simulator finds faults, made strict -----------------------------------------------------------------------

simulated = pytest.mark.skipif(not SIMULATED, reason="for the simulator only")
OUTSIDE = {
    "before": lambda array: array[-1],
    "behind": lambda array: array[8],
    "slice from before": lambda array: array[-2:8],
    "slice to behind": lambda array: array[4:9],
    "step to behind": lambda array: array[1:12:7],
    "row": lambda array: array.reshape(2, 4)[-1, 0],
    "column": lambda array: array[::2].reshape(2, 2)[0, -1],
    "write before": lambda array: array.__setitem__(-1, 0.0),
    "write behind": lambda array: array.__setitem__(slice(4, 9), 0.0),
}


@simulated
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("wrong", OUTSIDE.values(), ids=OUTSIDE)
def test_the_simulator_finds_what_lies_outside(wrong, shared):
    from stablebptt.kernels.cuda_block import gpu

    def function(array):
        wrong(gpu.shared.array(0, np.dtype(np.float64)) if shared else array)

    with pytest.raises(IndexError, match="is outside of an axis of"):
        run_faulty(function, length=8, shared=64, threads=1, dtype=np.float64)


@simulated
def test_the_simulator_finds_what_nobody_wrote():
    from stablebptt.kernels.cuda_block import gpu

    def function(array):
        array[0] = gpu.shared.array(0, np.dtype(np.float32))[31]

    assert np.isnan(run_faulty(function, threads=1)[0])


# --- the machine that executes PTX finds faults -------------------------------------------------------------------

emulated = pytest.mark.skipif(not EMULATED, reason="for the PTX machine only")


def run_faulty(function, length=32, shared=128, threads=32, blocks=1, dtype=np.float32):
    from numba import cuda

    array = cuda.to_device(np.zeros(length, dtype))
    cuda.jit(function)[blocks, threads, 0, shared](array)
    return array.copy_to_host()


def reversed_by(barrier):
    from numba import cuda, float32

    def function(array):
        places, i = cuda.shared.array(0, float32), cuda.threadIdx.x
        places[i] = i
        if barrier:
            cuda.syncthreads()
        array[i] = places[31 - i]

    return function


@emulated
def test_the_machine_finds_a_missing_barrier():
    assert np.array_equal(run_faulty(reversed_by(True)), np.arange(31, -1, -1))
    with pytest.raises(RuntimeError, match=r"which (another thread wrote between the same barriers|nobody wrote)"):
        run_faulty(reversed_by(False))


@emulated
def test_the_machine_finds_what_lies_outside():
    from numba import cuda

    def function(array):
        array[cuda.threadIdx.x + 64] = 1

    with pytest.raises(RuntimeError, match="writes 4 bytes outside of all memory"):
        run_faulty(function)


@emulated
def test_the_machine_finds_what_belongs_to_another_array():
    from numba import cuda

    @cuda.jit
    def write(array, place):
        array[place] = 1

    arrays = [cuda.to_device(np.zeros(32, np.float32)) for _ in range(10)]
    for place in range(32, 3200, 32):
        with pytest.raises(RuntimeError, match="writes 4 bytes outside of all memory"):
            write[1, 1](arrays[place % 10], place)


@emulated
def test_the_machine_finds_misaligned_vectors():
    from stablebptt.kernels.cuda_block import load4

    def function(array):
        array[0] = load4(array, 2)[0]

    with pytest.raises(RuntimeError, match="access of 16 bytes is not aligned"):
        run_faulty(function, threads=1)


@emulated
def test_the_machine_finds_what_nobody_wrote():
    from numba import cuda, float32

    def function(array):
        places = cuda.shared.array(0, float32)
        array[cuda.threadIdx.x] = places[cuda.threadIdx.x]

    with pytest.raises(RuntimeError, match="which nobody wrote"):
        run_faulty(function)


@emulated
def test_the_machine_finds_blocks_that_meet():
    from numba import cuda

    def function(array):
        array[cuda.threadIdx.x] = cuda.blockIdx.x

    with pytest.raises(RuntimeError, match="which another block wrote"):
        run_faulty(function, blocks=2)


@emulated
def test_the_machine_finds_threads_that_never_come_to_the_barrier():
    from numba import cuda

    def function(array):
        if cuda.threadIdx.x < 8:
            cuda.syncthreads()
        array[cuda.threadIdx.x] = 1

    with pytest.raises(RuntimeError, match="some threads of a block end while others wait"):
        run_faulty(function)


@emulated
def test_a_block_gets_no_more_shared_memory_than_there_is():
    from numba import cuda

    def function(array):
        array[cuda.threadIdx.x] = 1

    with pytest.raises(RuntimeError, match="INVALID"):
        run_faulty(function, shared=64 << 10)  # without asking for it


BARRIERS = [("", 0)] + [
    (name, number)
    for name in ("kernels/cuda_rollout.py", "adjoint/cuda_rollout.py")
    for number in range((ROOT / name).read_text().count("    barrier()\n"))
]


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), BARRIERS)
def test_every_barrier_is_needed(name, number, monkeypatch):
    """With any one of them left out, the machine finds a race; with all of them, none."""
    from stablebptt.tasks import cuda

    for changed in ("kernels/cuda_rollout.py", "adjoint/cuda_rollout.py"):
        full = f"stablebptt.{changed.removesuffix('.py').replace('/', '.')}"
        parts = (ROOT / changed).read_text().split("    barrier()\n")
        head, tail = "    barrier()\n".join(parts[: number + 1]), "    barrier()\n".join(parts[number + 1 :])
        source = f"{head}    pass\n{tail}" if changed == name else "    barrier()\n".join(parts)
        module = types.ModuleType(full)
        exec(compile(source, changed, "exec"), vars(module))
        monkeypatch.setitem(sys.modules, full, module)
        for maker in ("make_evaluate", "make_gradient", "make_join"):
            if hasattr(module, maker):
                monkeypatch.setattr(cuda, maker, getattr(module, maker))
    monkeypatch.setattr(cuda, "MOST_GROUPS", 1)
    _, gpu = pair("guidance", "float32")
    theta, x0 = gpu.init(1), gpu.sample(17, 2)
    found = pytest.raises(RuntimeError, match=r"between the same barriers|nobody wrote|another block")
    with found if name else contextlib.nullcontext():
        for _ in range(2):
            gpu.gradient(theta, x0, "C")
            next(gpu.engine._losses([theta], [x0], 1, 0))


# --- anywhere -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE, reason="there is a device")
def test_without_a_device_there_is_one_clear_line(capsys, tmp_path):
    words = "finds no CUDA device" if INSTALLED else "pip install 'stablebptt[cuda]'"
    with pytest.raises(sb.BackendError, match=words.replace("[", r"\[")):
        sb.problem("cartpole", backend="cuda")
    with pytest.raises(SystemExit) as ended:
        cli.main(["cartpole", "train", "--backend", "cuda", "--out", str(tmp_path / "run.h5")])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.count("\n") == 1 and words in told
    with pytest.raises(ValueError, match="unknown backend 'gpu'; choose from cpu, cuda"):
        sb.problem("cartpole", backend="gpu")


@on_device
def test_a_sweep_is_no_place_for_a_device():
    from stablebptt.tasks import sweeps

    with pytest.raises(ValueError, match="a sweep computes on the CPU"):
        sweeps.make_plan({"task": "cartpole", "options": {"backend": "cuda"}, "train": {"epochs": 1}})


both_speeds = pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])


def run_elsewhere(marks, files=FILES, **environment):
    """Run the tests of devices in another process; its summary is printed and must hold no skipped test of a device."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", marks, *files]
    limit = 900 if marks == "not slow" else 3600
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit)
    print(done.stdout[-3000:], done.stderr[-2000:])
    assert done.returncode == 0, done.stdout[-6000:]
    assert "no CUDA device" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(DEVICE, reason="there is a device, or this is the simulator")
@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).name)
def test_in_the_simulator(file):
    run_elsewhere("slow or not slow", [file], NUMBA_ENABLE_CUDASIM="1")


@both_speeds
@pytest.mark.skipif(DEVICE, reason="there is a device, or this takes its place")
@pytest.mark.skipif(not INSTALLED, reason="needs the extra: pip install 'stablebptt[cuda]'")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_compiled_for_the_device_and_executed_here(marks):
    """The PTX for compute capability 9.0, instruction by instruction, with checks of bounds, alignment and races."""
    run_elsewhere(marks, STABLEBPTT_TEST_EMULATED="1")


OFFLINE = """
import json, re, sys
sys.path.insert(0, sys.argv[1])
import cuda_kernels
import stablebptt as sb
cuda_kernels.without_device()
found = []
for task, options in (("cartpole", {"poles": 2}), ("guidance", {}), ("quantum", {})):
    for dtype in ("float32", "float64"):
        for name, ptx, shared in cuda_kernels.kernels(sb.problem(task, dtype=dtype, **options)):
            body = re.sub(r"//.*", "", ptx)
            doubles = sorted({code for code in re.findall(r"^\\s+(\\S*\\.f64\\S*)", body, re.MULTILINE) if "param" not in code})
            approximate = sorted(set(re.findall(r"\\S+\\.approx\\S*", body)))
            found.append([task, dtype, name, ".target sm_90" in ptx, doubles, approximate, cuda_kernels.resources(ptx), shared])
print(json.dumps(found))
"""
# What the library's reduction of large angles computes in double precision.
ANGLES = {"cvt.rn.f64.s64", "mul.f64", "cvt.rn.f32.f64"}


@pytest.mark.skipif(SMALL, reason="is no test of what executes here")
@pytest.mark.skipif(not INSTALLED, reason="needs the extra: pip install 'stablebptt[cuda]'")
def test_compiles_for_the_device_without_one():
    """PTX for compute capability 9.0: in single precision nothing is computed in double precision, nor by approximations."""
    command = [sys.executable, "-c", OFFLINE, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 18
    for task, dtype, name, targeted, doubles, approximate, resources, shared in found:
        assert targeted and shared <= 227 << 10
        if dtype == "float32":
            assert set(doubles) <= (ANGLES if task == "cartpole" else set()), (task, name, doubles)
            assert approximate == [], (task, name)
        registers, _, spilled = resources
        # With all their registers taken, a few addresses may spill (CUDA 13.5: up to 84 bytes).
        assert registers * 256 <= 65536 and (spilled <= 128 or dtype == "float64"), (task, dtype, name, resources)
