"""Families of gates: decay, truncation, truncation at random."""

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks import gates, settings, variants

STEPS, DT = 12, 0.5


def opened(variant, random=None):
    return variants.gates(variant, STEPS, dt=DT, random=random)


def test_decay_goes_by_the_time_step():
    found = opened(sb.gates.decay(0.4))
    np.testing.assert_allclose(found.physics, np.full((1, STEPS), 0.4**0.5), rtol=1e-15)
    assert (found.network == 1).all() and found.join is None
    assert (opened("M:decay=0.4").network == 0).all() and np.array_equal(opened("M:decay=0.4").physics, found.physics)
    both = opened("C:decay=0.4")
    assert both.is_combined and np.array_equal(both.physics, np.tile(found.physics, (2, 1)))
    assert both.network.tolist() == [[1] * STEPS, [0] * STEPS]
    assert (opened(sb.gates.decay(1)).physics == 1).all()


@pytest.mark.parametrize("letter", "RMSN")
def test_truncation_is_the_schedule_that_it_was(letter):
    cut = np.arange(STEPS) % 5 == 0
    for found in (opened(f"{letter}:truncate=5"), opened(variants.truncated(STEPS, 5, letter))):
        for values, gate in zip((found.physics, found.network), variants.GATES[letter]):
            assert np.array_equal(values, [np.where(cut, 0.0, gate)])


def test_random_truncation_is_drawn_and_compensated(random):
    shares = np.concatenate([opened("R:random=4", random).physics for _ in range(500)])
    assert set(np.unique(shares)) == {0.0, 4 / 3}
    assert abs(np.mean(shares == 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / shares.size)
    both = opened("C:random=4", random)
    assert np.array_equal(both.physics[0], both.physics[1]) and np.array_equal(both.network[0], both.physics[0])
    assert not both.network[1].any()
    assert (opened("R:random=4:decay=0.4", random).physics <= 4 / 3 * 0.4**DT + 1e-15).all()
    with pytest.raises(ValueError, match="draws its gates for every update"):
        opened("R:random=4")


def test_the_mean_of_random_truncation_is_the_gradient():
    problem = sb.problem("cartpole", steps=6, hidden=(4,), output_init="glorot", dtype="float64", loss="continuous")
    theta, x0 = problem.init(1), problem.sample(1)
    draws = np.array([problem.gradient(theta, x0, "R:random=3", seed=seed).value for seed in range(1500)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    expected = problem.gradient(theta, x0).value
    away = np.abs(draws.mean(axis=0) - expected)[error > 0] / error[error > 0]
    assert away.max() < 5 and not np.array_equal(draws[0], draws[1])
    assert np.array_equal(draws[1], problem.gradient(theta, x0, "R:random=3", seed=1).value)
    cut = np.array([problem.gradient(theta, x0, "R:truncate=3").value])
    assert (np.abs(cut - expected)[0] / np.where(error > 0, error, np.inf)).max() > 5  # which is biased


def test_a_decay_of_a_problem_is_the_pair_of_schedules():
    problem = sb.problem("cartpole", steps=6, hidden=(4,), output_init="glorot")
    theta, x0 = problem.init(1), problem.sample(3)
    for b, letter in enumerate("MR"):
        pair = problem.gradient(theta, x0, (0.01**problem.dt, b)).value
        assert np.array_equal(problem.gradient(theta, x0, f"{letter}:decay=0.01").value, pair)


def test_spellings():
    assert variants.read("M:decay=0.4") == sb.gates.decay(0.4, of="M") and str(sb.gates.decay(0.4)) == "R:decay=0.4"
    nested = sb.gates.decay(0.4, of=sb.gates.random(7, of=sb.joins.per_layer("config")))
    assert str(nested) == "config/layer:random=7:decay=0.4" and variants.read(str(nested)) == nested
    assert str(sb.gates.truncate(3, of=sb.joins.leaky(0.5))) == "leaky:leak=0.5:truncate=3"
    assert variants.is_random(nested) and not variants.is_random("C:truncate=3") and not variants.is_random((1, 0))
    assert {name.partition(":")[2].partition("=")[0] for name in settings.GATES} == set(gates.KINDS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: variants.read("M:decay=2"), "variant is 'M:decay=2': alpha is 2.0; it must be at most 1"),
        (lambda: sb.gates.decay(0), "alpha is 0.0; it must be above 0"),
        (lambda: sb.gates.truncate(0), "steps between truncations is 0; it must be at least 1"),
        (lambda: variants.read("R:truncate=2.5"), "is 2.5; it must be a whole number"),
        (lambda: sb.gates.random(1), "mean steps between truncations is 1; it must be at least 2"),
        (lambda: sb.gates.decay(0.4, of=(1, 0)), r"of is \(1, 0\); give a variant with a name"),
        (lambda: variants.read("R:close=3"), "R has no option 'close'; choose from decay, truncate, random"),
    ],
)
def test_what_is_no_family_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_draws_go_on_where_a_run_was_left(tmp_path):
    problem, small = sb.problem("cartpole", steps=4, hidden=(4,)), {"train_count": 16, "test_count": 4}
    variant = sb.gates.random(2, of="C")
    whole = sb.train(problem, variant, 2, seed=3, **small)
    sb.train(problem, variant, 1, seed=3, out=tmp_path / "run.h5", **small)
    again = sb.train(problem, "C:random=2", 2, seed=3, out=tmp_path / "run.h5", resume=True, **small)
    assert again.config["variant"] == "C:random=2" and np.array_equal(whole.theta, again.theta)
    seeds = sb.train_seeds(problem, [3, 4], variant=variant, epochs=2, **small)
    assert np.array_equal(seeds[0].theta, whole.theta) and not np.array_equal(seeds[1].theta, whole.theta)
    assert not np.array_equal(whole.theta, sb.train(problem, "C", 2, seed=3, **small).theta)


def test_what_is_drawn_in_every_update_belongs_to_training():
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    with pytest.raises(ValueError, match="R:random=5 draws its gates for every update; only training"):
        sb.minimize_fun(problem, problem.sample(2), "R:random=5")
