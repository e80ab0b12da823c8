"""Machine code for processors that are not here: kernels are compiled for them by LLVM, and not run."""

import functools
import os
import platform
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

# Compile a gradient, and write the LLVM text of all its entry points.
COMPILE = """
import os, sys
import stablebptt as sb
from stablebptt.kernels.core.linking import LinkedLibrary

finalize, count = LinkedLibrary._finalize_final_module, 0

def noted(library):
    global count
    if library._is_entry:
        with open(f"{sys.argv[1]}/{os.getpid()}-{count}.ll", "w") as file:  # several processes compile
            file.write(str(library._final_module))
        count += 1
    finalize(library)

LinkedLibrary._finalize_final_module = noted
problem = sb.problem("cartpole", poles=2, steps=3, hidden=(5, 5))
problem.gradient(problem.init(seed=0), problem.sample(20, seed=0), "C")
"""
# A hint in loops of waiting, the only instruction of ours that belongs to a processor.
HINTS = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}
# What Numba's own counting of references has become where it was compiled for this processor already: it falls to zero.
COUNTING = re.compile(r"(%\S+) = (?:tail )?call i8 @llvm\.x86\.atomic\.sub\.cc\.i64\(ptr (?:nonnull )?(%\S+), i64 1, i32 4\)")


class Target(NamedTuple):
    """Another processor, the width of its vectors, and what its code has and has not."""

    triple: str
    cpu: str
    vector_bytes: int
    wanted: str
    unwanted: str


TARGETS = {
    "NEON": Target("aarch64-unknown-linux-gnu", "generic", 16, r"\bfmla\s+v\d+\.4s", r"%[xyz]mm"),
    "macOS": Target("arm64-apple-macosx", "apple-m1", 16, r"\bfmla\.4s", r"%[xyz]mm"),
    "AVX2": Target("x86_64-unknown-linux-gnu", "haswell", 32, r"vfmadd\w+ps\s.*%ymm", r"%zmm|%k[1-7]"),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """A function: LLVM texts of the entry points of a gradient, compiled for vectors of so many bytes in a process of its own."""

    @functools.cache
    def compiled(vector_bytes):
        folder = tmp_path_factory.mktemp(f"bytes{vector_bytes}")
        own = {"STABLEBPTT_VECTOR_BYTES": str(vector_bytes), "STABLEBPTT_CACHE_DIR": str(folder / "cache")}
        if platform.machine() == "x86_64":
            own["NUMBA_CPU_NAME"] = "haswell" if vector_bytes == 32 else "x86-64"
        subprocess.run([sys.executable, "-c", COMPILE, str(folder)], env=os.environ | own, check=True, timeout=500)
        return [path.read_text() for path in sorted(folder.glob("*.ll"))]

    return compiled


def _counted(found):
    """The same as `COUNTING` for any processor."""
    result, address = found[1], found[2]
    name = result[1:].strip('"')
    return (
        f'%"before.{name}" = atomicrmw sub ptr {address}, i64 1 seq_cst\n'
        f'  %"zero.{name}" = icmp eq i64 %"before.{name}", 1\n'
        f'  {result} = zext i1 %"zero.{name}" to i8'
    )


def moved(text, machine, triple):
    """The text for another target."""
    name = "aarch64" if triple.startswith(("aarch64", "arm64")) else "x86_64"
    for other, (declared, called) in HINTS.items():
        if other != name:
            text = re.sub(rf"{re.escape(declared)}.*", HINTS[name][0], text)
            text = re.sub(rf"(tail )?{re.escape(called)}", HINTS[name][1], text)
    text = COUNTING.sub(_counted, text)
    text = re.sub(r'^target datalayout = ".*"$', f'target datalayout = "{machine.target_data}"', text, flags=re.MULTILINE)
    return re.sub(r'^target triple = ".*"$', f'target triple = "{triple}"', text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_kernels_compile_for_another_processor(name, entries):
    import llvmlite.binding as llvm

    target = TARGETS[name]
    try:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, opt=3)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite has no such target: {error}")
    codes = []
    for text in entries(target.vector_bytes):
        module = llvm.parse_assembly(moved(text, machine, target.triple))
        module.verify()
        codes.append(machine.emit_assembly(module))
    together = "\n".join(codes)
    assert len(codes) > 20 and len(re.findall(target.wanted, together)) > 100, f"{name}: the inner loops have no vectors"
    assert not re.search(target.unwanted, together)
