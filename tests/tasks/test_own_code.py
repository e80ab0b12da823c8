"""Modules and functions of the user's own: how they are named, and what is said when they fail."""

import fractions
import os
import sys

import pytest
from commands import call

import stablebptt as sb
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks import custom, plain_python, sweeps
from stablebptt.tasks.errors import OwnCodeError, OwnLineError

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


# Mistakes: the line of SPRING that is replaced, what it is replaced by, and what is said of it.
STEP, ADJOINT, COST = (line for line in SPRING.splitlines() if any(w in line for w in ("x_next[0]", "{line}", "return loss")))
RATE = "    x_next[0] = x[0] + system.rate * c[0]"
SEEN_AT_ONCE = [
    (STEP, RATE, "_step", "'Spring' object has no attribute 'rate'"),
    (STEP, "    x_next[1] = x[0]", "_step", "index 1 is out of bounds"),
    (STEP, "    system.dt = 2.0", "_step", "cannot assign to field 'dt'"),
    (ADJOINT, "    lam.nothing()", "_step_vjp", "an array has no attribute 'nothing'"),
]
SEEN_LATER = [
    (STEP, "    x_next[:] = np.zeros(3)", "_step", "could not broadcast input array from shape (3,) into shape (1,)"),
    (ADJOINT, "    lam_x[0, 0] = 'a'", "_step_vjp", "this cannot be compiled: No implementation of function"),
]


def spring(write, old=STEP, new=STEP):
    """A module with one line replaced; its path, and the number of the line."""
    path = write("spring.py", "import numpy as np" + SPRING.replace(old, new).replace("{line}", "lam_x += lam"))
    return path, SPRING.splitlines().index(old) + 1


@pytest.mark.parametrize(("old", "new", "function", "words"), SEEN_AT_ONCE, ids=[new.strip() for _, new, *_ in SEEN_AT_ONCE])
def test_mistakes_that_plain_python_sees(write, capsys, old, new, function, words):
    path, line = spring(write, old, new)
    for command in (["custom", "train", "spring.py:make", "--out", "x.h5"], ["check", "spring.py:Spring"]):
        if command[0] == "check" and "attribute" not in words:
            continue  # Spring() has no time step of its own
        assert call(*command) == 2 or "x.h5" not in command
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith(f"stablebptt: {path}, line {line}, in {function} ({new.strip()}): {words}"), told
    assert told.count("spring.py") == 1


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("old", "new", "function", "words"), SEEN_LATER, ids=[words for *_, words in SEEN_LATER])
def test_mistakes_that_compiled_code_makes(write, old, new, function, words):
    """Whatever the compiled loops say, which name neither file nor line."""
    path, line = spring(write, old, new)
    problem = custom.from_source("spring.py:make")
    with pytest.raises(OwnLineError) as told, plain_python.explained(problem, problem.sample(1)[0]):
        fractions.Fraction("operands")  # a library fails, as Numba's does
    assert str(told.value).startswith(f"{path}, line {line}, in {function} ({new.strip()}): {words}"), told.value
    assert told.value.__suppress_context__ and "operands" in str(told.value.__context__)


def test_errors_that_are_none_of_the_users_stay(write):
    spring(write)
    problem = custom.from_source("spring.py:make")
    for error in (MemoryError("too little"), sb.DivergedError("not finite"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told, plain_python.explained(problem, problem.sample(1)[0]):
            raise error
        assert told.value is error


@pytest.mark.slow
@pytest.mark.parametrize("words", ["custom train spring.py:make -o x.h5", "spring.py:TASK train -o x.h5", "check spring.py:make"])
def test_a_wrong_shape_in_compiled_code(write, capsys, words):
    path, line = spring(write, STEP, "    x_next[:] = np.zeros(3)")
    path.write_text(path.read_text() + "TASK = sb.Task('spring', 'A mass.', [], make)\n")
    assert call(*words.split()) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"stablebptt: {path}, line {line}, in _step (x_next[:] = np.zeros(3)): could not broadcast"), told


@pytest.mark.parametrize(("old", "new", "words"), [
    ("def _step(system, x, c, x_next)", "def _step(system, x, c)", "too many positional arguments; it must take (system, x,"),
    ("    return loss.scale * x[0] * x[0]", "    y = x", "it returns nothing; cost must return a number"),
    ("    return loss.scale * x[0] * x[0]", "    return 2 * x", "it returns an array of shape (1,); cost must return a number"),
    ("    return loss.scale * x[0] * x[0]", "    return 'x'", "it returns 'x'; cost must return a number"),
])  # fmt: skip
def test_methods_that_take_or_return_something_else(write, capsys, old, new, words):
    path = write("spring.py", SPRING.replace("{line}", "lam_x += lam").replace(old, new))
    assert call("custom", "train", "spring.py:make", "--out", "x.h5") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"stablebptt: {path}, line ") and words in told and told.count("\n") == 1, told


def test_the_compilers_words_are_for_debugging(write, capsys):
    path, line = spring(write, STEP, "    import os")
    words = ["custom", "train", "spring.py:make", "--out", "run.h5"]
    assert call(*words) == 2
    told = capsys.readouterr().err
    first = line - 2  # Numba tells the function alone
    assert told.splitlines()[-1].startswith(f"stablebptt: {path}, line {first}, in _step") and "unsupported opcode" in told
    assert "Traceback" not in told and len(told.splitlines()[-1]) < 500
    assert call(*words, "--debug") == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "UnsupportedBytecodeError" in told and "OwnLineError" in told


def test_a_failing_sample_is_named_with_its_place(write, capsys, tmp_path):
    text = SPRING.replace("{line}", "lam_x += lam")
    for body, code, words in (("randm.normal()", 1, "NameError: name 'randm' is not defined"), ("[][n]", 1, "IndexError: ")):
        path = write("spring.py", text.replace("random.standard_normal((n, 1))", body))
        line = next(k for k, each in enumerate(path.read_text().splitlines(), 1) if body in each)
        assert call("custom", "train", "spring.py:make", "--out", "x.h5") == code
        told = capsys.readouterr().err
        assert words in told and told.endswith(f"({path}:{line})\n") and told.count("\n") == 1, told
        [planned] = sweeps.make_plan({"task": "spring.py:make"})
        message = sweeps.run_one(planned, tmp_path / words).message
        assert message.startswith(words) and message.endswith(f"({path}:{line})")
        del sys.modules["spring"]


def test_options_that_a_tasks_function_does_not_take(write, capsys):
    record = "TASK = sb.Task('spring', 'A mass.', [sb.Option('mas', 'real', 1.0, 'Of it.')], make)\n"
    write("spring.py", SPRING.replace("{line}", "lam_x += lam").replace("def make()", "def make(mass)") + record)
    assert call("spring.py:TASK", "train", "--out", "x.h5") == 2
    assert "argument: 'mass'; the arguments it takes: mass" in capsys.readouterr().err
