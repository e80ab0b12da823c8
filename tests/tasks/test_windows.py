"""Training in windows: the same bits step by step, at the right times; what has to be refused."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_vjp
from stablebptt.adjoint.generics import cost_batch_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, step
from stablebptt.kernels.generics import cost_batch
from stablebptt.tasks import sweeps, training, windows

SMALL = {"train_count": 24, "test_count": 10, "batch_size": 8, "epochs": 3, "seed": 5}


def small(**options):
    return sb.problem("cartpole", **{"poles": 1, "steps": 12, "hidden": (9, 8), **options})


def train(problem=None, **settings):
    return sb.train(problem or small(), **{**SMALL, **settings})


def assert_equal_runs(first, second):
    assert np.array_equal(first.theta, second.theta)
    for name in set(first.history) - {"seconds"}:
        assert np.array_equal(first.history[name], second.history[name], equal_nan=True), name


# --- a system of one's own whose cost, observation and noise depend on time ---------------------------------------


class Mass(System):
    """Place and rate; the control is a force."""

    dt: float


class Rising(Loss):
    """A square that counts more and more, an effort, and at the end the rate."""

    weight: float


class Whole(Loss):
    """A loss that computes whole batches, and says nothing about windows."""

    weight: float


@implements(step, Mass)
def _step(system, x, c, x_next):
    x_next[0] = x[0] + system.dt * x[1]
    x_next[1] = x[1] + system.dt * (c[0] - x[0])


@implements(step_vjp, Mass)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        lam_x[v, 0] += lam[v, 0] - system.dt * lam[v, 1]
        lam_x[v, 1] += system.dt * lam[v, 0] + lam[v, 1]
        lam_c[v, 0] += system.dt * lam[v, 1]


@implements(cost, Rising)
def _cost(loss, t, x, c):
    return loss.weight * (t + 1) * (x[0] * x[0] + c[0] * c[0])


@implements(cost_vjp, Rising)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    x_bar[0] += cost_bar * loss.weight * (t + 1) * 2 * x[0]
    c_bar[0] += cost_bar * loss.weight * (t + 1) * 2 * c[0]


@implements(final_cost, Rising)
def _final_cost(loss, x):
    return x[1] * x[1]


@implements(final_cost_vjp, Rising)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[1] += 2 * cost_bar * x[1]


@implements(cost_batch, Whole)
def _cost_batch(loss, t, weights, states, controls, total):
    for b in range(total.size):
        total[b] += weights[t] * loss.weight * states[t, b, 0] * t


@implements(cost_batch_vjp, Whole)
def _cost_batch_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    for b in range(x_bar.shape[0]):
        x_bar[b, 0] += weights[t] / batch * loss.weight * t


def mass(loss=None, **more):
    return sb.problem(
        system=Mass(0.1), controller=(6,), loss=loss or Rising(0.3),
        sample=lambda random, count: random.uniform(-1, 1, (count, 2)), steps=8,
        dt=0.1, state_shape=(2,), control_shape=(1,), dtype="float64",
        observe="state,time,noise=0.1", disturb="noise=0.1,push=0.3,chance=0.3", **more,
    )  # fmt: skip


def test_windows_are_parts_of_the_rollout():
    """States, controls and costs of one controller, in windows, are those of the whole: t and noise are the rollout's."""
    problem = mass()
    theta, x0, keys = problem.init(1), problem.sample(5), problem.keys(5)
    whole, x, total = problem.follow(theta, x0, keys), x0, np.zeros(5)
    for first, end in ((0, 3), (3, 6), (6, 8)):
        part = windows.part(problem, first, end, terminal=0.0 if end < 8 else None)
        path = part.follow(theta, x, keys)
        assert np.array_equal(path.states, whole.states[:, first : end + 1])
        assert np.array_equal(path.controls, whole.controls[:, first:end])
        assert np.array_equal(path.time, whole.time[first : end + 1])
        total += path.loss * (end - first) / 8
        if end == 8:  # its final cost counts once, whatever the length of a window
            total += whole.states[:, 8, 1] ** 2 * (1 - 2 / 8)
        x = path.states[:, -1]
    assert total == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.slow
def test_gradients_in_a_window_are_right():
    """Against differences of its loss, in a window in the middle, whose loss, noise and clock do not begin at 0."""
    problem = windows.part(mass(), 3, 6)
    theta, x0 = problem.init(1), problem.sample(5)
    found = problem.gradient(theta, x0, "R")
    direction = np.random.default_rng(0).standard_normal(theta.size)
    losses = [problem.loss(theta + shift * direction, x0).total for shift in (-1e-5, 1e-5)]
    assert found.value @ direction == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-7)
    assert np.array_equal(found.last, problem.rollout(theta, x0).states[:, -1])
    assert np.abs(found.value).min() > 0


# --- weights in time ----------------------------------------------------------------------------------------------

CONTINUOUS, FINAL = {"loss": "continuous"}, {"loss": "final"}


@pytest.mark.parametrize(
    ("options", "terminal", "ends", "wanted"),
    [
        (CONTINUOUS, None, (0, 4), [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),  # the mean over its own steps
        (CONTINUOUS, None, (8, 12), [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        (CONTINUOUS, 0.5, (4, 8), [0, 1 / 4, 1 / 4, 1 / 4, 3 / 4]),
        (CONTINUOUS, None, (10, 12), [0, 1 / 2, 1 / 2]),
        (FINAL, None, (0, 4), [0, 0, 0, 0, 1]),  # the loss of its last state
        (FINAL, None, (8, 12), [0, 0, 0, 0, 1]),
        (FINAL, 0.5, (8, 12), [0, 0, 0, 0, 0.5]),
        ({"time_weights": [3.0] + 11 * [0.25] + [2.0]}, None, (0, 4), [9, 0.75, 0.75, 0.75, 0.75]),
        ({"time_weights": [3.0] + 11 * [0.25] + [2.0]}, None, (8, 12), [0, 0.75, 0.75, 0.75, 6]),
    ],
)
def test_weights_of_states(options, terminal, ends, wanted):
    assert windows.weights(small(**options), *ends, terminal).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("terminal", "last"), [(None, 1.0), (0.0, 0.0), (2.0, 2.0)])
def test_weights_of_running_costs(terminal, last):
    assert windows.weights(mass(), 0, 4, terminal).tolist() == pytest.approx([1 / 4] * 4 + [last])
    assert windows.weights(mass(), 6, 8, terminal).tolist() == pytest.approx([1 / 2] * 2 + [last])


def test_a_reference_goes_on_in_windows():
    loss = sb.quadratic([1.0, 0.1], [0.2], reference=[[0.1, 0.0], [0.2, 0.0], [0.3, 0.1]])
    assert windows.later(loss, 1).reference.tolist() == [[0.2, 0.0], [0.3, 0.1]]
    assert windows.later(loss, 7).reference.tolist() == [[0.3, 0.1]]


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["final", "continuous"])
def test_a_window_of_all_steps_is_the_rollout(loss):
    assert_equal_runs(train(small(loss=loss), window=12), train(small(loss=loss)))


@pytest.mark.parametrize("variant", ["C", (np.arange(12) % 3 / 2, np.arange(12) % 2)])
def test_an_epoch_is_what_it_says(variant):
    """Step by step from the public parts: 5, 5 and 2 steps, an update each; gates are those of their time steps."""
    problem = small(output_init="glorot")
    run = train(problem, epochs=1, variant=variant, window=5, terminal=0.5)
    theta, rule = problem.init(5), sb.optimizers.adam(0.001)
    state, losses, states = rule.init(theta), [], problem.sample(24, 5, training.TRAINING)
    for batch in (0, 8, 16):
        x = states[batch : batch + 8]
        for first, end in ((0, 5), (5, 10), (10, 12)):
            own = variant if variant == "C" else tuple(gate[first:end] for gate in variant)
            part = windows.part(problem, first, end, 0.5)
            gradient, path = part.gradient(theta, x, own), part.rollout(theta, x)
            theta, state = rule.apply(theta, gradient.value, state)
            losses.append(gradient.loss.total)
            x = path.states[:, -1]
    assert np.array_equal(run.theta, theta) and run.history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-12)
    assert run.config["window"] == 5 and run.config["terminal"] == 0.5
    assert run.history["test_loss"][0] == problem.loss(theta, problem.sample(10, 5, training.TESTING)).total


def test_resuming_and_seeds_give_the_same_bits(tmp_path):
    settings = {"window": 5, "optimizer": sb.optimizers.adam("cosine:0.01"), "shuffle": True}
    whole = train(out=tmp_path / "whole.h5", **settings)
    assert whole.config["optimizer"]["learning_rate"] == "cosine:0.01:0.0:27"  # 3 epochs of 3 mini-batches of 3 windows
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts.h5", report=interrupt, **settings)
    assert_equal_runs(whole, train(out=tmp_path / "parts.h5", resume=True, **settings))
    known = {name: value for name, value in SMALL.items() if name != "seed"}
    found = sb.train_seeds(small(), [4, 5, 6], **known, **settings)
    assert_equal_runs(found[1], whole)
    with pytest.raises(ValueError, match=r"window: 5 in the file, 4 given"):
        train(out=tmp_path / "parts.h5", resume=True, **{**settings, "window": 4})


@pytest.mark.parametrize("variant", ["config", "leaky:leak=0.1", "C:truncate=3", "R:random=4"])
def test_joins_and_gates(variant):
    """A window of all steps is the rollout, and gates that are drawn follow from the seed."""
    assert_equal_runs(train(variant=variant, window=12), train(variant=variant))
    known = {name: value for name, value in SMALL.items() if name != "seed"}
    found = sb.train_seeds(small(), [4, 5, 6], variant, window=5, **known)
    assert_equal_runs(found[1], train(variant=variant, window=5))


def interrupt(progress):
    if progress.epoch == 2:
        raise KeyboardInterrupt


def test_files_without_windows_do_not_mention_them(tmp_path):
    train(out=tmp_path / "run.h5", epochs=1)
    with h5py.File(tmp_path / "run.h5") as file:
        assert not {"window", "terminal"} & set(json.loads(file.attrs["config"]))


def test_a_problem_that_begins_later_is_not_one_of_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"the problem was changed, .* first: nothing as it was made, 3 now"):
        train(dataclasses.replace(small(), first=3), out=tmp_path / "run.h5")


def test_a_divergence_names_the_step_of_the_rollout():
    problem = small(duration=40.0, output_init="glorot")
    with pytest.raises(sb.DivergedError, match="epoch 1, batch 1: a control is not finite from time step 5 on") as caught:
        train(problem, window=5, variant="R", optimizer=sb.optimizers.sgd(1e30))  # the second window has the new weights
    assert caught.value.step == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 13}, "window is 13; it must be at most 12, the time steps of the problem"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"terminal": 1.0}, "give window, too"),
        ({"window": 5, "terminal": -1.0}, "terminal is -1.0"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        train(**settings)


def test_a_loss_that_cannot_begin_later_is_refused():
    with pytest.raises(ValueError, match=r"cannot shift the time steps of Whole; give it a method later\(first\)"):
        train(mass(Whole(1.0)), window=4)


def test_a_device_is_refused():
    with pytest.raises(sb.BackendError, match="does not train in windows"):
        train(dataclasses.replace(small(), backend="cuda"), window=5)


def test_the_command_and_plans_know_windows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--poles 1 --steps 12 --hidden 9,8 --epochs 3 --train-count 24 --test-count 10 --seed 5 --out run.h5 --quiet".split()
    assert call("cartpole", "train", *words, "--window", "5") == 0
    assert_equal_runs(sb.load("run.h5"), train(window=5))
    assert call("cartpole", "train", "--resume", "--out", "run.h5", "--epochs", "4", "--quiet") == 0
    assert_equal_runs(sb.load("run.h5"), train(window=5, epochs=4))
    train_table = '[train]\nwindow = [5, 12]\nlearning_rate = "cosine:1"'
    (tmp_path / "plan.toml").write_text(f'task = "cartpole"\n[options]\nsteps = 12\n{train_table}')
    planned = [(run.config["window"], run.config["optimizer"]["learning_rate"]) for run in sweeps.read_plan("plan.toml")]
    assert planned == [(5, "cosine:1.0:0.0:96000"), (12, "cosine:1.0:0.0:32000")]
    assert call("cartpole", "train", *words, "--force", "--window", "13") == 2
    assert "window is 13; it must be at most 12" in capsys.readouterr().err
