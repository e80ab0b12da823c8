"""What any problem may have: activations, bounds, observations, costs of time and control, what varies; and its mistakes."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from commands import call
from numba import njit

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, observe_vjp, step_parameters_vjp, step_vjp
from stablebptt.kernels import Loss, Observation, System, cost, final_cost, implements, like, observe, step
from stablebptt.kernels.activations import ACTIVATIONS
from stablebptt.kernels.noise import normal, uniform
from stablebptt.tasks import additions, evaluate
from stablebptt.tasks.adjoint_check import check
from stablebptt.tasks.descriptions import facts
from stablebptt.tasks.pictures import landscape

SMALL = {"steps": 6, "dtype": "float64", "output_init": "glorot", "hidden": (7, 5)}
COUNTS = {"train_count": 16, "test_count": 8}


# --- a system of one's own with everything ------------------------------------------------------------------------


class Pendulum(System):
    """Angle and rate; gravity, length and time step."""

    gravity: float
    length: float
    dt: float


class Efforts(Loss):
    """Squares of the angle and, more and more, of the torque; at the end, of the rate."""

    weight: float


class Side(Observation):
    """The sine of the angle, and the time step."""

    def size(self, n_state):
        return 2


@implements(step, Pendulum)
def _step(system, x, c, x_next):
    rate = x[1] + system.dt * (system.gravity / system.length * math.sin(x[0]) + c[0])
    x_next[1] = rate
    x_next[0] = x[0] + system.dt * rate


@implements(step_vjp, Pendulum)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        rate_bar = lam[v, 1] + system.dt * lam[v, 0]
        lam_x[v, 0] += lam[v, 0] + rate_bar * system.dt * system.gravity / system.length * math.cos(x[0])
        lam_x[v, 1] += rate_bar
        lam_c[v, 0] += rate_bar * system.dt


@implements(step_parameters_vjp, Pendulum)
def _step_parameters_vjp(system, x, c, lam, p_bar):
    pull = math.sin(x[0]) / system.length
    force = system.gravity * pull + c[0]
    for v in range(lam.shape[0]):
        rate_bar = lam[v, 1] + system.dt * lam[v, 0]
        p_bar[v, 0] += rate_bar * system.dt * pull
        p_bar[v, 1] -= rate_bar * system.dt * system.gravity * pull / system.length
        p_bar[v, 2] += rate_bar * force + lam[v, 0] * (x[1] + system.dt * force)


@implements(cost, Efforts)
def _cost(loss, t, x, c):
    return loss.weight * (x[0] * x[0] + like(x, 0.1) * c[0] * c[0] * (t + 1))


@implements(cost_vjp, Efforts)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    x_bar[0] += cost_bar * loss.weight * 2 * x[0]
    c_bar[0] += cost_bar * loss.weight * like(x, 0.2) * c[0] * (t + 1)


@implements(final_cost, Efforts)
def _final_cost(loss, x):
    return x[1] * x[1]


@implements(final_cost_vjp, Efforts)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[1] += 2 * cost_bar * x[1]


@implements(observe, Side)
def _observe(observation, t, x, seen):
    seen[0] = math.sin(x[0])
    seen[1] = t


@implements(observe_vjp, Side)
def _observe_vjp(observation, t, x, seen_bar, x_bar):
    x_bar[0] += math.cos(x[0]) * seen_bar[0]


def own(loss=None, gravity=9.8, length=1.0, dtype="float64", **more):
    """A problem with the pendulum."""
    return sb.problem(
        system=Pendulum(gravity, length, 0.05), controller=(6,), loss=loss or Efforts(2.0),
        sample=lambda random, count: random.uniform(-1, 1, (count, 2)), steps=8, dt=0.05, state_shape=(2,), control_shape=(1,),
        dtype=dtype, **more,
    )  # fmt: skip


def quadratic():
    reference = [[0.1, 0.0], [0.2, 0.0], [0.3, 0.1]]
    return sb.quadratic([1.0, 0.1], [0.2], rate=[0.3], final=5.0, reference=reference, rest=[0.05])


def test_compiled_code_calls_the_form_that_has_so_many_parameters():
    loss, x, c = Efforts(2.0), np.array([0.5, 0.1]), np.array([0.3])
    called = njit(lambda loss, x, c: cost(loss, 3, x, c))
    assert called(loss, x, c) == pytest.approx(cost(loss, 3, x, c)) == pytest.approx(2 * (0.25 + 0.1 * 0.09 * 4))


OWN = {
    "everything": lambda: own(observe=Side(), bound=3, activation="silu"),
    "quadratic": lambda: own(quadratic(), observe="angles=0,time"),
    "varied": lambda: own(vary={"gravity": (9, 10), "length": (0.5, 1.5)}, disturb="noise=0.01,push=0.3,chance=0.3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_all_adjoints_pass_the_check(name):
    found = check(OWN[name]())
    assert [finding for finding in found if not finding.passed] == []
    rules = {finding.rule for finding in found}
    assert "cost of a path" in rules and ("observe" in rules) == (name in ("everything", "quadratic"))


# --- gradients ----------------------------------------------------------------------------------------------------


def options_of(name):
    return {
        "bounded": {"bound": (-1.0, 3.0)},
        "linear": {"hidden": ()},
        "seen": {"observe": "angles=2,time,noise=0.1"},
        "gelu": {"activation": "gelu", "bound": 5},
        "random": {"vary": "pole_mass=0.05:0.2,gravity=9:10", "disturb": 0.01},
    }[name]


def along(function, place, direction, size=1e-6):
    return (function(place + size * direction) - function(place - size * direction)) / (2 * size)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("random", "linear", "seen", "gelu")]


@pytest.mark.parametrize("name", ["bounded", *SLOW])
def test_gradients_of_parameters_and_initial_states_are_derivatives(name, random):
    problem = sb.problem("cartpole", **{**SMALL, **options_of(name)})
    theta, x0 = problem.init(1) + 0.1 * random.standard_normal(problem.n_parameters), problem.sample(5, 2)
    found = problem.gradient(theta, x0, "R", seed=3)
    assert found.loss.total == problem.loss(theta, x0, seed=3).total
    direction, other = random.standard_normal(theta.shape), random.standard_normal(x0.shape)
    expected = along(lambda values: problem.loss(values, x0, seed=3).total, theta, direction)
    assert found.value @ direction == pytest.approx(expected, rel=1e-6, abs=1e-9)
    expected = along(lambda values: problem.loss(theta, values, seed=3).total, x0, other)
    assert np.sum(found.x0 * other) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    both = problem.gradient(theta, x0, "C", seed=3)
    np.testing.assert_array_equal(both.x0, found.x0)  # of C, that of R
    np.testing.assert_allclose(both.regular, found.value, rtol=1e-12, atol=1e-15)
    modified = problem.gradient(theta, x0, "M", seed=3)
    np.testing.assert_allclose(both.modified, modified.value, rtol=1e-12, atol=1e-15)
    assert not np.allclose(modified.x0, found.x0)


@pytest.mark.slow
def test_m_stops_behind_the_observation():
    """With observations instead of states, M cuts the way through the network, and nothing else: S and M agree for T = 1."""
    problem = sb.problem("cartpole", observe="angles=2", **{**SMALL, "steps": 1})
    theta, x0 = problem.init(1), problem.sample(3, 2)
    values = [problem.gradient(theta, x0, variant).value for variant in "RMSN"]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["gravity", "length"])
def test_derivatives_by_parameters_of_the_system(field):
    given = {"gravity": 9.8, "length": 1.0}
    problem = own(bound=3, observe="angles=0,time")
    theta, x0 = problem.init(1), problem.sample(5, 1)
    found = problem.gradient(theta, x0, "R").parameters
    assert list(found) == ["gravity", "length", "dt"]
    shifted = [
        own(bound=3, observe="angles=0,time", **{**given, field: given[field] + h}).loss(theta, x0).total for h in (1e-6, -1e-6)
    ]
    assert found[field] == pytest.approx((shifted[0] - shifted[1]) / 2e-6, rel=1e-7)
    assert problem.gradient(theta, x0, "C").parameters == found
    bare = sb.problem("cartpole", **SMALL)
    assert bare.gradient(bare.init(0), bare.sample(1), "R").parameters == {}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [3])
def test_bits_do_not_depend_on_threads(threads):
    problem = own(quadratic(), dtype="float32", observe="angles=0,noise=0.1", vary={"length": (0.5, 1.5)}, bound=2)
    theta, x0 = problem.init(1), problem.sample(33, 2)
    one, many = (problem.gradient(theta, x0, "C", threads=count) for count in (1, threads))
    assert np.array_equal(one.value, many.value) and np.array_equal(one.x0, many.x0) and one.parameters == many.parameters
    assert np.array_equal(problem.rollout(theta, x0, threads=1).states, problem.rollout(theta, x0, threads=threads).states)


# --- what is random -----------------------------------------------------------------------------------------------


def test_numbers_of_keys_are_uniform_and_normal():
    count = 20_000

    @njit
    def draw():
        values = np.empty((2, count))
        for k in range(count):
            values[0, k], values[1, k] = uniform(k, 3, 5), normal(k, 4, 6)
        return values

    flat, bell = draw()
    assert 0 < flat.min() and flat.max() < 1 and abs(flat.mean() - 0.5) < 0.01 and abs(flat.var() - 1 / 12) < 0.003
    assert abs(bell.mean()) < 0.03 and abs(bell.std() - 1) < 0.02 and abs(np.corrcoef(bell[:-1], bell[1:])[0, 1]) < 0.03


def test_a_varied_field_is_the_field(random):
    """A range of one value is that value; and samples with a wide range follow the system with their own value."""
    plain = own()
    theta, x0 = plain.init(1), plain.sample(9, 2)
    fixed = own(vary={"gravity": (9.8, 9.8)})
    np.testing.assert_allclose(fixed.rollout(theta, x0).states, plain.rollout(theta, x0).states, rtol=1e-12)
    wide = own(vary={"gravity": (5.0, 15.0)})
    ends = wide.rollout(theta, x0).states
    low, high = (own(gravity=value).rollout(theta, x0).states for value in (5.0, 15.0))
    rates = [path[:, 1, 1] for path in (low, ends, high)]  # after one step the rate is linear in gravity
    share = (rates[1] - rates[0]) / (rates[2] - rates[0])
    assert np.all((share > 0) & (share < 1)) and np.ptp(share) > 0.3
    again = wide.rollout(theta, x0).states
    assert np.array_equal(again, ends) and not np.array_equal(wide.rollout(theta, x0, seed=1).states, ends)


def test_a_system_that_varies_is_copied_into_other_processes():
    system = own(vary={"gravity": (9, 10), "length": (0.5, 1.5)}).system
    copied = pickle.loads(pickle.dumps(system))
    assert type(copied) is type(system) and copied.system.dt == system.system.dt
    assert copied.low.tolist() == system.low.tolist() and copied.high.tolist() == system.high.tolist()


def test_noise_has_the_deviation_that_was_asked_for():
    still = own(sb.quadratic([1.0, 1.0], [0.0]), gravity=0.0, disturb={"noise": [0.0, 0.2]})
    path = still.rollout(np.zeros(still.n_parameters), np.zeros((4000, 2)))
    assert np.std(path.states[:, 1, 1]) == pytest.approx(0.2, rel=0.05) and np.all(path.states[:, 1, 0] == 0)
    pushed = own(gravity=0.0, disturb={"push": 1.0, "chance": 0.25})
    moved = pushed.rollout(np.zeros(pushed.n_parameters), np.zeros((4000, 2))).states[:, 1, 0] != 0
    assert np.mean(moved) == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_a_random_run_is_resumed_and_repeated_bit_for_bit(tmp_path):
    problem = sb.problem(
        "cartpole", vary={"pole_mass": (0.05, 0.2)}, disturb=0.01, observe="angles=2,noise=0.01", bound=10, **SMALL
    )
    whole = sb.train(problem, epochs=3, out=tmp_path / "whole.h5", **COUNTS)
    sb.train(problem, epochs=2, out=tmp_path / "part.h5", **COUNTS)
    part = sb.train(problem, epochs=3, out=tmp_path / "part.h5", resume=True, **COUNTS)
    assert np.array_equal(whole.theta, part.theta)
    np.testing.assert_array_equal(whole.trajectories["states"], part.trajectories["states"])
    again = sb.load(tmp_path / "part.h5")
    assert again.problem.options == problem.options and facts(again.problem) == facts(problem)
    x0 = problem.sample(4, 9)
    assert np.array_equal(again.problem.rollout(whole.theta, x0).states, problem.rollout(whole.theta, x0).states)


# --- controls and what is seen ------------------------------------------------------------------------------------


def test_controls_stay_within_their_bounds(random):
    problem = sb.problem("guidance", bound=((-2, -1, 0, 1), (3, 1, 1, 2)), hidden=(7,), steps=4)
    theta = 5 * random.standard_normal(problem.n_parameters).astype(np.float32)
    controls = problem.rollout(theta, problem.sample(20)).controls.reshape(-1, 4)
    low, high = problem.limits
    assert np.all((controls >= low - 1e-6) & (controls <= high + 1e-6))
    assert np.all(np.ptp(controls, axis=0) > 0.9 * (high - low))


@pytest.mark.parametrize(
    "given, controls, low, high",
    [
        (5, 2, [-5, -5], [5, 5]),
        ("5", 1, [-5], [5]),
        ("-1,3", 1, [-1], [3]),
        ([5, 2], 2, [-5, -2], [5, 2]),
        ((-1, 2), 2, [-1, -1], [2, 2]),
        ((0, 2), 3, [0, 0, 0], [2, 2, 2]),
        (((0, 1), (5, 8)), 2, [0, 1], [5, 8]),
    ],
)
def test_bounds_in_all_forms(given, controls, low, high):
    assert additions.limits(given, controls).tolist() == [low, high]


def test_observations_see_what_they_say():
    observations = sb.observations
    signal = np.arange(6.0)[:, None] * [1.0, 10.0]
    given = observations.join(
        observations.choose(3, 0), observations.angles(1), observations.time(0.1), observations.reference(signal, ahead=1)
    )
    seen = observations.of(given, 4, 0.05)
    x, out = np.array([[0.5, 0.2, 2.0, 3.0]]), np.zeros((1, 2 + 5 + 1 + 4))
    assert type(seen).size(seen, 4) == 12
    observations.look(seen, 4, x, out)
    expected = [3, 0.5, 0.5, np.sin(0.2), np.cos(0.2), 2, 3, 4 * 0.5, 4, 40, 5, 50]
    np.testing.assert_allclose(out[0], expected)
    observations.look(seen, 9, x, out)
    np.testing.assert_allclose(out[0, -4:], [5, 50, 5, 50])  # the last value goes on
    described = json.loads(json.dumps(observations.describe(seen)))
    again = observations.from_description(described)
    observations.look(again, 4, x, out)
    np.testing.assert_allclose(out[0], expected)


def test_normalised_numbers_have_mean_0_and_deviation_1():
    problem = sb.problem("cartpole", poles=1, **SMALL)
    seen = sb.observations.of(sb.observations.normalised(problem), 4, problem.dt)
    states = problem.follow(problem.init(0), problem.sample(256, 0)).states[:, :-1].reshape(-1, 4)
    values = np.zeros_like(states)
    sb.observations.look(seen, 0, states, values)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-10)
    kept = sb.problem("cartpole", poles=1, observe=seen, **SMALL).options["observe"]
    assert kept["kind"] == "Scaled" and np.allclose(kept["shift"], states.mean(axis=0))


# --- words, files, mistakes ---------------------------------------------------------------------------------------


def test_defaults_leave_no_trace():
    plain = sb.problem("cartpole")
    said = sb.problem("cartpole", activation="tanh", bound=None, observe=None, vary=None, disturb=None)
    assert plain.options == said.options and "activation" not in plain.options
    assert list(facts(plain)) == [
        "steps",
        "dt",
        "regularization",
        "output_init",
        "dtype",
        "time_weights",
        "system",
        "controller",
        "loss",
    ]


TINY = ["--steps", "5", "--epochs", "1", "--train-count", "8", "--test-count", "4", "-q"]


@pytest.mark.slow
def test_the_command_line_takes_all_of_them(tmp_path):
    words = ["--hidden", "4", "--bound", "-8,10", "--observe", "angles=2:4,time", "--poles", "2", "--dtype", "float64"]
    words += ["--vary", "pole_mass=0.05:0.2", "--disturb", "0.001", *TINY]
    assert call("cartpole", "train", *words, "--out", tmp_path / "run.h5") == 0
    options = sb.load(tmp_path / "run.h5").problem.options
    assert options["bound"] == [[-8.0], [10.0]] and options["observe"]["kind"] == "Both"
    assert options["vary"] == {"pole_mass": [0.05, 0.2]}
    assert call("cartpole", "simulate", tmp_path / "run.h5", "--out", tmp_path / "paths.h5", "-q") == 0


@pytest.mark.slow
def test_activations_on_the_command_line(tmp_path):
    assert call("cartpole", "train", "--activation", "relu", "--hidden", "4", *TINY, "--out", tmp_path / "relu.h5") == 0
    assert sb.load(tmp_path / "relu.h5").problem.options["activation"] == "relu"


@pytest.mark.slow
def test_no_hidden_layers_on_the_command_line(tmp_path):
    assert call("cartpole", "train", "--hidden", "", *TINY, "--out", tmp_path / "linear.h5") == 0
    assert list(sb.load(tmp_path / "linear.h5").problem.layers(np.zeros(5))) == ["dense_0/kernel", "dense_0/bias"]


def test_evaluate_prints_and_draws(tmp_path, capsys):
    assert call("cartpole", "train", "--hidden", "4", *TINY, "--out", tmp_path / "run.h5") == 0
    capsys.readouterr()
    words = ["cartpole", "evaluate", tmp_path / "run.h5", "--count", "4", "-q"]
    assert call(*words, "--vary", "pole_mass=0.05:0.2:3", "--json", "--out", tmp_path / "one.png") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["pole_mass"] for record in records] == pytest.approx([0.05, 0.125, 0.2])
    assert len({record["loss"] for record in records}) == 3 and all(0 <= record["solved"] <= 1 for record in records)
    both = ["--vary", "pole_mass=0.05:0.2:2", "--vary", "gravity=9:10:2"]
    assert call(*words, *both, "--out", tmp_path / "two.png") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5 and (tmp_path / "two.png").stat().st_size > 1000
    run = sb.load(tmp_path / "run.h5")
    heavy = evaluate.with_fields(run.problem, {"pole_mass": 0.2})
    assert heavy.losses(run.theta, run.problem.sample(4, 1))[0].mean() == pytest.approx(records[2]["loss"])
    assert call(*words, "--vary", "mass=1:2:2") == 2 and "choose from dt, gravity, pole_mass" in capsys.readouterr().err
    assert call(*words, "--vary", "gravity=1:2") == 2 and "give name=lowest:highest:count" in capsys.readouterr().err
    assert call(*words[:2], words[2], "--vary", "dt=1:2:2", "--set", "gravity=x") == 2
    simulate = ["cartpole", "simulate", tmp_path / "run.h5", "--count", "2", "-q", "--out"]
    assert call(*simulate, tmp_path / "a.h5") == call(*simulate, tmp_path / "b.h5", "--set", "pole_mass=0.15") == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"activation": "tan"}, "unknown activation 'tan'; choose from tanh, relu, gelu, silu, softplus, sin, identity"),
        ({"bound": 0}, "bound is 0; numbers must be finite, and low below high"),
        ({"bound": [3, 1]}, "low below high"),
        ({"bound": [1, 2, 3]}, "give a number, one per control, or"),
        ({"bound": "a"}, "bound is 'a'; give numbers with commas between them"),
        ({"observe": "angels=2"}, "observe has 'angels=2'; choose from state, choose=0:2, angles=2:4, time, noise=0.01"),
        ({"observe": "angles=9"}, "a place of angles is 9; it must be at most 3"),
        ({"observe": 3}, "observe is 3; give an observation"),
        ({"vary": {"mass": (1, 2)}}, "vary: CartPole has no number 'mass'; choose from dt, gravity, pole_mass"),
        ({"vary": {"gravity": (2, 1)}}, "give the lowest value, then the highest"),
        ({"vary": "gravity"}, "vary: gravity is ''; give numbers"),
        ({"disturb": -1}, "standard deviations must not be negative"),
        ({"disturb": {"push": 1}}, "a push needs a chance above 0"),
        ({"disturb": {"shove": 1}}, "disturb has no option 'shove'; choose from noise, push, chance"),
        ({"time_weights": [1, 2]}, "time_weights has shape"),
    ],
)
def test_mistakes_are_told_in_one_line(given, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        sb.problem("cartpole", **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_controller_of_ones_own_has_its_own_activation():
    with pytest.raises(ValueError, match="it is for networks, and Parabola is a controller of your own"):
        additions.controller(landscape.walk_problem().controller, 4, "relu")


def test_other_backends_and_frameworks_say_what_they_do_not_know():
    from stablebptt.interop import arrays

    for more in ({"observe": "time,state"}, {"bound": 3}, {"vary": "gravity=9:10"}):
        with pytest.raises(ValueError, match="a controller of another framework needs one without"):
            arrays.bare(sb.problem("cartpole", **more))
    arrays.bare(sb.problem("cartpole", activation="relu"))


def test_every_activation_has_a_name_on_the_command_line():
    assert tuple(ACTIVATIONS) == additions.ACTIVATIONS


@pytest.mark.slow
def test_the_published_bits_do_not_depend_on_what_is_possible():
    """A problem with the state as observation computes on the states themselves."""
    problem = sb.problem("cartpole", **SMALL)
    work = problem.engine  # the arrays of a rollout
    problem.rollout(problem.init(0), problem.sample(2))
    (reference,) = work._works.rollouts.values()
    path = reference.struct.arenas.structs[0].path
    assert path.seen is path.states
    seen = dataclasses.replace(problem, observation=sb.observations.of(sb.observations.scale(None, 0.0, 1.0), 4, 0.01))
    theta, x0 = problem.init(1), problem.sample(5)
    np.testing.assert_array_equal(seen.gradient(theta, x0, "C").value, problem.gradient(theta, x0, "C").value)
