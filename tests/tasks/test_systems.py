"""The systems of docs/systems.md: right adjoints, right physics, in vectors, and they learn."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_vjp
from stablebptt.kernels import cost, final_cost, step
from stablebptt.tasks import adjoint_check, custom, plain_python

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("acrobot", "ball", "quadrotor", "burgers", "pendulum_chain")


@pytest.fixture
def example(monkeypatch):
    """Import an example by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    return importlib.import_module


def stepped(system, x, c):
    """One step in plain Python."""
    x_next = np.full_like(x, np.nan)
    step(system, x, c, x_next)
    return x_next


def slope(function, x, d, size=1e-6):
    """Derivative of a function along d, by central differences."""
    return (function(x + size * d) - function(x - size * d)) / (2 * size)


@pytest.mark.parametrize("name", NAMES)
def test_the_adjoints_agree_with_differences(example, random, name):
    """`step_vjp`, `cost_vjp` and `final_cost_vjp` in plain Python; the slow test compiles them."""
    problem = custom.in_float64(example(name).make_problem())
    system, loss = problem.system, problem.loss_function
    n, q = problem.n_state, problem.n_control
    for x in problem.sample(3).reshape(3, n):
        c, lam = random.normal(size=q), random.normal(size=(2, n))
        lam_x, lam_c = np.zeros((2, n)), np.zeros((2, q))
        step_vjp(system, x, c, lam, lam_x, lam_c)
        x_bar, c_bar, last_bar = np.zeros(n), np.zeros(q), np.zeros(n)
        cost_vjp(loss, 1, x, c, 2.0, x_bar, c_bar)
        final_cost_vjp(loss, x, 2.0, last_bar)
        dx, dc = random.normal(size=n), random.normal(size=q)
        found = [*(lam_x @ dx), *(lam_c @ dc), x_bar @ dx, c_bar @ dc, last_bar @ dx]
        expected = [
            *(lam @ slope(lambda x, c=c: stepped(system, x, c), x, dx)),
            *(lam @ slope(lambda c, x=x: stepped(system, x, c), c, dc)),
            2 * slope(lambda x, c=c: cost(loss, 1, x, c), x, dx),
            2 * slope(lambda c, x=x: cost(loss, 1, x, c), c, dc),
            2 * slope(lambda x, loss=loss: final_cost(loss, x), x, dx),
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_adjoints_pass_the_check_and_fit_into_vectors(example, name):
    problem = custom.in_float64(example(name).make_problem(steps=8))
    found = adjoint_check.check(problem)
    assert len(found) > 8 and all(finding.passed for finding in found), found
    assert {why for _, why in plain_python.in_vectors(problem.system)} == {""}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ball", "quadrotor"])
def test_it_learns(example, name):
    run = sb.train(example(name).make_problem(), "C", epochs=20, clip="norm", train_count=64, test_count=64)
    assert run.history["test_loss"][-1] < 0.9 * run.history["test_loss"][0]


def test_the_acrobot_conserves_energy_and_its_motor_does_not_turn_both_links(example):
    """Free motion keeps the energy to the order of the scheme; a torque adds ``torque (w2 - w1)`` to it per second."""

    def energy(s, x):
        a, wa, b, wb = x
        v1 = s.length_1 * wa * np.array([np.cos(a), -np.sin(a)])
        v2 = v1 + s.length_2 * wb * np.array([np.cos(b), -np.sin(b)])
        y1 = s.length_1 * np.cos(a)
        y2 = y1 + s.length_2 * np.cos(b)
        return s.mass_1 * (v1 @ v1 / 2 + s.gravity * y1) + s.mass_2 * (v2 @ v2 / 2 + s.gravity * y2)

    x0 = np.array([2.0, -0.5, 1.0, 0.4])
    s = example("acrobot").Acrobot(dt=1e-6, friction=0.0)
    for torque in (0.0, 0.7):
        power = (energy(s, stepped(s, x0, np.array([torque]))) - energy(s, x0)) / s.dt
        assert power == pytest.approx(torque * (x0[3] - x0[1]), abs=1e-4)


def test_the_ball_falls_bounces_and_rubs(example):
    """It falls freely, leaves the ground slower than it came, is never held by it, and is slowed down along x."""
    module = example("ball")
    system, rest = module.Ball(), np.zeros(2)
    fallen = stepped(system, np.array([0.0, 1.0, 0.3, 0.0]), rest)
    assert fallen[2] == 0.3 and fallen[3] == pytest.approx(-system.gravity * system.dt)
    x, heights = np.array([0.0, 0.5, 0.3, 0.0]), []
    for _ in range(60):
        x = stepped(system, x, rest)
        heights.append(x[1])
    bounce = int(np.argmin(heights))
    assert -0.05 < heights[bounce] < 0 and 0.1 < max(heights[bounce:]) < 0.45
    assert abs(x[2]) < 0.1  # of 0.3 m/s
    leaving = np.array([0.0, -0.01, 0.0, 20.0])  # faster than the damped spring pushes: no force but the weight
    assert stepped(system, leaving, rest)[3] == pytest.approx(20 - system.gravity * system.dt)


def test_burgers_conserves_the_mean_and_steepens(example, random):
    """Without actuators the mean stays, the largest value falls, and a wave becomes steeper on its front."""
    module = example("burgers")
    system, rest = module.Burgers(module.bumps(), viscosity=0.02), np.zeros(module.ACTUATORS)
    first = x = np.sin(module.PLACES)
    for _ in range(10):
        x = stepped(system, x, rest)
    assert abs(x.mean()) < 1e-14 and x.max() < 1
    assert np.abs(np.diff(x)).max() > 1.2 * np.abs(np.diff(first)).max()
    pushed = stepped(system, np.zeros(module.POINTS), np.array([1.0, 0, 0, 0]))
    np.testing.assert_allclose(pushed, system.dt * module.bumps()[0])


def test_a_chain_of_two_links_is_the_double_pendulum(example, random):
    """Its general mass matrix and that of the other example, solved by hand, give the same step and the same cotangents."""
    chain = example("pendulum_chain").Chain(links=2)
    alike = {"mass_1": chain.mass, "mass_2": chain.mass, "length_1": chain.length, "length_2": chain.length}
    pair = example("double_pendulum").DoublePendulum(cart=chain.cart, **alike)
    x, c, lam = random.normal(size=6), random.normal(size=1), random.normal(size=(2, 6))
    np.testing.assert_allclose(stepped(chain, x, c), stepped(pair, x, c), rtol=1e-12)
    bars = [(np.zeros((2, 6)), np.zeros((2, 1))) for _ in range(2)]
    for system, (lam_x, lam_c) in zip((chain, pair), bars):
        step_vjp(system, x, c, lam, lam_x, lam_c)
    for one, other in zip(*bars):
        np.testing.assert_allclose(one, other, rtol=1e-11)
