"""The gated adjoints of whole rollouts: Taylor rates, surrogate rollouts, schedules, blocks, NaN."""

import numpy as np
import pytest
from plain_networks import convolutions

import stablebptt as sb
from stablebptt.adjoint import rollout
from stablebptt.kernels.generics import cost, step
from stablebptt.tasks.variants import GATES, gates, truncated

# Central differences of order 6.
STENCIL, STEP = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60)), 2e-3
CASES = [("cartpole", {"poles": p, "loss": loss}) for p in (1, 2, 3, 4) for loss in ("final", "continuous")]
CASES += [("guidance", {"loss": loss, "regularization": rho}) for loss, rho in (("final", 0.3), ("continuous", 0.001))]
CASES += [("quantum", {"loss": loss, "target": 2}) for loss in ("final", "continuous")]
IDS = [" ".join(map(str, [task, *options.values()])) for task, options in CASES]


def make(task, options, **more):
    settings = {"steps": 9, "dtype": "float64", "output_init": "glorot"}
    settings |= {"points": 11, "width": 5} if task == "quantum" else {"hidden": (10, 11)}
    if task != "quantum":
        settings["duration"] = 0.3 if task == "cartpole" else 0.6
    return sb.problem(task, **{**settings, **options, **more})


@pytest.fixture(params=CASES, ids=IDS)
def problem(request):
    return make(*request.param)


def network(problem, theta, x):
    """The controller again, in plain NumPy: x (n_state,) -> controls (n_control,)."""
    if problem.task == "quantum":
        return convolutions(problem, theta, x.reshape(problem.state_shape))
    layers = problem.layers(theta)
    depth = len(layers) // 2
    for i in range(depth):
        x = x @ layers[f"dense_{i}/kernel"] + layers[f"dense_{i}/bias"]
        x = np.tanh(x) if i < depth - 1 else x
    return x


def surrogate(problem, theta, x0, recorded, physics, net):
    """Loss of a rollout in which a gate below 1 mixes in the recorded state as a constant.

    Its gradient at the recorded parameters is that of the variant: plain NumPy and the systems' Python methods.
    """
    total, squares = 0.0, []
    for b, first in enumerate(x0.reshape(len(x0), -1)):
        x = first
        for t in range(problem.steps):
            constant = recorded[b, t].ravel()
            c = network(problem, theta, net[t] * x + (1 - net[t]) * constant)
            x_next = np.empty_like(x)
            step(problem.system, physics[t] * x + (1 - physics[t]) * constant, c, x_next)
            x = x_next
            squares.append(c**2)
            if problem.time_weights[t + 1] != 0:
                total += problem.time_weights[t + 1] * cost(problem.loss_function, x)
    return total / len(x0) + problem.regularization * np.mean(squares)


def slope(function, theta, direction):
    return sum(
        sign * weight / STEP * function(theta + sign * distance * STEP * direction)
        for distance, weight in STENCIL
        for sign in (1, -1)
    )


def schedules(problem, random):
    steps = problem.steps
    yield from ((name, GATES[name]) for name in "RMSN")
    yield "truncated", truncated(steps, 3)
    yield "between", (random.uniform(0, 1, steps), random.uniform(0, 1, steps))


@pytest.mark.thinned(4)
def test_variants_are_gradients_of_surrogate_rollouts(problem, random):
    x0, theta = problem.sample(3, 5), problem.init(1)
    recorded = problem.rollout(theta, x0).states
    for name, pair in schedules(problem, random):
        physics, net = (np.broadcast_to(np.asarray(g, float), problem.steps) for g in pair)
        value = problem.gradient(theta, x0, pair if name in ("truncated", "between") else name).value
        direction = random.standard_normal(theta.shape) / np.sqrt(theta.size)
        expected = slope(lambda th: surrogate(problem, th, x0, recorded, physics, net), theta, direction)  # noqa: B023
        scale = np.linalg.norm(value) * np.linalg.norm(direction)
        assert abs(value @ direction - expected) < 1e-8 * scale + 1e-13, name


@pytest.mark.thinned(4)
def test_the_regular_gradient_has_taylor_rate_two(problem, random):
    x0, theta = problem.sample(5, 2), problem.init(3)
    result = problem.gradient(theta, x0, "R")
    direction = random.standard_normal(theta.shape)
    sizes = 0.02 / 2.0 ** np.arange(5)
    first = [abs(problem.loss(theta + h * direction, x0).total - result.loss.total) for h in sizes]
    second = [
        abs(problem.loss(theta + h * direction, x0).total - result.loss.total - h * result.value @ direction)
        for h in sizes
    ]
    assert np.log2(first[-2] / first[-1]) == pytest.approx(1, abs=0.15)
    assert np.log2(second[-2] / second[-1]) == pytest.approx(2, abs=0.1)


def test_combined_is_joined_by_sign(problem):
    x0, theta = problem.sample(4, 2), problem.init(3)
    joined = problem.gradient(theta, x0, "C")
    regular, modified = (problem.gradient(theta, x0, v).value for v in "RM")
    np.testing.assert_allclose(joined.regular, regular, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(joined.modified, modified, rtol=1e-12, atol=1e-15)
    same = np.sign(joined.modified) == np.sign(joined.regular)
    assert np.array_equal(joined.value, np.where(same, joined.modified, 0))
    assert np.all(joined.value * joined.regular >= 0)
    cosine = regular @ modified / np.linalg.norm(regular) / np.linalg.norm(modified)
    assert joined.cosine == pytest.approx(cosine, abs=1e-12)
    assert joined.norm2 == pytest.approx(np.sum(joined.value**2), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 7, 8, 33])
@pytest.mark.parametrize("variant", ["R", "M", "C"])
def test_recomputed_activations_give_the_same_bits(variant, batch, dtype):
    options = {"dtype": dtype, "hidden": (37,), "steps": 50}
    x0 = make("cartpole", {"poles": 2}, **options).sample(batch)
    theta = make("cartpole", {"poles": 2}, **options).init()
    kept = make("cartpole", {"poles": 2}, **options).gradient(theta, x0, variant).value
    again = make("cartpole", {"poles": 2}, **options, tape_bytes=0).gradient(theta, x0, variant).value
    assert np.array_equal(kept, again)


def _kept(problem):
    """Whether the tape of the gradients so far holds all time steps."""
    [[work]] = problem.engine._works.gradients.values()
    return all(arena.forward.kept for arena in work.arenas)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("task", ["guidance", "quantum"])
def test_recomputed_activations_of_the_other_tasks(task, batch, dtype):
    """Over several chunks; with several controls the network's path is followed step by step."""
    kept = make(task, {}, dtype=dtype, steps=50)
    again = make(task, {}, dtype=dtype, steps=50, tape_bytes=0)
    x0, theta = kept.sample(batch), kept.init(1)
    kept.gradient(theta, x0, "R"), again.gradient(theta, x0, "R")
    assert _kept(kept) and not _kept(again)
    for variant in "RMNC":
        assert np.array_equal(kept.gradient(theta, x0, variant).value, again.gradient(theta, x0, variant).value), variant


@pytest.mark.parametrize("task", ["cartpole", "guidance", "quantum"])
def test_longer_chunks(task, monkeypatch):
    """As for networks whose gradients do not stay in the cache: the same gradient but for its last bits, for any threads."""
    problem, longer = (make(task, {}, steps=70) for _ in range(2))
    x0, theta = problem.sample(33), problem.init(1)
    expected = problem.gradient(theta, x0, "R").value
    monkeypatch.setattr(rollout, "CACHED_SUMS", 0)
    found = longer.gradient(theta, x0, "R", threads=1).value
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    assert not np.array_equal(found, expected)  # summed in other parts
    for threads in (2, 3, 8):
        assert np.array_equal(longer.gradient(theta, x0, "R", threads=threads).value, found)
    combined = longer.gradient(theta, x0, "C")
    assert np.array_equal(combined.regular, found)


@pytest.mark.parametrize("task, batch", [("cartpole", 33), ("guidance", 16)])
def test_wide_layers(task, batch):
    """Rows with space between them, blocks of products, and longer chunks, as no published network has them."""
    wide = {"hidden": (512, 640), "steps": 40}
    problem, exact = (make(task, wide, dtype=dtype) for dtype in ("float32", "float64"))
    x0, theta = problem.sample(batch), problem.init(1)
    found = problem.gradient(theta, x0, "C", threads=1)
    for threads in (2, 3):
        assert np.array_equal(problem.gradient(theta, x0, "C", threads=threads).value, found.value)
    again = make(task, wide, dtype="float32", tape_bytes=0).gradient(theta, x0, "C")
    assert np.array_equal(again.value, found.value)
    expected = exact.gradient(theta.astype(np.float64), x0.astype(np.float64), "C")
    for name in ("regular", "modified"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


def test_the_length_of_chunks_follows_batch_and_parameters():
    assert [rollout.chunk_steps(batch, 40_000) for batch in (1, 8, 33, 64, 1000)] == [64, 16, 15, 8, 1]
    assert [rollout.chunk_steps(batch, 1 << 20) for batch in (1, 8, 16, 64)] == [64, 16, 16, 32]


@pytest.mark.parametrize("task", ["cartpole", "guidance", "quantum"])
def test_any_number_of_samples(task):
    """Losses are computed 64 states at a time; a gradient takes them all together."""
    problem = make(task, {}, steps=5)
    theta, x0 = problem.init(1), problem.sample(200)
    total, physics = problem.losses(theta, x0)
    each = [problem.losses(theta, x0[b : b + 1]) for b in range(0, 200, 7)]
    assert np.array_equal(total[::7], [t[0] for t, _ in each]) and np.array_equal(physics[::7], [p[0] for _, p in each])
    single = np.stack([problem.gradient(theta, x0[b : b + 1], "R").value for b in range(129)])
    for batch in (63, 64, 65, 127, 128, 129):
        assert problem.loss(theta, x0[:batch]).total == pytest.approx(total[:batch].mean(), rel=1e-13)
        result = problem.gradient(theta, x0[:batch], "R")
        assert result.loss.total == pytest.approx(total[:batch].mean(), rel=1e-13)
        expected = single[:batch].mean(axis=0)
        np.testing.assert_allclose(result.value, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@pytest.mark.thinned(3)
@pytest.mark.parametrize("task", ["guidance", "quantum"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_bad_sample_does_not_touch_its_neighbours(task, bad):
    """Samples lie side by side in registers."""
    problem = make(task, {}, dtype="float32", steps=4)
    theta, x0 = problem.init(1), problem.sample(21)
    healthy = problem.follow(theta, x0).states
    x0[5] = bad  # of 0: all objects in one place, no wave function at all
    states = problem.follow(theta, x0).states
    others = np.arange(21) != 5
    assert np.array_equal(states[others], healthy[others]) and not np.array_equal(states[5], healthy[5])
    assert np.isfinite(states[5]).all() == (bad == 0)


def test_a_sample_does_not_depend_on_its_batch():
    problem = make("cartpole", {"poles": 3}, dtype="float32", hidden=(100, 100), steps=30)
    x0, theta = problem.sample(33), problem.init()
    together = problem.rollout(theta, x0).states
    for part in (slice(0, 1), slice(3, 10), slice(10, 26)):
        assert np.array_equal(problem.rollout(theta, x0[part]).states, together[part])


def test_results_do_not_depend_on_what_ran_before():
    problem = make("cartpole", {"poles": 1}, dtype="float32")
    x0, theta = problem.sample(8), problem.init(1)
    first = problem.gradient(theta, x0, "C").value
    for variant in "RMSN":
        problem.gradient(theta + 1, problem.sample(8, 3), variant)
    assert np.array_equal(problem.gradient(theta, x0, "C").value, first)


def test_truncation_window_of_the_whole_horizon_closes_only_the_first_step():
    problem = make("cartpole", {"poles": 1})
    x0, theta = problem.sample(4), problem.init(1)
    regular = problem.gradient(theta, x0, "R").value
    np.testing.assert_allclose(problem.gradient(theta, x0, truncated(9, 9)).value, regular, rtol=1e-13)
    assert np.abs(problem.gradient(theta, x0, truncated(9, 2)).value - regular).max() > 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_sign_rule_hides_nothing(bad):
    from numba import njit

    from stablebptt.adjoint.combine import combine

    run = njit(lambda m, r, c: combine(m, r, c))
    for dtype in (np.float32, np.float64):
        for modified, regular in ((bad, 1.0), (1.0, bad), (bad, -1.0), (-1.0, bad), (bad, 0.0), (0.0, bad)):
            out = np.zeros(3, dtype)
            run(np.array([1, modified, 2], dtype), np.array([1, regular, -2], dtype), out)
            assert out[0] == 1 and not np.isfinite(out[1]) and out[2] == 0


def test_divergence_names_the_time_step():
    problem = make("cartpole", {"poles": 1}, dtype="float32", duration=9e4)
    theta = np.full(problem.n_parameters, 1e20, np.float32)
    with pytest.raises(sb.DivergedError, match="time step") as caught:
        problem.gradient(theta, problem.sample(4), "C")
    path = caught.value.step
    assert path is not None and 0 <= path <= problem.steps
    with pytest.raises(sb.DivergedError):
        problem.loss(theta, problem.sample(4))


def test_gates_are_checked():
    for variant in ("X", "c", ""):
        with pytest.raises(ValueError, match="R, M, S, N, C"):
            gates(variant, 5)
    with pytest.raises(TypeError, match="pair"):
        gates(3, 5)
    with pytest.raises(ValueError, match="shape"):
        gates((np.ones(4), 1), 5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        gates((1, 1.5), 5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        gates((1, np.nan), 5)
    assert gates("C", 5).joined and gates("C", 5).physics.shape == (2, 5)
