"""Problems made of a system, controller and loss of one's own; docs/adding_a_system.md."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stablebptt.adjoint import generics as backward
from stablebptt.adjoint import mlp as _network_rules  # noqa: F401  (registers the methods)
from stablebptt.kernels import generics as forward
from stablebptt.kernels.generics import Controller, System
from stablebptt.kernels.mlp import mlp
from stablebptt.kernels.structs import Struct
from stablebptt.tasks import checks, plain_python
from stablebptt.tasks.problems import LOSSES, OUTPUT_INITS, Axis, Problem, mean_weights

TASK = "custom"
SYSTEM, LOSS = (forward.step, backward.step_vjp), (forward.cost, backward.cost_vjp)
CONTROLLER = (forward.control, backward.control_vjp)


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
    when: str = "final",
    regularization: float = 0.0,
    dtype: Any = "float32",
    output_init: str = "glorot",
    title: str = "own system",
    state_axes: Sequence[Axis] | None = None,
    control_axes: Sequence[Axis] | None = None,
    state_units: str = "1",
    control_units: str = "1",
) -> Problem:
    """A problem made of one's own parts.

    Parameters
    ----------
    system : struct with methods for `step` and `step_vjp`
    controller : struct with methods for `control` and `control_vjp` and a `layout`; or sizes of hidden layers, for an MLP
    loss : struct with methods for `cost` and `cost_vjp`
    sample : (random generator, count) -> initial states (count, *state_shape)
    steps, dt : horizon T, and what one step is called in time [s]
    state_shape, control_shape : by default `system.state_shape` and `system.control_shape`
    when : "final" (cost of the last state) or "continuous" (mean over x_1 .. x_T)
    regularization : weight rho of the mean squared control
    title : a few words, for pictures and file names
    state_axes, control_axes : names for files and pictures; state_units, control_units : their units

    Raises
    ------
    TypeError, ValueError
        If a part lacks a method, or something does not fit.
    """
    _needs("system", system, System, SYSTEM)
    _needs("loss", loss, Struct, LOSS)
    kind = checks.precision(dtype)
    state_shape = _shape("state_shape", state_shape or getattr(system, "state_shape", None))
    control_shape = _shape("control_shape", control_shape or getattr(system, "control_shape", None))
    if not isinstance(controller, Struct):
        controller = mlp((int(np.prod(state_shape)), *checks.sizes("controller", controller), int(np.prod(control_shape))))
    elif isinstance(controller, Controller):
        _needs("controller", controller, Controller, CONTROLLER)
    if not callable(sample):
        raise TypeError(f"sample is {sample!r}; it must be a function (random generator, count) -> states")
    parts = [cast(part, kind) for part in (system, controller, loss)]
    steps, dt = checks.whole("steps", steps, 1), checks.real("dt", dt, above=0)
    rho = checks.real("regularization", regularization, least=0)
    options = {
        "source": None, "arguments": {}, "title": str(title), "state_shape": list(state_shape),
        "control_shape": list(control_shape), "steps": steps, "dt": dt, "when": checks.choice("when", when, LOSSES),
        "regularization": rho, "dtype": np.dtype(kind).name,
        "output_init": checks.choice("output_init", output_init, OUTPUT_INITS), "parts": [repr(part) for part in parts],
        "n_parameters": parts[1].n_parameters, "state_units": state_units, "control_units": control_units,
        "code": "-".join(type(part).fingerprint() for part in parts),
    }  # fmt: skip
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
        time_weights=mean_weights(when, steps),
        dtype=kind,
        output_init=output_init,
        draw=sample,
        state_axes=_axes("state", state_axes, state_shape),
        control_axes=_axes("control", control_axes, control_shape),
        state_units=state_units,
        control_units=control_units,
        regularization=rho,
    )
    plain_python.try_new(problem)
    return problem


def from_source(source: str, **arguments: Any) -> Problem:
    """The problem that a function makes: `source` is "module:function", looked for in the current folder, too.

    Raises
    ------
    ValueError
        If there is no such module or function, or it makes no problem.
    """
    made = find(source)
    if not callable(made):
        raise ValueError(f"{source} is {type(made).__name__}, not a function that makes a problem")
    problem = made(**arguments)
    if not isinstance(problem, Problem):
        raise ValueError(f"{source} made {type(problem).__name__}, not a problem; return sb.problem(system=..., ...)")
    if problem.task != TASK:
        return problem
    options = {**problem.options, "source": source, "arguments": arguments}
    return dataclasses.replace(problem, options=options)


def remake(options: dict[str, Any]) -> Problem:
    """The problem that `from_source` made, made again in another process."""
    if not options["source"]:
        raise ValueError("a sweep needs a problem that a function makes: task = \"module:function\"")
    problem = from_source(options["source"], **options["arguments"])
    if problem.options != options:
        raise ValueError(f"{options['source']} has changed since the sweep was planned")
    return problem


def find(source: str) -> Any:
    """What "module:name" names."""
    module, _, name = source.partition(":")
    if not module or not name:
        raise ValueError(f"{source!r} names nothing; give module:name, such as my_module:make_problem")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ValueError(f"{source}: {error}") from error
    except AttributeError:
        raise ValueError(f"{source}: the module {module} has no {name}") from None
    return found


def cast(part: Any, kind: Any) -> Any:
    """A struct whose floating-point fields have one precision (a double in it would slow all arithmetic down)."""

    def converted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.astype(kind) if value.dtype.kind == "f" else value
        return kind(value) if isinstance(value, float | np.floating) else value

    return type(part)(*(converted(getattr(part, name)) for name in part.fields))


def in_float64(problem: Problem) -> Problem:
    """The same problem in float64, for checks."""
    parts = {name: cast(getattr(problem, name), np.float64) for name in ("system", "controller", "loss_function")}
    return dataclasses.replace(problem, dtype=np.float64, options={**problem.options, "dtype": "float64"}, **parts)


class Described:
    """A problem of one's own of which only a file is known: enough to draw its runs, not to compute."""

    def __init__(self, config: dict[str, Any]) -> None:
        options = config["options"]
        self.task, self.options, self.title = TASK, options, str(options["title"])
        self.state_shape = _shape("state_shape", options["state_shape"])
        self.control_shape = _shape("control_shape", options["control_shape"])
        self.steps = checks.whole("steps", options["steps"], 1)
        self.n_parameters = checks.whole("n_parameters", options["n_parameters"], 1)
        self.dtype = checks.precision(options["dtype"])
        self.state_units, self.control_units = str(options["state_units"]), str(options["control_units"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"the run's system is one of your own, so {name} is not known; give its problem: sb.load(path, problem=...)"
        )


def same_problem(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two options describe the same problem, whoever made it."""
    unimportant = ("source", "arguments", "code")
    return {k: v for k, v in first.items() if k not in unimportant} == {k: v for k, v in second.items() if k not in unimportant}


def _needs(name: str, part: Any, base: type, functions: tuple[Any, ...]) -> None:
    if not isinstance(part, base):
        article = f"an instance of a subclass of {base.__name__}"
        raise TypeError(f"{name} is {part!r}; it must be {article} (see docs/adding_a_system.md)")
    for function in functions:
        if not any(cls in function.methods for cls in type(part).__mro__):
            names = function.__wrapped__.__code__
            signature = ", ".join(names.co_varnames[: names.co_argcount])
            raise TypeError(
                f"{type(part).__name__} has no method for {function.__name__}({signature}); "
                f"write one and mark it with @implements({function.__name__}, {type(part).__name__})"
            )


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        raise TypeError(f"{name} is missing; give it, or define it in the system's class")
    if isinstance(value, int):
        value = (value,)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"{name} is {value!r}; it must be a tuple of whole numbers, such as (3, 2)")
    return tuple(checks.size(f"{name}[{axis}]", length) for axis, length in enumerate(value))


def _axes(what: str, given: Sequence[Axis] | None, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes as given, or numbered ones."""
    if given is None:
        return tuple(Axis(f"{what}_{k}", f"axis {k} of the {what}", tuple(range(n))) for k, n in enumerate(shape))
    if tuple(len(axis.places) for axis in given) != shape:
        raise ValueError(f"{what}_axes have {[len(axis.places) for axis in given]} places; the shape is {shape}")
    return tuple(given)


