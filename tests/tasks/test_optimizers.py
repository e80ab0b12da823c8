"""Optimizers against the update rules written out number by number."""

import math

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks.optimizers import RULES, describe, from_description

GRADIENTS = [np.array([0.3, -2.0, 0.0, 1e-5]), np.array([-0.1, 1.5, 0.2, 1e-5]), np.array([0.7, 0.1, -0.4, 1e-5])]
EPS = 1e-7


def adam(x, gradients, rate=0.001):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + EPS)
    return x


def sgd(x, gradients, rate=0.01):
    return x - rate * sum(gradients)


def momentum(x, gradients, rate=0.01):
    v = 0.0
    for g in gradients:
        v = 0.9 * v - rate * g
        x += v
    return x


def adagrad(x, gradients, rate=0.001):
    a = 0.1
    for g in gradients:
        a += g * g
        x -= rate * g / math.sqrt(a + EPS)
    return x


def adadelta(x, gradients, rate=0.001):
    a = d = 0.0
    for g in gradients:
        a = 0.95 * a + 0.05 * g * g
        u = g * math.sqrt(d + EPS) / math.sqrt(a + EPS)
        d = 0.95 * d + 0.05 * u * u
        x -= rate * u
    return x


def rmsprop(x, gradients, rate=0.001):
    s = 0.0
    for g in gradients:
        s = 0.9 * s + 0.1 * g * g
        x -= rate * g / math.sqrt(s + EPS)
    return x


CASES = {
    "adam": (sb.optimizers.adam(), adam),
    "sgd": (sb.optimizers.sgd(), sgd),
    "momentum": (sb.optimizers.sgd(0.01, momentum=0.9), momentum),
    "adagrad": (sb.optimizers.adagrad(), adagrad),
    "adadelta": (sb.optimizers.adadelta(), adadelta),
    "rmsprop": (sb.optimizers.rmsprop(), rmsprop),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    rule, reference = CASES[name]
    start = np.array([1.0, -1.0, 0.5, 0.0])
    theta, state = start, rule.init(start)
    for gradient in GRADIENTS:
        theta, state = rule.apply(theta, gradient, state)
    expected = [reference(x, [g[i] for g in GRADIENTS]) for i, x in enumerate(start)]
    np.testing.assert_allclose(theta, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", CASES)
def test_rules_change_nothing_they_are_given(name):
    rule, _ = CASES[name]
    theta, gradient = np.ones(4, np.float32), np.full(4, 0.1, np.float32)
    state = rule.init(theta)
    copies = {key: values.copy() for key, values in state.items()}
    new, new_state = rule.apply(theta, gradient, state)
    assert new.dtype == np.float32 and all(v.dtype == state[k].dtype for k, v in new_state.items())
    assert np.all(theta == 1) and np.all(gradient == np.float32(0.1)) and np.all(new != theta)
    assert all(np.array_equal(state[key], values) for key, values in copies.items())
    with pytest.raises(AttributeError):
        rule.learning_rate = 1.0


@pytest.mark.parametrize("name", CASES)
def test_rules_survive_a_description(name):
    rule = CASES[name][0]
    assert from_description(describe(rule)) == rule


def test_bad_rules():
    for make in RULES.values():
        for rate in (0, -1, math.nan, math.inf):
            with pytest.raises(ValueError, match="learning_rate"):
                make(rate)
    with pytest.raises(ValueError, match="momentum"):
        sb.optimizers.sgd(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="adam, sgd"):
        from_description({"name": "lbfgs"})


def test_clip():
    g = np.array([3.0, -4.0, 0.5])
    assert sb.clip(g, "none", 1) is g
    assert np.array_equal(sb.clip(g, "value", 1), [1, -1, 0.5])
    clipped = sb.clip(g, "norm", 1)
    assert np.linalg.norm(clipped) == pytest.approx(1) and clipped @ g == pytest.approx(np.linalg.norm(g))
    assert np.array_equal(sb.clip(g, "norm", 10), g)
    for mode in ("none", "value", "norm"):
        assert np.isnan(sb.clip(np.array([np.nan, 1.0]), mode, 1)[0])
    assert sb.clip(np.full(4, 3e38, np.float32), "norm", 1).tolist() == pytest.approx([0.5] * 4)
    for at in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive"):
            sb.clip(g, "norm", at)
    with pytest.raises(ValueError, match="none, value, norm"):
        sb.clip(g, "both", 1)
