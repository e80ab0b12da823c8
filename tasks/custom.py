"""Problems with a custom system, controller or loss; docs/adding_a_system.md."""

import dataclasses
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from stablebptt.adjoint import generics as backward
from stablebptt.data.atomic import expanded
from stablebptt.kernels import generics as forward
from stablebptt.kernels.core.fingerprints import describe
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Controller, System
from stablebptt.kernels.network import mlp
from stablebptt.tasks import additions, arguments, descriptions, plain_python
from stablebptt.tasks.errors import ArgumentError, BackendError, DivergedError, OwnCodeError, OwnLineError
from stablebptt.tasks.places import where
from stablebptt.tasks.problems import Axis, Problem, mean_weights
from stablebptt.tasks.task import CUSTOM, LOSSES, OUTPUT_INITS, Task

__all__ = ["custom_problem"]

TASK = CUSTOM
SYSTEM, LOSS = (forward.step, backward.step_vjp), (forward.cost, backward.cost_vjp)
RUNNING = (forward.running_cost, backward.running_cost_vjp)
WHOLE = (forward.cost_batch, backward.cost_batch_vjp)
CONTROLLER = (forward.control, backward.control_vjp)
PARTS = ("system", "controller", "loss")
importing: list[str] = []  # the user's modules whose import is under way


def custom_problem(
    system: System,
    controller: Any,
    loss: Struct,
    *,
    sample: Callable[[np.random.Generator, int], np.ndarray],
    steps: int,
    dt: float,
    state_shape: tuple[int, ...] | None = None,
    control_shape: tuple[int, ...] | None = None,
    when: str | None = None,
    regularization: float = 0.0,
    dtype: Any = "float32",
    output_init: str = "glorot",
    title: str = "own system",
    state_axes: Sequence[Any] | None = None,
    control_axes: Sequence[Any] | None = None,
    state_units: str = "1",
    control_units: str = "1",
    **added: Any,
) -> Problem:
    """A problem with a custom system, controller or loss.

    Parameters
    ----------
    system : struct with methods for `step` and `step_vjp`
    controller : struct with methods for `control` and `control_vjp` and a `layout`; or sizes of hidden layers, for an MLP
    loss : struct with methods for `cost` and `cost_vjp`
    sample : (random generator, count) -> initial states (count, *state_shape)
    steps, dt : horizon T, and length of a time step [s]
    state_shape, control_shape : by default `system.state_shape` and `system.control_shape`
    when : "final" (cost of the last state) or "continuous" (mean over x_1 .. x_T). For a loss of time, state and control the
        default is "continuous": the mean over the time steps plus the cost of the last state
    regularization : weight rho of the mean squared control
    dtype : "float32" or "float64"
    output_init : initial kernel of the last layer: "glorot" or "zero"
    title : a few words, for pictures and file names
    state_axes, control_axes : names for files and pictures: an `Axis` or a list of words for every axis; for a single axis, the
        list alone, such as ["place", "rate"]
    state_units, control_units : units for files and pictures
    **added : activation, bound, observe, disturb, time_weights; see `stablebptt.tasks.additions`

    Raises
    ------
    TypeError, ValueError
        If a part lacks a method, or something does not fit.

    Examples
    --------
    The pendulum's parts with a starting state of your own:

    >>> from stablebptt.kernels.pendulum import Standing, pendulum
    >>> hanging = lambda random, count: np.full((count, 2), [np.pi, 0.0])
    >>> problem = custom_problem(
    ...     pendulum(0.02), (5,), Standing(), sample=hanging, steps=50, dt=0.02, state_shape=(2,), control_shape=(1,)
    ... )
    >>> problem.n_parameters
    21
    """
    arguments.known(CUSTOM, added, additions.NAMES)
    _needs("system", system, System, SYSTEM)
    _needs("loss", loss, Struct, _loss_functions(loss))
    kind = arguments.precision(dtype)
    state_shape = _shape("state_shape", getattr(system, "state_shape", None) if state_shape is None else state_shape)
    control_shape = _shape("control_shape", getattr(system, "control_shape", None) if control_shape is None else control_shape)
    if not isinstance(controller, Struct):
        controller = mlp((int(np.prod(state_shape)), *arguments.sizes("controller", controller), int(np.prod(control_shape))))
    elif isinstance(controller, Controller):
        _needs("controller", controller, Controller, CONTROLLER)
    if not callable(sample):
        raise ArgumentError(f"sample is {sample!r}; it must be a function (random generator, count) -> states")
    parts = [cast(part, kind) for part in (system, controller, loss)]
    for part in parts:
        _check_fields(part)
    named = dict(zip(PARTS, parts))
    arguments.layout(parts[1])
    steps, dt = arguments.whole("steps", steps, 1), arguments.real("dt", dt, above=0)
    of_states = forward.is_of_states(parts[2])
    when = arguments.choice("when", ("final" if of_states else "continuous") if when is None else when, LOSSES)
    weights = mean_weights(when, steps, of_states=of_states)
    rho = arguments.real("regularization", regularization, least=0)
    options = {
        "source": None, "arguments": {}, "title": str(title), "state_shape": list(state_shape),
        "control_shape": list(control_shape), "steps": steps, "dt": dt, "when": when,
        "regularization": rho, "dtype": np.dtype(kind).name,
        "output_init": arguments.choice("output_init", output_init, OUTPUT_INITS),
        "parts": {name: descriptions.of_part(part) for name, part in named.items()},
        "n_parameters": forward.parameter_count(parts[1]), "state_units": state_units, "control_units": control_units,
        "code": descriptions.code(named),
    }  # fmt: skip
    if not of_states:
        options["of_states"] = False
    problem = Problem(
        task=TASK,
        options=options,
        title=str(title),
        system=parts[0],
        controller=parts[1],
        loss_function=parts[2],
        state_shape=state_shape,
        control_shape=control_shape,
        steps=steps,
        dt=dt,
        time_weights=weights,
        dtype=kind,
        output_init=output_init,
        draw=sample,
        state_axes=_axes("state", state_axes, state_shape),
        control_axes=_axes("control", control_axes, control_shape),
        state_units=state_units,
        control_units=control_units,
        regularization=rho,
    )
    problem, _ = additions.apply(problem, added)
    plain_python.try_new(problem)
    return problem


def _loss_functions(loss: Any) -> tuple[Any, ...]:
    """What a loss must define."""
    if forward.is_of_states(loss):
        return LOSS
    return RUNNING if forward.is_running(type(loss)) else WHOLE


def renewed(problem: Problem, added: dict[str, Any]) -> Problem:
    """A custom problem whose options describe its parts as they are now, and what was added."""
    named = {"system": problem.system, "controller": problem.controller, "loss": problem.loss_function}
    if type(problem.observation) is not forward.State:
        named["observation"] = problem.observation
    parts = {name: descriptions.of_part(part) for name, part in named.items()}
    counts = {"n_parameters": problem.n_parameters, "code": descriptions.code(named)}
    return dataclasses.replace(problem, options={**problem.options, **added, "parts": parts, **counts})


def from_source(source: str, **keywords: Any) -> Problem:
    """The problem that a function makes; `source` as in `find`.

    Raises
    ------
    ValueError, TypeError
        If there is no such function, it does not accept the arguments, or it makes no problem.
    OwnCodeError
        If it fails in another way.
    """
    maker = find(source)
    if not callable(maker):
        raise ArgumentError(f"{source} is {type(maker).__name__}, not a function that makes a problem")
    if isinstance(maker, Task):
        _takes(source, maker.make, {option.name: option.default for option in maker.options})
    else:
        _takes(source, maker, keywords)
    try:
        problem = maker(**keywords)
    except (BackendError, DivergedError):
        raise
    except (Exception, SystemExit) as error:
        raise _explanation(source, error, (ValueError, TypeError)) from error
    if not isinstance(problem, Problem):
        raise ArgumentError(f"{source} made {type(problem).__name__}, not a problem; return sb.problem(system=..., ...)")
    if problem.task != TASK:
        return problem
    keywords = problem.options["arguments"] or arguments.plain("arguments", keywords)  # a task stores all of its own
    options = {**problem.options, "source": source, "arguments": keywords}
    return dataclasses.replace(problem, options=options)


def from_file(task: Task, there: Problem) -> Problem:
    """The problem that a user's task makes from the arguments in a file; `there` is the problem in that file."""
    problem = task(**(there.options.get("arguments") or {}))
    return there if problem.task == there.task != TASK else problem  # a file describes a task of this package completely


def _takes(source: str, maker: Callable, keywords: dict[str, Any]) -> None:
    """Raise an error, before the call, if a function does not accept its arguments."""
    try:
        signature = inspect.signature(maker)
    except ValueError:  # some functions in C have no signature
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        allowed = ", ".join(signature.parameters) or "none"
        raise ArgumentError(f"{source}: {error}; the arguments it takes: {allowed}") from None


def remake(options: dict[str, Any]) -> Problem:
    """The problem of `from_source`, made again in another process."""
    if not options["source"]:
        raise ArgumentError("a sweep needs a problem that a function makes: task = \"module:function\"")
    problem = from_source(options["source"], **options["arguments"])
    if found := descriptions.differences(options, problem.options):
        what = f"{options['source']} has changed since the sweep was planned"
        raise ArgumentError(descriptions.refusal(what, found, "plan it anew"))
    return problem


def find(source: str) -> Any:
    """The object that "module:name" or "folder/file.py:name" names. The current folder is searched for modules, too.

    Raises
    ------
    ValueError
        If there is no such module, file or name.
    OwnCodeError
        If the module itself fails.
    """
    module, _, name = source.rpartition(":")
    if not module or not name:
        raise ArgumentError(f"{source!r} names nothing; give module:name or file.py:name, such as my_module:make_problem")
    importing.append(module)
    try:
        found: Any = _imported_file(module) if module.endswith(".py") else _imported(module)
    except (Exception, SystemExit) as error:
        raise _explanation(source, error, ()) from error
    finally:
        importing.pop()
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ArgumentError(f"{source}: the module {module} has no {name}") from None
    return found


def _imported(module: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def _imported_file(text: str) -> ModuleType:
    """The module in a file, as if its folder were on the path. It has the name of the file, in every process."""
    path = expanded(text).resolve()
    name = path.stem.replace(".", "_")
    if not path.is_file():
        raise ArgumentError(f"there is no file {text}")
    known = sys.modules.get(name) or importlib.util.find_spec(name)
    place = getattr(known, "__file__", None) or getattr(known, "origin", None)
    if known is not None and (place is None or not os.path.exists(place) or not path.samefile(place)):
        where = place or "built in"
        raise ArgumentError(f"a file {path.name} cannot be used beside the module {name} ({where}); rename the file")
    if isinstance(known, ModuleType):
        return known
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def own_code(task: Task | None) -> Iterator[None]:
    """Report an error in a picture or film of a user's task with its file and line."""
    try:
        yield
    except Exception as error:
        if task is None or isinstance(error, ArgumentError | OSError) or where(error) is None:
            raise
        raise _explanation("", error, ()) from error


def _explanation(source: str, error: BaseException, usage: tuple[type[Exception], ...]) -> Exception:
    """The error in a user's code, with its place; an ArgumentError if that code never ran or the error is one of `usage`."""
    if isinstance(error, OwnLineError):
        return error
    place = where(error)
    if place is None:
        return ArgumentError(f"{source}: {error}")
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, usage):
        return ArgumentError(f"{message} ({place})")
    return OwnCodeError(f"{type(error).__name__}: {message} ({place})")


def cast(part: Any, kind: Any) -> Any:
    """A struct with fields in the types of their annotations and in one precision (one double would slow down all arithmetic).

    Its code is fingerprinted again, because what its methods read may have changed since the last problem.
    """
    type(part).fingerprint(renew=True)
    wanted = _annotations(type(part))
    values = ((name, getattr(part, name)) for name in type(part).fields)
    return type(part)(*(_cast(f"{type(part).__name__}.{name}", value, wanted.get(name), kind) for name, value in values))


def _annotations(cls: type) -> dict[str, str]:
    """Names of the types of all fields, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base).items():
            found[name] = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return found


def _cast(name: str, value: Any, annotation: str | None, kind: Any) -> Any:
    """The value of one field."""
    if isinstance(value, Struct):
        return cast(value, kind)
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentError(f"{name} is a masked array; give an array without a mask")
    if isinstance(value, list | tuple) and (annotation or "").endswith("ndarray"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise ArgumentError(f"{name} is an array of {value.dtype}; it must hold real numbers")
        return value.astype(kind) if value.dtype.kind == "f" else value
    if annotation == "float":
        if isinstance(value, bool | str) or not isinstance(value, int | float | np.integer | np.floating):
            raise ArgumentError(f"{name} is {value!r}; it must be a number")
        return kind(value)
    if annotation == "int" and not isinstance(value, bool):
        whole = int(value) if isinstance(value, float | np.floating) and float(value).is_integer() else value
        return arguments.whole(name, whole, -(2**63), 2**63 - 1)
    return kind(value) if isinstance(value, float | np.floating) else value


def in_float64(problem: Problem) -> Problem:
    """The same problem in float64, for checks."""
    names = ("system", "observation", "controller", "loss_function")
    parts = {name: cast(getattr(problem, name), np.float64) for name in names}
    return dataclasses.replace(problem, dtype=np.float64, options={**problem.options, "dtype": "float64"}, **parts)


def custom_facts(options: dict[str, Any]) -> dict[str, Any]:
    """`descriptions.facts` of the problem with these options."""
    names = ("steps", "dt", "regularization", "output_init", "dtype")
    of_states = options.get("of_states", True)
    weights = options.get("time_weights", mean_weights(options["when"], options["steps"], of_states=of_states))
    weights = np.asarray(weights, np.float64)
    more = {"limits": describe(np.asarray(options["bound"]))} if "bound" in options else {}
    more |= {f"disturb.{name}": describe(np.asarray(value)) for name, value in options.get("disturb", {}).items()}
    return {name: options[name] for name in names} | {"time_weights": describe(weights)} | options["parts"] | more


class Described:
    """A custom problem known from a file only: enough to draw its runs, not to compute."""

    def __init__(self, config: dict[str, Any]) -> None:
        options = config["options"]
        self.task, self.options, self.title = TASK, options, str(options["title"])
        self.state_shape = _shape("state_shape", options["state_shape"])
        self.control_shape = _shape("control_shape", options["control_shape"])
        self.steps = arguments.whole("steps", options["steps"], 1)
        self.n_parameters = arguments.whole("n_parameters", options["n_parameters"], 1)
        self.dtype = arguments.precision(options["dtype"])
        self.state_units, self.control_units = str(options["state_units"]), str(options["control_units"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"the run's system is one of your own, so {name} is not known; give its problem: sb.load(path, problem=...)"
        )


def _needs(name: str, part: Any, base: type, functions: tuple[Any, ...]) -> None:
    if not isinstance(part, base):
        article = f"an instance of a subclass of {base.__name__}"
        raise ArgumentError(f"{name} is {part!r}; it must be {article} (see docs/adding_a_system.md)")
    for function in functions:
        if not any(cls in function.methods for cls in type(part).__mro__):
            names = function.__wrapped__.__code__
            signature = ", ".join(names.co_varnames[: names.co_argcount])
            raise ArgumentError(
                f"{type(part).__name__} has no method for {function.__name__}({signature}); "
                f"write one and mark it with @implements({function.__name__}, {type(part).__name__})"
            )


def _check_fields(part: Struct) -> None:
    """Raise an error for fields that machine code cannot hold, before the compiler does."""
    for name in type(part).fields:
        value = getattr(part, name)
        if not _is_held(value):
            raise ArgumentError(f"{type(part).__name__}.{name} is {value!r:.100}; it must be a number or an array of numbers")


def _is_held(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_held, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc"
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, float | complex | Struct)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        raise ArgumentError(f"{name} is missing; give it, or define it in the system's class")
    if isinstance(value, int | np.integer):
        value = (value,)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or np.size(value) == 0:
        raise ArgumentError(f"{name} is {value!r}; it must be a tuple of whole numbers, such as (3, 2)")
    return tuple(arguments.size(f"{name}[{axis}]", length) for axis, length in enumerate(value))


def _axes(what: str, given: Sequence[Any] | None, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes as given, with the words of plain lists, or with numbers."""
    if isinstance(given, str | Axis) or not isinstance(given, Sequence | np.ndarray | None):
        raise ArgumentError(f"{what}_axes is {given!r}; give a list of words, or for every axis an Axis or a list of words")
    places: list[Any] = [range(n) for n in shape] if given is None else list(given)
    if all(isinstance(word, str) for word in places):
        places = [places]
    axes = tuple(
        axis if isinstance(axis, Axis) else Axis(f"{what}_{k}", f"axis {k} of the {what}", axis) for k, axis in enumerate(places)
    )
    if tuple(len(axis.places) for axis in axes) != shape:
        raise ArgumentError(f"{what}_axes have {[len(axis.places) for axis in axes]} places; the shape is {shape}")
    return axes


