"""Cart-pole: golden numbers, physics, limits."""

import golden_checks
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.kernels.cartpole import Upright, cartpole
from stablebptt.kernels.generics import cost, step

TASK = "cartpole"


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


def energy(x, system):
    """Of one pole on a cart: m is the pole's mass, M the mass of both, l half the pole's length."""
    m, total, l, g = system.pole_mass, system.total_mass, system.half_length, system.gravity
    _, v, q, w = x
    kinetic = 0.5 * total * v**2 + m * l * v * w * np.cos(q) + 0.5 * (4 / 3) * m * l**2 * w**2
    return kinetic + m * g * l * np.cos(q)


@pytest.mark.parametrize(("dt", "bound"), [(1e-3, 1e-3), (1e-4, 1e-4)])
def test_a_free_pole_keeps_its_energy(dt, bound):
    """One pole: the equations are those of the textbook, so energy drifts with the step size only."""
    system, x, force = cartpole(dt), np.array([0.0, 0.3, 2.0, 0.5]), np.zeros(1)
    first = energy(x, system)
    for _ in range(round(1 / dt)):
        x_next = np.empty(4)
        step(system, x, force, x_next)
        x = x_next
    assert abs(energy(x, system) - first) < bound


def test_poles_do_not_feel_each_other():
    system, force = cartpole(0.01), np.array([0.7])
    two, one = np.array([0.1, 0.2, 3.0, 0.4, 2.5, -0.3]), np.array([0.1, 0.2, 3.0, 0.4])
    two_next, one_next = np.empty(6), np.empty(4)
    step(system, two, force, two_next)
    step(system, one, force, one_next)
    assert np.array_equal(two_next[2:4], one_next[2:4])


def test_cost_is_zero_upright_and_two_hanging():
    assert cost(Upright(), np.zeros(6)) == pytest.approx(0, abs=1e-15)
    assert cost(Upright(), np.array([0, 0, np.pi, 0, np.pi, 0])) == pytest.approx(2, abs=1e-15)


def test_initial_states_hang():
    x = sb.problem("cartpole", poles=3, dtype="float64").sample(2000, seed=3)
    assert x.shape == (2000, 4, 2)
    assert np.abs(x[:, 1:, 0] - np.pi).max() <= np.pi / 6
    assert np.abs(x[:, 1:, 0] - np.pi).max() > 0.9 * np.pi / 6
    assert np.abs(x[:, :, 1]).max() <= 1 and np.abs(x[:, 0, 0]).max() <= 1
    assert abs(x[:, 0].mean()) < 0.05


def test_the_published_set_up_is_the_default():
    problem = sb.problem("cartpole", poles=2)
    assert problem.steps == 100 and problem.dt == 0.01 and problem.dtype is np.float32
    assert [v.shape for v in problem.layers(problem.init()).values()] == [
        (6, 100), (100,), (100, 100), (100,), (100, 1), (1,)
    ]  # fmt: skip
    assert np.all(problem.layers(problem.init(0))["dense_2/kernel"] == 0)
    assert problem.time_weights[-1] == 1 and problem.time_weights[:-1].sum() == 0


def test_arrays_that_may_not_be_written_take_the_same_machine_code():
    from stablebptt.adjoint.rollout import gradient
    from stablebptt.kernels.rollout import evaluate

    problem = sb.problem("cartpole", steps=5)
    theta, x0 = problem.init(1), problem.sample(3)
    expected = problem.gradient(theta, x0, "C").value, problem.losses(theta, x0)[0]
    compiled = len(evaluate.signatures), len(gradient.signatures)
    shifted = np.frombuffer(b"\0" + x0.tobytes(), np.uint8)[1:].view(x0.dtype).reshape(x0.shape)  # read-only and not aligned
    theta = np.broadcast_to(theta, theta.shape)
    found = problem.gradient(theta, shifted, "C").value, problem.losses(theta, shifted)[0]
    assert not theta.flags.writeable and not shifted.flags.aligned
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert (len(evaluate.signatures), len(gradient.signatures)) == compiled
