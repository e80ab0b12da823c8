"""Records of tasks: found by their files, checked when they are made, read by everything that lists tasks."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import click
import commands
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stablebptt as sb
from stablebptt import cli
from stablebptt.console.options import of_task
from stablebptt.tasks import TASKS, arguments, training
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.settings import Settings
from stablebptt.tasks.task import KINDS, Option, Task

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TASKS)
def test_a_record_says_all(name):
    """Commands, options, their defaults and the file's options come from one place."""
    task = TASKS[name]
    made = sb.problem(name)
    assert made.task == task.name == name and list(made.options) == [option.name for option in task.options]
    assert made.options == task.read({}) == sb.problem(task).options and made.title == task.title(**made.options)
    params = {parameter.name: parameter for parameter in cli.stablebptt.commands[name].commands["train"].params}
    for option in task.options:
        text = click.Context(click.Command("x")).lookup_default(option.name) or params[option.name].default
        value = params[option.name].type.convert(text, None, None)
        assert option.read(value) == made.options[option.name] and params[option.name].help == option.help
    assert task.picture is not None and task.film is not None and task.solved(**made.options) > 0
    assert sb.problem(name, **task.small, steps=2).n_parameters < 1000


def code(path):
    """A module without its docstrings, whose examples may be about anything."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def test_a_task_is_named_in_its_own_files_only():
    """The proof is the smallest one: its kernels, its adjoint and its record."""
    rooms = ("kernels", "adjoint", "tasks", "console", "data", "interop")
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    naming = {path.relative_to(ROOT).as_posix() for path in files if "endulum" in code(path)}
    assert naming == {f"{room}/pendulum.py" for room in ("kernels", "adjoint", "tasks")}


def test_the_functions_of_the_first_version_are_there():
    from stablebptt.tasks.cartpole import cartpole_problem
    from stablebptt.tasks.guidance import guidance_problem
    from stablebptt.tasks.quantum import quantum_problem

    assert cartpole_problem(2, 5).options == sb.problem("cartpole", poles=2, steps=5).options
    assert guidance_problem(evaders=3).options["evaders"] == 3 and quantum_problem(target=2).title == "quantum, target 2"
    with pytest.raises(TypeError, match="cartpole has 7 options; 8 are given"):
        cartpole_problem(*range(8))


def test_unknown_tasks_and_options_are_named():
    with pytest.raises(ValueError, match=f"unknown task 'fusion'; choose from {', '.join(TASKS)}"):
        sb.problem("fusion")
    with pytest.raises(TypeError, match=r"cartpole has no option 'pole'; choose from poles, steps, duration"):
        sb.problem("cartpole", pole=2)


GOOD = {"name": "spring", "summary": "s", "options": (Option("place", "real", 1.0, "h"),), "make": lambda **options: None}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Task(**GOOD | {"name": "my spring"}), "the name of a task is 'my spring'; it must be a word"),
        (lambda: Task(**GOOD | {"options": GOOD["options"] * 2}), "task spring has two options of one name among place, place"),
        (lambda: sb.problem(Task(**GOOD)), "task spring made NoneType, not a problem; return sb"),
        (lambda: Option("a b", "real", 1.0, "h"), "the name of an option is 'a b'"),
        (lambda: Option("_a", "real", 1.0, "h"), "the name of an option is '_a'"),
        (lambda: Option("a", "number", 1.0, "h"), "option a is of kind 'number'; choose from size, whole, real"),
    ],
)
def test_records_that_cannot_be(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, derandomize=True, database=None)
@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(-2, 9), max_size=3))
def test_every_kind_takes_a_value_as_files_keep_it_or_refuses_it(kind, value):
    option = Option("thing", kind, None, "h", choices=("a", "b") if kind == "word" else ())
    try:
        read = option.read(value)
    except ArgumentError as error:
        assert ("thing" in str(error) or kind == "dtype") and "\n" not in str(error)
    else:
        assert read == arguments.plain("thing", read) == option.read(read)


def test_what_was_given_is_one_kind_of_error():
    for call in (
        lambda: sb.problem("cartpole", poles="two"), lambda: sb.problem("quantum", target=40),
        lambda: sb.problem("quantum", weights=(0, 0)), lambda: Settings(optimizer="adam"),
        lambda: training.make_settings(speed=1), lambda: sb.problem(system=3),
        lambda: sb.optimizers.from_description({"name": "newton"}), lambda: sb.tasks.variants.gates("X", 3),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            call()
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, TypeError)


def test_defaults_of_settings_stand_once():
    """Python, plans and the command line."""
    for function in (sb.train, sb.train_seeds):
        named = inspect.signature(function).parameters
        assert (named["epochs"].default, named["variant"].default) == (Settings.epochs, Settings.variant) == (1000, "C")
    for group in ("cartpole", "custom"):
        params = {p.name: p.default for p in cli.stablebptt.commands[group].commands["train"].params}
        for name, value in vars(Settings()).items():
            assert params[name] == (value.name if name == "optimizer" else value), name
    planned = sb.tasks.sweeps.make_plan({"task": "cartpole"})[0].config
    assert {name: planned[name] for name in Settings().describe()} == Settings().describe()


def test_records_and_defaults_need_neither_numpy_nor_numba():
    script = "import sys; from stablebptt import cli; print([m for m in ('numba', 'numpy', 'h5py', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_flags_and_words_of_tasks():
    @click.command()
    @of_task(Option("damped", "flag", True, "Whether it is damped."))
    @of_task(Option("file_name", "word", "none", "A name."))
    def command(damped, file_name):
        return damped, file_name

    assert command.main([], standalone_mode=False) == (True, "none")
    assert command.main(["--no-damped", "--file-name", "x"], standalone_mode=False) == (False, "x")


def test_settings_are_built_once(monkeypatch, tmp_path):
    """By whoever meets the user; the other functions hand the object over."""
    built, check = [], Settings.__post_init__
    monkeypatch.setattr(Settings, "__post_init__", lambda self: (built.append(self), check(self))[1])
    small = {"steps": 2, "hidden": (2,)}
    sizes = {"epochs": 1, "train_count": 2, "test_count": 2}
    sb.train(sb.problem("cartpole", **small), **sizes)
    assert len(built) == 1
    words = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert commands.call("cartpole", "train", "--steps", 2, "--hidden", 2, *words, "--quiet", "--out", tmp_path / "run.h5") == 0
    assert len(built) == 2
    [planned] = sb.tasks.sweeps.make_plan({"task": "cartpole", "options": small, "train": sizes})
    del built[:]
    assert sb.tasks.sweeps.run_one(planned, tmp_path / "sweep").status == "complete"
    assert len(built) == 1
