"""What every engine must do: the same tests for the CPU and for a device (the simulator, the PTX machine, or a real one)."""

import copy
import dataclasses
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from commands import call
from devices import PROBLEMS, SETTINGS, STEPS, TOLERANCE, assert_same_gradient, error, long_simulated, loss_error

import stablebptt as sb
from stablebptt.data.run_file import LOSSES
from stablebptt.tasks.runs import HISTORY
from stablebptt.tasks.variants import gates, gates_of

SEEDS = [3, 0, 7]


def make(backend, name="cartpole", dtype="float64", **more):
    return sb.problem(name.split()[0], dtype=dtype, backend=backend, **{"steps": STEPS, **PROBLEMS[name], **more})


@pytest.mark.parametrize("name", ["cartpole", "guidance", "quantum"])
def test_the_gradient_is_that_of_the_loss(backend, name):
    problem = make(backend, name, steps=3)
    theta, x0 = problem.init(1), problem.sample(3, 2)
    gradient = problem.gradient(theta, x0, "R")
    direction = np.random.default_rng(0).standard_normal(theta.shape)
    slope = (problem.loss(theta + 1e-5 * direction, x0).total - problem.loss(theta - 1e-5 * direction, x0).total) / 2e-5
    assert gradient.value @ direction == pytest.approx(slope, rel=1e-6)
    assert gradient.loss.total == pytest.approx(problem.loss(theta, x0).total, rel=1e-12)
    assert gradient.norm2 == pytest.approx(gradient.value @ gradient.value, rel=1e-12)


@pytest.mark.parametrize("variant", ["M", "C"])
def test_many_runs_are_the_runs_alone(backend, variant):
    problem = make(backend, dtype="float32")
    thetas, x0s = [problem.init(seed) for seed in SEEDS], [problem.sample(3, seed) for seed in SEEDS]
    opened = gates(variant, STEPS, np.float32)
    together = [found.copy() for found in problem.engine.gradients(thetas, x0s, opened)]
    for theta, x0, found in zip(thetas, x0s, together, strict=True):
        alone = problem.gradient(theta, x0, variant)
        assert np.array_equal(found.value, alone.value) and found.loss == alone.loss and found.norm2 == alone.norm2


def test_what_an_update_does_not_need_is_made_on_request():
    problem = make("cpu")
    theta, x0 = [problem.init(0)], [problem.sample(3)]
    bare, whole = (next(problem.engine.gradients(theta, x0, gates("C", STEPS), parts=parts)).copy() for parts in (False, True))
    assert (bare.x0, bare.last, bare.parameters) == (None, None, {})
    assert np.array_equal(bare.value, whole.value) and whole.x0.shape == whole.last.shape == x0[0].shape


@pytest.mark.parametrize("variant", ["config/layer:random=2", "leaky:leak=0.3:decay=0.01"])
def test_other_joins_and_gates(backend, variant):
    """Against the CPU in float64, whose joins have tests of their own; R and M are those of the gates."""
    problem, plain = make(backend, loss="continuous"), make("cpu", loss="continuous")
    thetas, x0 = [problem.init(1), problem.init(2)], problem.sample(3)
    opened = gates_of(variant, problem, np.random.default_rng(0))
    found = [each.copy() for each in problem.engine.gradients(thetas, [x0, x0], opened, parts=True)]
    for theta, each in zip(thetas, found, strict=True):
        assert_same_gradient(each, next(plain.engine.gradients([theta], [x0], opened)), TOLERANCE["float64"])
    regular = dataclasses.replace(opened, physics=opened.physics[:1], network=opened.network[:1], join=None)
    assert error(found[1].regular, next(plain.engine.gradients(thetas[1:], [x0], regular)).value) < TOLERANCE["float64"]


def test_what_rollouts_cost_with_and_without_their_paths(backend):
    problem = make(backend, "guidance")
    thetas, x0s = [problem.init(seed) for seed in SEEDS], [problem.sample(9, seed) for seed in SEEDS]
    found = list(problem.engine.evaluate(thetas, x0s))
    for theta, x0, without, path in zip(thetas, x0s, found, problem.engine.evaluate(thetas, x0s, paths=True), strict=True):
        assert path.states.shape == (9, STEPS + 1, 4, 2, 2) and path.controls.shape == (9, STEPS, 2, 2)
        assert np.array_equal(path.states[:, 0], x0) and without.states is None
        np.testing.assert_allclose(path.effort, np.square(path.controls).sum(axis=(1, 2, 3)), rtol=1e-12)
        assert loss_error(path.physics, without.physics) < 1e-12 and error(path.effort, without.effort) < 1e-12
        total = without.physics + 0.1 * without.effort / (STEPS * 4)
        assert error(problem.losses(theta, x0)[0], total) < 1e-12


def test_single_calls_leave_the_work_of_many_alone(backend):
    """Between the launch of many runs and their results, a run may be looked at."""
    problem = make(backend, dtype="float32")
    theta, x0 = problem.init(1), problem.sample(3, 2)
    opened = gates("C", STEPS, np.float32)
    expected = problem.gradient(theta, x0, "C").value
    pending = problem.engine.gradients([theta], [x0], opened, queue=0)
    problem.gradient(theta + 1, x0, "C")
    problem.rollout(theta + 1, x0)
    assert np.array_equal(next(pending).value, expected)


def test_copies_and_threads_have_arenas_of_their_own(backend):
    problem = make(backend, dtype="float32")
    theta, x0 = problem.init(1), problem.sample(3, 2)
    expected, found = problem.gradient(theta, x0, "C").value, []
    for made in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert made.engine is not problem.engine and np.array_equal(made.gradient(theta, x0, "C").value, expected)
    elsewhere = threading.Thread(target=lambda: found.append(problem.gradient(theta, x0, "C").value))
    elsewhere.start()
    elsewhere.join()
    assert np.array_equal(found[0], expected)


def test_a_divergence_is_found(backend):
    problem = make(backend, "guidance", "float32")
    theta, x0 = problem.init(1), problem.sample(3, 2)
    x0[1, 1] = 3e38
    with pytest.raises(sb.DivergedError, match="time step") as caught:
        problem.gradient(theta, x0, "C")
    assert caught.value.step is not None
    assert np.isnan(problem.losses(theta, x0)[0]).tolist() == [False, True, False]
    for variant in "MC":  # nothing hides a NaN, not even the comparison of signs
        opened = gates(variant, STEPS, np.float32)
        lost = next(problem.engine.gradients([theta * np.float32(np.nan)], [problem.sample(3, 2)], opened))
        assert np.isnan(lost.value).all() and np.isnan(lost.norm2) and np.isnan(lost.loss.total)


def same_run(run, other):
    for name in ("theta", "best_theta"):
        assert np.array_equal(getattr(run, name), getattr(other, name)), name
    for name in set(HISTORY) - {"seconds"}:
        assert np.array_equal(run.history[name], other.history[name], equal_nan=True), name


@long_simulated
def test_seeds_together_are_the_seeds_alone(backend, tmp_path, monkeypatch):
    problem, told = make(backend, dtype="float32", steps=2), []
    report = lambda seed, progress: told.append((seed, progress.epoch))  # noqa: E731
    together = sb.train_seeds(problem, SEEDS, out=tmp_path, report=report, **SETTINGS)
    assert sorted(told) == [(seed, epoch) for seed in sorted(SEEDS) for epoch in (1, 2)]
    if backend == "cuda":
        monkeypatch.setattr("stablebptt.tasks.cuda.free_bytes", lambda: 1)  # one launch per run
    for seed, run in zip(SEEDS, together, strict=True):
        assert run.config["seed"] == seed and run.config.get("backend", "cpu") == backend
        same_run(run, sb.train(problem, seed=seed, **SETTINGS))
        same_run(run, sb.load(tmp_path / f"seed_{seed}.h5"))
        assert np.allclose(run.theta, sb.train(make("cpu", dtype="float32", steps=2), seed=seed, **SETTINGS).theta, atol=1e-5)
    assert not np.array_equal(together[0].theta, together[1].theta)


@long_simulated
def test_of_many_runs_those_are_evaluated_that_are_due(backend, tmp_path):
    """One stands an epoch before the other; alone, each is evaluated in every epoch."""
    problem = make(backend, dtype="float32", steps=1, poles=1, hidden=(3,))
    settings = {"train_count": 4, "test_count": 3, "batch_size": 4}
    sb.train(problem, seed=3, epochs=1, evaluate_every=2, out=tmp_path / "seed_3.h5", **settings)
    together = sb.train_seeds(problem, [3, 0], epochs=2, evaluate_every=2, out=tmp_path, resume=True, **settings)
    for run, seed, due in zip(together, (3, 0), ([1, 1], [0, 1]), strict=True):
        alone = sb.train(problem, seed=seed, epochs=2, **settings)
        assert np.array_equal(run.theta, alone.theta) and run.history["evaluated"].tolist() == due
        for name in set(HISTORY) - {"seconds", "evaluated"}:
            unknown = (np.array(due) == 0) & (name in LOSSES)
            assert np.array_equal(run.history[name], np.where(unknown, np.nan, alone.history[name]), equal_nan=True), name


@long_simulated
def test_a_run_that_diverges_does_not_end_the_others(backend, tmp_path):
    problem = make(backend, "guidance", "float32", steps=2)  # (the simulator refuses the sine of infinity)
    draw = problem.draw
    counts = []

    def spoiled(random, count):
        counts.append(count)
        return draw(random, count) * (1e37 if len(counts) == 3 else 1)  # the training states of the second run

    wild = dataclasses.replace(problem, draw=spoiled)
    good, bad, fine = sb.train_seeds(wild, range(3), out=tmp_path, **SETTINGS)
    assert isinstance(bad, sb.DivergedError) and bad.epoch == 1
    assert good.status == fine.status == "complete"
    assert sb.load(tmp_path / "seed_1.h5").status == f"diverged: {bad}"
    same_run(fine, sb.train(problem, seed=2, **SETTINGS))


@pytest.mark.slow
@long_simulated
def test_an_interrupt_leaves_every_run_a_file(backend, tmp_path):
    def stop(seed, progress):
        if seed == 1 and progress.epoch == 2:
            raise KeyboardInterrupt

    problem = make(backend, dtype="float32", steps=2)
    settings = {**SETTINGS, "epochs": 4}
    with pytest.raises(KeyboardInterrupt):
        sb.train_seeds(problem, range(4), out=tmp_path, report=stop, **settings)
    epochs = [len(sb.load(tmp_path / f"seed_{seed}.h5").history["epoch"]) for seed in range(4)]
    assert set(epochs) <= {1, 2} and not list(tmp_path.glob(".*"))
    resumed = sb.train_seeds(problem, range(4), out=tmp_path, resume=True, **settings)
    for run, whole in zip(resumed, sb.train_seeds(problem, range(4), **settings), strict=True):
        same_run(run, whole)


def test_seeds_are_whole_numbers_and_files_lie_in_a_folder(tmp_path, capsys):
    problem = make("cpu")
    for wrong in ([], [1, 1]):
        with pytest.raises(ValueError, match="different whole numbers"):
            sb.train_seeds(problem, wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="several seeds need a folder"):
        sb.train_seeds(problem, [0, 1], out=tmp_path / "file")
    assert call("cartpole", "train", "--seeds", "3", "--out", tmp_path / "runs") == 2
    assert "give a range such as 0:132" in capsys.readouterr().err


SIGNALS = """
import signal
import stablebptt as sb

problem = sb.problem("cartpole", steps=100, hidden=(50,))
theta, x0 = problem.init(1), problem.sample(64)
problem.gradient(theta, x0, "C"), problem.losses(theta, x0)
caught = 0
for call in (lambda: problem.gradient(theta, x0, "C"), lambda: problem.losses(theta, x0)):
    for _ in range(20):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-4)  # strikes while the kernel runs
            for _ in range(100):
                call()
        except KeyboardInterrupt:
            caught += 1
print(caught)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals are those of POSIX")
def test_a_signal_during_a_kernel_arrives_as_an_interrupt():
    """Numba lets Python run while it makes arguments and results; an interrupt there must not end the process."""
    handled = "signal.signal(signal.SIGALRM, signal.default_int_handler)"
    program = SIGNALS.replace("import stablebptt", f"{handled}\nimport stablebptt", 1)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["40"], done.stderr
