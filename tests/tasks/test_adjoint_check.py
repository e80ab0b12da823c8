"""What `check` says of right adjoints, of wrong ones, of broken contracts; and mistakes that plain Python names."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.adjoint.generics import control_vjp, cost_vjp, step_batch_vjp, step_sample_vjp, step_vjp
from stablebptt.data import run_file
from stablebptt.data.run_file import FileFormatError
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Controller, System, control, cost, step, step_batch, step_sample
from stablebptt.tasks import adjoint_check, adjoint_check_states, plain_python

# What is wrong with a ball's functions.
RIGHT, SIGN_IN_CONTACT, MISSING_TERM, SWAPPED, OFF_BY_ONE, ONLY_RISING, OVERWRITES, OVERWRITES_LATER, FIRST_ONLY = range(9)
UNWRITTEN_IN_CONTACT, CHANGES_STATE, CHANGES_COTANGENTS, ACCUMULATES, NOT_A_NUMBER, BATCH_DIFFERS, SAMPLE_WRONG = range(9, 16)


class Ball(System):
    """A ball over a ground that is a stiff spring with a damper: state (height, rate), control: a thrust."""

    fault: int = RIGHT
    dt: float = 0.002
    stiffness: float = 1e4
    damping: float = 20.0

    state_shape = (2,)
    control_shape = (1,)


@implements(step, Ball)
def _step(s, x, c, x_next):
    force = c[0] - 9.8
    if x[0] < 0:
        force += -s.stiffness * x[0] - s.damping * x[1]
    rate = x[1] + s.dt * force
    if s.fault == ACCUMULATES:
        x_next[1] += rate
    else:
        x_next[1] = rate
    if not (s.fault == UNWRITTEN_IN_CONTACT and x[0] < 0):
        x_next[0] = x[0] + s.dt * rate
    if s.fault == CHANGES_STATE:
        x[1] = rate


@implements(step_vjp, Ball)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        w = 0 if s.fault == FIRST_ONLY else v
        rate_bar = lam[w, 1] + s.dt * lam[w, 0]
        if s.fault == MISSING_TERM:
            rate_bar = lam[w, 1]
        lam_x[v, 0] += lam[w, 0]
        lam_x[v, 1] += rate_bar
        if x[0] < 0:
            sign = 1 if s.fault == SIGN_IN_CONTACT else -1
            lam_x[v, 0] -= s.dt * s.stiffness * rate_bar
            lam_x[v, 1] += sign * s.dt * s.damping * rate_bar
        if s.fault == ONLY_RISING and x[1] > 0:
            lam_x[v, 1] *= 1.01
        if s.fault == SWAPPED:
            lam_x[v, 0], lam_x[v, 1] = lam_x[v, 1], lam_x[v, 0]
        thrust_bar = s.dt * lam[w - 1 if s.fault == OFF_BY_ONE else w, 1] + s.dt * s.dt * lam[w, 0]
        if s.fault == OVERWRITES or (s.fault == OVERWRITES_LATER and v == 2):
            lam_c[v, 0] = thrust_bar
        else:
            lam_c[v, 0] += thrust_bar
        if s.fault == NOT_A_NUMBER and x[0] < 0:
            lam_c[v, 0] = np.nan
        if s.fault == CHANGES_COTANGENTS:
            lam[v, 0] = 0


@implements(step_batch, Ball)
def _step_batch(s, x, c, x_next, scratch):
    for b in range(x.shape[0]):
        step(s, x[b], c[b], x_next[b])
        if s.fault == BATCH_DIFFERS and b > 0:
            x_next[b, 0] += 1e-6 * x[b, 1]


@implements(step_batch_vjp, Ball)
def _step_batch_vjp(s, x, x_next, c, lam, lam_x, lam_c, scratch):
    for b in range(x.shape[0]):
        step_vjp(s, x[b], c[b], lam[b], lam_x[b], lam_c[b])
        if s.fault == BATCH_DIFFERS and b > 0:
            for v in range(lam.shape[1]):
                lam_x[b, v, 1] += 1e-6 * lam[b, v, 0]


@implements(step_sample, Ball)
def _step_sample(s, x, c, x_next, scratch):
    step(s, x, c, x_next)


@implements(step_sample_vjp, Ball)
def _step_sample_vjp(s, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_vjp(s, x, c, lam, lam_x, lam_c)
    if s.fault == SAMPLE_WRONG:
        lam_c[0, 0] += s.dt * lam[0, 1]


class Rest(Struct):
    """Squared height and rate, as far as the rate is above a limit."""

    fault: int = RIGHT


@implements(cost, Rest)
def _cost(loss, x):
    over = max(abs(x[1]) - 0.5, 0.0)
    return x[0] * x[0] + over * over


@implements(cost_vjp, Rest)
def _cost_vjp(loss, x, cost_bar, x_bar):
    over = max(abs(x[1]) - 0.5, 0.0)
    x_bar[1] += cost_bar * 2 * over * (1.0 if x[1] > 0 or loss.fault == SIGN_IN_CONTACT else -1.0)
    if loss.fault == OVERWRITES:
        x_bar[0] = cost_bar * 2 * x[0]
    else:
        x_bar[0] += cost_bar * 2 * x[0]


class Thruster(Controller):
    """``c = k . x``, not above a limit."""

    fault: int = RIGHT
    limit: float = 1.0

    def layout(self):
        return {"thruster/kernel": (2, 1)}


@implements(control, Thruster)
def _control(controller, theta, x, c):
    value = theta[0] * x[0] + theta[1] * x[1]
    if not (controller.fault == UNWRITTEN_IN_CONTACT and value > 0):
        c[0] = min(value, controller.limit)


@implements(control_vjp, Thruster)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    if theta[0] * x[0] + theta[1] * x[1] > controller.limit and controller.fault != SIGN_IN_CONTACT:
        return
    for k in range(2):
        if controller.fault == OVERWRITES:
            theta_bar[k] = c_bar[0] * x[k]
        else:
            theta_bar[k] += c_bar[0] * x[k]
        if controller.fault == OVERWRITES_LATER:
            x_bar[k] = c_bar[0] * theta[k]
        else:
            x_bar[k] += c_bar[0] * theta[k]


def above(random, count):
    """At rest, clear of the ground."""
    states = np.zeros((count, 2))
    states[:, 0] = random.uniform(0.05, 0.2, count)
    return states


def ball(system=RIGHT, loss=RIGHT, controller=RIGHT, **more):
    parts = {"system": Ball(system), "loss": Rest(loss), "controller": Thruster(controller)}
    return sb.problem(**parts, sample=above, steps=150, dt=Ball.dt, dtype="float64", title="ball", **more)


def wrong(found):
    return {(f.rule, f.argument) for f in found if not f.passed}


# --- a ball on a stiff ground -------------------------------------------------------------------------------------

STEPS = {"step", "step_batch", "step_sample"}
STATE, CONTROL, X_NEXT, COTANGENTS = ({(rule, name) for rule in STEPS} for name in ("state", "control", "x_next", "cotangents"))
BATCH = {(rule, a) for rule in ("control_batch", "control (unit cotangents)") for a in ("state", "parameters")}
ROLLOUT = {("whole rollout", "parameters")}


SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(3)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_adjoint_through_a_stiff_contact_is_right(seed):
    found = adjoint_check.check(ball(), seed)
    assert {f.rule for f in found} == {*STEPS, "cost", "control", *(rule for rule, _ in BATCH), "whole rollout"}
    for finding in found:
        assert finding.passed and finding.error < 1e-8 and finding.certainty <= 1e-7, finding
        assert 1e-8 < finding.step < 0.01, finding
    assert not wrong(adjoint_check.check_system(Ball(), seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_one_sign_in_the_contact_is_wrong(seed):
    """Although no initial state touches the ground."""
    found = adjoint_check.check(ball(SIGN_IN_CONTACT), seed)
    assert wrong(found) == STATE | ROLLOUT
    assert all(f.error > 0.01 and f.certainty < 1e-6 for f in found if not f.passed)


@pytest.mark.thinned(5)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SIGN_IN_CONTACT, STATE), (MISSING_TERM, STATE), (SWAPPED, STATE), (OFF_BY_ONE, CONTROL), (ONLY_RISING, STATE),
        (OVERWRITES, CONTROL), (OVERWRITES_LATER, CONTROL), (FIRST_ONLY, STATE | CONTROL), (NOT_A_NUMBER, CONTROL),
        (UNWRITTEN_IN_CONTACT, STATE | CONTROL | X_NEXT), (ACCUMULATES, X_NEXT), (CHANGES_COTANGENTS, COTANGENTS),
        (CHANGES_STATE, STATE | X_NEXT - {("step", "x_next")}),
        (BATCH_DIFFERS, {("step_batch", "x_next")}), (SAMPLE_WRONG, {("step_sample", "control")}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_step_is_found(fault, expected):
    assert wrong(adjoint_check.check_system(Ball(fault))) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "expected", "note"),
    [
        ({"system": OVERWRITES}, CONTROL | ROLLOUT, "add to lam_c"),
        ({"system": UNWRITTEN_IN_CONTACT}, STATE | CONTROL | X_NEXT | ROLLOUT, r"x_next[0] is not always written"),
        ({"loss": SIGN_IN_CONTACT}, {("cost", "state")}, ""),
        ({"loss": OVERWRITES}, {("cost", "state")}, "add to x_bar"),
        ({"controller": SIGN_IN_CONTACT}, {("control", "state"), ("control", "parameters")} | BATCH | ROLLOUT, ""),
        ({"controller": OVERWRITES}, {("control", "parameters")} | {b for b in BATCH if b[1] != "state"} | ROLLOUT, "theta_bar"),
        ({"controller": OVERWRITES_LATER}, {("control", "state")} | {b for b in BATCH if b[1] == "state"}, "add to x_bar"),
        ({"controller": UNWRITTEN_IN_CONTACT}, {("control", "c")}, "c[0] is not always written"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_part_is_found(parts, expected, note):
    found = adjoint_check.check(ball(**parts))
    named = wrong(found)
    assert named >= expected - ROLLOUT and {rule for rule, _ in named} <= {*(rule for rule, _ in expected | BATCH | ROLLOUT)}
    assert note in " ".join(f.note for f in found)


# --- the statistic ------------------------------------------------------------------------------------------------


def rule_of(function, slope):
    """A rule of a function of one number, at many places."""

    def vjp(inputs, bars):
        return {"x": bars * slope(inputs["x"])}

    return adjoint_check.Rule("f", lambda inputs: function(inputs["x"]), vjp, independent=frozenset("x"))


def judged(function, slope, places, **how):
    (finding,) = adjoint_check.findings(rule_of(function, slope), {"x": np.array(places, float)}, np.random.default_rng(0), **how)
    return finding


def step_function(x):
    return np.where(x > 0, 1.0, 0.0)


def bell(x):
    return 1e4 / np.cosh(np.clip(1e4 * x, -300, 300)) ** 2


AROUND = [0.0, 1e-12, -1e-9, 1e-6, -1e-4, 3e-3, 0.01, -0.02, 0.5, -3.0]
# A function, its slope, and a wrong one.
RULES = {
    "smooth": (np.sin, np.cos, lambda x: np.cos(x) * (1 + 1e-5)),
    "kink": (np.abs, np.sign, lambda x: np.where(x > 0.4, 0.99, np.sign(x))),
    "right side of a kink": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x >= 0), lambda x: np.where(x < 0, 0.0, 0.99)),
    "dead zone": (lambda x: np.sign(x) * np.maximum(np.abs(x) - 1e-3, 0), lambda x: np.abs(x) > 1e-3, lambda x: 1.0 + 0 * x),
    "jump": (lambda x: step_function(x) * (1 + x), step_function, lambda x: 0.999 * step_function(x)),
    "steep": (lambda x: np.tanh(1e4 * x), bell, lambda x: bell(x) * (1 + 1e-5 * (np.abs(x) > 5e-7))),
    "large": (lambda x: np.sin(x) + 1e4, np.cos, lambda x: 1.01 * np.cos(x)),
    "small": (lambda x: 1e-9 * np.sin(x), lambda x: 1e-9 * np.cos(x), lambda x: 1.00001e-9 * np.cos(x)),
    "constant": (lambda x: 0 * x + 2.0, lambda x: 0 * x, lambda x: 0 * x + 1e-6),
    "zero": (lambda x: 0 * x, lambda x: 0 * x, lambda x: 0 * x + 1e-20),
}


@pytest.mark.parametrize("name", RULES)
def test_kinks_and_steps_condemn_no_right_rule(name):
    function, slope, wrong_slope = RULES[name]
    right = judged(function, slope, AROUND)
    assert right.passed and right.error <= 1e-7, right
    assert judged(function, wrong_slope, AROUND).verdict == "WRONG"


@pytest.mark.parametrize("name", ["kink", "dead zone", "jump"])
def test_where_all_places_are_at_a_kink_nothing_is_said(name):
    function, slope, _ = RULES[name]
    kink = 1e-3 if name == "dead zone" else 0.0
    finding = judged(function, slope, [kink] * 5)
    assert finding.verdict == "unsure" and not finding.passed


def test_noise_is_no_error():
    """Single precision or a solver that stops early: the differences are less sure, and say so."""

    def noisy(x):
        return np.sin(x) + 1e-10 * np.modf(np.abs(np.sin(x * 1e8)) * 43758.5453)[0]

    def rounded(x):
        return np.sin(x.astype(np.float32)).astype(float)

    places = np.linspace(-3, 3, 200)
    for function in (noisy, rounded):
        right = judged(function, np.cos, places)
        assert right.passed and 1e-7 < right.certainty < 1e-3 and right.error < 1e-5, right
        assert judged(function, lambda x: 1.01 * np.cos(x), places).verdict == "WRONG"


def test_large_numbers_hide_no_small_ones():
    """A satellite's place [m] and rate [m/s]: the pull's part of the Jacobian is a millionth of the rest."""
    mu, angle = 3.986e14, np.linspace(0, 6, 100)

    def forward(inputs):
        place, rate = inputs["x"][:, :2], inputs["x"][:, 2:]
        rate = rate - mu * place / np.linalg.norm(place, axis=1, keepdims=True) ** 3
        return np.concatenate([place + rate, rate], axis=1)

    def jacobian(x, factor):
        place = x[:, :2]
        radius = np.linalg.norm(place, axis=1)[:, None, None]
        pull = -mu * np.eye(2) / radius**3 + factor * 3 * mu * place[:, :, None] * place[:, None, :] / radius**5
        one = np.broadcast_to(np.eye(2), pull.shape)
        return np.block([[one + pull, one], [pull, one]])

    states = np.stack([7e6 * np.cos(angle), 7e6 * np.sin(angle), -7.5e3 * np.sin(angle), 7.5e3 * np.cos(angle)], axis=1)
    for factor, verdict in ((1.0, "ok"), (1.0001, "WRONG")):

        def vjp(inputs, bars, factor=factor):
            return {"x": np.einsum("mno,noi->mni", bars, jacobian(inputs["x"], factor))}

        rule = adjoint_check.Rule("f", forward, vjp, frozenset("x"))
        (finding,) = adjoint_check.findings(rule, {"x": states}, np.random.default_rng(0))
        assert finding.verdict == verdict, finding


def test_small_lengths_are_seen():
    """A potential with a period of some nanometres [m]."""
    places = np.linspace(-3e-9, 3e-9, 50)
    for factor, verdict in ((1.0, "ok"), (1.001, "WRONG")):
        slope = lambda x, factor=factor: factor * 1e3 * np.cos(x / 1e-9)  # noqa: E731
        assert judged(lambda x: 1e-6 * np.sin(x / 1e-9), slope, places).verdict == verdict


def test_a_step_and_a_tolerance_of_ones_own():
    stiff = (lambda x: np.tanh(1e4 * x), lambda x: 1e4 / np.cosh(1e4 * x) ** 2)
    places = np.linspace(-1e-4, 1e-4, 9)
    assert judged(*stiff, places).passed
    coarse = judged(*stiff, places, step=0.1)
    assert not coarse.passed and coarse.step == 0.1
    fine = judged(*stiff, places, step=1e-7)
    assert fine.passed and fine.step == 1e-7
    off = judged(np.sin, lambda x: np.cos(x) * (1 + 1e-4), [0.1, 0.2])
    assert off.verdict == "WRONG" and judged(np.sin, lambda x: np.cos(x) * (1 + 1e-4), [0.1, 0.2], tolerance=1e-3).passed
    for bad, words in (({"step": 0}, "step is 0"), ({"step": "x"}, "step is 'x'"), ({"tolerance": -1.0}, "tolerance is -1")):
        with pytest.raises((ValueError, TypeError), match=words):
            adjoint_check.check_system(Ball(), **bad)


# --- states of one's own ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_states_decide_what_is_seen(tmp_path):
    """Over the ground the wrong sign has no effect; one state in it is enough."""
    over = np.array([[1.0, 0.0], [0.5, -2.0]])
    touching = np.array([[-0.01, -1.0]])
    np.save(tmp_path / "over.npy", over)
    np.save(tmp_path / "touching.npy", touching.astype(np.float32))
    for states in (over, tmp_path / "over.npy", str(tmp_path / "over.npy"), over.tolist()):
        assert not wrong(adjoint_check.check_system(Ball(SIGN_IN_CONTACT), states=states))
    for states in (touching, tmp_path / "touching.npy"):
        assert wrong(adjoint_check.check_system(Ball(SIGN_IN_CONTACT), states=states)) == STATE
    assert wrong(adjoint_check.check(ball(SIGN_IN_CONTACT), states=touching)) >= STATE


def test_states_from_files_of_ours(tmp_path):
    problem, path = ball(), tmp_path / "paths.h5"
    x0 = problem.sample(4)
    rolled = problem.rollout(problem.init(), x0)
    arrays = {"time": rolled.time, "states": rolled.states[None], "controls": rolled.controls[None], "loss": np.zeros((1, 4))}
    run = SimpleNamespace(problem=problem, config={"task": problem.task, "options": problem.options}, status="complete")
    run_file.save_paths(path, run, arrays, 0)
    states = adjoint_check_states.read_states(path, (2,))
    assert np.array_equal(states, rolled.states.reshape(-1, 2))
    assert wrong(adjoint_check.check(ball(SIGN_IN_CONTACT), states=path)) >= STATE
    with pytest.raises(ValueError, match=r"states of shape \(2,\); they must be \(3, 2\)"):
        adjoint_check_states.read_states(path, (3, 2))


def test_states_that_are_none(tmp_path):
    bad = {
        "shape": (np.zeros((4, 3)), ValueError, r"has shape \(4, 3\); it must be \(n, 2\)"),
        "empty": (np.zeros((0, 2)), (ValueError, FileFormatError), "shape.npy|empty"),
        "objects": (np.array([{}, []], dtype=object), FileFormatError, "damaged, or holds no array of numbers"),
        "words": (np.array([["a", "b"]]), TypeError, "real numbers"),
        "complex": (np.zeros((1, 2), complex), TypeError, "real numbers"),
        "infinite": (np.full((1, 2), np.inf), ValueError, "not finite"),
    }
    for name, (values, error, words) in bad.items():
        np.save(tmp_path / f"{name}.npy", values, allow_pickle=True)
        with pytest.raises(error, match=words):
            adjoint_check_states.read_states(tmp_path / f"{name}.npy", (2,))
    whole = (tmp_path / "shape.npy").read_bytes()
    np.savez(tmp_path / "many.npz", np.zeros((1, 2)))
    many, nested = (tmp_path / "many.npz").read_bytes(), b"\x93NUMPY\x01\x00v\x00{" + b"(" * 117
    for content in (whole[:-8], whole[:20], b"", b"0.1 0.2", many, nested):
        (tmp_path / "file.npy").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"file\.npy"):
            adjoint_check_states.read_states(tmp_path / "file.npy", (2,))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="no file"):
        adjoint_check_states.read_states(tmp_path / "folder", (2,))
    with pytest.raises(FileNotFoundError):
        adjoint_check_states.read_states(tmp_path / "absent.npy", (2,))


# --- mistakes that plain Python names -----------------------------------------------------------------------------

MISTAKES = '''
import math

import numpy as np
from numba import njit

import stablebptt as sb
from stablebptt.adjoint.generics import control_vjp, cost_vjp, step_batch_vjp, step_vjp
from stablebptt.kernels.core.dispatch import implements, inline
from stablebptt.kernels.generics import Controller, System, control, cost, step, step_batch
from stablebptt.kernels.core.structs import Struct


TABLE = np.arange(3.0)


class Spring(System):
    stiffness: float = 2.0
    state_shape = (2,)
    control_shape = (1,)


class Loss(Struct):
    place: float = 0.0


class Gain(Controller):
    def layout(self):
        return {"gain/kernel": (2, 1)}


@inline
def push(system, x, c):
    return c[0] - system.stiffness * x[0]


@njit
def pull(x, k):
    return x[k]


def factory(helper):
    @implements(step, Spring)
    def _step(system, x, c, x_next):
        x_next[1] = x[1] + 0.1 * push(system, x, c)
        x_next[0] = helper(x, 0) + 0.1 * x_next[1]


factory(pull)


@implements(step_vjp, Spring)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        bar = lam[v, 1] + 0.1 * lam[v, 0]
        lam_x[v, 0] += lam[v, 0] - 0.1 * system.stiffness * bar
        lam_x[v, 1] += bar
        lam_c[v, 0] += 0.1 * bar


@implements(cost, Loss)
def _cost(loss, x):
    return (x[0] - loss.place) ** 2 + math.sqrt(1 + x[1] * x[1])


@implements(cost_vjp, Loss)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += cost_bar * 2 * (x[0] - loss.place)
    x_bar[1] += cost_bar * x[1] / math.sqrt(1 + x[1] * x[1])


@implements(control, Gain)
def _control(controller, theta, x, c):
    c[0] = theta[0] * x[0] + theta[1] * x[1]


@implements(control_vjp, Gain)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    for k in range(2):
        theta_bar[k] += c_bar[0] * x[k]
        x_bar[k] += c_bar[0] * theta[k]


def make(dtype="float32"):
    return sb.problem(
        system=Spring(), loss=Loss(), controller=Gain(), sample=lambda random, count: random.uniform(-1, 1, (count, 2)),
        steps=3, dt=0.1, dtype=dtype,
    )
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Import the module above with one text in place of another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(old="", new="", name="mistakes"):
        assert old in MISTAKES
        (tmp_path / f"{name}.py").write_text(MISTAKES.replace(old, new, 1) if old else MISTAKES)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("x_next[1] = x[1]", "x_next[1] = x[7]", r"index 7 is out of bounds for axis 0 with size 2"),
        ("x_next[1] = x[1]", "x_next[1] = x[-3]", r"index -3 is out of bounds"),
        ("x_next[0] = helper", "x_next[2] = helper", r"index 2 is out of bounds"),
        ("return x[k]", "return x[k + 2]", r"index 2 is out of bounds"),
        ("return x[k]", "return x[j]", r"name 'j' is not defined"),
        ("c[0] - system.stiffness * x[0]", "c[1] - system.stiffness * x[0]", r"index 1 is out of bounds"),
        ("c[0] - system.stiffness * x[0]", "c[0] - system.stifness * x[0]", r"'Spring' object has no attribute 'stifness'"),
        ("c[0] - system.stiffness * x[0]", "c[0] - TABLE[3] * x[0]", r"index 3 is out of bounds"),
        ("bar = lam[v, 1]", "bar = lam[v, 2]", r"index 2 is out of bounds for axis 1"),
        ("bar = lam[v, 1]", "bar = lam[v + 1, 1]", r"index 2 is out of bounds for axis 0"),
        ("lam_c[v, 0] += 0.1 * bar", "lam_c[v, 0] += dt * bar", r"name 'dt' is not defined"),
        ("x_bar[0] += cost_bar * 2", "x_bar[5] += cost_bar * 2", r"index 5 is out of bounds"),
        ("math.sqrt(1 + x[1] * x[1])", "math.sqroot(1 + x[1] * x[1])", r"module 'math' has no attribute 'sqroot'"),
        ("theta[1] * x[1]", "theta[2] * x[1]", r"index 2 is out of bounds for axis 0 with size 2"),
        ("for k in range(2):", "for k in range(3):", r"index 2 is out of bounds"),
    ],
)
def test_mistakes_are_named_with_file_and_line(module, old, new, words):
    wrong = module(old, new)
    line = next(n for n, text in enumerate(MISTAKES.replace(old, new, 1).splitlines(), 1) if new in text)
    line += new.startswith("for")  # the loop's body
    for make in (wrong.make, lambda: wrong.make("float64")):
        with pytest.raises(ValueError, match=words) as caught:
            make()
        assert f"mistakes.py, line {line}," in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_line_names_them_in_one_line(module, capsys):
    module("x_next[1] = x[1]", "x_next[1] = x[7]")
    for command in (["check", "mistakes:Spring"], ["check", "mistakes:make"], ["custom", "check", "mistakes:make"],
                    ["custom", "train", "mistakes:make", "--out", "x.h5"]):  # fmt: skip
        assert call(*command) == 2
        err = capsys.readouterr().err
        assert "mistakes.py, line 45, in _step (x_next[1] = x[7]" in err and err.count("\n") == 1


def test_what_only_the_compiler_can_do_is_left_to_it(module):
    """Errors of plain Python alone block nothing; the problem is made and computes."""
    for old, new in (
        ("math.sqrt(1 + x[1] * x[1])", "math.sqrt(1 + x[1] * x[1]) + 0 * math.exp(x[1] * x[1] * 1e4) / (loss.place + 1e-30)"),
        ("c[0] - system.stiffness * x[0]", "c[0] - system.stiffness * x[0] + 0 * lanes_only(x)"),
        ("x_next[1] = x[1]", "x_next[1] = x[-2] * 0 + x[1:9][0]"),
    ):
        extra = """
from numba.core import types
from numba.extending import overload


def lanes_only(x):
    raise NotImplementedError("for compiled code only")


@overload(lanes_only)
def _lanes_only(x):
    return lambda x: x[0]


@inline
def push("""
        assert old in MISTAKES
        text = MISTAKES.replace(old, new, 1).replace("\n@inline\ndef push(", extra, 1)
        loaded = module(MISTAKES, text, "right")
        problem = loaded.make()
        assert problem.n_state == 2


def test_nothing_is_called_for_long(module):
    """A step over all pairs of many objects would take minutes in plain Python."""
    loaded = module("x_next[1] = x[1]", "for i in range(10**9):\n            x_next[1] = x[0]\n        x_next[1] = x[1]")
    assert loaded.make().n_state == 2


def test_our_own_functions_are_not_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(plain_python, "plain", lambda function, known: tried.append(function.__name__))
    plain_python.try_problem(sb.problem("cartpole", steps=4, hidden=(3,)), np.ones((1, 4)))
    assert not tried
    plain_python.try_problem(ball(), np.ones((1, 2)), (2,))
    assert {"_step", "_step_vjp", "_cost", "_cost_vjp", "_control", "_control_vjp"} <= set(tried)


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_options_of_the_commands(module, capsys, tmp_path):
    module()
    np.save(tmp_path / "states.npy", np.zeros((3, 2)) + 0.1)
    (tmp_path / "words.npy").write_text("0.1 0.2")
    assert call("check", "mistakes:Spring", "--step", 1e-3, "--tolerance", 1e-5, "--states", "states.npy", "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["function"] for r in records] == ["step"] * 2 + ["step_batch"] * 2 + ["step", "step_vjp"]
    assert [r["in_vectors"] for r in records[-2:]] == [True, True] and records[-1]["event"] == "compiled"
    records = records[:-2]
    assert [r["argument"] for r in records] == ["state", "control"] * 2
    assert all(r["step"] == 1e-3 and r["passed"] and r["error"] < 1e-5 and r["verdict"] == "ok" for r in records)
    np.save(tmp_path / "carts.npy", np.zeros((3, 2, 2)) + 0.1)
    assert call("cartpole", "check", "--steps", 3, "--hidden", 4, "--states", "carts.npy", "--tolerance", 1e-6) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["function", "argument", "step", "sure", "to", "error"]
    assert all(line.endswith("  ok") and len(line) <= 80 for line in lines[1:]) and len(lines) > 9
    assert call("check", "mistakes:Spring", "--states", "words.npy") == 4 and "words.npy" in capsys.readouterr().err
    assert call("check", "mistakes:Spring", "--states", "absent.npy") == 5
    assert call("check", "mistakes:Spring", "--step", -1) == 2 and "step is -1" in capsys.readouterr().err
    assert call("check", "mistakes:Spring", "--tolerance", "nan") == 2
    assert call("cartpole", "check", "--states", "states.npy") == 2
    assert "it must be (n, 2, 2)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_what_is_wrong(module, capsys):
    module("lam_c[v, 0] +=", "lam_c[v, 0] =")
    assert call("check", "mistakes:Spring", "--quiet") == 1
    out, err = capsys.readouterr()
    assert out.count("WRONG") == 1 and "step (control: the vjp must add to lam_c, whatever it holds)" in err
    assert err.count("\n") == 1


def test_an_index_in_a_branch_is_named(module, capsys):
    module("x_next[1] = x[1]", "x_next[1] = x[7] if x[0] > 3.0 else x[1]")
    assert call("check", "mistakes:Spring", "--quiet") == 2
    words = capsys.readouterr().err
    assert "index 7 is out of bounds" in words and "mistakes.py, line" in words and words.count("\n") == 1


class Growing(System):
    """A state that grows with every step: x_0' = growth x_0 + dt c, x_1' = growth x_1 + x_0^2."""

    growth: float
    fault: int = RIGHT
    dt: float = 0.1

    state_shape = (2,)
    control_shape = (1,)


@implements(step, Growing)
def _grow(s, x, c, x_next):
    x_next[0] = s.growth * x[0] + s.dt * c[0]
    x_next[1] = s.growth * x[1] + x[0] * x[0]


@implements(step_vjp, Growing)
def _grow_vjp(s, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        lam_x[v, 0] += s.growth * lam[v, 0]
        lam_x[v, 1] += s.growth * lam[v, 1]
        if s.fault != MISSING_TERM:
            lam_x[v, 0] += 2 * x[0] * lam[v, 1]
        if s.fault == OFF_BY_ONE:  # the wrong sign
            lam_c[v, 0] -= s.dt * lam[v, 0]
        else:
            lam_c[v, 0] += s.dt * lam[v, 0]


@pytest.mark.slow
@pytest.mark.parametrize("growth", [1.5, 4.0, 1000.0])
def test_states_that_grow_hide_nothing(growth):
    for seed in range(2):
        assert wrong(adjoint_check.check_system(Growing(growth), seed)) == set()
        for fault, argument in ((OFF_BY_ONE, "control"), (MISSING_TERM, "state")):
            found = wrong(adjoint_check.check_system(Growing(growth, fault), seed))
            assert found == {("step", argument), ("step_batch", argument)}
