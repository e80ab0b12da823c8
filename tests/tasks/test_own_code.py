"""Modules and functions of the user's own: how they are named, and what is said when they fail."""

import os
import sys

import pytest
from commands import call

import stablebptt as sb
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks import custom, sweeps
from stablebptt.tasks.errors import OwnCodeError

# A problem of one's own made of parts that are compiled anyhow.
MAKE = """
import stablebptt as sb
from helper_of_{stem} import STEPS

def make(dt=0.1, steps=STEPS):
    parts = sb.problem("cartpole", steps=4, hidden=(4,))
    return sb.problem(
        system=parts.system, controller=(4,), loss=parts.loss_function, steps=steps, dt=dt,
        state_shape=(2, 2), control_shape=(1,), sample=lambda random, count: random.standard_normal((count, 2, 2)),
    )
"""
COUNTS = {"train_count": 4, "test_count": 4, "epochs": 1}


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A folder of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    """Write a file; its path."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def written(write, name="folder/own_parts.py"):
    folder, stem = name.removesuffix(".py").rsplit("/", 1)
    write(f"{folder}/helper_of_{stem}.py", "STEPS = 4\n")
    return write(name, MAKE.format(stem=stem))


# --- names --------------------------------------------------------------------------------------------------------


def test_a_file_is_as_good_as_a_module(write, tmp_path, monkeypatch):
    path = written(write)
    first = custom.from_source("folder/own_parts.py:make", dt=0.2)
    assert (first.dt, first.steps) == (0.2, 4)  # the module beside it was found, too
    assert first.options["source"] == "folder/own_parts.py:make" and first.options["arguments"] == {"dt": 0.2}
    module = sys.modules["own_parts"]
    assert module.make.__module__ == "own_parts" and module.__file__ == str(path)
    for text in ("./folder/own_parts.py", path, "folder/../folder/own_parts.py"):
        assert custom.find(f"{text}:make") is module.make
    assert custom.find("own_parts:make") is module.make
    monkeypatch.setenv("HOME", str(tmp_path))
    assert custom.find("~/folder/own_parts.py:make") is module.make
    assert custom.remake(first.options).options == first.options
    write("folder/my-parts.v2.py", "def make(): pass\n")
    assert custom.find("folder/my-parts.v2.py:make").__module__ == "my-parts_v2"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("folder/absent.py:make", "there is no file folder/absent.py"),
        ("folder.py:make", "there is no file folder.py"),
        ("folder/json.py:make", "a file json.py cannot be used beside the module json"),
        ("folder/queue.py:make", "beside the module queue"),
        ("folder/own_parts.py:nothing", "the module folder/own_parts.py has no nothing"),
        ("folder/own_parts.py:", "give module:name or file.py:name"),
        ("folder/own_parts.py", "give module:name or file.py:name"),
        (".own_parts:make", "relative import"),
        ("own_parts.make:make", "No module named 'own_parts'"),
        ("twice/own_parts.py:make", "folder/own_parts.py); rename the file"),
    ],
)
def test_names_that_lead_nowhere(write, capsys, source, words):
    written(write), written(write, "folder/json.py"), written(write, "folder/queue.py"), written(write, "twice/own_parts.py")
    if source.startswith("twice"):
        custom.find("folder/own_parts.py:make")
    assert call("custom", "train", source, "--out", "x.h5") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and not os.path.exists("x.h5")


def test_arguments_that_the_function_does_not_take(write, capsys):
    written(write)
    write("needs.py", "def make(place, *, rate=1): pass\n")
    for words, message in (
        (["folder/own_parts.py:make", "--set", "plac=1"], "unexpected keyword argument 'plac'; the arguments it takes: dt, st"),
        (["needs:make"], "missing a required argument: 'place'; the arguments it takes: place, rate"),
        (["needs:make", "--set", "place=1"], "needs:make made NoneType, not a problem"),
    ):
        assert call("custom", "train", *words, "--out", "x.h5") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err, err


# --- failures -----------------------------------------------------------------------------------------------------

AT_IMPORT = [
    ("import math\nmath.nothing\n", 2, "AttributeError: module 'math' has no attribute 'nothing'"),
    ("\nimport no_such_package\n", 2, "ModuleNotFoundError: No module named 'no_such_package'"),
    ("from math import nothing\n", 1, "ImportError: cannot import name 'nothing' from 'math'"),
    ("x = stiffness\n", 1, "NameError: name 'stiffness' is not defined"),
    ("\n\nx = 1 / 0\n", 3, "ZeroDivisionError: division by zero"),
    ("x = 1\ndef make(:\n", 2, "SyntaxError: "),
    ("def make():\npass\n", 2, "IndentationError: expected an indented block"),
    ("raise ValueError('too soon')\n", 1, "ValueError: too soon"),
    ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ("open('absent.txt')\n", 1, "FileNotFoundError: "),
    ("import json\njson.loads('{')\n", 2, "JSONDecodeError: "),
]  # fmt: skip


@pytest.mark.parametrize("form", ["failing:make", "failing.py:make", "using:make"])
@pytest.mark.parametrize(("text", "line", "message"), AT_IMPORT, ids=[message.split(":")[0] for *_, message in AT_IMPORT])
def test_a_module_that_fails_is_shown_as_it_failed(write, capsys, form, text, line, message):
    path = write("failing.py", text)
    write("using.py", "import failing\ndef make(): pass\n")
    for command in (["custom", "train", form, "--out", "x.h5"], ["check", form]):
        assert call(*command) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"stablebptt: {message}") and err.endswith(f"({path}:{line})\n") and err.count("\n") == 1, err
    assert "failing" not in sys.modules


@pytest.mark.parametrize(
    ("body", "line", "code", "message"),
    [
        ("return place * stiffness", 3, 1, "NameError: name 'stiffness' is not defined"),
        ("return place / 0", 3, 1, "ZeroDivisionError: "),
        ("return place.nothing", 3, 1, "AttributeError: 'float' object has no attribute 'nothing'"),
        ("import no_such_package", 3, 1, "ModuleNotFoundError: "),
        ("return {}[place]", 3, 1, "KeyError: 0.5"),
        ("raise SystemExit", 3, 1, "SystemExit: "),
        ("raise ValueError('place must be above 1')", 3, 2, "place must be above 1"),
        ("return place + 'a'", 3, 2, "unsupported operand"),
        ("return sb.problem('cartpole', steps=0)", 3, 2, "steps is 0; it must be at least 1"),
        ("import numpy as np\n    return np.zeros(3).reshape(2)", 4, 2, "cannot reshape"),
    ],
)
def test_a_function_that_fails_is_shown_as_it_failed(write, capsys, body, line, code, message):
    path = write("failing.py", f"import stablebptt as sb\ndef make(place=0.5):\n    {body}\n")
    assert call("custom", "train", "failing:make", "--out", "x.h5") == code
    err = capsys.readouterr().err
    assert err.startswith(f"stablebptt: {message}") and f"({path}:{line})" in err and err.count("\n") == 1, err


def test_what_the_package_itself_refuses_keeps_its_kind(write):
    write("failing.py", "import stablebptt as sb\ndef make(): raise sb.BackendError('no device')\n")
    with pytest.raises(sb.BackendError, match=r"^no device$"):
        custom.from_source("failing:make")
    write("bad.py", "import missing_thing\n")
    with pytest.raises(OwnCodeError, match=r"missing_thing.*bad\.py:1"):
        sweeps.make_plan({"task": "bad:make"})


class Odd(Struct):
    """A struct whose field may be anything."""

    place: float


@pytest.mark.parametrize("value", [None, "word", [1, 2], {"a": 1}, (1, "a"), 10**30, object, b"x"])
def test_fields_that_machine_code_cannot_hold(value):
    with pytest.raises(TypeError, match=r"Odd\.place is .*; it must be a number or an array of numbers"):
        custom._check_fields(Odd(value))


def test_an_argument_that_reaches_a_field_is_refused_in_one_line(write, capsys):
    text = MAKE.format(stem="own_parts").replace("def make(", "def make(place, ").replace("parts.system", "Own(place)")
    classes = (
        "from stablebptt.kernels.core.dispatch import implements\n"
        "from stablebptt.kernels.generics import System, step\n"
        "from stablebptt.adjoint.generics import step_vjp\n"
        "class Own(System):\n    place: float\n"
        "@implements(step, Own)\ndef _step(s, x, c, x_next): pass\n"
        "@implements(step_vjp, Own)\ndef _step_vjp(s, x, c, lam, lam_x, lam_c): pass\n"
    )
    write("helper_of_own_parts.py", "STEPS = 4\n")
    write("own_parts.py", classes + text)
    for value, shown in (("None", "None"), ("word", "'word'"), ("(1, 2)", "[1, 2]")):
        assert call("custom", "train", "own_parts:make", "--set", f"place={value}", "--out", "x.h5") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and len(err) < 400 and f"Own.place is {shown}" in err, err


# --- sweeps -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_of_a_file(write, jobs):
    written(write)
    plan = {"task": "./folder/own_parts.py:make", "options": {"dt": [0.1, 0.2]}, "train": COUNTS}
    outcomes = sb.sweep(sweeps.make_plan(plan), "out", jobs=jobs)
    assert [outcome.status for outcome in outcomes] == ["complete"] * 2, outcomes
    assert sb.sweep(sweeps.make_plan(plan), "out", jobs=jobs, resume=True) == outcomes


def test_a_module_that_starts_a_sweep_when_it_is_imported(write):
    written(write)
    path = write("careless.py", "import stablebptt as sb\ndef make(): pass\nsb.sweep([], 'out')\n")
    with pytest.raises(OwnCodeError, match=rf'sb\.sweep is called while careless.* if __name__ == "__main__": \({path}:3\)'):
        sweeps.make_plan({"task": "careless.py:make"})
    assert not os.path.exists("out") and not custom.importing and sb.sweep([], "out") == []


def test_functions_of_the_running_script_are_not_sent_to_workers(write, monkeypatch, tmp_path):
    written(write)
    monkeypatch.setattr(sys.modules["__main__"], "make", custom.find("folder/own_parts.py:make"), raising=False)
    runs = sweeps.make_plan({"task": "__main__:make", "train": COUNTS})
    with pytest.raises(ValueError, match=r"__main__:make is in the running script.* file of its own"):
        sb.sweep(runs, tmp_path / "out", jobs=1)


# --- what only the compiler finds ---------------------------------------------------------------------------------

SPRING = """
import stablebptt as sb
from stablebptt.adjoint import cost_vjp, step_vjp
from stablebptt.kernels import Struct, System, cost, implements, step

class Spring(System):
    dt: float

class Square(Struct):
    scale: float

@implements(step, Spring)
def _step(system, x, c, x_next):
    x_next[0] = x[0] + system.dt * c[0]

@implements(step_vjp, Spring)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    {line}

@implements(cost, Square)
def _cost(loss, x):
    return loss.scale * x[0] * x[0]

@implements(cost_vjp, Square)
def _cost_vjp(loss, x, bar, x_bar):
    x_bar[0] += 2 * loss.scale * bar * x[0]

def make():
    return sb.problem(
        system=Spring(0.1), controller=(4,), loss=Square(1.0), sample=lambda random, n: random.standard_normal((n, 1)),
        steps=4, dt=0.1, state_shape=(1,), control_shape=(1,),
    )
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("lam_x[0, 0] = 'a'", "No implementation of function", marks=pytest.mark.slow),
        ("import os", "unsupported opcode"),
        ("lam.nothing()", "an array has no attribute 'nothing'"),
    ],
)
def test_the_cause_comes_first_with_its_line(write, capsys, line, words):
    path = write("spring.py", SPRING.format(line=line))
    assert call("custom", "train", "spring.py:make", "--epochs", 1, "--out", "run.h5") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    number = SPRING.splitlines().index("    {line}") + 1
    number -= 2 if line == "import os" else 0  # Numba tells the function alone
    assert told.startswith(f"stablebptt: {path}, line {number}, in _step_vjp") and words in told and len(told) < 500
