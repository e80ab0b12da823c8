"""Policies in other languages: the controls are those of the policy, computed in float64."""

import ctypes
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call
from policy_problems import PROBLEMS, problem_of

import stablebptt as sb
from stablebptt.interop import c_source
from stablebptt.interop.export import export
from stablebptt.tasks import policies
from stablebptt.tasks.policies import ACTIVATIONS, Layer, Limited, Policy, Scaled, Seen

COMPILERS = {"C99": ("cc", "-std=c99", ".c"), "C++": ("c++", "-std=c++11", ".cpp")}
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wdouble-promotion")


def numbers(policy, kind):
    """The policy with all its real numbers of another type."""

    def converted(value):
        return value.astype(kind) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    def stage_in(stage):
        return dataclasses.replace(stage, **{f.name: converted(getattr(stage, f.name)) for f in dataclasses.fields(stage)})

    return dataclasses.replace(policy, stages=tuple(map(stage_in, policy.stages)))


def everything(activation, dtype):
    """A policy with every kind of stage: angles, scales, windows with a stride that leave a number out, dense layers, limits."""
    random = np.random.default_rng(len(activation))

    def normal(*shape):
        return random.standard_normal(shape).astype(dtype)

    stages = (
        Seen(np.array([0, 3, 3, 5, 1, 2, 0]), np.array([0, 1, 2, 0, 0, 2, 1])), Scaled(normal(7), normal(7)),
        Layer(normal(3, 4), normal(4), 2, 3, activation), Layer(normal(8, 6) / 2, normal(6), activation=activation),
        Layer(normal(6, 4) / 2, normal(4)), Limited(normal(4), np.abs(normal(4))),
    )  # fmt: skip
    return Policy("every kind of stage", (3, 2), (2, 2), stages)


def cases():
    """Policies with states to try them on, by name. Of no network do the last sums cancel: float32 has no more digits then."""
    found = {}
    for name in PROBLEMS:
        problem = problem_of(name)
        noise = np.random.default_rng(2).standard_normal(problem.n_parameters)
        found[name] = (policies.of(problem, problem.init(2) + 0.1 * noise), problem.sample(64, 1))
    for dtype in (np.float32, np.float64):
        for activation in ACTIVATIONS:
            states = 3 * np.random.default_rng(1).standard_normal((64, 3, 2))
            found[f"all {activation} {np.dtype(dtype)}"] = (everything(activation, dtype), states.astype(dtype))
    return found


CASES = cases()
IN_C = [name for name in CASES if name in ("cartpole", "guidance", "quantum") or name.startswith("all ")]  # compiling takes long


def largest_error(name, controls):
    """Over the largest control of the policy in float64."""
    policy, states = CASES[name]
    exact = numbers(policy, np.float64)(states)
    assert controls.shape == exact.shape and controls.dtype == policy.dtype
    return np.abs(controls - exact).max() / np.abs(exact).max()


def allowed(name):
    return 1e-6 if CASES[name][0].dtype == np.float32 else 1e-14


def files(folder, ending, names):
    """Exports of these cases, to numbered files."""
    paths = {name: folder / f"p{number}{ending}" for number, name in enumerate(names)}
    for name, path in paths.items():
        export(CASES[name][0], path)
    return paths


def test_npz(tmp_path):
    policy, states = CASES["quantum"]
    export(policy, tmp_path / "p.npz")
    assert np.array_equal(Policy.load(tmp_path / "p.npz")(states), policy(states))


def compiled(language, folder, sources):
    """A library of all the files, compiled without a warning."""
    compiler, standard, ending = COMPILERS[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    named = [path.rename(path.with_suffix(ending)) for path in sources]
    library = folder / f"{sources[0].stem}.so"  # a loaded name is not loaded again
    command = [compiler, standard, *STRICT, "-shared", "-fPIC", *map(str, named), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, timeout=100)
    return ctypes.CDLL(str(library))


def called(function, policy, states):
    """Controls of a C function, state by state."""
    controls = np.full((len(states), *policy.control_shape), np.nan, policy.dtype)
    for state, control in zip(np.ascontiguousarray(states, policy.dtype), controls):
        function(ctypes.c_void_p(state.ctypes.data), ctypes.c_void_p(control.ctypes.data))
    return controls


@pytest.mark.slow
@pytest.mark.parametrize("language", COMPILERS)
def test_c(language, tmp_path):
    paths = files(tmp_path, ".c", IN_C)
    library = compiled(language, tmp_path, list(paths.values()))
    for name, path in paths.items():
        policy, states = CASES[name]
        controls = called(library[c_source.function_name(path.stem)], policy, states)
        assert largest_error(name, controls) <= allowed(name), name


def test_numbers_in_c_read_back_bit_for_bit(tmp_path):
    for dtype, kind in ((np.float32, np.uint32), (np.float64, np.uint64)):
        bits = np.random.default_rng(0).integers(0, np.iinfo(kind).max, 500, kind)
        limits = np.finfo(dtype)
        known = [limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 1, -0.5, 16777216, 0.1]
        row = np.concatenate([bits.view(dtype), np.array(known, dtype)])
        row = row[np.isfinite(row)]
        name = f"p{np.dtype(dtype).itemsize}"
        export(Policy("numbers", (1,), (len(row),), (Layer(np.zeros((1, len(row)), dtype), row),)), tmp_path / f"{name}.c")
        library = compiled("C99", tmp_path, [tmp_path / f"{name}.c"])
        found = called(library[f"{name}_control"], Policy("", (1,), (len(row),), (Layer(row[None], row),)), [[0.0]])
        assert np.array_equal(found[0].view(kind), row.view(kind))


def test_names_in_c():
    for name, function in {
        "policy": "policy_control", "a-b c": "a_b_c_control", "1": "policy_1_control", "double": "double_control",
        "ü": "policy_control", "__x": "x_control",
    }.items():  # fmt: skip
        assert c_source.function_name(name) == function


def test_a_title_cannot_leave_its_comment():
    layer = Layer(np.zeros((1, 1)), np.zeros(1))
    text = c_source.source(Policy("*/ int x; /*\n#include <y> \\ ü", (1,), (1,), (layer,)), "p")
    head = text[: text.index("#include <math.h>")]
    assert head.count("*/") == head.count("/*") == 1 and "#" not in head and "\\" not in head and text.isascii()


def test_onnx(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: onnx)")
    import onnx

    choices = runtime.SessionOptions()
    choices.intra_op_num_threads = 1
    for name, path in files(tmp_path, ".onnx", CASES).items():
        policy, states = CASES[name]
        model = onnx.load(path)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
        session = runtime.InferenceSession(path, choices, providers=["CPUExecutionProvider"])
        ((given,), (result,)) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == ("states", ["batch", *policy.state_shape])
        assert (result.name, result.shape) == ("controls", ["batch", *policy.control_shape])
        (controls,) = session.run(None, {"states": states.astype(policy.dtype)})
        assert largest_error(name, controls) <= allowed(name), name
        (one,) = session.run(None, {"states": states[:1].astype(policy.dtype)})
        assert one.shape == (1, *policy.control_shape)


LOADED_ALONE = """
import sys
sys.modules["stablebptt"] = None
import numpy as np, torch
for number in range(2):
    module = torch.export.load(f"p{number}.pt2").module()
    for rows in (1, 64):
        np.save(f"{number}_{rows}.npy", module(torch.from_numpy(np.load(f"x{number}.npy")[:rows])).numpy())
"""


def test_torch_module():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
    from stablebptt.interop.torch_module import module

    for name, (policy, states) in CASES.items():
        controls = module(policy)(torch.from_numpy(states.astype(policy.dtype)))
        assert not controls.requires_grad
        assert largest_error(name, controls.numpy()) <= allowed(name), name


@pytest.mark.slow
def test_torch_files_need_torch_alone(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
    names = ("quantum", "all gelu float64")
    files(tmp_path, ".pt2", names)
    for number, name in enumerate(names):
        policy, states = CASES[name]
        np.save(tmp_path / f"x{number}.npy", states.astype(policy.dtype))
    subprocess.run([sys.executable, "-c", LOADED_ALONE], check=True, cwd=tmp_path)
    for number, name in enumerate(names):
        controls = np.load(tmp_path / f"{number}_64.npy")
        assert largest_error(name, controls) <= allowed(name)
        one = np.load(tmp_path / f"{number}_1.npy")
        assert one.shape == controls[:1].shape and np.abs(one - controls[0]).max() <= 1e-6 * np.abs(controls).max()


@dataclasses.dataclass(frozen=True)
class Own:
    """A stage of somebody else's."""

    gain: np.ndarray

    def outputs(self, inputs):
        return inputs

    def __call__(self, x):
        return self.gain * x


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    policy = everything("tanh", np.float32)
    damaged = dataclasses.replace(policy, stages=(*policy.stages, Scaled(np.full(4, np.nan, "f4"), np.ones(4, "f4"))))
    own = dataclasses.replace(policy, stages=(*policy.stages, Own(np.ones(4, np.float32))))
    for wrong, name, message in (
        (policy, "p.exe", "p.exe ends in '.exe'; a policy is written as .npz, .c, .onnx"),
        (policy, "p", "p ends in 'nothing'"),
        (damaged, "p.c", "numbers that are not finite"),
        (own, "p.c", "the stage Own is your own; export knows layer, seen, scaled, limited"),
        (numbers(policy, np.float16), "p.onnx", "the policy is in float16; export knows float32 and float64"),
        (5, "p.c", "a policy is exported, such as run.policy or run.best_policy; this is of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            export(wrong, tmp_path / name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("p.onnx", "onnx"), ("p.pt", "torch")):
        with pytest.raises(ValueError, match=rf"{name} needs the package {extra}: pip install 'stablebptt\[{extra}\]'"):
            export(policy, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_files_are_not_replaced_by_accident(tmp_path):
    policy = everything("tanh", np.float32)
    export(policy, tmp_path / "p.c")
    with pytest.raises(FileExistsError, match="force=True"):
        export(policy, tmp_path / "p.c")
    export(policy, tmp_path / "p.c", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.c"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    sizes = {"train_count": 16, "test_count": 8, "optimizer": sb.optimizers.adam(0.3)}
    run = sb.train(problem, "R", 4, out="run.h5", **sizes)
    assert call("export", "run.h5", "--out", "p.npz", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": "p.npz", "state_shape": [2, 2], "control_shape": [1], "dtype": "float32"}
    x0 = problem.sample(5)
    assert np.array_equal(Policy.load("p.npz")(x0), run.policy(x0))
    assert call("export", "run.h5", "--out", "p.npz") == 5 and "--force" in capsys.readouterr().err
    assert call("export", "run.h5", "--out", "p.npz", "--best", "--force", "--quiet") == 0
    assert np.array_equal(Policy.load("p.npz")(x0), run.best_policy(x0))
    assert call("export", "run.h5", "--out", "p.h5") == 2


def test_a_run_of_your_own_system_needs_its_code(tmp_path, capsys):
    folder = Path(__file__).parents[1] / "old_runs"
    made = (f"{folder / 'spring.py'}:make", "--set", "stiffness=3.0")
    assert call("export", folder / "spring.h5", "--out", tmp_path / "p.c") == 2
    assert "use 'stablebptt MODULE:TASK export' or 'stablebptt custom export MODULE:FUNCTION'" in capsys.readouterr().err
    assert call("custom", "export", *made, folder / "spring.h5", "--out", tmp_path / "p.c", "--quiet") == 0
    assert "p_control" in (tmp_path / "p.c").read_text()


def test_c_needs_numpy_alone(tmp_path):
    export(everything("tanh", np.float32), tmp_path / "p.npz")
    code = """
import sys
for name in ("numba", "llvmlite", "h5py", "scipy", "click", "matplotlib", "tqdm", "onnx", "torch"):
    sys.modules[name] = None
import stablebptt as sb
sb.export(sb.Policy.load("p.npz"), "p.c")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert "void p_control(const float *state, float *control)" in (tmp_path / "p.c").read_text()
