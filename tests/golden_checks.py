"""Comparisons with golden numbers, the same for every task; tolerances are those of data/golden/README.md."""

import numpy as np

import stablebptt as sb

VARIANTS = "RMSNC"
ADAM = ("R_none", "R_value", "R_norm", "C_none", "C_value", "C_norm")


def relative(values, truth) -> float:
    scale = np.abs(truth).max()
    return float(np.abs(values - truth).max() / (scale if scale > 0 else 1.0))


def problem_of(task, golden, dtype):
    return sb.problem(task, **golden.options, dtype=dtype)


def check_rollout(task, golden, dtype) -> None:
    problem = problem_of(task, golden, dtype)
    theta = golden.arrays["theta"].astype(dtype)
    x0 = golden.arrays["batches"][0].astype(dtype)
    problem.gradient(theta, x0)  # compiled first, it leaves little to compile for a rollout
    path, loss = problem.rollout(theta, x0), problem.loss(theta, x0)
    n = len(golden.arrays["states"])
    exact = dtype == "float64"
    assert relative(path.states[:n], golden.arrays["states"]) < (1e-11 if exact else 5e-5)
    if exact:
        assert relative(path.controls[:n], golden.arrays["controls"]) < 1e-11
        for name, value in (("loss", loss.total), ("physics_loss", loss.physics)):
            assert abs(value - golden.attributes[name]) <= 1e-12 * abs(golden.attributes[name])


def check_gradient(task, golden, variant, dtype, slack=1) -> int:
    """Compare one variant, within `slack` golden tolerances; returns how many components were left out (only C has such)."""
    problem = problem_of(task, golden, dtype)
    theta = golden.arrays["theta"].astype(dtype)
    gradient = problem.gradient(theta, golden.arrays["batches"][0].astype(dtype), variant)
    truth = golden.arrays[f"gradient/{variant}"]
    keep = np.ones(truth.shape, bool)
    if variant == "C":
        for part in ("gradient/R", "gradient/M"):  # where one of them is zero to rounding, C jumps
            size = np.abs(golden.arrays[part])
            keep &= size >= (1e-9 if dtype == "float64" else 10 * golden.float32_error[part]) * size.max()
        if np.array_equal(golden.arrays["gradient/R"], golden.arrays["gradient/M"]):
            keep[:] = True
    scale = np.abs(truth).max()
    if scale == 0:
        assert np.all(gradient.value == 0)
        return 0
    tolerance = 1e-9 if dtype == "float64" else max(10 * golden.float32_error[f"gradient/{variant}"], 1e-5)
    assert keep.mean() > 0.5
    assert np.abs(gradient.value - truth)[keep].max() <= slack * tolerance * scale
    return int((~keep).sum())


def check_adam(task, golden, name) -> None:
    problem = problem_of(task, golden, "float64")
    variant, mode = name.split("_")
    theta, rule = golden.arrays["theta"], sb.optimizers.adam(0.001)
    state = rule.init(theta)
    for x0 in golden.arrays["batches"]:
        value = problem.gradient(theta, x0, variant).value
        theta, state = rule.apply(theta, sb.clip(value, mode, 1.0), state)
    assert np.abs(theta - golden.arrays[f"adam/{name}"]).max() < 1e-9


def check_layers(task, golden) -> None:
    problem = problem_of(task, golden, "float64")
    layers = problem.layers(golden.arrays["theta"])
    stored = {name.removeprefix("layers/"): v for name, v in golden.arrays.items() if name.startswith("layers/")}
    assert set(layers) == set(stored)
    for name, values in layers.items():
        assert np.array_equal(values, stored[name])
