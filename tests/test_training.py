"""Training: reproducible, resumable, interruptible, loud when it diverges."""

import os
import subprocess
import sys

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks import training
from stablebptt.tasks.training import HISTORY

SMALL = {"train_count": 24, "test_count": 10, "batch_size": 8}


def small(**options):
    return sb.problem("cartpole", **{"poles": 1, "steps": 12, "hidden": (9, 8), **options})


def train(problem=None, **settings):
    return sb.train(problem or small(), **{**SMALL, "epochs": 3, "seed": 5, **settings})


def assert_equal_runs(first, second):
    assert np.array_equal(first.theta, second.theta) and np.array_equal(first.best_theta, second.best_theta)
    for name in HISTORY:
        if name != "seconds":
            assert np.array_equal(first.history[name], second.history[name], equal_nan=True), name
    for name, values in first.trajectories.items():
        assert np.array_equal(values, second.trajectories[name]), name


@pytest.mark.parametrize("variant", ["R", "C"])
def test_a_seed_gives_the_same_bits(variant):
    assert_equal_runs(train(variant=variant, shuffle=True), train(variant=variant, shuffle=True))
    assert not np.array_equal(train(variant=variant).theta, train(variant=variant, seed=6).theta)
    assert not np.array_equal(train(variant=variant).theta, train(variant=variant, shuffle=True).theta)


THREADS = """
import sys, stablebptt as sb
run = sb.train(sb.problem("cartpole", poles=2), epochs=2, seed=1, train_count=64, test_count=64, clip="norm")
sys.stdout.buffer.write(run.theta.tobytes() + run.history["gradient_norm2"].tobytes())
"""


def test_bits_do_not_depend_on_threads():
    def run(count):
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **{name: str(count) for name in names}}
        done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    one, two = run(1), run(2)
    assert one and one == two


def test_one_epoch_is_what_it_says():
    """The history of an epoch, computed again step by step from the public parts."""
    problem = small(dtype="float64")
    run = train(problem, epochs=1, variant="C", clip="value", clip_at=0.01)
    theta, rule = problem.init(5), sb.optimizers.adam(0.001)
    state, losses, norms, cosines = rule.init(theta), [], [], []
    states = problem.sample(24, 5, training.TRAINING)
    tests = problem.sample(10, 5, training.TESTING)
    for first in (0, 8, 16):
        gradient = problem.gradient(theta, states[first : first + 8], "C")
        update = np.clip(gradient.value, -0.01, 0.01)
        losses.append(gradient.loss.total)
        norms.append(update @ update)
        cosines.append(gradient.cosine)
        theta, state = rule.apply(theta, update, state)
    history = {name: float(values[0]) for name, values in run.history.items()}
    assert np.array_equal(run.theta, theta)
    assert history["epoch"] == 1 and history["seconds"] > 0
    for name, value in {
        "loss": np.mean(losses),
        "gradient_norm2": np.mean(norms),
        "cosine": np.mean(cosines),
        "train_loss": problem.loss(theta, states).total,
        "test_loss": problem.loss(theta, tests).total,
        "train_physics_loss": problem.loss(theta, states).physics,
        "test_physics_loss": problem.loss(theta, tests).physics,
    }.items():
        assert history[name] == pytest.approx(value, rel=1e-12), name


def test_training_learns():
    run = sb.train(sb.problem("cartpole", poles=1), variant="C", epochs=15, seed=0)
    assert run.history["test_loss"][-1] < 1.0 < run.history["test_loss"][0]
    assert run.problem.loss(run.best_theta, run.problem.sample(256, 0, training.TESTING)).total == pytest.approx(
        run.history["test_loss"].min()
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum", "adagrad", "adadelta", "rmsprop"])
@pytest.mark.parametrize("variant", ["R", "C"])
def test_resuming_gives_the_uninterrupted_result(tmp_path, optimizer, variant):
    rule = sb.optimizers.sgd(0.01, 0.9) if optimizer == "momentum" else getattr(sb.optimizers, optimizer)()
    settings = {"variant": variant, "optimizer": rule, "shuffle": True, "clip": "norm"}
    whole = train(epochs=5, out=tmp_path / "whole.h5", **settings)
    train(epochs=2, out=tmp_path / "parts.h5", **settings)
    train(epochs=3, out=tmp_path / "parts.h5", resume=True, **settings)
    assert_equal_runs(whole, train(epochs=5, out=tmp_path / "parts.h5", resume=True, **settings))
    assert_equal_runs(sb.load(tmp_path / "whole.h5"), sb.load(tmp_path / "parts.h5"))


@pytest.mark.parametrize("task", ["guidance", "quantum"])
def test_all_tasks_train_resume_and_load(tmp_path, task):
    options = {"points": 9, "width": 5} if task == "quantum" else {"drivers": 2, "evaders": 3, "hidden": (9, 8)}
    problem = sb.problem(task, steps=7, **options)
    whole = train(problem, epochs=4, out=tmp_path / "whole.h5", shuffle=True, clip="value")
    train(problem, epochs=2, out=tmp_path / "parts.h5", shuffle=True, clip="value")
    parts = train(problem, epochs=4, out=tmp_path / "parts.h5", shuffle=True, clip="value", resume=True)
    assert_equal_runs(whole, parts)
    assert_equal_runs(whole, sb.load(tmp_path / "whole.h5"))
    physics, total = whole.history["test_physics_loss"], whole.history["test_loss"]
    assert np.all(total > physics) if task == "guidance" else np.array_equal(total, physics)


def test_resuming_refuses_other_settings(tmp_path):
    train(epochs=1, out=tmp_path / "run.h5", variant="R")
    with pytest.raises(ValueError, match=r"cannot be resumed: its variant is 'R', not 'C'"):
        train(epochs=2, out=tmp_path / "run.h5", variant="C", resume=True)
    fresh = train(epochs=1, out=tmp_path / "new.h5", resume=True)
    assert fresh.status == "complete"


def test_a_file_holds_the_run(tmp_path):
    schedule = (np.ones(12), np.arange(12) % 2.0)
    run = train(out=tmp_path / "run.h5", variant=schedule, optimizer=sb.optimizers.rmsprop(0.002))
    again = sb.load(tmp_path / "run.h5")
    assert_equal_runs(run, again)
    assert again.config == run.config and again.status == "complete"
    assert again.problem.options == run.problem.options
    x0 = run.problem.sample(3)
    assert np.array_equal(again.problem.rollout(again.theta, x0).states, run.problem.rollout(run.theta, x0).states)


def test_an_interrupt_leaves_the_epochs_done(tmp_path):
    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(epochs=9, out=tmp_path / "run.h5", report=stop)
    run = sb.load(tmp_path / "run.h5")
    assert run.status == "interrupted" and len(run.history["epoch"]) == 2
    resumed = train(epochs=4, out=tmp_path / "run.h5", resume=True)
    assert_equal_runs(resumed, train(epochs=4))


def test_divergence_is_loud_and_keeps_the_epochs_before(tmp_path):
    problem = small(duration=40.0, output_init="glorot")
    with pytest.raises(sb.DivergedError, match=r"cartpole diverged in epoch \d+") as caught:
        train(problem, epochs=60, out=tmp_path / "run.h5", variant="R", optimizer=sb.optimizers.sgd(1e6))
    error = caught.value
    run = sb.load(tmp_path / "run.h5")
    assert error.epoch == len(run.history["epoch"]) + 1
    assert run.status.startswith("diverged") and np.all(np.isfinite(run.theta))


def test_files_are_not_overwritten_by_accident(tmp_path):
    path = tmp_path / "run.h5"
    train(epochs=1, out=path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="force"):
        train(epochs=1, out=path)
    assert path.read_bytes() == before
    train(epochs=2, out=path, force=True)
    assert len(sb.load(path).history["epoch"]) == 2
    with pytest.raises(FileNotFoundError, match="does not exist"):
        train(out=tmp_path / "nowhere" / "run.h5")
    with pytest.raises(IsADirectoryError):
        train(out=tmp_path, force=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": "X"}, ValueError, "unknown variant 'X'; choose from R, M, S, N, C"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"epochs": 1.5}, TypeError, "whole number"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"clip": "hard"}, ValueError, "none, value, norm"),
        ({"clip_at": 0}, ValueError, "positive"),
        ({"optimizer": "adam"}, TypeError, "optimizers.adam"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"rate": 3}, TypeError, "no option rate"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        train(**settings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"poles": -1}, ValueError, "poles is -1; it must be at least 1"),
        ({"poles": 2.5}, TypeError, "whole number"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"duration": -1}, ValueError, "above 0"),
        ({"duration": float("nan")}, ValueError, "finite"),
        ({"hidden": ()}, ValueError, "at least one hidden layer"),
        ({"hidden": (0,)}, ValueError, "at least 1"),
        ({"hidden": 100}, TypeError, "sequence"),
        ({"dtype": "float16"}, ValueError, "float32, float64"),
        ({"loss": "mean"}, ValueError, "final, continuous"),
        ({"output_init": "ones"}, ValueError, "glorot, zero"),
        ({"pole": 2}, TypeError, "cartpole has no option 'pole'; choose from poles"),
    ],
)
def test_bad_problems(options, error, message):
    with pytest.raises(error, match=message):
        sb.problem("cartpole", **options)


def test_bad_arrays():
    problem = small()
    theta, x0 = problem.init(), problem.sample(4)
    with pytest.raises(ValueError, match="unknown task"):
        sb.problem("pendulum")
    with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
        problem.gradient(theta[:3], x0)
    with pytest.raises(ValueError, match=r"x0 has shape \(2, 2\); it must be \(B, 2, 2\)"):
        problem.gradient(theta, x0[0])
    with pytest.raises(ValueError, match="B, 2, 2"):
        problem.rollout(theta, x0[:0])
    x0[1, 0, 1] = np.nan
    for call in (problem.rollout, problem.loss, problem.gradient):
        with pytest.raises(ValueError, match=r"not finite in float32, at \(1, 0, 1\)"):
            call(theta, x0)
    with pytest.raises(TypeError, match="real numbers"):
        problem.loss(theta, [["a"]])
    with pytest.raises(ValueError, match="count is 0"):
        problem.sample(0)
    with pytest.raises(ValueError, match="theta has shape"):
        problem.layers(np.zeros(2))
