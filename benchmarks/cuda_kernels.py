"""What the CUDA kernels take of a device: ``python benchmarks/cuda_kernels.py``.

Compiles all kernels for compute capability 9.0, with or without a device (numba-cuda must be installed), and prints
registers, stack and spills per thread as the linker reports them, shared memory per block, and the inner loops' instructions.
"""

import re
import sys
from dataclasses import fields

import numpy as np

PROBLEMS = {
    "cart-pole, 2 poles": ("cartpole", {"poles": 2}),
    "guidance, 2 drivers, 4 evaders": ("guidance", {}),
    "quantum, 32 points": ("quantum", {}),
}
CAPABILITY = (9, 0)
SHARED_BYTES = 227 << 10


class Device:
    """Enough of a device for the compiler."""

    compute_capability = CAPABILITY
    supports_float16 = supports_bfloat16 = True
    id = 0


def without_device():
    """Let numba-cuda compile for a device that is not here."""
    import numba.cuda.dispatcher  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith(("numba.cuda", "numba_cuda")) and hasattr(module, "get_current_device"):
            module.get_current_device = Device


def kernels(problem, variants=2):
    """Kernels of a problem as (name, PTX, shared bytes), compiled with the arguments that they get."""
    from numba import cuda, typeof, types

    from stablebptt.adjoint.cuda_sweep import make_gradient, make_join
    from stablebptt.kernels.cuda_rollout import make_evaluate
    from stablebptt.tasks import cuda as backend
    from stablebptt.tasks.variants import gates

    class Host(backend.Queue):
        """A queue whose arrays are the host's."""

        def __init__(self):
            pass

        def array(self, name, shape, dtype):
            return np.empty(shape, dtype)

        def send(self, name, values):
            return np.ascontiguousarray(values)

        keep = send

    made = backend.CudaProblem(**{f.name: getattr(problem, f.name) for f in fields(problem) if f.name != "_spaces"})
    kind, queue, x0 = np.dtype(made.dtype), Host(), made.sample(8)
    real = types.float32 if kind == np.float32 else types.float64
    opened = gates("C" if variants == 2 else "R", made.steps, made.dtype)
    given = backend.DeviceGates(opened.physics, opened.network, np.zeros(made.steps + 1, kind), kind.type(0))
    results = np.empty((1, 1, 1), kind), np.empty((1, variants, 1), kind), np.empty((1, 1), kind), np.empty((1, 6), kind)
    found = []
    for name, count, make, more in (
        ("rollout", 0, make_evaluate, (0,)),
        ("gradient", variants, make_gradient, (given, np.empty((1, 1, 1), kind))),
    ):
        chosen = backend.plan(made, count, SHARED_BYTES)
        arguments = (*made._arguments(queue, chosen, [made.init()], [x0], 1, 1), *more)
        found.append((name, make(real, *chosen.shared), arguments, chosen.shared_bytes))
    found.append(("join", make_join(real), results, backend.THREADS * kind.itemsize))
    options = {"cc": CAPABILITY, "device": False, "abi": "numba", "output": "ptx"}
    return [
        (name, cuda.compile(kernel.py_func, types.void(*map(typeof, arguments)), **options)[0], shared)
        for name, kernel, arguments, shared in found
    ]


def resources(ptx):
    """Registers, stack bytes and spilled bytes per thread, as the linker of numba-cuda makes them."""
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
    """Of every loop around 16-byte loads without branches: instructions, multiply-adds, loads."""
    found = []
    for block in re.split(r"\n(?=\$L__BB)", ptx[ptx.index(".entry") :]):
        label = re.match(r"\$(\w+):", block)
        if label and "ld.shared.v4" in block and re.search(rf"bra(?:\.uni)?\s+\${label[1]};", block):
            lines = [line for line in block.splitlines() if line.strip().endswith(";")]
            found.append((len(lines), len(re.findall(r"\bfma|\bmul\.f|\badd\.f", block)), len(re.findall(r"\bld\.", block))))
    return found


def main():
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
