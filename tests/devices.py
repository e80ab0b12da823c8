"""Where the tests of devices run, and what they compare."""

import importlib.util
import os

import numpy as np
import pytest
from numba import config

import stablebptt as sb

if config.ENABLE_CUDASIM:
    import strict_simulator

SIMULATED, EMULATED = bool(config.ENABLE_CUDASIM), bool(os.environ.get("STABLEBPTT_TEST_EMULATED"))
INSTALLED = importlib.util.find_spec("numba_cuda") is not None


def has_device():
    if SIMULATED:
        return True
    if not INSTALLED:
        return False
    from numba import cuda

    return cuda.is_available()


DEVICE = has_device()
SMALL = SIMULATED or EMULATED  # where a thread is a Python loop
if SIMULATED:
    strict_simulator.install()
long_simulated = pytest.mark.slow if SIMULATED else lambda test: test
without_a_device = pytest.mark.skipif(DEVICE, reason="of the CPU; run elsewhere")
on_device = pytest.mark.skipif(not DEVICE, reason="no CUDA device; the simulator runs these tests in a process of its own")

PROBLEMS = {
    "cartpole": {"poles": 2, "hidden": (5, 7), "output_init": "glorot"},
    "cartpole continuous": {"poles": 1, "hidden": (6,), "output_init": "glorot", "loss": "continuous"},
    "guidance": {"drivers": 2, "evaders": 2, "hidden": (9, 4), "output_init": "glorot", "regularization": 0.1},
    "quantum": {"points": 8, "width": 3},
    "quantum final": {"points": 11, "width": 5, "loss": "final", "target": 2},
    "quantum one window": {"points": 10, "width": 4},  # which leaves points out
}
STEPS = 3 if SMALL else 20
# Relative to the largest number, against float64 on the CPU: the golden tolerances, and of float32 states the one for 20 steps.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
SETTINGS = {"epochs": 2, "train_count": 10, "test_count": 9, "clip": "norm", "clip_at": 0.01, "shuffle": True}


def pair(name, dtype="float64", **more):
    """The problem on the CPU in float64, and on the device."""
    task, options = name.split()[0], {"steps": STEPS, **PROBLEMS[name], **more}
    return sb.problem(task, dtype="float64", **options), sb.problem(task, dtype=dtype, backend="cuda", **options)


def error(values, truth):
    scale = np.abs(truth).max()
    return np.abs(values - truth).max() / (scale if scale > 0 else 1.0)


def loss_error(values, truth):
    """Losses are differences from 1, so they are no more exact than 1 is."""
    return np.abs(np.asarray(values) - truth).max() / max(1.0, np.abs(truth).max())


def assert_same_gradient(one, other, tolerance):
    assert loss_error(one.loss.total, other.loss.total) < tolerance
    assert loss_error(one.loss.physics, other.loss.physics) < tolerance
    assert error(one.value, other.value) < tolerance
    assert one.norm2 == pytest.approx(other.norm2, rel=10 * tolerance)
    assert one.cosine == pytest.approx(other.cosine, rel=tolerance, nan_ok=True)
    for name in ("regular", "modified"):
        values, truth = getattr(one, name), getattr(other, name)
        assert (values is None) == (truth is None)
        assert values is None or error(values, truth) < tolerance
