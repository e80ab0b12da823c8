"""Policies: the controls of the kernels in plain NumPy, and files that need nothing else."""

import io
import json
import subprocess
import sys
import time
import types
import zipfile

import numpy as np
import pytest
from policy_problems import PROBLEMS, problem_of

import stablebptt as sb
from stablebptt.data.errors import FileFormatError
from stablebptt.tasks import policies

# Every activation has its own machine code.
LONG = {"relu", "gelu", "silu", "softplus", "sin", "identity", "herd"}


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in PROBLEMS])
def test_a_policy_gives_the_controls_of_the_kernels(name, tmp_path):
    problem = problem_of(name)
    noise = np.random.default_rng(0).standard_normal(problem.n_parameters)
    theta = (problem.init(3) + 0.1 * noise).astype(problem.dtype)
    policy, path = policies.of(problem, theta), problem.rollout(theta, problem.sample(9, 1))
    if name == "noisy":  # the noise belongs to the simulation
        path = sb.problem("cartpole", steps=3, output_init="glorot", observe="angles=2").rollout(theta, problem.sample(9, 1))
    controls, largest = policy(path.states[:, :-1]), np.abs(path.controls).max()
    assert controls.shape == path.controls.shape and controls.dtype == problem.dtype
    options = {"observe": "angles=2"} if name == "noisy" else {}
    exactly = sb.problem(problem.task, **{**problem.options, "dtype": "float64", **options})
    exact = exactly.rollout(theta.astype(float), path.states[:, 1].astype(float)).controls[:, 0]
    assert np.abs(controls[:, 1] - exact).max() <= (1e-6 if problem.dtype == np.float32 else 1e-14) * largest
    np.testing.assert_allclose(controls, path.controls, rtol=1e-5, atol=2e-6 * largest)  # two roundings
    for state, control in zip(path.states[:, 0], controls[:, 0]):
        one = policy(state)
        assert one.shape == problem.control_shape and np.abs(one - control).max() <= 1e-6 * largest
    policy.save(tmp_path / "p.npz")
    again = sb.Policy.load(tmp_path / "p.npz")
    assert np.array_equal(again(path.states), policy(path.states)) and repr(again) == repr(policy)
    assert policy(problem.sample(3).tolist()).shape == (3, *problem.control_shape)


def test_the_policies_of_a_run(tmp_path):
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    sizes = {"train_count": 16, "test_count": 8, "optimizer": sb.optimizers.adam(0.3)}
    run = sb.train(problem, "R", 4, out=tmp_path / "run.h5", **sizes)
    assert not np.array_equal(run.theta, run.best_theta)
    x0 = problem.sample(5)
    for each in (run, sb.load(tmp_path / "run.h5")):
        for policy, theta in ((each.policy, run.theta), (each.best_policy, run.best_theta)):
            np.testing.assert_allclose(policy(x0), problem.rollout(theta, x0).controls[:, 0], rtol=1e-5)
    assert repr(run.policy) == "Policy(cartpole, 1 pole): states (2, 2), controls (1,), 2 stages, float32"


def test_a_policy_keeps_its_own_numbers():
    problem = problem_of("cartpole")
    theta, state = problem.init(), problem.sample(1)[0]
    policy, kept = policies.of(problem, theta), state.copy()
    control = policy(state)
    theta[:] = 0
    policy(state)[:] = 5
    assert np.array_equal(policy(state), control) and np.array_equal(state, kept)


def test_states_that_do_not_fit():
    policy = policies.of(problem_of("cartpole"), problem_of("cartpole").init())
    for wrong in (np.zeros(4), np.zeros((2, 3)), np.zeros((5, 2, 3)), 0.0):
        with pytest.raises(ValueError, match=r"states have shape .*; they must be \(2, 2\), or several of them"):
            policy(wrong)
    assert policy(np.zeros((0, 2, 2))).shape == (0, 1) and policy(np.zeros((2, 3, 2, 2))).shape == (2, 3, 1)
    assert np.isnan(policy(np.full((2, 2), np.nan))).all()


@pytest.mark.slow
def test_scales_of_an_observation():
    """Also nested ones, and beside parts without."""
    see = sb.observations
    scaled = see.scale(see.join(see.scale(see.choose(0, 1), 0.5, 2.0), see.angles(2)), [0.1] * 7, np.arange(1.0, 8))
    problem = sb.problem("cartpole", steps=3, output_init="glorot", dtype="float64", observe=scaled)
    path = problem.rollout(problem.init(1), problem.sample(5))
    controls = policies.of(problem, problem.init(1))(path.states[:, :-1])
    np.testing.assert_allclose(controls, path.controls, rtol=1e-12)


def test_what_is_no_policy():
    class Own:
        controller = object()

    with pytest.raises(ValueError, match="the controller object is your own; a policy knows our networks only"):
        policies.of(Own(), np.zeros(1))
    foreign = types.SimpleNamespace(observation=object(), n_state=4, steps=3)
    with pytest.raises(ValueError, match="the observation object is your own; a policy knows ours only"):
        policies.signals_of(foreign)


def test_a_policy_that_sees_the_time_and_a_reference(tmp_path):
    see, steps = sb.observations, 4
    signal = np.random.default_rng(0).standard_normal((3, 2))  # shorter than the path: its last value goes on
    seen = see.scale(see.join(see.angles(2), see.time(0.5), see.reference(signal, 2)), 0.1, np.arange(1.0, 13.0))
    problem = sb.problem("cartpole", steps=steps, output_init="glorot", dtype="float64", observe=seen)
    theta, x0 = problem.init(1), problem.sample(5)
    path, policy = problem.rollout(theta, x0), policies.of(problem, theta)
    policy.save(tmp_path / "p.npz")
    for each in (policy, sb.Policy.load(tmp_path / "p.npz")):
        for t in range(steps):
            np.testing.assert_allclose(each(path.states[:, t], t), path.controls[:, t], rtol=1e-12)
            np.testing.assert_allclose(each(path.states[2, t], t), path.controls[2, t], rtol=1e-12)
    for wrong in (None, -1, steps):
        with pytest.raises(ValueError, match=r"this policy sees the time, give the time step: policy\(x, t\), t from 0 to 3"):
            policy(x0, wrong)
    with pytest.raises(ValueError, match=r"the policy sees the time or a reference; only .npz can hold that"):
        sb.export(policy, tmp_path / "p.c")
    assert not (tmp_path / "p.c").exists()


def test_a_saved_policy_needs_numpy_alone(tmp_path):
    problem = problem_of("quantum")
    policy, states = policies.of(problem, problem.init()), problem.sample(3)
    policy.save(tmp_path / "p.npz")
    np.save(tmp_path / "x.npy", states)
    code = """
import sys
for name in ("numba", "llvmlite", "h5py", "scipy", "click", "matplotlib", "tqdm"):
    sys.modules[name] = None
import numpy as np, stablebptt as sb
policy = sb.Policy.load("p.npz")
np.save("c.npy", policy(np.load("x.npy")))
policy.save("q.npz")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "c.npy"), policy(states))
    assert np.array_equal(sb.Policy.load(tmp_path / "q.npz")(states), policy(states))


def test_files_are_not_replaced_by_accident(tmp_path):
    policy = policies.of(problem_of("cartpole"), problem_of("cartpole").init())
    policy.save(tmp_path / "p.npz")
    with pytest.raises(FileExistsError, match="force=True"):
        policy.save(tmp_path / "p.npz")
    policy.save(tmp_path / "p.npz", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        policy.save(tmp_path / "nowhere" / "p.npz")


def spoil(path, change):
    """Write a file again with changed words and arrays."""
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(bytes(arrays["policy"]))
    change(about, arrays)
    arrays["policy"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, n: a.update(version=99), lambda a, n: a.update(format="x"), lambda a, n: a.pop("stages"),
        lambda a, n: n.pop("0_bias"),
        lambda a, n: a.update(stages=[]), lambda a, n: a.update(state_shape=[2, -2]), lambda a, n: a.update(control_shape=[2]),
        lambda a, n: a.update(state_shape=3), lambda a, n: a["stages"][0].update(activation="exec"),
        lambda a, n: a["stages"][0].update(stage="system"), lambda a, n: a["stages"][0].update(more=1),
        lambda a, n: a["stages"][0].update(windows=10**9), lambda a, n: a["stages"][0].update(stride=0.5),
        lambda a, n: n.update({"0_kernel": n["0_kernel"][:-1]}), lambda a, n: n.update({"0_kernel": n["0_kernel"].astype(int)}),
        lambda a, n: n.update({"0_bias": n["0_bias"].astype(np.float16)}),
        lambda a, n: n.update({"0_kernel": n["0_kernel"][None]}), lambda a, n: n.update({"1_kernel": n["1_kernel"].T}),
        lambda a, n: a.update(stages=[[[]]]),
    ],
)  # fmt: skip
def test_spoiled_files_are_refused(tmp_path, change):
    problem = sb.problem("cartpole", hidden=(3,))
    policies.of(problem, problem.init()).save(tmp_path / "p.npz")
    spoil(tmp_path / "p.npz", lambda about, arrays: None)
    sb.Policy.load(tmp_path / "p.npz")
    spoil(tmp_path / "p.npz", change)
    with pytest.raises(FileFormatError, match=r"p\.npz holds no policy of this version") as caught:
        sb.Policy.load(tmp_path / "p.npz")
    assert "\n" not in str(caught.value)


def header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("content", [
    b"", b"x", b"\x93NUMPY", header((10**12,)), header((2,)) + b"x" * 9, header((1,), "|O") + b"x" * 8, header((-1,)),
])  # fmt: skip
def test_hostile_archives_are_refused(tmp_path, content):
    """Arrays that claim more than there is, hold objects, or are none."""
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("policy.npy", content)
    with pytest.raises(FileFormatError, match=r"p\.npz"):
        sb.Policy.load(tmp_path / "p.npz")
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"p\.npz is no policy, or damaged"):
        sb.Policy.load(tmp_path / "p.npz")


def test_a_policy_answers_at_once():
    """The published network takes about 8 us for a state (benchmarks/policies.py); a busy machine gets ten times that."""
    problem = sb.problem("cartpole")
    policy, state = policies.of(problem, problem.init()), problem.sample(1)[0]
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(50):
            policy(state)
        times.append((time.perf_counter() - begin) / 50)
    assert min(times) < 80e-6
