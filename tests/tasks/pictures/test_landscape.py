"""The pictures that explain the method: their numbers, and what is drawn."""

import numpy as np
import pytest

from stablebptt.tasks.adjoint_check import check
from stablebptt.tasks.pictures import landscape


def walk(theta):
    """States and the derivative of the controller along the way, for theta (2,), by hand."""
    x, states = landscape.START, []
    for _ in range(landscape.STEPS):
        states.append(x)
        x = x + theta[0] * x**2 + theta[1] * x
    return np.array(states), x


@pytest.mark.slow
def test_every_rule_of_the_walk():
    found = check(landscape.walk_problem(), seed=3)
    assert {f.rule for f in found} >= {"step", "cost", "control", "control (unit cotangents)", "whole rollout"}
    for finding in found:
        assert finding.passed, finding


@pytest.mark.slow
def test_fields_are_those_of_the_recursion():
    found = landscape.fields(9)
    theta = found["theta"]
    assert theta[0] == -4 and theta[-1] == 4 and found["R"].shape == (9, 9, 2)
    for i, second in enumerate(theta):
        for j, first in enumerate(theta):
            states, last = walk((first, second))
            slope = last - landscape.GOAL
            basis = np.stack([states**2, states], axis=1)
            assert found["loss"][i, j] == pytest.approx(slope**2 / 2, rel=1e-12)
            np.testing.assert_allclose(found["M"][i, j], slope * basis.sum(axis=0), rtol=1e-10, atol=1e-12)
            change, regular = slope, np.zeros(2)
            for x, row in zip(states[::-1], basis[::-1]):
                regular += change * row
                change *= 1 + 2 * first * x + second
            np.testing.assert_allclose(found["R"][i, j], regular, rtol=1e-9, atol=1e-12)
            same = np.sign(found["M"][i, j]) == np.sign(found["R"][i, j])
            assert np.array_equal(found["C"][i, j], np.where(same, found["M"][i, j], 0))


def test_losses_of_the_published_figure():
    losses = landscape.rotation_losses(landscape.rotation())
    assert all(len(values) == 200 and values[0] == 20 for values in losses.values())
    assert losses["with rotation"][-1] == pytest.approx(6, abs=0.5)
    assert losses["combined"][-1] == pytest.approx(0.065, abs=0.001)
    assert losses["divergence"][-1] < 1e-5


@pytest.mark.slow
def test_the_figure_of_fields():
    figure = landscape.draw_fields(landscape.fields(15))
    panels, bar = figure.axes[:4], figure.axes[4]
    assert [axes.get_title() for axes in panels] == ["loss L", "regular R", "modified M", "combined C"]
    for axes in panels:
        assert axes.get_xlim() == (-4, 4) and axes.get_ylim() == (-4, 4) and axes.get_xlabel() == r"$\theta_1$"
        mesh = axes.collections[0]
        assert (mesh.norm.vmin, mesh.norm.vmax) == (1e-3, 1e3) and mesh.get_array().size == 15 * 15
    assert len(panels[0].collections) == 1  # no flow lines over the loss
    assert all(len(axes.collections) == 2 and len(axes.collections[1].get_segments()) > 20 for axes in panels[1:])
    assert bar.get_ylabel() == "loss; norm of the field"


def test_the_figure_of_rotation():
    paths = landscape.rotation()
    plane, curves = landscape.draw_rotation(paths).axes
    assert [line.get_label().split(":")[0] for line in curves.get_lines()] == list(paths)
    assert curves.get_yscale() == "log" and curves.get_xlabel() == "iteration"
    assert len(plane.get_lines()) >= len(paths) == 3
    for line, path in zip(plane.get_lines(), paths.values()):
        assert np.array_equal(line.get_xydata(), path)
