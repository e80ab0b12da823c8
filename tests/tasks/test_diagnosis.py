"""Diagnosis of R and M: against NumPy, step by step; what it says, draws and writes; its command."""

import dataclasses
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.adjoint import step_vjp
from stablebptt.tasks import diagnose, policies
from stablebptt.tasks.diagnose import Agreement, Diagnosis

SMALL = "--poles 1 --steps 12 --hidden 9,8".split()


def small(**options):
    return sb.problem("cartpole", **{"poles": 1, "steps": 12, "hidden": (9, 8), "output_init": "glorot", **options})


def network_jacobian(policy, x):
    """dN/dx (1, 4) of one flat state, by differences."""
    shifts = 1e-6 * np.eye(4)
    return np.array([(policy((x + s).reshape(2, 2)) - policy((x - s).reshape(2, 2))).ravel() / 2e-6 for s in shifts]).T


def by_hand(problem, theta, x0, rho):
    """Norms of the adjoints (2, T) of R and M, and the largest singular values of dx_T/dx_0, of one rollout, in NumPy."""
    path, policy = problem.rollout(theta, x0[None]), policies.of(problem, theta)
    states, controls, steps = path.states[0].reshape(-1, 4), path.controls[0], problem.steps
    costs = np.zeros((steps + 1, 4))
    costs[1:, 2] = np.sin(states[1:, 2]) / steps
    lams, jacobians, norms = [costs[-1].copy(), costs[-1].copy()], [np.eye(4), np.eye(4)], np.zeros((2, steps))
    for t in range(steps - 1, -1, -1):
        s_x, s_c = np.zeros((4, 4)), np.zeros((4, 1))
        step_vjp(problem.system, states[t], controls[t], np.eye(4), s_x, s_c)
        n_x = network_jacobian(policy, states[t])
        for v, through in enumerate((1.0, 0.0)):
            g = lams[v] @ s_c + 2 * rho * controls[t] / steps
            lams[v] = lams[v] @ s_x + through * g @ n_x + costs[t]
            jacobians[v] = jacobians[v] @ (s_x + through * s_c @ n_x)
            norms[v, t] = np.linalg.norm(lams[v])
    return norms, [np.linalg.norm(jacobian, 2) for jacobian in jacobians]


def test_adjoints_and_exponents_are_those_of_the_recursion():
    problem = dataclasses.replace(small(dtype="float64", loss="continuous"), regularization=0.3)
    theta, x0 = 2 * problem.init(1), problem.sample(3)
    found = problem.diagnose(theta, x0)
    assert np.array_equal(found.time, problem.time[:-1])
    for b in range(3):
        (regular, modified), (closed_loop, physics) = by_hand(problem, theta, x0[b], 0.3)
        assert found.regular[:, b] == pytest.approx(regular, rel=1e-6)
        assert found.modified[:, b] == pytest.approx(modified, rel=1e-6)
        assert found.closed_loop[b] == pytest.approx(math.log(closed_loop) / problem.time[-1], rel=1e-6)
        assert found.physics[b] == pytest.approx(math.log(physics) / problem.time[-1], rel=1e-6)
    assert np.all(found.regular[0] != found.modified[0])
    assert found.excess[0] == pytest.approx(np.median(found.regular[0] / found.modified[0]))


def test_agreement_is_that_of_the_gradients():
    problem = small()
    theta, x0 = problem.init(1), problem.sample(8)
    found, gradient = problem.diagnose(theta, x0), problem.gradient(theta, x0, "C")
    assert list(found.layers) == list(problem.layers(theta)) and found.loss == gradient.loss.total
    assert found.whole.cosine == pytest.approx(gradient.cosine, rel=1e-6)
    parts = [problem.layers(part) for part in (gradient.regular, gradient.modified, gradient.value)]
    for name, row in found.layers.items():
        r, m, c = (part[name].astype(float).ravel() for part in parts)
        assert row.cosine == pytest.approx(r @ m / np.linalg.norm(r) / np.linalg.norm(m))
        assert row.same_sign == np.mean(r * m > 0) and row.zeroed == np.mean(c == 0)


def test_few_of_many_times_and_directions(monkeypatch):
    problem = small()
    theta, x0 = problem.init(1), problem.sample(4)
    whole = problem.diagnose(theta, x0)
    monkeypatch.setattr(diagnose, "MOST_TIMES", 5)
    monkeypatch.setattr(diagnose, "MOST_DIRECTIONS", 2)
    found = problem.diagnose(theta, x0)
    assert np.array_equal(found.time, problem.time[[0, 3, 6, 8, 11]])
    assert np.array_equal(found.regular, whole.regular[[0, 3, 6, 8, 11]])
    assert np.all(found.physics <= whole.physics) and np.any(found.physics < whole.physics)


def test_physics_that_keeps_a_norm_has_the_exponent_0():
    problem = sb.problem("quantum", points=9, width=5, steps=7)
    found = problem.diagnose(problem.init(0), problem.sample(4))
    assert np.abs(found.physics).max() < 1e-4


def test_a_diverged_rollout_is_told():
    with pytest.raises(sb.DivergedError, match="is not finite from time step"):
        small(duration=1e30).diagnose(small().init(1), small().sample(2))


# --- words, pictures and files ------------------------------------------------------------------------------------


def made(cosine=0.5, regular=2.0, zeros=False):
    """A diagnosis of three times and four samples."""
    norms = np.zeros((3, 4)) if zeros else np.outer([8.0, 4.0, 2.0], np.ones(4))
    row, none = Agreement(cosine, 0.7, 0.3), Agreement(math.nan, math.nan, math.nan)
    exponents = np.array([1.0, math.nan, 2.0, 3.0])
    return Diagnosis(
        title="$one", time=np.arange(3.0), regular=regular * norms, modified=norms, closed_loop=exponents, physics=np.zeros(4),
        layers={"$a/kernel": row, "$a/bias": none}, whole=row, loss=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "do not tell which is better: try R and C"),
        ({"regular": 50.0}, "blows R up, at least in some rollouts, and C is made for that: try C"),
        ({"regular": 0.5}, "R counts on it, M does not: R won in five of six"),
        ({"cosine": 0.99}, "nearly the same"),
        ({"cosine": math.nan, "zeros": True}, "one of them is zero"),
    ],
)
def test_advice(given, words):
    found = made(**given)
    assert words in found.advice and found.advice.count("\n") == 0
    if not given:
        assert found.advice.startswith("back in time R's adjoint grows 4 times and M's 4 times; at t = 0 s R's is 2 times M's, ")
        assert found.numbers()["lyapunov_closed_loop"] == 2.0 and found.growth == (4.0, 4.0)


@pytest.mark.parametrize("given", [{}, {"zeros": True, "cosine": math.nan}])
def test_pictures_and_numbers(tmp_path, given):
    found = made(**given)
    for name in ("a.png", "a.svg", "a.h5"):
        found.save(tmp_path / name)
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["samples/regular"], found.regular) and file["layers/zeroed"][0] == 0.3
    with pytest.raises(ValueError, match=r"unknown format '.txt'; choose from .h5, .png"):
        found.save(tmp_path / "a.txt")


def test_the_command(run):
    assert run("cartpole", "train", *SMALL, "--epochs", 2, "--train-count", 16, "--test-count", 8, "--out", "run.h5").code == 0
    result = run("cartpole", "diagnose", "run.h5", "--count", 4, "--out", "a.png")
    assert result.code == 0 and "dense_0/kernel" in result.out and "grows" in result.out.splitlines()[-1]
    assert run("cartpole", "diagnose", "run.h5", "--out", "a.png").code == 5
    lines = run("cartpole", "diagnose", "run.h5", "--json", "--count", 4, "--out", "a.h5").out.splitlines()
    records = [json.loads(line) for line in lines]
    page = (Path(sb.__file__).parent / "docs" / "terminal.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for record in records for key in record)
    problem, trained = small(output_init="zero"), sb.load("run.h5")
    wanted = problem.diagnose(trained.theta, problem.sample(4, 1), seed=1)
    assert records[-1]["advice"] == wanted.advice and records[-2]["layer"] == "all" and len(records) == 8
    assert run("inspect", "a.h5", "--datasets").code == 0
    untrained = run("cartpole", "diagnose", *SMALL, "--count", 4)
    assert untrained.code == 0 and "nearly the same" in untrained.out
    for words, told in (
        (["run.h5", "--poles", 1], "run.h5 says what poles is"),
        (["--best"], "--best goes with a run file"),
        (["run.h5", "--out", "a.txt"], "unknown format '.txt'"),
    ):
        refused = run("cartpole", "diagnose", *words)
        assert refused.code == 2 and told in refused.err and refused.err.count("\n") == 1
