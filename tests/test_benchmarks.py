"""The benchmarks of the CPU run, briefly, and print a table of numbers. Their figures mean nothing here."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# Their options, for little time, and how many numbers the last line of their output has.
BRIEF = {
    "activations": ("--turns 1", 3),
    "checkpoints": ("", 7),
    "guidance_scaling": ("", 6),
    "long_horizons": ("--steps 20 50", 7),
    "policies": ("--repeats 1", 3),
    "sweeps": ("2 2 1", 1),
    "threads": ("--seconds 0.1 --threads 2 --epochs 1", 9),
    "updates": ("--repeats 10", 8),
    "widths": ("--repeats 10 --width 100 128 --batch 8", 6),
    "vectors": ("--seconds 0.1", 5),
}
# Of peers and PTX, with tests beside what they compare; one needs a device.
ELSEWHERE = {"common", "cuda_kernels", "cuda_updates", "peers", "peer_jax", "peer_physics", "peer_torch"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BRIEF)
def test_a_benchmark_runs(name):
    words, count = BRIEF[name]
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    numbers = [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", done.stdout.splitlines()[-1])]
    assert len(numbers) == count and all(map(math.isfinite, numbers)), done.stdout


def test_no_benchmark_is_forgotten():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(BRIEF) | ELSEWHERE
