"""Resources of the CUDA kernels: ``python benchmarks/cuda_kernels.py``.

The script compiles all kernels for compute capability 9.0, with or without a device (numba-cuda must be installed). It prints
registers, stack and spills per thread as the linker reports them, shared memory per block, and the inner loops' instructions.

With ``--execute`` it runs one update of each published problem on the PTX machine of the tests, without a device, and prints
how many instructions the warps issue, and the time that takes at 4 per cycle.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import PROBLEMS

CAPABILITY = (9, 0)
SHARED_BYTES = 227 << 10


class Device:
    """Enough of a device for the compiler."""

    compute_capability = CAPABILITY
    supports_float16 = supports_bfloat16 = True
    id = 0


def without_device():
    """Let numba-cuda compile without a device."""
    import numba.cuda.dispatcher  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith(("numba.cuda", "numba_cuda")) and hasattr(module, "get_current_device"):
            module.get_current_device = Device


def kernels(problem, variants=2):
    """Kernels of a problem as (name, PTX, shared bytes), compiled for their real arguments."""
    from numba import cuda, typeof, types

    from stablebptt.adjoint.cuda_rollout import make_gradient, make_join
    from stablebptt.kernels.cuda_rollout import make_evaluate
    from stablebptt.tasks import cuda as backend
    from stablebptt.tasks.variants import gates

    class Host(backend.Queue):
        """A queue with host arrays."""

        def __init__(self):
            pass

        def array(self, name, shape, dtype):
            return np.empty(shape, dtype)

        def send(self, name, values):
            return np.ascontiguousarray(values)

        keep = send

    made = replace(problem, backend="cuda")
    kind, queue, x0 = np.dtype(made.dtype), Host(), made.sample(8)
    real = types.float32 if kind == np.float32 else types.float64
    opened = gates("C" if variants == 2 else "R", made.steps, made.dtype)
    given = backend.DeviceGates(opened.physics, opened.network, np.zeros(made.steps + 1, kind), kind.type(0))
    results = np.empty((1, 1, 1), kind), np.empty((1, variants, 1), kind), np.empty((1, 1), kind), np.empty((1, 6), kind)
    found = []
    for name, count, make in (("rollout", 0, make_evaluate), ("gradient", variants, make_gradient)):
        chosen = backend.plan(made, count, SHARED_BYTES)
        arguments = made.engine._given(queue, chosen, [made.init()], [x0], name)
        paths = made.engine._paths_on(queue, chosen, (1, 8, 1, 1), name)
        arguments += (given, paths, np.empty((1, 1, 1), kind)) if count else (paths,)
        found.append((name, make(real, chosen.shared), arguments, chosen.shared_bytes))
    found.append(("join", make_join(real), results, backend.THREADS * kind.itemsize))
    options = {"cc": CAPABILITY, "device": False, "abi": "numba", "output": "ptx"}
    return [
        (name, cuda.compile(kernel.py_func, types.void(*map(typeof, arguments)), **options)[0], shared)
        for name, kernel, arguments, shared in found
    ]


def resources(ptx):
    """Registers, stack bytes and spilled bytes per thread, as numba-cuda's linker reports them."""
    from cuda.bindings import nvjitlink

    options, code = ["-arch=sm_90", "-verbose"], ptx.encode()
    linker = nvjitlink.create(len(options), options)
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    told = log.decode()
    registers = int(re.search(r"Used (\d+) registers", told)[1])
    stack, *spills = (int(found) for found in re.search(r"(\d+) bytes stack frame, (\d+)\D+(\d+)", told).groups())
    return registers, stack, sum(spills)


def loops(ptx):
    """Instructions, multiply-adds and loads of every loop around 16-byte loads without branches."""
    found = []
    for block in re.split(r"\n(?=\$L__BB)", ptx[ptx.index(".entry") :]):
        label = re.match(r"\$(\w+):", block)
        if label and "ld.shared.v4" in block and re.search(rf"bra(?:\.uni)?\s+\${label[1]};", block):
            lines = [line for line in block.splitlines() if line.strip().endswith(";")]
            found.append((len(lines), len(re.findall(r"\bfma|\bmul\.f|\badd\.f", block)), len(re.findall(r"\bld\.", block))))
    return found


def execute():
    """Instructions per update, counted."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import ptx_machine

    machine = ptx_machine.install()
    import stablebptt as sb
    from stablebptt.tasks.variants import gates

    print(f"{'one update, batch 8, float32':<40}{'warp instructions':>18}{'multiply-adds':>15}{'ms at 4 a cycle, 1.98 GHz':>27}")
    for title, (task, options) in PROBLEMS.items():
        problem = sb.problem(task, backend="cuda", **options)
        theta, x0 = problem.init(1), problem.sample(8)
        for variant in "RMC":
            machine.total = 0
            next(problem.engine.gradients([theta], [x0], gates(variant, problem.steps, problem.dtype)))
            needed = multiply_adds(problem, variant) / 32
            milliseconds = 1e3 * machine.total / 4 / 1.98e9
            print(f"{f'{title}, {variant}':<40}{machine.total:>18,}{needed / machine.total:>14.0%} {milliseconds:>26.2f}")


def multiply_adds(problem, variant):
    """Multiply-adds of the controller's products: forward, weights, cotangents of hidden numbers and, except for M, of states."""
    layers = [positions * window * outputs for _, window, positions, outputs in problem.controller.windows()]
    count = 2 if variant == "C" else 1
    backward = count * (sum(layers) + sum(layers[1:])) + (variant != "M") * layers[0]
    return 8 * problem.steps * (sum(layers) + backward)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", action="store_true", help="count instructions on the PTX machine")
    if parser.parse_args().execute:
        execute()
        return
    import stablebptt as sb

    without_device()
    print(f"{'':<48}registers  stack  spilled  shared KiB  float64  inner loops: instructions (arithmetic, loads)")
    for title, (task, options) in PROBLEMS.items():
        for dtype in ("float32", "float64"):
            for name, ptx, shared in kernels(sb.problem(task, **options, dtype=dtype)):
                registers, stack, spilled = resources(ptx)
                inner = "  ".join(f"{n} ({f}, {loads})" for n, f, loads in loops(ptx))
                doubles = len(re.findall(r"^\s+(?!ld\.param)\S*\.f64", ptx, re.MULTILINE))
                line = f"{title + ', ' + dtype + ', ' + name:<48}{registers:>9}{stack:>7}{spilled:>9}{shared / 1024:>12.1f}"
                print(f"{line}{doubles:>9}  {inner}")


if __name__ == "__main__":
    main()
