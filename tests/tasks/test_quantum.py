"""Quantum control: golden numbers, the scheme against SciPy, norms, the controller."""

import golden_checks
import numpy as np
import pytest
from numba import njit
from plain_networks import convolutions
from scipy.linalg import expm, solve_banded

import stablebptt as sb
from stablebptt.kernels.generics import step
from stablebptt.kernels.quantum import eigenstate, quantum

TASK = "quantum"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_golden_rollout(golden, dtype):
    golden_checks.check_rollout(TASK, golden, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("variant", golden_checks.VARIANTS)
def test_golden_gradient(golden, variant, dtype):
    left_out = golden_checks.check_gradient(TASK, golden, variant, dtype)
    assert dtype == "float32" or left_out == 0


@pytest.mark.parametrize("name", golden_checks.ADAM)
def test_golden_adam(golden, name):
    golden_checks.check_adam(TASK, golden, name)


def test_golden_layers(golden):
    golden_checks.check_layers(TASK, golden)


@njit
def advance(system, x, c):
    x_next = np.empty_like(x)
    step(system, x, c, x_next)
    return x_next


def as_complex(x):
    return x[..., 0::2] + 1j * x[..., 1::2]


def hamiltonian(points, tilt):
    dx = 2 / (points + 1)
    x = dx * np.arange(1, points + 1)
    off = np.full(points - 1, -1 / dx**2)
    return np.diag(2 / dx**2 + tilt * x) + np.diag(off, 1) + np.diag(off, -1)


def random_state(points, random):
    psi = random.standard_normal(2 * points)
    return psi / np.linalg.norm(psi)


@pytest.mark.parametrize("points", [8, 9, 32, 101])
def test_the_step_is_crank_nicolson(points, random):
    dt, tilt = 0.03, np.array([1.7])
    x = random_state(points, random)
    h = hamiltonian(points, tilt[0])
    banded = np.zeros((3, points), complex)
    banded[0, 1:], banded[2, :-1] = (0.5j * dt * np.diag(h, k) for k in (1, -1))
    banded[1] = 1 + 0.5j * dt * np.diag(h)
    expected = solve_banded((1, 1), banded, (np.eye(points) - 0.5j * dt * h) @ as_complex(x))
    np.testing.assert_allclose(as_complex(advance(quantum(points, dt), x, tilt)), expected, atol=1e-13)
    in_python = np.empty_like(x)
    step(quantum(points, dt), x, tilt, in_python)
    np.testing.assert_allclose(in_python, advance(quantum(points, dt), x, tilt), atol=1e-14)


def test_second_order_in_time():
    points, tilt, time = 8, np.array([0.8]), 0.4
    x = np.zeros(2 * points)
    x[0::2] = (eigenstate(points, 1) + eigenstate(points, 2)) / np.sqrt(2)
    exact = expm(-1j * time * hamiltonian(points, tilt[0])) @ as_complex(x)
    errors = []
    for steps in (64, 128, 256):
        psi, system = x, quantum(points, time / steps)
        for _ in range(steps):
            psi = advance(system, psi, tilt)
        errors.append(np.abs(as_complex(psi) - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 2, atol=0.02)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_the_norm_is_kept(dtype, bound):
    problem = sb.problem("quantum", dtype=dtype)
    path = problem.rollout(problem.init(3), problem.sample(16))
    norms = np.sum(np.square(path.states, dtype=np.float64), axis=(2, 3))
    assert np.abs(norms - norms[:, :1]).max() < bound


def test_eigenstates_are_steady_and_orthonormal():
    states = np.stack([eigenstate(16, n) for n in range(1, 17)])
    np.testing.assert_allclose(states @ states.T, np.eye(16), atol=1e-13)
    x = np.zeros(32)
    x[0::2] = states[2]
    after = as_complex(advance(quantum(16, 0.1), x, np.zeros(1)))
    assert abs(np.vdot(states[2], after)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("points", [8, 9, 10, 11, 14, 32, 33])
@pytest.mark.parametrize("width", [1, 7, 60])
def test_the_controller_is_the_network(points, width):
    problem = sb.problem("quantum", points=points, width=width, steps=2, dtype="float64")
    x0, theta = problem.sample(5), problem.init(1)
    path = problem.rollout(theta, x0)
    for b in range(5):
        for t in range(2):
            assert path.controls[b, t] == pytest.approx(convolutions(problem, theta, path.states[b, t]), abs=1e-13)


@pytest.mark.parametrize("target", [1, 3, 8])
def test_any_target(target):
    problem = sb.problem("quantum", points=8, width=4, steps=3, target=target, dtype="float64", loss="continuous")
    theta, x0 = problem.init(), problem.sample(4)
    states = problem.rollout(theta, x0).states[:, 1:]
    overlap = np.abs(states[..., 0] @ eigenstate(8, target) + 1j * states[..., 1] @ eigenstate(8, target)) ** 2
    assert problem.loss(theta, x0).total == pytest.approx(np.mean(np.sum(1 - overlap, axis=1)), rel=1e-12)


def test_initial_states():
    for weights in ((1, 1), (15, 1), (1, 0)):
        problem = sb.problem("quantum", weights=weights, dtype="float64")
        x = problem.sample(4000, seed=2)
        psi = x[..., 0] + 1j * x[..., 1]
        np.testing.assert_allclose(np.sum(np.abs(psi) ** 2, axis=1), 1, atol=1e-12)
        shares = np.stack([np.abs(psi @ eigenstate(32, n)) ** 2 for n in (1, 2)])
        np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-12)
        # of two independent normal magnitudes with standard deviations w1, w2 the mean share of the first is w1 / (w1 + w2)
        assert shares[0].mean() == pytest.approx(weights[0] / sum(weights), abs=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 7}, ValueError, "points is 7; it must be at least 8"),
        ({"target": 0}, ValueError, "target is 0"),
        ({"target": 33}, ValueError, "at most 32"),
        ({"dt": 0}, ValueError, "dt is 0"),
        ({"width": 0}, ValueError, "width is 0"),
        ({"weights": (0, 0)}, ValueError, "must be between 1e-9 and 1e9"),
        ({"weights": (1, 2, 3)}, TypeError, "two numbers"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        sb.problem("quantum", **options)
