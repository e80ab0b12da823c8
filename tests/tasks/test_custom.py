"""Systems, controllers and losses of one's own: everything works that works for ours, and mistakes are named."""

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call
from numba import njit
from scipy.optimize import minimize

import stablebptt as sb
from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.interop import arrays
from stablebptt.kernels.core.dispatch import OPTIONS, implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Controller, System, cost, step
from stablebptt.tasks import adjoint_check, custom, plain_python, sweeps

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
COUNTS = {"train_count": 16, "test_count": 8}


@pytest.fixture
def example(monkeypatch):
    """Import an example by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    """docs/adding_a_system.md from top to bottom, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = (ROOT / "docs" / "adding_a_system.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|console|toml)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_spring.py").write_text(blocks[0][1])
    (plan,) = (text for language, text in blocks if language == "toml")
    (tmp_path / "my_plan.toml").write_text(plan)
    names = {}
    for language, text in blocks[1:]:
        if language == "console":
            for line in text.splitlines():
                words = line.split()
                assert words[0] == "stablebptt" and call(*words[1:]) == 0, (line, capsys.readouterr().err)
        elif language == "python" and "gymnasium" not in text:  # tests/interop/test_gymnasium.py has that
            exec(compile(text, "docs/adding_a_system.md", "exec"), names)
    out = capsys.readouterr().out
    assert "spring" in out and "WRONG" not in out
    assert len(list((tmp_path / "springs").glob("spring-*.h5"))) == 8 and (tmp_path / "film.gif").exists()
    assert names["run"].history["test_loss"][-1] < names["run"].history["test_loss"][0]
    assert names["best"].success and np.linalg.norm(names["best"].jac) < 1e-4
    assert names["after"][3] != 0 and "stablebptt_step_vjp_double" in (tmp_path / "stablebptt.h").read_text()
    # the multi-rate adjoint against differences
    coarse, system, x, c = names["coarse_step"], names["system"], names["x"], names["c"]
    for k in range(2):
        d = np.eye(2)[k] * 1e-6
        slope = (coarse(system, x + d, c, 5)[-1, 0] - coarse(system, x - d, c, 5)[-1, 0]) / 2e-6
        assert names["lam_x"][0, k] == pytest.approx(slope, rel=1e-7)
    slope = (coarse(system, x, c + 1e-6, 5)[-1, 0] - coarse(system, x, c - 1e-6, 5)[-1, 0]) / 2e-6
    assert names["lam_c"][0, 0] == pytest.approx(slope, rel=1e-7)


# --- examples -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_double_pendulum_conserves_energy_and_has_right_adjoints(example):
    module = example("double_pendulum")
    for finding in adjoint_check.check(custom.in_float64(module.make_problem(steps=6))):
        assert finding.passed, finding

    def energy(s, x):
        _, a, b = x[::2]
        v, wa, wb = x[1::2]
        v1 = np.array([v + s.length_1 * np.cos(a) * wa, -s.length_1 * np.sin(a) * wa])
        v2 = v1 + np.array([s.length_2 * np.cos(b) * wb, -s.length_2 * np.sin(b) * wb])
        y1 = s.length_1 * np.cos(a)
        kinetic = 0.5 * (s.cart * v**2 + s.mass_1 * v1 @ v1 + s.mass_2 * v2 @ v2)
        return kinetic + s.gravity * (s.mass_1 * y1 + s.mass_2 * (y1 + s.length_2 * np.cos(b)))

    @njit
    def run(system, x, steps):
        c, x_next = np.zeros(1), np.empty_like(x)
        for _ in range(steps):
            step(system, x, c, x_next)
            x[:] = x_next
        return x

    x = np.array([0.0, 0.3, 2.0, -0.5, 1.0, 0.4])
    errors = []
    for steps in (2_500, 10_000):  # one second of free motion
        s = custom.cast(module.DoublePendulum(dt=1 / steps), np.float64)
        after = run(s, x.copy(), steps)
        errors.append(abs(energy(s, after) - energy(s, x)))
    assert np.abs(after - x).max() > 0.5  # it has moved; and the energy (some 2 J) is kept to the order of the scheme
    assert errors[1] < 1e-3 and errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.slow
def test_the_quadrotor_falls_freely_hovers_and_has_right_adjoints(example):
    """In free fall only gravity acts, at the thrust of hovering nothing does; many quadrotors are computed at once."""
    module = example("quadrotor")
    system, after = module.Quadrotor(), np.zeros(6)
    weight = system.mass * system.gravity
    for thrust, speed in ((-weight / 2, -system.gravity * system.dt), (0.0, 0.0)):
        step(system, np.zeros(6), np.full(2, thrust), after)
        np.testing.assert_allclose(after, [0, speed * system.dt / 2, 0, 0, speed, 0], atol=1e-15)
    assert dict(plain_python.in_vectors(system)) == {"step_sample": "", "step_sample_vjp": ""}
    found = adjoint_check.check(custom.in_float64(module.make_problem(steps=6)))
    assert len(found) > 8 and all(finding.passed for finding in found)


@pytest.mark.slow
def test_the_double_pendulum_learns(example, tmp_path):
    problem = custom.in_float64(example("double_pendulum").make_problem())
    run = sb.train(problem, "C", epochs=12, clip="norm", out=tmp_path / "run.h5")
    assert run.history["test_loss"][-1] < 0.6 * run.history["test_loss"][0]


@pytest.mark.slow
def test_the_regulator_reaches_the_riccati_optimum(example):
    """R and M have their zero at the optimum; C can stop where no component agrees in sign; S and N do not learn."""
    module = example("lqr")
    problem = module.make_problem()
    gain, p = module.optimum()
    x0 = problem.sample(64)
    best = problem.loss(gain.ravel(), x0).total
    expected = np.mean(np.einsum("bi,ij,bj->b", x0, p - module.Q, x0)) / module.STEPS
    assert best == pytest.approx(expected, rel=1e-6)
    for variant, size in (("R", 1e-7), ("M", 1e-6)):
        assert np.linalg.norm(problem.gradient(gain.ravel(), x0, variant).value) < size
    gaps = {variant: module.descend(problem, x0, variant, 1200)[-1] / best - 1 for variant in "RMSNC"}
    assert abs(gaps["R"]) < 1e-9 and abs(gaps["M"]) < 1e-9
    assert 0 < gaps["C"] < 0.02 and gaps["S"] > 10 and gaps["N"] > 10


@pytest.mark.slow
def test_scipy_trains_a_controller(example):
    """L-BFGS-B on the exact gradient finds the regulator's optimum; of a network it lowers the loss."""
    module = example("lqr")
    problem = module.make_problem()
    gain, _ = module.optimum()
    result = minimize(sb.minimize_fun(problem, problem.sample(16)), problem.init(), jac=True, method="L-BFGS-B")
    assert result.success
    np.testing.assert_allclose(result.x, gain.ravel(), rtol=1e-3)
    cart = sb.problem("cartpole", steps=30, hidden=(10,), dtype="float64", output_init="glorot")
    fun, theta = sb.minimize_fun(cart, cart.sample(8)), cart.init()
    value, slope = fun(theta)
    assert slope.dtype == np.float64 and value == cart.loss(theta, cart.sample(8)).total
    better = minimize(fun, theta, jac=True, method="L-BFGS-B", options={"maxiter": 40})
    assert better.fun < 0.7 * value
    assert sb.minimize_fun(sb.problem("guidance", steps=60), sb.problem("guidance").sample(2))(
        np.full(sb.problem("guidance").n_parameters, 1e30)
    )[0] == np.inf
    with pytest.raises(ValueError, match="x0 has shape"):
        sb.minimize_fun(cart, np.zeros((2, 2)))


# --- files --------------------------------------------------------------------------------------------------------


class Drift(System):
    """``x' = x + dt c`` in any number of dimensions."""

    dt: float

    state_shape = (2, 3)
    control_shape = (6,)


@implements(step, Drift)
def _drift(system, x, c, x_next):
    for k in range(x.shape[0]):
        x_next[k] = x[k] + system.dt * c[k]


@implements(step_vjp, Drift)
def _drift_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for k in range(lam.shape[1]):
            lam_x[v, k] += lam[v, k]
            lam_c[v, k] += system.dt * lam[v, k]


class Near(Struct):
    """Sum of squares."""


@implements(cost, Near)
def _near(loss, x):
    total = x[0] * x[0]
    for k in range(1, x.shape[0]):
        total += x[k] * x[k]
    return total


@implements(cost_vjp, Near)
def _near_vjp(loss, x, cost_bar, x_bar):
    for k in range(x.shape[0]):
        x_bar[k] += cost_bar * (x[k] + x[k])


def drift(**more):
    parts = {"system": Drift(0.1), "controller": (8,), "loss": Near(), "steps": 5, "dt": 0.1, "title": "drift"}
    return sb.problem(**{**parts, "sample": lambda random, count: random.standard_normal((count, 2, 3)), **more})


@pytest.mark.slow
def test_runs_of_ones_own_are_kept_and_looked_at(tmp_path):
    path, problem = tmp_path / "run.h5", drift()
    run = sb.train(problem, "C", 4, out=path, **COUNTS)
    again = sb.load(path, problem=drift())
    assert np.array_equal(again.theta, run.theta) and again.problem.loss(again.theta, problem.sample(2)).total > 0
    seen = sb.load(path)  # without the problem: it can be drawn, not computed with
    assert seen.problem.title == "drift" and np.array_equal(seen.theta, run.theta)
    with pytest.raises(AttributeError, match=r"sb\.load\(path, problem=\.\.\.\)"):
        seen.problem.rollout(seen.theta, problem.sample(2))
    for command in (["plot", path, "--out", tmp_path / "p.png"], ["plot", path, "--trajectory", 0, "--out", tmp_path / "t.png"],
                    ["animate", path, "--dpi", 30, "--out", tmp_path / "f.gif"], ["inspect", path]):  # fmt: skip
        assert call(*command) == 0
    with pytest.raises(ValueError, match="is a run of another problem: steps: 5 in the file, 6 given"):
        sb.load(path, problem=drift(steps=6))
    parts = sb.train(problem, "C", 2, out=tmp_path / "parts.h5", **COUNTS)
    parts = sb.train(problem, "C", 4, out=tmp_path / "parts.h5", resume=True, **COUNTS)
    assert np.array_equal(parts.theta, run.theta)
    assert "_code" not in parts.config and set(parts.config["options"]["code"]) == {"python", "since", "system", "loss"}


@pytest.mark.slow
def test_a_file_imports_nothing(tmp_path):
    """A run file that names a module as its source is only read."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    problem = drift()
    problem = dataclasses.replace(problem, options={**problem.options, "source": "evil:make"})
    sb.train(problem, "R", 1, out=tmp_path / "run.h5", **COUNTS)
    command = [sys.executable, "-m", "stablebptt", "plot", "run.h5", "--out", "p.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_all_variants():
    problem = drift(regularization=0.1, when="continuous")
    theta, x0 = problem.init(1), problem.sample(3)
    values = {variant: problem.gradient(theta, x0, variant).value for variant in "RMSNC"}
    assert all(value.dtype == np.float32 for value in values.values()) and problem.system.dt.dtype == np.float32
    same = np.sign(values["R"]) == np.sign(values["M"])
    np.testing.assert_allclose(values["C"], np.where(same, values["M"], 0), rtol=2e-5, atol=1e-6)


# --- mistakes -----------------------------------------------------------------------------------------------------


class Half(System):
    """Has a step and nothing else."""


@implements(step, Half)
def _half(system, x, c, x_next):
    x_next[0] = x[0]


class Wrong(Drift):
    """A vjp that forgets dt in the control."""

    dt: float = 0.1


@implements(step_vjp, Wrong)
def _wrong_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for k in range(lam.shape[1]):
            lam_x[v, k] += lam[v, k]
            lam_c[v, k] += lam[v, k]


class Mute(Controller):
    """A controller without functions."""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"system": Half()}, TypeError, r"Half has no method for step_vjp\(system, x, c, lam, lam_x, lam_c\); write one"),
        ({"system": 3}, TypeError, "system is 3; it must be an instance of a subclass of System"),
        ({"loss": Drift(0.1)}, TypeError, "Drift has no method for cost"),
        ({"controller": Mute()}, TypeError, "Mute has no method for control"),
        ({"controller": "big"}, TypeError, "controller is 'big'"),
        ({"sample": 1}, TypeError, "sample is 1"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"dt": -1}, ValueError, "dt is -1"),
        ({"when": "often"}, ValueError, "final, continuous"),
        ({"state_shape": (0,)}, ValueError, r"state_shape\[0\] is 0"),
        ({"state_axes": [sb.tasks.problems.Axis("a", "a", (1, 2))]}, ValueError, "state_axes have"),
        ({"speed": 1}, TypeError, "custom has no option 'speed'; choose from system, controller, loss"),
    ],
)
def test_parts_that_do_not_fit(change, error, words):
    with pytest.raises(error, match=words):
        drift(**change)


def test_missing_parts():
    with pytest.raises(TypeError, match=r"missing .* give the name of a task, or all parts of your own"):
        sb.problem(system=Drift(0.1))

    class Shapeless(Half):
        pass

    implements(step_vjp, Shapeless)(_drift_vjp)
    with pytest.raises(TypeError, match="state_shape is missing"):
        drift(system=Shapeless())


def test_a_wrong_vjp_is_named_with_its_argument_and_error(monkeypatch, capsys):
    findings = adjoint_check.check_system(Wrong())
    assert {(f.rule, f.argument): f.passed for f in findings} == {
        ("step", "state"): True, ("step", "control"): False, ("step_batch", "state"): True, ("step_batch", "control"): False,
    }  # fmt: skip
    monkeypatch.setattr(sys.modules[__name__], "__name__", "wrong_systems", raising=False)
    monkeypatch.setitem(sys.modules, "wrong_systems", sys.modules[Wrong.__module__])
    assert call("check", "wrong_systems:Wrong") == 1
    out, err = capsys.readouterr()
    assert "step (control)" in err and "WRONG" in out and re.search(r"control .* \d\.\de-0\d +WRONG", out)
    assert call("check", "wrong_systems:Wrong", "--json") == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["argument"] for r in records if not r["passed"]] == ["control", "control"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing", "give module:name"),
        ("no_such_module:x", "no_such_module"),
        ("json:nothing", "the module json has no nothing"),
        ("json:dumps", "TypeError"),
        ("json:__name__", "not a function that makes a problem"),
        ("builtins:dict", "made dict, not a problem"),
    ],
)
def test_sources_that_make_no_problem(source, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = call("custom", "train", source, "--epochs", 1, "--out", "x.h5")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert code == 2 and (words in err or words == "TypeError")
    assert call("custom", "train", source, "--set", "oops", "--out", "x.h5") == 2


def test_a_sweep_of_ones_own_needs_a_source(tmp_path):
    settings = sb.tasks.training.Settings(epochs=1)
    planned = sweeps.Planned({"task": "custom", "options": drift().options, **settings.describe()})
    assert "module:function" in sweeps.run_one(planned, tmp_path).message


# --- C ------------------------------------------------------------------------------------------------------------

PROGRAM = """
#include <string.h>
#include "stablebptt_double.h"
#include "stablebptt_float.h"

/* Two steps and back again, as a solver in C would do it. */
double there_and_back(stablebptt_step_double step, stablebptt_step_vjp_double step_vjp, stablebptt_cost_double cost,
                      stablebptt_cost_vjp_double cost_vjp, int64_t n, int64_t q, const double *x0, const double *c,
                      double *x2, double *x_bar, double *c_bar) {
    double x1[64], lam[64], lam_1[64];
    step(n, q, x0, c, x1);
    step(n, q, x1, c, x2);
    memset(lam, 0, sizeof lam);
    cost_vjp(n, x2, 1.0, lam);
    memset(lam_1, 0, sizeof lam_1);
    step_vjp(n, q, 1, x1, c, lam, lam_1, c_bar);
    step_vjp(n, q, 1, x0, c, lam_1, x_bar, c_bar);
    return cost(n, x2);
}

void step_single(stablebptt_step_float step, int64_t n, int64_t q, const float *x, const float *c, float *x_next) {
    step(n, q, x, c, x_next);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.slow
@pytest.mark.parametrize("task", ["cartpole", "guidance", "quantum"])
def test_a_c_program_gets_the_same_bits(tmp_path, task, random):
    import ctypes

    for name, dtype in (("double", "float64"), ("float", "float32")):
        (tmp_path / f"stablebptt_{name}.h").write_text(sb.c_header(dtype))
    (tmp_path / "solver.c").write_text(PROGRAM)
    command = ["cc", "-Wall", "-Werror", "-std=c99", "-shared", "-fPIC", "-O2", "solver.c", "-o", "solver.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "solver.so"))
    problem = sb.problem(task, dtype="float64", **({"points": 8, "width": 2} if task == "quantum" else {"hidden": (3,)}))
    n, q = problem.n_state, problem.n_control
    x, c = problem.sample(1)[0].ravel(), random.standard_normal(q)
    addresses = [ctypes.c_void_p(sb.cfunc_address(problem.system, name)) for name in ("step", "step_vjp")]
    addresses += [ctypes.c_void_p(sb.cfunc_address(problem.loss_function, name)) for name in ("cost", "cost_vjp")]
    x2, x_bar, c_bar = np.zeros(n), np.zeros(n), np.zeros(q)
    library.there_and_back.restype = ctypes.c_double
    given = [ctypes.c_void_p(a.ctypes.data) for a in (x, c, x2, x_bar, c_bar)]
    value = library.there_and_back(*addresses, ctypes.c_int64(n), ctypes.c_int64(q), *given)

    # The same from Numba, function by function, with the parameters compiled in as they are there.
    system, loss = problem.system, problem.loss_function
    compiled = njit(**OPTIONS)
    do_step, do_cost = compiled(lambda x, c, x_next: step(system, x, c, x_next)), compiled(lambda x: cost(loss, x))
    do_cost_vjp = compiled(lambda x, bar, x_bar: cost_vjp(loss, x, bar, x_bar))
    do_step_vjp = compiled(lambda x, c, lam, lam_x, lam_c: step_vjp(system, x, c, lam, lam_x, lam_c))
    y1, y2, y_bar, d_bar = np.zeros(n), np.zeros(n), np.zeros((1, n)), np.zeros((1, q))
    lam, lam_1 = np.zeros((1, n)), np.zeros((1, n))
    do_step(x, c, y1)
    do_step(y1, c, y2)
    do_cost_vjp(y2, 1.0, lam[0])
    do_step_vjp(y1, c, lam, lam_1, d_bar)
    do_step_vjp(x, c, lam_1, y_bar, d_bar)
    assert value == do_cost(y2) and np.array_equal(x2, y2)
    assert np.array_equal(x_bar, y_bar[0]) and np.array_equal(c_bar, d_bar[0])
    assert sb.cfunc_address(problem.system, "step") == addresses[0].value  # the same function again
    if task == "cartpole":
        single = sb.problem(task)
        x, c, x_next = x.astype(np.float32), c.astype(np.float32), np.zeros(n, np.float32)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, c, x_next)]
        address = ctypes.c_void_p(sb.cfunc_address(single.system, "step"))
        library.step_single(address, ctypes.c_int64(n), ctypes.c_int64(q), *pointers)
        expected = arrays.step(single, x.reshape(1, 2, 2), c.reshape(1, 1))
        np.testing.assert_allclose(x_next, expected.ravel(), rtol=1e-6)


def test_c_functions_that_are_not_there():
    with pytest.raises(ValueError, match="Drift has no C function 'cost'; choose from step, step_vjp"):
        sb.cfunc_address(Drift(0.1), "cost")
    with pytest.raises(ValueError, match="Near has no C function 'step'; choose from cost, cost_vjp"):
        sb.cfunc_address(Near(), "step")
    with pytest.raises(TypeError, match="no system and no loss"):
        sb.cfunc_address("cartpole", "step")
