"""Problems as environments of Gymnasium: the paths, and so the returns, are those of our rollouts."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.interop.paths import Paths
from stablebptt.kernels import Loss, Observation, cost, final_cost, implements, observe
from stablebptt.kernels.network import mlp
from stablebptt.tasks import policies

ROOT = Path(__file__).resolve().parents[2]
STEPS = 9


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra: gymnasium)")


@pytest.fixture(scope="module")
def ours(gym):
    import stablebptt.interop.gymnasium

    return stablebptt.interop.gymnasium


class Energy(Loss):
    """Costs of time, state and control, and of the last state."""


@implements(cost, Energy)
def _cost(loss, t, x, c):
    return (1 + t) * (x[0] * x[0] + c[0] * c[0])


@implements(final_cost, Energy)
def _final_cost(loss, x):
    return 10 * x[1] * x[1]


class Table(Observation):
    """A row of numbers of which there are as many as time steps."""

    values: np.ndarray

    def size(self, n_state):
        return 1


@implements(observe, Table)
def _observe(observation, t, x, seen):
    seen[0] = observation.values[t]


WEIGHTS = np.linspace(1, 2, STEPS + 1)
QUADRATIC = sb.quadratic(state=np.ones(4), control=[0.3], rate=[0.2], final=5.0)
# A task, its options, and what is replaced in the problem.
PROBLEMS = {
    "final": ("cartpole", {}, {}),
    "continuous": ("cartpole", {"poles": 2, "loss": "continuous"}, {"regularization": 0.3}),
    "weights": ("cartpole", {"time_weights": WEIGHTS}, {}),
    "guidance": ("guidance", {"drivers": 3}, {}),
    "quantum": ("quantum", {"points": 9, "width": 4, "target": 2, "loss": "continuous"}, {}),
    "pendulum": ("pendulum", {"bound": [[-1.0], [0.5]]}, {}),
    "running": ("cartpole", {"time_weights": WEIGHTS}, {"loss_function": Energy()}),
    "changes": ("cartpole", {"time_weights": WEIGHTS}, {"loss_function": QUADRATIC, "regularization": 2.0}),
    "seen": ("cartpole", {"observe": "angles=2,time,noise=0.1", "bound": 1}, {}),
    "table": ("cartpole", {}, {"observation": Table(np.arange(1.0, STEPS + 1)), "controller": mlp((1, 1))}),
    "random": ("cartpole", {"vary": {"pole_mass": (0.05, 0.2)}, "disturb": {"noise": 0.01, "push": 0.5, "chance": 0.3}}, {}),
}


def problem_of(name):
    task, options, changes = PROBLEMS[name]
    return replace(sb.problem(task, steps=STEPS, dtype="float64", output_init="glorot", **options), **changes)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "table" else ()) for name in PROBLEMS])
def test_paths_are_those_of_a_rollout(name):
    """Under the controls of a rollout: the same states, bit for bit, and shares that add up to its losses."""
    problem = problem_of(name)
    theta, x0 = problem.init(1), problem.sample(5, 2)
    path, paths = problem.rollout(theta, x0, seed=3), Paths(problem, 5)
    for _ in range(2):  # nothing is left of the first paths
        paths.begin(x0, seed=3)
        shares = []
        for t in range(STEPS):
            assert paths.t == t and not paths.over
            np.testing.assert_array_equal(paths.states, path.states[:, t])
            shares.append(paths.step(path.controls[:, t]))
        assert paths.over
        np.testing.assert_array_equal(paths.states, path.states[:, -1])
        np.testing.assert_allclose(np.sum(shares, axis=0), problem.losses(theta, x0, seed=3)[0], rtol=1e-14)


def test_the_share_of_a_time_step():
    """It pays for the state that it reaches, or for its state and control; the first one for x_0, the last one for x_T, too."""
    for name in ("weights", "running"):
        problem = problem_of(name)
        path, paths = problem.rollout(problem.init(1), problem.sample(1)), Paths(problem, 1)
        paths.begin(path.states[:, 0], 0)
        shares = [paths.step(path.controls[:, t])[0] for t in range(STEPS)]
        x, c = path.states[0].reshape(STEPS + 1, 4), path.controls[0, :, 0]
        if name == "weights":
            costs = WEIGHTS * (1 - np.cos(x[:, 2]))
            expected = costs[1:]
            expected[0] += costs[0]
        else:
            expected = WEIGHTS[:-1] * np.arange(1, STEPS + 1) * (x[:-1, 0] ** 2 + c**2)
            expected[-1] += WEIGHTS[-1] * 10 * x[-1, 1] ** 2
        np.testing.assert_allclose(shares, expected, rtol=1e-13)


def test_what_is_seen():
    """Behind the last time step the observation is that of the last one."""
    problem = problem_of("table")
    paths = Paths(problem, 2)
    paths.begin(problem.sample(2), 0)
    for t in range(STEPS):
        assert paths.seen().tolist() == [[t + 1]] * 2
        paths.step(np.zeros((2, 1)))
    assert paths.seen().tolist() == [[STEPS]] * 2


def test_noise_of_what_is_seen():
    """The controls of our own kernels follow from what the environment shows."""
    problem = problem_of("seen")
    theta = problem.init(1)
    path, paths = problem.rollout(theta, problem.sample(4), seed=5), Paths(problem, 4)
    paths.begin(path.states[:, 0], 5)
    layers = list(problem.layers(theta).values())
    for t in range(STEPS):
        seen = paths.seen()
        clean = path.states[:, t].reshape(4, 4)
        exact = np.column_stack([clean[:, :2], np.sin(clean[:, 2]), np.cos(clean[:, 2]), clean[:, 3], np.full(4, t * problem.dt)])
        assert 0.01 < np.abs(seen - exact).max() < 1
        c = np.tanh(np.tanh(np.tanh(seen @ layers[0] + layers[1]) @ layers[2] + layers[3]) @ layers[4] + layers[5])
        np.testing.assert_allclose(c, path.controls[:, t], rtol=1e-12)
        paths.step(path.controls[:, t])


def test_what_paths_refuse():
    problem = problem_of("pendulum")
    paths, still = Paths(problem, 2), np.zeros((2, 1))
    for wrong in (paths.seen, lambda: paths.step(still), lambda: paths.states):
        with pytest.raises(ValueError, match="begin one first"):
            wrong()
    paths.begin(problem.sample(2), 0)
    for controls, words in ((still[0], "shape"), (still * np.nan, "not finite"), (still.astype(str), "real numbers")):
        with pytest.raises(ValueError, match=words):
            paths.step(controls)
    for _ in range(STEPS):
        paths.step(still)
    with pytest.raises(ValueError, match="all 9 time steps are done"):
        paths.step(still)
    with pytest.raises(ValueError, match="states has shape"):
        paths.begin(problem.sample(3), 0)
    with pytest.raises(ValueError, match="at least 1"):
        Paths(problem, 0)
    with pytest.raises(ValueError, match="backend='cpu'"):
        Paths(replace(problem, backend="cuda"), 1)


@pytest.mark.parametrize(
    "name, copied", [("random", copy.deepcopy), ("changes", lambda paths: pickle.loads(pickle.dumps(paths)))]
)
def test_a_copy_goes_on_alone(name, copied):
    """It shares nothing with its original: no numbers, and no addresses."""
    problem = problem_of(name)
    theta, x0 = problem.init(1), problem.sample(3)
    path, paths = problem.rollout(theta, x0, seed=2), Paths(problem, 3)
    paths.begin(x0, 2)
    shares = [paths.step(path.controls[:, t]) for t in range(4)]
    other = copied(paths)
    assert other._system.address != paths._system.address
    assert not any(map(np.shares_memory, other._numbers(), paths._numbers()))
    paths.begin(problem.sample(3, 8), 9)
    paths.step(np.ones((3, 1)))
    shares += [other.step(path.controls[:, t]) for t in range(4, STEPS)]
    np.testing.assert_array_equal(other.states, path.states[:, -1])
    np.testing.assert_allclose(np.sum(shares, axis=0), problem.losses(theta, x0, seed=2)[0], rtol=1e-14)


def test_controls_are_clipped():
    problem = problem_of("pendulum")
    paths = Paths(problem, 3)
    x0 = np.repeat(problem.sample(1), 3, axis=0)
    paths.begin(x0, 0)
    paths.step([[-7.0], [0.2], [7.0]])
    far = paths.states
    paths.begin(x0, 0)
    paths.step([[-1.0], [0.2], [0.5]])
    np.testing.assert_array_equal(paths.states, far)


def test_paths_that_diverge():
    problem = sb.problem("cartpole", steps=STEPS)
    paths = Paths(problem, 2)
    paths.begin(problem.sample(2), 0)
    paths.step(np.zeros((2, 1)))
    with pytest.raises(sb.DivergedError, match="after time step 1") as caught:
        paths.step([[0.0], [3e38]])
        paths.step([[0.0], [3e38]])
    assert caught.value.step == 2
    with pytest.raises(ValueError, match="reset"):
        paths.step(np.zeros((2, 1)))


# --- Gymnasium ----------------------------------------------------------------------------------------------------


def returns(env, policy, x0, seed):
    """Sums of the rewards of an environment of many paths, until they are over."""
    _, info = env.reset(seed=seed, options={"state": x0})
    total, truncated = 0.0, np.zeros(1, bool)
    while not truncated.any():
        _, rewards, terminated, truncated, info = env.step(policy(info["state"]))
        assert not np.any(terminated)
        total = total + rewards
    return total


@pytest.mark.parametrize("task", ["cartpole", "guidance", "quantum", "pendulum"])
def test_the_return_of_a_policy_is_minus_its_loss(ours, task):
    """As published, in float32."""
    problem = sb.problem(task, output_init="glorot")
    run = sb.train(problem, epochs=1, train_count=8, test_count=8)
    x0 = problem.sample(4, 7)
    expected = -problem.losses(run.theta, x0)[0]
    np.testing.assert_allclose(returns(ours.make_vec_env(problem, 4), run.policy, x0, 0), expected, rtol=1e-6, atol=1e-6)
    env = ours.make_env(problem)
    for start, value in zip(x0, expected):
        _, info = env.reset(options={"state": start})
        total, steps, truncated = 0.0, 0, False
        while not truncated:
            _, reward, _, truncated, info = env.step(run.policy(info["state"]))
            total, steps = total + reward, steps + 1
        assert steps == problem.steps and total == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["running", "changes", "random"])
def test_the_return_of_a_policy_with_other_costs(ours, name):
    problem = problem_of(name)
    theta, x0 = problem.init(1), problem.sample(3, 7)
    found = returns(ours.make_vec_env(problem, 3), policies.of(problem, theta), x0, 11)
    np.testing.assert_allclose(found, -problem.losses(theta, x0, seed=11)[0], rtol=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_checker_of_gymnasium(ours, name):
    """It has nothing to say, but for actions that are not between -1 and 1, which are what the problem allows."""
    from gymnasium.utils.env_checker import check_env

    problem = problem_of(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(ours.make_env(problem))
    said = {str(each.message) for each in caught}
    allowed = ("action space minimum value is -inf", "action space maximum value is inf", "we recommend using a symmetric")
    if problem.limits is None:
        said = {line for line in said if not any(words in line for words in allowed)}
    if name == "pendulum":  # limits that are not symmetric
        said = {line for line in said if allowed[-1] not in line}
    assert not said


@pytest.mark.parametrize("name", ["CartPole", "Guidance", "Quantum", "Pendulum"])
def test_registered_environments(gym, ours, name):
    """The checker has nothing to say about them with normalised actions; without more options they are as published."""
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(f"stablebptt/{name}-v0", bound=1)
        check_env(env.unwrapped)
        many = gym.make_vec(f"stablebptt/{name}-v0", num_envs=3, bound=1)
        assert isinstance(many, ours.ProblemVectorEnv)
        published = gym.make(f"stablebptt/{name}-v0").unwrapped
    assert repr(published.problem) == repr(sb.problem(name.lower())) and published.problem.limits is None
    assert env.observation_space == many.single_observation_space and env.action_space == many.single_action_space
    assert gym.make(env.spec).unwrapped.problem.limits is not None
    with pytest.raises(ValueError, match="no option 'length'"):
        gym.make(f"stablebptt/{name}-v0", length=1)


@pytest.mark.parametrize("name", ["CartPole", "Guidance", "Quantum"])
def test_the_checker_has_nothing_to_say_where_actions_have_a_unit(gym, ours, name):
    """Actions from -1 to 1, and the problem as published, without limits."""
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(f"stablebptt/{name}-v0", unit=10).unwrapped
        check_env(env)
    assert env.problem.limits is None and env.action_space.high.max() == 1 == -env.action_space.low.min()
    with pytest.raises(ValueError, match="unit"):
        ours.make_env(env.problem, unit=0)


def test_a_unit_scales_actions(gym, ours):
    problem = sb.problem("cartpole", steps=3, bound=20)
    plain, scaled, many = ours.make_env(problem), ours.make_env(problem, unit=10), ours.make_vec_env(problem, 2, unit=10)
    assert scaled.action_space.high == 2
    for env in (plain, scaled, many):
        env.reset(seed=5)
    seen = plain.step(np.array([5.0], np.float32))[0]
    np.testing.assert_array_equal(scaled.step(np.array([0.5], np.float32))[0], seen)
    assert many.step(np.full((2, 1), 0.5, np.float32))[0].shape == (2, 4)
    assert gym.make(scaled.spec).unwrapped.unit == 10


def test_all_tasks_are_registered(gym, ours):
    assert {ours.environment_id(task) for task in sb.tasks.TASKS} <= set(gym.registry)
    assert ours.environment_id("double_pendulum") == "stablebptt/DoublePendulum-v0"


def test_seeds(ours):
    """A seed decides start and noise as everywhere; the seed of an episode repeats it."""
    problem = problem_of("random")
    env, controls = ours.make_env(problem), np.zeros((STEPS, 1))

    def episode(**how):
        seen, info = env.reset(**how)
        states = [info["state"]]
        np.testing.assert_array_equal(seen, info["state"].ravel())
        states += [env.step(control)[4]["state"] for control in controls]
        return np.array(states), info["seed"]

    states, seed = episode(seed=3)
    still = np.zeros(problem.n_parameters)
    np.testing.assert_array_equal(states, problem.rollout(still, problem.sample(1, 3), seed=3).states[0])
    following, drawn = episode()
    assert seed == 3 != drawn and not np.array_equal(states, following)
    np.testing.assert_array_equal(episode(seed=3)[0], states)
    assert episode()[1] == drawn
    np.testing.assert_array_equal(episode(seed=drawn)[0], following)
    with pytest.raises(ValueError, match="no option 'start'"):
        env.reset(options={"start": 0})
    with pytest.raises(ValueError, match=r"state has shape \(4,\); it must be \(2, 2\)"):
        env.reset(options={"state": np.zeros(4)})
    with pytest.raises(ValueError, match=r"the action has shape \(1, 1\); it must be \(1,\)"):
        env.step([[0.0]])


def test_many_paths_begin_anew(ours):
    """After the last time step, the next one is a reset (NEXT_STEP), as in Gymnasium's own vectors."""
    problem = problem_of("random")
    env = ours.make_vec_env(problem, 3)
    seen, infos = env.reset(seed=4)
    assert seen in env.observation_space and env.action_space.sample().shape == (3, 1)
    np.testing.assert_array_equal(infos["state"], problem.sample(3, 4))
    assert infos["_state"].all() and infos["seed"].tolist() == [4] * 3
    for t in range(STEPS):
        seen, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert rewards.shape == (3,) and not terminated.any() and (truncated == (t == STEPS - 1)).all()
    last = seen.copy()
    seen, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
    assert not rewards.any() and not truncated.any() and infos["seed"][0] != 4 and not np.array_equal(seen, last)
    np.testing.assert_array_equal(infos["state"], problem.sample(3, int(infos["seed"][0])))
    env.step(env.action_space.sample())
    env.reset(seed=4)
    np.testing.assert_array_equal(env.step(np.zeros((3, 1)))[4]["state"], stepped(problem, 4))


def stepped(problem, seed):
    """States of three samples after a step without control."""
    return problem.rollout(np.zeros(problem.n_parameters), problem.sample(3, seed), seed=seed).states[:, 1]


def test_the_cartpole_is_that_of_gymnasium(gym):
    """The step of CartPole-v1 with its semi-implicit integrator, and any force in place of two."""
    theirs = gym.make("CartPole-v1").unwrapped
    theirs.kinematics_integrator = "semi-implicit"
    theirs.reset(seed=0)
    random = np.random.default_rng(0)
    problem = sb.problem("cartpole", steps=1, duration=theirs.tau, dtype="float64")
    system = problem.system
    assert (system.gravity, system.pole_mass, system.half_length) == (theirs.gravity, theirs.masspole, theirs.length)
    assert system.total_mass == theirs.total_mass and system.dt == theirs.tau
    count = 1000
    states = random.uniform([-5, -5, -np.pi, -5], [5, 5, np.pi, 5], (count, 4))
    forces = random.uniform(-30, 30, (count, 1))
    paths = Paths(problem, count)
    paths.begin(states.reshape(count, 2, 2), 0)
    paths.step(forces)
    for state, (force,), ours in zip(states, forces, paths.states.reshape(count, 4)):
        theirs.state, theirs.force_mag, theirs.steps_beyond_terminated = state, force, None
        theirs.step(1)  # the action to the right: +force_mag
        np.testing.assert_allclose(ours, theirs.state, rtol=1e-15, atol=1e-15)


def test_the_section_of_the_page(gym, ours, capsys):
    """docs/adding_a_system.md, "From Gymnasium"."""
    page = (ROOT / "docs" / "adding_a_system.md").read_text(encoding="utf-8")
    section = page.split("## From Gymnasium")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(compile(code, "docs/adding_a_system.md", "exec"), names)
    expected = -sb.problem("cartpole", steps=20).losses(names["run"].theta, names["x0"])[0]
    np.testing.assert_allclose(names["total"], expected, rtol=1e-6)


def test_nothing_is_imported_unasked():
    code = "import sys, stablebptt as sb, stablebptt.interop.paths; sb.problem('cartpole'); print('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
