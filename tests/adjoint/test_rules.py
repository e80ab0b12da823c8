"""One test for every rule: <y, J dx> == <J^T y, dx> in float64; and a test of that test."""

import importlib
import inspect
import pkgutil
from functools import partial

import numpy as np
import pytest
from numba import njit
from numba.core.typing.templates import builtin_registry

import stablebptt as sb
from stablebptt import kernels
from stablebptt.adjoint import generics as backward
from stablebptt.adjoint.activations import activate_all_vjp
from stablebptt.adjoint.cartpole import pole_vjp
from stablebptt.adjoint.guidance import pull_vjp
from stablebptt.kernels import generics as forward
from stablebptt.kernels.activations import ACTIVATIONS, activate_all
from stablebptt.kernels.cartpole import cartpole, pole
from stablebptt.kernels.core.simd import pointer
from stablebptt.kernels.guidance import pull, pull_terms
from stablebptt.tasks.adjoint_check import Rule, control_rule, cost_rule, findings, rollout_rule, step_rule
from stablebptt.tasks.pictures import landscape  # noqa: F401  (the package's controller that treats one state at a time)

LOSSES = ("final", "continuous")
PROBLEMS = {f"cartpole {p} {loss}": ("cartpole", {"poles": p, "loss": loss}) for p in (1, 2, 3, 4) for loss in LOSSES}
PROBLEMS |= {
    f"guidance {d} {e} {loss}": ("guidance", {"drivers": d, "evaders": e, "loss": loss, "regularization": 0.1})
    for d, e in ((1, 1), (2, 4), (3, 2))
    for loss in LOSSES
}
PROBLEMS |= {
    f"quantum {n} {loss}": ("quantum", {"points": n, "width": 5, "target": 2, "loss": loss})
    for n in (8, 11, 32)
    for loss in LOSSES
}
HIDDEN = [(37,), (12, 12), (64, 64, 64), (100, 100)]


def problem_of(name, **more):
    task, options = PROBLEMS[name]
    return sb.problem(task, **{"dtype": "float64", "steps": 7, "output_init": "glorot", **options, **more})


def assert_rule(rule, inputs, random):
    found = list(findings(rule, inputs, random))
    assert found
    for finding in found:
        assert finding.passed, finding


def scalar_rule(name, system, function, vjp, arguments):
    """Rule of a function of numbers; `vjp` takes the arguments and the cotangents of the outputs."""
    call = njit(lambda s, *a: function(s, *a))
    call_vjp = njit(lambda s, *a: vjp(s, *a))

    def run(inputs):
        return np.array(call(system, *(float(inputs[a]) for a in arguments)))

    def run_vjp(inputs, bars):
        values = [float(inputs[a]) for a in arguments]
        rows = [call_vjp(system, *values, *map(float, bar)) for bar in bars]
        return dict(zip(arguments, np.array(rows).T))

    return Rule(name, run, run_vjp)


def pull_rule():
    """The pair force of guidance, whose cotangents take shared terms."""

    def vjp(reach, near, far, rx, ry, fx_bar, fy_bar):
        strength, slope = pull_terms(reach, near, far, rx, ry)
        return pull_vjp(strength, slope, rx, ry, fx_bar, fy_bar)

    vjp = njit(vjp)
    law = (0.1, 0.1, -0.2)
    run, run_vjp = njit(lambda rx, ry: pull(*law, rx, ry)), njit(lambda rx, ry, a, b: vjp(*law, rx, ry, a, b))

    def backward(inputs, bars):
        rows = [run_vjp(float(inputs["rx"]), float(inputs["ry"]), *map(float, bar)) for bar in bars]
        return dict(zip(("rx", "ry"), np.array(rows).T))

    return Rule("pull", lambda i: np.array(run(float(i["rx"]), float(i["ry"]))), backward)


def pole_rule():
    return scalar_rule("pole", cartpole(0.01), pole, pole_vjp, ("force", "sin", "cos", "rate"))


def activation_rule(name):
    activation = ACTIVATIONS[name]
    run = njit(lambda z, slopes: activate_all(activation, z.size, pointer(z), pointer(slopes)))
    run_vjp = njit(lambda h, slopes, bar: activate_all_vjp(activation, h.size, pointer(h), pointer(slopes), pointer(bar)))

    def value(inputs):
        z, slopes = inputs["z"].copy(), np.zeros_like(inputs["z"])
        run(z, slopes)
        return z, slopes

    def vjp(inputs, bars):
        bars = bars.copy()
        for bar in bars:
            run_vjp(*value(inputs), bar)
        return {"z": bars}

    return Rule("activate_all", lambda inputs: value(inputs)[0], vjp)


SCALAR_RULES = {
    "cartpole.pole": (pole_rule, ("force", "sin", "cos", "rate")),
    **{f"activate_all {name}": (partial(activation_rule, name), ("z",)) for name in ACTIVATIONS},
    "guidance.pull": (pull_rule, ("rx", "ry")),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", SCALAR_RULES)
def test_scalar_rule(name, random):
    make, arguments = SCALAR_RULES[name]
    shape = (32,) if "z" in arguments else ()
    assert_rule(make(), {a: random.uniform(0.2, 1.0, shape) for a in arguments}, random)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", PROBLEMS)
def test_step_and_cost(name, random):
    problem = problem_of(name)
    flat = problem.sample(7, 1).reshape(7, -1)
    controls = random.standard_normal((7, problem.n_control))
    assert_rule(step_rule(problem), {"state": flat[0], "control": controls[0]}, random)
    assert_rule(step_rule(problem, "step_batch"), {"state": flat, "control": controls}, random)
    assert_rule(cost_rule(problem), {"state": flat[0]}, random)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("batch", [1, 7, 8, 33])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_controller(hidden, batch, random):
    problem = problem_of("cartpole 2 final", hidden=hidden)
    inputs = {"state": problem.sample(batch).reshape(batch, -1), "parameters": problem.init(1)}
    assert_rule(control_rule(problem), inputs, random)
    assert_rule(control_rule(problem, unit=True), inputs, random)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("batch", [1, 7, 33])
@pytest.mark.parametrize("name", ["guidance 2 4 final", "quantum 8 final", "quantum 11 final", "quantum 32 final"])
def test_other_controllers(name, batch, random):
    """Several controls; convolutions with and without positions that no window ends at."""
    problem = problem_of(name)
    inputs = {"state": problem.sample(batch).reshape(batch, -1), "parameters": problem.init(1)}
    assert_rule(control_rule(problem), inputs, random)
    if problem.n_control == 1:
        assert_rule(control_rule(problem, unit=True), inputs, random)


@pytest.mark.parametrize("name", PROBLEMS)
def test_rollout_and_sweep(name, random):
    problem = problem_of(name) if "quantum" in name else problem_of(name, hidden=(12, 12))
    assert_rule(rollout_rule(problem), {"state": problem.sample(3), "parameters": problem.init(2)}, random)


# --- completeness: no kernel without a rule -----------------------------------------------------------------------

VJP_OF = {"step": "step_vjp", "step_batch": "step_batch_vjp", "cost": "cost_vjp", "control": "control_vjp"}
VJP_OF |= {"control_batch": "control_batch_vjp", "step_sample": "step_sample_vjp", "cost_batch": "cost_batch_vjp"}
# Compiled functions of kernels/ without a rule of their own, by module, and why.
ON_A_DEVICE = "on a device; test_cuda.py compares it with the CPU"
NOT_DIFFERENTIATED = {
    "bounds": dict.fromkeys(("limited", "limit"), "rule is limit_vjp inside rollout_vjp (tested through whole gradients)"),
    "noise": dict.fromkeys(("uniform", "normal", "add_noise", "disturb"), "random numbers, which are added"),
    "varied": dict.fromkeys(("with_values", "with_vectors"), "puts numbers into a struct"),
    "quadratic": {"reference_at": "a number of a row"},
    "activations": {
        "activate": "part of activate_all",
        "slope": "is the derivative; part of activate_all_vjp",
        "keeps_slopes": "a truth value",
        **dict.fromkeys(("far", "rest"), "constants"),
        **dict.fromkeys(("above", "sigmoid", "gelu_share", "exp_of_minus", "log1p_of_share"), "parts of activate_all"),
    },
    "cartpole": {"pole_terms": "shared by pole and pole_vjp, which are tested"},
    "dispatch": {"like": "a constant"},
    "cuda_block": dict.fromkeys(
        (
            *("thread", "threads", "barrier", "copy", "clear", "spread"),
            *("multiply_add", "accumulate4", "activate4", "slope4", "multiply4"),
            *("load", "store", "load4", "store4", "column", "columns"),
        ),
        ON_A_DEVICE,
    ),
    "cuda_rollout": dict.fromkeys(
        ("load_weights", "hidden_layer", "output_layer", "run_network", "start", "follow", "work_size", "place_work"), ON_A_DEVICE
    ),
    "dense": {
        **dict.fromkeys(("matrix", "moved"), "addresses"),
        **dict.fromkeys(
            ("matmul", "matmul_runs", "matmul_blocks", "matmul_tiles"),
            "on addresses; transposes in both vjps of a controller are tested through control",
        ),
        "add_rows": "used backwards only; tested through control",
        "dot": "on addresses; tested through control",
        "copy": "moves numbers",
        "scale": "used backwards only; tested through control",
        "add": "used backwards only; tested through control",
        "tanh": "part of activate_all",
    },
    "generics": {
        "pack": "moves parameters; `unpack` moves gradients back (tested through control)",
        "draw": "random numbers",
        "cost_each": "is cost_batch",
        **dict.fromkeys(("running_cost", "final_cost"), "part of cost_batch; test_additions.py checks it along paths"),
        **dict.fromkeys(("observe", "observe_batch"), "test_additions.py checks it"),
    },
    "guidance": {
        "pull_terms": "shared by pull and pull_vjp, which are tested",
        "pair_law": "constants",
        "friction": "a constant",
        "evader_sum": "part of step",
    },
    "in_lanes": {"step_all": "is step_batch", **dict.fromkeys(("of_sample", "of_samples"), "a system")},
    "lanes": dict.fromkeys(("to_lanes", "from_lanes", "add_from_lanes"), "moves numbers"),
    "linked": dict.fromkeys(
        (
            *("pack_entry", "control_entry", "step_entry", "cost_entry", "observe_entry", "draw_entry"),
            *("add_noise_entry", "disturb_entry"),
        ),
        "an entry point",
    ),
    "native": {"call": "calls a kernel"},
    "network": dict.fromkeys(("layer_of", "stretches"), "numbers of a table"),
    "structs": dict.fromkeys(("struct_at", "loaded"), "reads a struct"),
    "threads": dict.fromkeys(
        ("add", "cut", "invoke", "leave", "pause", "read", "serve", "share_out", "take", "write"),
        "who computes what; test_threads.py compares the bits",
    ),
    "quantum": {
        "pivot": "part of step",
        "eliminate": "part of step",
        "substitute": "part of step",
        "factorise": "part of step; its rule is that of the whole linear solve",
        "solve": "part of step; its rule is that of the whole linear solve",
        "number": "access",
        "overlap": "part of cost",
    },
    "rollout": {
        "follow_part": "is follow, for some samples",
        "rollout": "rule is rollout_vjp (tested through whole gradients)",
        "path_cost": "rule is cost_vjp inside rollout_vjp (tested through whole gradients)",
        "follow": "rollout and path_cost",
        "evaluate": "an entry point; of `follow`",
        "effort_weight": "a constant",
    },
    "simd": {
        "clamp": "part of tanh",
        **dict.fromkeys(("pointer", "offset", "lanes"), "addresses"),
        **dict.fromkeys(("load", "store", "fill"), "moves numbers"),
        "total": "part of dot",
    },
    "vector_math": dict.fromkeys(
        (
            *("where", "every", "negative", "square_root", "absolute", "nearest", "multiply_add", "fma"),
            *("exp_within", "exp_of_product"),
        ),
        "operations of vectors; their derivatives stand in the formulas that use them",
    ),
}


def modules(package):
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(info.name)


def test_every_method_has_its_vjp():
    rooms = [{info.name for info in pkgutil.iter_modules(room.__path__)} for room in (kernels, sb.adjoint)]
    for name in set.intersection(*rooms):  # every file and its mirror image
        if not name.startswith("cuda"):
            importlib.import_module(f"stablebptt.kernels.{name}"), importlib.import_module(f"stablebptt.adjoint.{name}")
    for name, partner in VJP_OF.items():
        methods, rules = getattr(forward, name).methods, getattr(backward, partner).methods
        assert methods, name
        for cls in (c for c in methods if c.__module__.startswith("stablebptt.")):
            assert any(base in rules for base in cls.__mro__), f"{name} of {cls.__name__} has no {partner}"


def public_kernels():
    """Compiled functions of kernels/, as module.name."""
    found = list(modules(kernels))  # imports them, which registers what they overload
    overloaded = {id(function) for function, _ in builtin_registry.globals}
    for module in found:
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and not isinstance(value, type)
            compiled = id(value) in overloaded or any(hasattr(value, mark) for mark in ("compiled", "targetoptions"))
            if own and compiled and not name.startswith("_"):
                yield f"{module.__name__.rpartition('.')[2]}.{name}"


def test_every_public_kernel_has_a_rule_or_a_reason():
    known = {*(f"generics.{name}" for name in VJP_OF), "activations.activate_all"}
    known |= {name for name in SCALAR_RULES if "." in name}
    known |= {f"{module}.{name}" for module, reasons in NOT_DIFFERENTIATED.items() for name in reasons}
    found = set(public_kernels())
    assert sorted(found - known) == [], "they have neither a rule nor a reason"
    assert sorted(known - found) == [], "there are no such kernels"


def test_kernels_never_import_adjoints():
    for module in modules(kernels):
        assert "stablebptt.adjoint" not in inspect.getsource(module), module.__name__


@pytest.mark.parametrize("name", ["cartpole 2 final", "guidance 2 4 final", "quantum 8 final"])
def test_vjps_add_to_what_is_there(name, random):
    """In plain Python: a cotangent is the sum over all uses of a number."""
    problem = problem_of(name)
    x, c = problem.sample(1)[0].ravel(), random.standard_normal(problem.n_control)
    lam = random.standard_normal((2, x.size))
    found = []
    for start in (0.0, 3.0):
        lam_x, lam_c, x_bar = np.full((2, x.size), start), np.full((2, c.size), start), np.full(x.size, start)
        backward.step_vjp(problem.system, x, c, lam, lam_x, lam_c)
        backward.cost_vjp(problem.loss_function, x, 0.7, x_bar)
        found.append([values - start for values in (lam_x, lam_c, x_bar)])
    for empty, full in zip(*found):
        assert np.abs(empty).max() > 0
        np.testing.assert_allclose(full, empty, rtol=1e-12, atol=1e-14)


# --- the tester finds wrong rules ---------------------------------------------------------------------------------


def wrong(change):
    """A rule for f(x, y) = (x y, sin x) whose vjp was damaged by `change`."""

    def value(inputs):
        return np.stack([inputs["x"] * inputs["y"], np.sin(inputs["x"])])

    def vjp(inputs, bars):
        x, y = inputs["x"], inputs["y"]
        right = {"x": bars[:, 0] * y + bars[:, 1] * np.cos(x), "y": bars[:, 0] * x}
        return change(right, inputs, bars)

    return Rule("wrong", value, vjp)


WRONG = {
    "sign": lambda r, i, b: r | {"y": -r["y"]},
    "missing term": lambda r, i, b: r | {"x": b[:, 0] * i["y"]},
    "swapped outputs": lambda r, i, b: {"x": r["y"], "y": r["x"]},
    "overwritten instead of added": lambda r, i, b: r | {"x": b[:, 1] * np.cos(i["x"])},
    "a factor": lambda r, i, b: r | {"y": r["y"] * (1 + 1e-5)},
    "one cotangent for all": lambda r, i, b: r | {"y": np.repeat(r["y"][:1], len(b), 0)},
    "NaN": lambda r, i, b: r | {"y": r["y"] * np.nan},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_tester_finds(name, random):
    inputs = {"x": random.standard_normal(5), "y": random.standard_normal(5)}
    assert all(f.passed for f in findings(wrong(lambda r, i, b: r), inputs, random))
    assert not all(f.passed for f in findings(wrong(WRONG[name]), inputs, random))
