"""Runs that begin with given parameters and states, in Python and from files, and what their files keep."""

import h5py
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.data import run_file, storage
from stablebptt.tasks import starts, training

SIZES = {"train_count": 16, "test_count": 8, "batch_size": 8}
WORDS = "--steps 4 --hidden 4 --train-count 16 --test-count 8 --variant R --epochs 2".split()


def small(steps=4, **options):
    return sb.problem("cartpole", **{"steps": steps, "hidden": (4,), **options})


def train(problem=None, epochs=2, **settings):
    return sb.train(problem or small(), "R", epochs, **{**SIZES, **settings})


def interrupted(epoch):
    def stop(progress):
        if progress.epoch == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.fixture(scope="module")
def first():
    return train(epochs=3, seed=7)


def test_a_run_goes_on_from_another(first, tmp_path):
    """From its parameters, with a new optimizer, also over another horizon, with other batches and rules."""
    longer = small(8)
    run = train(longer, 1, start=first, out=tmp_path / "run.h5", optimizer=sb.optimizers.sgd(0.1), batch_size=16)
    x0 = longer.sample(16, 0, training.TRAINING)
    expected = first.theta - np.float32(0.1) * longer.gradient(first.theta, x0, "R").value
    np.testing.assert_allclose(run.theta, expected, rtol=1e-6)
    untrained = longer.rollout(first.theta, longer.sample(8, 0, training.TESTING)[:4])
    assert np.array_equal(run.trajectories["states"][0], untrained.states)
    assert np.array_equal(train(longer, 1, start=first.theta).theta, train(longer, 1, start=first).theta)
    assert not np.array_equal(train(longer, 1).theta, train(longer, 1, start=first).theta)


def test_states_are_those_given(first, tmp_path):
    problem = small()
    states = problem.sample(40, 3)
    run = train(train_states=states[:16], test_states=states[16:24])
    assert (run.config["train_count"], run.config["test_count"]) == (16, 8)
    given = {"train_states": states[:16], "test_states": list(states[16:30].astype(float))}
    run = sb.train(problem, "R", 2, out=tmp_path / "run.h5", **given)
    assert run.history["test_loss"][-1] == pytest.approx(problem.loss(run.theta, states[16:30]).total, rel=1e-6)
    assert run.history["train_loss"][-1] == pytest.approx(problem.loss(run.theta, states[:16]).total, rel=1e-6)
    kept = run_file.load(tmp_path / "run.h5").start
    assert np.array_equal(kept["train_states"], states[:16]) and np.array_equal(kept["test_states"], states[16:30])
    drawn = problem.sample(16, 0, training.TRAINING), problem.sample(8, 0, training.TESTING)
    assert np.array_equal(train(train_states=drawn[0], test_states=drawn[1]).theta, train().theta)


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_resuming_knows_the_start(first, tmp_path, again):
    """Whether it is given again or not."""
    states = small().sample(24, 3)
    given = {"start": first, "train_states": states[:16], "test_states": states[16:]}
    whole = train(epochs=4, out=tmp_path / "whole.h5", **given)
    with pytest.raises(KeyboardInterrupt):
        train(epochs=4, out=tmp_path / "parts.h5", report=interrupted(2), **given)
    parts = train(epochs=4, out=tmp_path / "parts.h5", resume=True, **(given if again else {}))
    assert np.array_equal(whole.theta, parts.theta) and np.array_equal(whole.best_theta, parts.best_theta)
    assert whole.config == parts.config == sb.load(tmp_path / "parts.h5").config
    assert np.array_equal(whole.trajectories["states"], parts.trajectories["states"])
    one, other = (run_file.load(tmp_path / name).start for name in ("whole.h5", "parts.h5"))
    assert one.keys() == other.keys() == {"theta", "train_states", "test_states"}
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_another_start_is_named(first, tmp_path):
    train(start=first, out=tmp_path / "run.h5")
    for given, words in (
        ({"start": first.theta + 1}, r"resumed: start: float32 array of shape \(\d+,\) .* in the file, float32 array .* given"),
        ({"train_states": small().sample(16, 9)}, r"resumed: train_states: nothing in the file, float32 array of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            train(epochs=3, out=tmp_path / "run.h5", resume=True, **given)
    train(out=tmp_path / "plain.h5")
    with pytest.raises(ValueError, match="start: nothing in the file"):
        train(epochs=3, out=tmp_path / "plain.h5", resume=True, start=first)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda first: {"start": first.theta[1:]}, r"start has shape \(\d+,\); it must be"),
        (lambda first: {"start": "run.h5"}, "start must be an array of real numbers"),
        (lambda first: {"start": np.full_like(first.theta, np.nan)}, "start has a value that is not finite"),
        (lambda first: {"start": train(small(hidden=(5,)), 1)}, r"network: dense_0/kernel has shape \(4, 5\) there, and has"),
        (lambda first: {"start": train(small(hidden=(4, 4)), 1)}, "another network: dense_1/kernel"),
        (lambda first: {"train_states": np.zeros((16, 4))}, r"train_states has shape \(16, 4\); it must be \(n, 2, 2\)"),
        (lambda first: {"test_states": np.zeros((0, 2, 2))}, "test_states has shape"),
        (lambda first: {"train_states": np.ones((5, 2, 2))}, "train_count is 16, and train_states are 5; leave train_count out"),
    ],
)
def test_starts_that_do_not_fit(first, given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        train(**given(first))


def test_many_seeds_with_one_start(first, tmp_path):
    states = small().sample(16, 3)
    runs = sb.train_seeds(small(), [0, 1], "R", 2, tmp_path / "runs", start=first, train_states=states, **SIZES)
    assert np.array_equal(runs[1].theta, train(seed=1, start=first, train_states=states).theta)
    assert np.array_equal(runs[0].theta, runs[1].theta)
    assert not np.array_equal(runs[0].history["test_loss"], runs[1].history["test_loss"])


def test_runs_that_differ_in_the_start_are_told_apart(first):
    from stablebptt.tasks import families

    runs = [train(), train(start=first), train(start=first, seed=1)]
    assert [len(alike.runs) for alike in families.groups(runs)] == [1, 2]


# --- from files -------------------------------------------------------------------------------------------------------


def test_files_of_states(tmp_path, run):
    states = small().sample(5, 3)
    np.save(tmp_path / "a.npy", states)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data/states"], file["data/others"] = states.astype(float), np.zeros(3)
    train(out=tmp_path / "run.h5")
    assert run("cartpole", "simulate", "run.h5", "--count", 5, "--seed", 3, "--out", "c.h5").code == 0
    for name in "a.npy", "b.h5", "c.h5":
        assert np.array_equal(starts.states_in(tmp_path / name, (2, 2)).astype(np.float32), states), name


def wrong_files(folder):
    """Files that hold no states, by name; and what is said of them."""
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros((5, 4)))
    np.save(folder / "nan.npy", np.full((5, 2, 2), np.nan))
    (folder / "cut.npy").write_bytes((folder / "flat.npy").read_bytes()[:-8])
    (folder / "text.npy").write_text("1 2 3")
    with h5py.File(folder / "none.h5", "w") as file:
        file["x"] = np.zeros(3)
    with h5py.File(folder / "two.h5", "w") as file:
        file["a/states"], file["b/states"] = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    with h5py.File(folder / "link.h5", "w") as file:
        file["states"] = h5py.ExternalLink("none.h5", "/x")
    with h5py.File(folder / "wide.h5", "w") as file:
        file.create_dataset("states", (10**9, 2, 2), "f4", chunks=(2**20, 2, 2), compression="gzip")
    return {
        "objects.npy": (4, "holds no array of numbers"), "cut.npy": (4, "is damaged"), "text.npy": (4, "is not an HDF5 file"),
        "flat.npy": (2, "has shape (5, 4); it must be (n, 2, 2)"), "nan.npy": (2, "not finite"),
        "none.h5": (4, "has 0 datasets 'states'"), "two.h5": (4, "has 2 datasets 'states'; it must have one"),
        "link.h5": (4, "is a link to another place"), "wide.h5": (4, "claims"), "absent.npy": (5, "No such file"),
        ".": (4, "is not a regular file"),
    }  # fmt: skip


def test_hostile_files_of_states(tmp_path, run):
    for name, (code, words) in wrong_files(tmp_path).items():
        result = run("cartpole", "train", *WORDS, "--train-states", name, "--out", "run.h5")
        assert (result.code, result.err.count("\n")) == (code, 1) and words in result.err, (name, result.err)
        assert not (tmp_path / "run.h5").exists()


def test_starts_on_the_command_line(tmp_path, run, first):
    adam = sb.optimizers.adam(0.3)
    first = train(epochs=4, optimizer=adam, out=tmp_path / "first.h5")
    assert not np.array_equal(first.theta, first.best_theta)
    states = small().sample(20, 3)
    np.save(tmp_path / "states.npy", states)
    words = [*WORDS, "--start-from", "first.h5", "--out", "run.h5"]
    result = run("cartpole", "train", *words)
    assert result.code == 0 and np.array_equal(sb.load("run.h5").theta, train(start=first).theta), result.err
    again = run("cartpole", "train", *words, "--resume")
    assert again.code == 0, again.err
    other = run("cartpole", "train", *words, "--best", "--resume")
    assert other.code == 2 and "start: float32 array" in other.err
    words = [word for word in words if word not in ("--train-count", "16")]
    result = run("cartpole", "train", *words, "--best", "--train-states", "states.npy", "--force")
    expected = sb.train(small(), "R", 2, train_states=states, test_count=8, start=first.best_theta)
    assert result.code == 0 and np.array_equal(sb.load("run.h5").theta, expected.theta), result.err
    assert run("cartpole", "train", "--resume", "--epochs", 3, "--out", "run.h5").code == 0  # all of it from the file
    assert "start" in run("inspect", "run.h5").out
    for more, message in (
        (["--best", "--out", "x.h5"], "--best goes with --start-from"),
        (["--hidden", 5, "--start-from", "first.h5", "--out", "x.h5"], "another network"),
        (["--train-states", "states.npy", "--train-count", 16, "--out", "x.h5"], "train_count is 16, and train_states are 20"),
    ):
        result = run("cartpole", "train", "--steps", 4, *more)
        assert result.code == 2 and message in result.err, result.err


def test_a_start_that_does_not_fit_its_file_is_found(tmp_path, first):
    """An edited file."""
    train(start=first, out=tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        file["start/theta"][...] = 0
    with pytest.raises(ValueError, match="start: float32 array"):
        train(epochs=3, out=tmp_path / "run.h5", resume=True)
    with pytest.raises(storage.FileFormatError, match="start has shape"):
        starts.in_file(small(), {"theta": np.zeros(3)}, "run.h5")
