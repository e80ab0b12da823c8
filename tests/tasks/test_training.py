"""Training: reproducible, resumable, interruptible, loud when it diverges."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.data import run_file
from stablebptt.data.run_file import LOSSES
from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import System, cost, step
from stablebptt.tasks import training
from stablebptt.tasks.cpu import Engine
from stablebptt.tasks.engine import Loss
from stablebptt.tasks.runs import HISTORY

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
    """Those of this process against one thread in another."""
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    run = sb.train(sb.problem("cartpole", poles=2), epochs=2, seed=1, train_count=64, test_count=64, clip="norm")
    environment = {**os.environ, **dict.fromkeys(names, "1")}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == run.theta.tobytes() + run.history["gradient_norm2"].tobytes()


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


PROBLEMS = {
    "cartpole": {"poles": 2, "hidden": (9, 8)},
    "guidance": {"drivers": 2, "evaders": 3, "hidden": (9, 8)},
    "quantum": {"points": 9, "width": 5},
}


def everything_but_seconds(path):
    """Every dataset of a file, byte for byte."""
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    del found["history/seconds"]
    return found


RESUMED = list(itertools.product(PROBLEMS, "RC", ["adam", "sgd", "momentum", "adagrad", "adadelta", "rmsprop"]))
FEW = [case for case in RESUMED if case[2] == "adam" or case[:2] == ("cartpole", "C")]


@pytest.mark.parametrize(
    ("task", "variant", "optimizer"), [pytest.param(*case, marks=[] if case in FEW else [pytest.mark.slow]) for case in RESUMED]
)
def test_resuming_gives_the_uninterrupted_result(tmp_path, task, variant, optimizer):
    problem = sb.problem(task, steps=7, **PROBLEMS[task])
    rule = sb.optimizers.sgd(0.01, 0.9) if optimizer == "momentum" else getattr(sb.optimizers, optimizer)()
    settings = {"variant": variant, "optimizer": rule, "shuffle": True, "clip": "norm"}
    whole = train(problem, epochs=5, out=tmp_path / "whole.h5", **settings)
    train(problem, epochs=2, out=tmp_path / "parts.h5", **settings)
    train(problem, epochs=3, out=tmp_path / "parts.h5", resume=True, **settings)
    assert_equal_runs(whole, train(problem, epochs=5, out=tmp_path / "parts.h5", resume=True, **settings))
    first, second = everything_but_seconds(tmp_path / "whole.h5"), everything_but_seconds(tmp_path / "parts.h5")
    assert first.keys() == second.keys() and {"checkpoint/random_state", "checkpoint/best_loss"} <= first.keys()
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("task", ["guidance", "quantum"])
def test_the_regulariser_is_told_apart(task):
    whole = train(sb.problem(task, steps=7, **PROBLEMS[task]), epochs=2)
    physics, total = whole.history["test_physics_loss"], whole.history["test_loss"]
    assert np.all(total > physics) if task == "guidance" else np.array_equal(total, physics)


def test_resuming_refuses_other_settings(tmp_path):
    train(epochs=1, out=tmp_path / "run.h5", variant="R")
    with pytest.raises(ValueError, match=r"cannot be resumed: variant: 'R' in the file, 'C' given"):
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


# --- evaluations ---------------------------------------------------------------------------------------------------


def assert_rows_of(sparse, full, due):
    """The history `full` of the same epochs, all of them evaluated, without the losses of those that are not `due`."""
    assert sparse["evaluated"].tolist() == [int(epoch in due) for epoch in full["epoch"]]
    for name in set(HISTORY) - {"seconds", "evaluated"}:
        lacking = ~np.isin(full["epoch"], due) & (name in LOSSES)
        assert np.array_equal(sparse[name], np.where(lacking, np.nan, full[name]), equal_nan=True), name


@pytest.mark.parametrize(("every", "due"), [(1, range(1, 8)), (2, [2, 4, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7])])
def test_evaluations_change_nothing_but_what_is_known(every, due):
    settings = {"epochs": 7, "optimizer": sb.optimizers.adam(0.3)}  # the test loss falls and rises
    full, thetas = train(**settings), []
    run = train(evaluate_every=every, report=lambda progress: thetas.append(progress.theta), **settings)
    assert np.array_equal(run.theta, full.theta) and run.config["evaluate_every"] == every and run.status == "complete"
    assert_rows_of(run.history, full.history, due)
    best = run_file.best(run.history)[0]
    assert best == min(due, key=lambda epoch: full.history["test_loss"][epoch - 1])
    assert np.array_equal(run.best_theta, thetas[best - 1])


def stopping_at(epoch):
    def stop(progress):
        if progress.epoch == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.mark.thinned(3)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupt_between_evaluations_costs_nothing(tmp_path, stop):
    whole = train(epochs=5, evaluate_every=3, out=tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        train(epochs=5, evaluate_every=3, out=tmp_path / "parts.h5", report=stopping_at(stop))
    parts = sb.load(tmp_path / "parts.h5")
    assert parts.status == "interrupted" and parts.history["evaluated"].tolist() == [0, 0, 1][:stop]
    assert np.isnan(parts.history["test_loss"]).tolist() == [True, True, False][:stop]
    assert_equal_runs(whole, train(epochs=5, evaluate_every=3, out=tmp_path / "parts.h5", resume=True))
    assert_equal_runs(whole, sb.load(tmp_path / "parts.h5"))


def test_an_epoch_that_was_the_last_stays_as_it_is(tmp_path):
    settings = {"out": tmp_path / "run.h5", "evaluate_every": 3, "resume": True}
    train(epochs=4, **settings)
    run = train(epochs=8, **settings)
    full = train(epochs=8)
    assert_rows_of(run.history, full.history, [3, 4, 6, 8])
    assert np.array_equal(run.theta, full.theta)
    assert_equal_runs(run, train(epochs=8, **settings))  # nothing is left to do


def test_what_is_resumed_is_evaluated_as_before(tmp_path):
    settings = {"out": tmp_path / "run.h5", "resume": True}
    train(epochs=2, evaluate_every=2, **settings)
    for every in (1, 3):
        with pytest.raises(ValueError, match=f"cannot be resumed: evaluate_every: 2 in the file, {every} given; give"):
            train(epochs=4, evaluate_every=every, **settings)


def test_an_epoch_that_was_not_evaluated_is_not_the_last(tmp_path):
    settings = {"out": tmp_path / "run.h5", "evaluate_every": 3}
    with pytest.raises(KeyboardInterrupt):
        train(epochs=5, report=stopping_at(2), **settings)
    with pytest.raises(ValueError, match=r"epoch 2 was not evaluated \(evaluate_every is 3\).*; give at least 3 epochs"):
        train(epochs=2, resume=True, **settings)
    assert train(epochs=3, resume=True, **settings).history["evaluated"].tolist() == [0, 0, 1]


def test_files_that_do_not_say_were_evaluated_in_every_epoch(tmp_path):
    """As those of the versions before."""
    train(epochs=2, out=tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file["history/evaluated"]
        config = json.loads(file.attrs["config"])
        assert config.pop("evaluate_every") == 1
        file.attrs["config"] = json.dumps(config)
    old = sb.load(tmp_path / "run.h5")
    assert old.config["evaluate_every"] == 1 and old.history["evaluated"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="evaluate_every: 1 in the file, 2 given"):
        train(epochs=3, out=tmp_path / "run.h5", resume=True, evaluate_every=2)
    assert_equal_runs(train(epochs=3, out=tmp_path / "run.h5", resume=True), train(epochs=3))


@pytest.mark.parametrize("spoiled", ["gradient", "parameter"])
def test_a_divergence_between_evaluations_is_found_at_once(tmp_path, monkeypatch, spoiled):
    """In the epoch in which it appears, as with an evaluation after each."""
    differentiate, calls = Engine._gradient, []

    def gradient(self, *given):
        calls.append(None)
        result = differentiate(self, *given)
        if len(calls) < 6:  # the last of the second epoch
            return result
        if spoiled == "gradient":
            return dataclasses.replace(result, norm2=math.inf)
        return dataclasses.replace(result, value=np.full_like(result.value, 3e38), norm2=1.0)  # times 2, not finite

    monkeypatch.setattr(Engine, "_gradient", gradient)
    with pytest.raises(sb.DivergedError, match="diverged in epoch 2") as caught:
        train(epochs=9, evaluate_every=9, optimizer=sb.optimizers.sgd(2.0), out=tmp_path / "run.h5")
    run = sb.load(tmp_path / "run.h5")
    assert caught.value.epoch == 2 and run.status.startswith("diverged") and run.history["evaluated"].tolist() == [0]


def test_a_loss_that_was_computed_and_is_not_finite_is_told_from_one_that_was_not(tmp_path, monkeypatch):
    evaluate = training.ActiveRun.evaluate

    def spoiled(active, name, found):
        evaluate(active, name, found._replace(physics=np.full_like(found.physics, np.nan)))

    monkeypatch.setattr(training.ActiveRun, "evaluate", spoiled)
    settings = {"epochs": 5, "evaluate_every": 2, "out": tmp_path / "run.h5", "force": True}
    with pytest.raises(sb.DivergedError, match=r"diverged in epoch 2, after its last batch: the loss on the training states"):
        train(**settings)
    with pytest.raises(sb.DivergedError, match="no test loss of 5 epochs is finite"):
        train(on_divergence="skip", **settings)
    history = sb.load(tmp_path / "run.h5").history
    assert np.isnan(history["test_loss"]).all() and history["evaluated"].tolist() == [0, 1, 0, 1, 1]


def test_divergence_is_loud_and_keeps_the_epochs_before(tmp_path):
    problem = small(duration=40.0, output_init="glorot")
    with pytest.raises(sb.DivergedError, match=r"cartpole diverged in epoch \d+") as caught:
        train(problem, epochs=60, out=tmp_path / "run.h5", variant="R", optimizer=sb.optimizers.sgd(1e6))
    error = caught.value
    run = sb.load(tmp_path / "run.h5")
    assert error.epoch == len(run.history["epoch"]) + 1
    assert run.status.startswith("diverged") and np.all(np.isfinite(run.theta))


def bad_now_and_then(monkeypatch, kind):
    """Let every third mini-batch give a gradient that is not finite."""
    differentiate, batches = Engine._gradient, {}

    def spoiled(self, theta, x0, *rest):
        number = batches.setdefault(x0.tobytes(), len(batches))
        result = differentiate(self, theta, x0, *rest)
        if number % 3 < 2:
            return result
        if kind == "loss":
            return dataclasses.replace(result, loss=Loss(math.nan, math.nan))
        return dataclasses.replace(result, value=np.full_like(result.value, 3e38), norm2=1.0 if kind == "update" else math.inf)

    monkeypatch.setattr(Engine, "_gradient", spoiled)


@pytest.mark.parametrize("kind", ["loss", "gradient", "update"])
def test_updates_that_are_not_finite_can_be_skipped(tmp_path, monkeypatch, kind):
    bad_now_and_then(monkeypatch, kind)
    optimizer = sb.optimizers.sgd(2.0)  # 2 x 3e38 is not finite in float32; larger rates make good updates diverge, too
    run = train(epochs=3, out=tmp_path / "run.h5", on_divergence="skip", optimizer=optimizer, train_count=48)
    assert run.status == "complete" and run.history["skipped"].tolist() == [2, 2, 2]
    assert np.all(np.isfinite(run.theta)) and np.all(np.isfinite(run.history["loss"]))
    assert sb.load(tmp_path / "run.h5").history["skipped"].tolist() == [2, 2, 2]
    with pytest.raises(sb.DivergedError, match=r"cartpole diverged in epoch 1"):
        train(epochs=3, optimizer=optimizer, train_count=48)


def test_a_training_that_diverges_for_good_goes_on_if_told_so(tmp_path):
    problem = small(duration=40.0, output_init="glorot")
    settings = {"epochs": 60, "variant": "R", "optimizer": sb.optimizers.sgd(1e6)}
    with pytest.raises(sb.DivergedError, match="no test loss of 60 epochs is finite"):  # to its end, but without success
        train(problem, out=tmp_path / "run.h5", on_divergence="skip", **settings)
    run = sb.load(tmp_path / "run.h5")
    assert run.status.startswith("diverged") and len(run.history["epoch"]) == 60 and run.history["skipped"].sum() > 0
    assert np.all(np.isfinite(run.theta)) and np.all(np.isfinite(run.best_theta))


class Burst(System):
    """Forward ``x' = x + c``; backwards every step multiplies by 1e10."""


@implements(step, Burst)
def _burst(system, x, c, x_next):
    for k in range(x.shape[0]):
        x_next[k] = x[k] + c[0]


@implements(step_vjp, Burst)
def _burst_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for k in range(x.shape[0]):
            lam_x[v, k] += like(lam, 1e10) * lam[v, k]
            lam_c[v, 0] += lam[v, k]


class Steep(Struct):
    """Loss ``x_2^4 / 4`` (the angle of a cart-pole's first pole)."""


@implements(cost, Steep)
def _steep(loss, x):
    return x[2] * x[2] * x[2] * x[2] / like(x, 4.0)


@implements(cost_vjp, Steep)
def _steep_vjp(loss, x, cost_bar, x_bar):
    x_bar[2] += cost_bar * x[2] * x[2] * x[2]


def test_the_first_step_whose_loss_is_not_finite_is_named():
    """A hanging pole costs more than 0.9 of a pole's most: of two weights, the second one takes the sum beyond float64."""
    problem = small(output_init="zero")
    x0, weights = problem.sample(2, 1), np.zeros(13)
    most = problem.loss(problem.init(), np.array([[[0, 0], [np.pi, 0]]])).total
    weights[[3, 5]] = 1e308 / most
    wild = dataclasses.replace(problem, time_weights=weights)
    with pytest.raises(sb.DivergedError, match=r"the loss is not finite from time step 5 on, though all states are") as caught:
        wild.gradient(problem.init(), x0, "C")
    assert caught.value.step == 5


@pytest.mark.slow
def test_the_first_bad_time_step_is_named():
    base = small(steps=12, output_init="glorot")
    x0, theta = base.sample(2, 1), base.init(1)
    burst = dataclasses.replace(base, loss_function=Steep(), system=Burst())
    # lam is of order 1 at step 12, 1e10 at step 11, .. and beyond float32 at step 8; the control of step 7 feels it first
    with pytest.raises(sb.DivergedError, match=r"the gradient is not finite from time step 7 backwards") as caught:
        burst.gradient(theta, x0, "M")
    assert caught.value.step == 7
    grow = dataclasses.replace(base, loss_function=Steep(), time_weights=np.ones(13), system=Burst())
    x0[:, 1, 0] = 0.0
    push = np.zeros_like(theta)
    push[-1] = 1e9  # the bias of the output: x grows by 1e9 a step; 3e9^4 is the first power beyond float32 (3.4e38)
    with pytest.raises(sb.DivergedError, match=r"the loss is not finite from time step 5 on") as caught:
        grow.gradient(push, x0, "S")
    assert caught.value.step == 5


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
        ({"clip_at": 0}, ValueError, "clip_at is 0.0; it must be above 0"),
        ({"optimizer": "adam"}, TypeError, "optimizers.adam"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every is 0; it must be at least 1"),
        ({"evaluate_every": 2.5}, TypeError, "evaluate_every is 2.5; it must be a whole number"),
        ({"rate": 3}, TypeError, "no option 'rate'"),
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
        sb.problem("fusion")
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
