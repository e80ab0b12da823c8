"""Guidance: golden numbers, the force law written out again, coinciding objects, what one step cannot see."""

import golden_checks
import numpy as np
import pytest
from numba import njit

import stablebptt as sb
from stablebptt.adjoint.generics import step_vjp
from stablebptt.kernels.generics import step
from stablebptt.kernels.guidance import guidance

TASK = "guidance"
HERDS = [(1, 1), (1, 3), (2, 4), (3, 5), (4, 1)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_golden_rollout(golden, dtype):
    golden_checks.check_rollout(TASK, golden, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("variant", golden_checks.VARIANTS)
def test_golden_gradient(golden, variant, dtype):
    left_out = golden_checks.check_gradient(TASK, golden, variant, dtype)
    assert dtype == "float32" or left_out <= 0.05 * len(golden.arrays["theta"])


@pytest.mark.parametrize("name", golden_checks.ADAM)
def test_golden_adam(golden, name):
    golden_checks.check_adam(TASK, golden, name)


def test_golden_layers(golden):
    golden_checks.check_layers(TASK, golden)


@njit
def compiled_step(system, x, c, x_next):
    step(system, x, c, x_next)


@njit
def compiled_step_vjp(system, x, c, lam, lam_x, lam_c):
    step_vjp(system, x, c, lam, lam_x, lam_c)


def accelerations(x, c, drivers):
    """The equations of docs/method.md 3.2, object by object; x (D+E, 2, 2)."""
    position, velocity = x[:, 0], x[:, 1]
    out = np.zeros_like(position)
    total = position[drivers:].sum(axis=0)
    for j in range(len(x)):
        for i in range(len(x)):
            r = position[i] - position[j]
            dist = 0.1 + np.hypot(*r)
            if i == j:
                continue
            if j >= drivers and i < drivers:
                out[j] += 15 * -r / dist**2
            elif j >= drivers:
                out[j] += 0.2 * ((0.5 / dist - 1) / dist) * r
            elif i < drivers:
                out[j] += 0.2 * (position[j] - position[i]) / dist**2
        if j >= drivers:
            out[j] -= 4 * velocity[j]
        else:
            u = position[j] - total
            out[j] += c[j, 0] * u + c[j, 1] * np.array([-u[1], u[0]]) - velocity[j]
    return out


@pytest.mark.parametrize("herd", HERDS)
def test_the_step_is_that_of_the_equations(herd, random):
    drivers, evaders = herd
    x, c = random.standard_normal((drivers + evaders, 2, 2)), random.standard_normal((drivers, 2))
    x_next = np.empty(x.size)
    system, dt = guidance(drivers, evaders, 0.07), 0.07
    compiled_step(system, x.ravel(), c.ravel(), x_next)
    expected = np.empty_like(x)
    expected[:, 0] = x[:, 0] + dt * x[:, 1]
    expected[:, 1] = x[:, 1] + dt * accelerations(x, c, drivers)
    np.testing.assert_allclose(x_next.reshape(x.shape), expected, rtol=1e-12, atol=1e-13)
    in_python = np.empty(x.size)
    step(system, x.ravel(), c.ravel(), in_python)
    np.testing.assert_allclose(in_python, x_next, rtol=1e-13, atol=1e-14)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (2, 3)])
def test_coinciding_objects(pair, dtype, random):
    """No force between them, finite derivatives, and those of the other objects as if the two were apart by nothing."""
    system = guidance(2, 3, dtype(0.05), dtype)
    x = random.standard_normal((5, 2, 2)).astype(dtype)
    x[pair[1], 0] = x[pair[0], 0]
    c = random.standard_normal(4).astype(dtype)
    x_next = np.empty(20, dtype)
    compiled_step(system, x.ravel(), c, x_next)
    expected = x[:, 1] + dtype(0.05) * accelerations(x.astype(float), c.reshape(2, 2), 2)
    np.testing.assert_allclose(x_next.reshape(x.shape)[:, 1], expected, rtol=1e-4, atol=1e-5)
    lam = random.standard_normal((3, 20)).astype(dtype)
    lam_x, lam_c = np.zeros((3, 20), dtype), np.zeros((3, 4), dtype)
    compiled_step_vjp(system, x.ravel(), c, lam, lam_x, lam_c)
    assert np.all(np.isfinite(lam_x)) and np.all(np.isfinite(lam_c))
    if dtype is np.float64:
        direction, h = random.standard_normal(20), 1e-6
        moved = [np.empty(20), np.empty(20)]
        for sign, out in zip((1, -1), moved):
            compiled_step(system, x.ravel() + sign * h * direction, c, out)
        slope = (moved[0] - moved[1]) / (2 * h)
        np.testing.assert_allclose(lam @ slope, lam_x @ direction, rtol=1e-4, atol=1e-4)
    batch = np.repeat(x.reshape(1, 20), 3, 0)
    problem = sb.problem("guidance", drivers=2, evaders=3, steps=4, hidden=(5,), dtype=np.dtype(dtype).name)
    assert np.all(np.isfinite(problem.gradient(problem.init(), batch.reshape(3, 5, 2, 2), "C").value))


def test_nan_stays_visible():
    system, x = guidance(1, 2, 0.1), np.ones(12)
    x[8] = np.nan
    x_next = np.empty(12)
    compiled_step(system, x, np.zeros(2), x_next)
    assert np.isnan(x_next[6])  # the velocity of the other evader


@pytest.mark.parametrize("loss", ["final", "continuous"])
def test_one_step_sees_nothing_but_the_regulariser(loss):
    """A control reaches a position only two explicit steps later."""
    options = {"steps": 7, "hidden": (8, 8), "dtype": "float64", "output_init": "glorot", "loss": loss}
    free = sb.problem("guidance", regularization=0, **options)
    x0, theta = free.sample(4), free.init(1)
    for variant in "SN":
        assert np.all(free.gradient(theta, x0, variant).value == 0)
    assert np.abs(free.gradient(theta, x0, "M").value).max() > 1e-8
    held = sb.problem("guidance", regularization=0.3, **options)
    assert np.abs(held.gradient(theta, x0, "S").value).max() > 1e-6
    path = held.rollout(theta, x0)
    found = held.loss(theta, x0)
    assert found.total - found.physics == pytest.approx(0.3 * np.mean(path.controls**2), rel=1e-12)


def test_the_target_is_used():
    near, far = (sb.problem("guidance", target=t, regularization=0, dtype="float64") for t in ((0, 0), (3.0, -1.0)))
    x0, theta = near.sample(3), near.init()
    states = near.rollout(theta, x0).states
    for problem, goal in ((near, (0, 0)), (far, (3, -1))):
        expected = np.mean((states[:, 1:, 2:, 0] - np.array(goal)) ** 2)
        assert problem.loss(theta, x0).total == pytest.approx(expected, rel=1e-12)


def test_initial_states():
    x = sb.problem("guidance", drivers=3, evaders=5, dtype="float64").sample(1000, seed=1)
    assert np.all(x[:, :, 1] == 0)
    radius = np.linalg.norm(x[:, :3, 0], axis=-1)
    assert radius.min() >= 3 and radius.max() <= 4 and np.ptp(radius) > 0.95
    spread = np.ptp(x[:, 3:, 0], axis=1)
    assert spread.max() <= 1 and spread.max() > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drivers": 0}, ValueError, "drivers is 0"),
        ({"evaders": -3}, ValueError, "evaders is -3"),
        ({"regularization": -1}, ValueError, "regularization is -1"),
        ({"target": 3}, TypeError, "two numbers"),
        ({"target": (0, np.inf)}, ValueError, "finite"),
        ({"poles": 1}, TypeError, "guidance has no option 'poles'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        sb.problem("guidance", **options)
