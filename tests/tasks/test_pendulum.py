"""Pendulum: the smallest task, from its equations to its film."""

import numpy as np
import pytest
from PIL import Image

import stablebptt as sb
from stablebptt.kernels.generics import cost, step
from stablebptt.kernels.pendulum import Standing, pendulum
from stablebptt.tasks import adjoint_check
from stablebptt.tasks.pictures import films
from stablebptt.tasks.pictures import rollouts as rollout_pictures
from stablebptt.tasks.rollouts import load_rollouts

SMALL = {"steps": 4, "hidden": (4,)}


def reference(q, w, torque, dt, gravity=9.8, mass=1.0, length=1.0):
    """A rod about its end, after Newton."""
    w = w + dt * (mass * gravity * (length / 2) * np.sin(q) + torque) / (mass * length**2 / 3)
    return np.array([q + dt * w, w])


def test_a_step_is_newtons(random):
    system = pendulum(0.04)
    for x, c in zip(random.uniform(-4, 4, (20, 2)), random.uniform(-5, 5, (20, 1))):
        x_next = np.empty(2)
        step(system, x, c, x_next)
        np.testing.assert_allclose(x_next, reference(*x, c[0], 0.04), rtol=1e-13, atol=1e-13)
    assert cost(Standing(), np.array([0.0, 3.0])) == 0 and cost(Standing(), np.array([np.pi, 0.0])) == 2


def test_a_free_link_keeps_its_energy():
    """Over a hundred swings: the scheme is symplectic."""
    system, x, x_next = pendulum(1e-2), np.array([2.0, 0.0]), np.empty(2)

    def energy(x):
        return x[1] ** 2 / 6 + 4.9 * np.cos(x[0])

    first, largest = energy(x), 0.0
    for _ in range(10_000):
        step(system, x, np.zeros(1), x_next)
        x[:] = x_next
        largest = max(largest, abs(energy(x) - first))
    assert largest < 0.15


@pytest.mark.parametrize("loss", ["final", "continuous"])
@pytest.mark.slow
def test_all_adjoints(loss):
    problem = sb.problem("pendulum", dtype="float64", output_init="glorot", loss=loss, **SMALL)
    found = adjoint_check.check(problem)
    assert {finding.rule for finding in found} >= {"step", "step_batch", "cost", "control", "whole rollout"}
    for finding in found:
        assert finding.passed, finding


def test_links_hang_at_first():
    x0 = sb.problem("pendulum", dtype="float64").sample(500, seed=2)
    assert x0.shape == (500, 1, 2) and np.abs(x0[..., 0] - np.pi).max() <= np.pi / 6 and np.abs(x0[..., 1]).max() <= 1


@pytest.mark.slow
def test_the_command_check(run):
    assert run("pendulum", "check", "--steps", 4, "--hidden", 4).code == 0


@pytest.mark.slow
def test_it_learns():
    fast = sb.optimizers.adam(0.02)
    run = sb.train(sb.problem("pendulum", hidden=(20,)), "C", 12, clip="norm", optimizer=fast, train_count=64, test_count=32)
    assert run.history["test_loss"][-1] < 0.2 * run.history["test_loss"][0]


@pytest.mark.slow
def test_commands_pictures_and_film(run, tmp_path):
    counts = ["--train-count", 8, "--test-count", 8, "--epochs", 1]
    done = run("pendulum", "train", "--steps", 4, "--hidden", 4, *counts, "--out", "p.h5")
    assert done.code == 0, done.err
    assert run("pendulum", "simulate", "p.h5", "--count", 3, "--out", "paths.h5").code == 0
    assert run("plot", "paths.h5", "--out", "p.png").code == 0
    assert run("animate", "p.h5", "--dpi", 30, "--fps", 2, "--out", "p.gif").code == 0
    with Image.open("p.gif") as film:
        assert film.n_frames >= 4
    found = load_rollouts("p.h5")
    figure = rollout_pictures.draw(found, 1)
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["angle [rad]", "rate [rad/s]", "torque [N m]"]
    assert np.array_equal(figure.axes[1].get_lines()[0].get_ydata(), found.states[1, 1, :, 0, 0])
    moving, update = films.film(found, 0)
    update(4)
    q = found.states[1, 0, 4, 0, 0]
    np.testing.assert_allclose(moving.axes[1].get_lines()[1].get_xydata()[1], [np.sin(q), np.cos(q)], rtol=1e-6)
