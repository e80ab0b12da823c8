"""Trial calls of the user's functions in plain Python before compilation, where mistakes have a file and a line.

Compiled code reads beyond the end of an array, and the compiler reports a typo at length. NumPy arrays check their bounds.
Functions of this package are not called. Code that only the compiler understands is left to the compiler.
"""

import dataclasses
import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import from_dtype, njit, typeof

from stablebptt.adjoint import generics as backward
from stablebptt.kernels import generics as forward
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.lanes import view_type
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks.errors import DivergedError, OwnLineError
from stablebptt.tasks.places import is_users, of_library, shown, users_line

# Numbers that one call may read or write before it counts as good: a loop over all pairs is slow in Python.
ACCESSES = 50_000
GIST = 240  # letters of the compiler's that are shown
BRANCH = "the condition differs between samples; write where(condition, a, b)"
# Samples of a batch.
BATCH = 3

Call = tuple[Any, ...]  # generic function, struct, arrays


class _Enough(Exception):
    """The trial has made enough accesses."""


class Counted(np.ndarray):
    """An array that ends a trial after `ACCESSES` accesses to it, its views and the arrays made like it."""

    left: list[int]

    def __array_finalize__(self, source: Any) -> None:
        self.left = getattr(source, "left", [ACCESSES])

    def __getitem__(self, key: Any) -> Any:
        self._count()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._count()
        super().__setitem__(key, value)

    def _count(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise _Enough


def try_new(problem: Any) -> None:
    """`try_problem` at one initial state of a new problem."""
    try:
        states = np.asarray(problem.draw(np.random.default_rng(0), 1), problem.dtype).reshape(1, problem.n_state)
    except Exception:  # `Problem.sample` reports what is wrong with the states
        return
    try_problem(problem, states, (2,))


def try_problem(problem: Any, states: np.ndarray, cotangents: tuple[int, ...] = (1, 2, 3)) -> None:
    """Call a problem's user-defined functions at a few states (n, n_state); loss and controller may be None.

    Raises
    ------
    ValueError
        With file and line, if a function takes other arguments or returns something else than it should, or uses a missing name
        or attribute, or an index out of bounds.
    """
    for x in states:
        for call in _calls(problem, x, cotangents):
            _try(*call)


@contextmanager
def explained(problem: Any, x: np.ndarray) -> Iterator[None]:
    """Where compiled code fails, or cannot be compiled, say why in the user's terms; x (n_state,) is a state to try it at.

    `--debug` shows the error of the compiler, too, which is the context of the new one.
    """
    try:
        yield
    except Exception as error:
        raise _why(problem, x, error) from None


def _why(problem: Any, x: np.ndarray, error: Exception) -> Exception:
    """What is wrong with one of the user's functions, with file and line; the error itself, if it is none of them or says so.

    Within the package's loops the compiler tells of every function on its way. So the user's are compiled alone.
    """
    if isinstance(error, OwnLineError | DivergedError) or is_users(error):
        return error
    calls = [(own, call) for call in _calls(problem, x, (2,)) if (own := _of_the_user(*call[:2]))]
    for own, (_, *given) in calls:
        try:
            njit(**OPTIONS)(own).compile(tuple(map(typeof, given)))
        except Exception as found:
            return OwnLineError(f"{_where(found, own)}: this cannot be compiled: {gist(found)}")
    for own, (_, *given) in calls:
        try:
            _call(own, *given)
        except _Enough:
            continue
        except Exception as found:
            return _told(found, own)
    return error


def in_vectors(system: Any, dtype: Any = np.float64) -> Iterator[tuple[str, str]]:
    """Name of each of a user's steps, and why it is computed sample by sample; "" if registers full of samples compute it."""
    numbers = from_dtype(np.dtype(dtype))
    one, several = view_type(numbers), view_type(numbers, several=True)
    for function, views, sample, more in (
        (forward.step, [one] * 3, forward.step_sample, [one] * 4),
        (backward.step_vjp, [one] * 2 + [several] * 3, backward.step_sample_vjp, [one] * 3 + [several] * 3 + [one]),
    ):
        if _of_the_user(sample, system):  # batches are made of these
            function, views = sample, more
        if own := _of_the_user(function, system):
            yield function.__name__, _why_not(own, (typeof(system), *views))


def _why_not(function: Any, kinds: Any) -> str:
    """Why a function of the user's does not compile for vectors; "" if it does."""
    try:
        njit(**OPTIONS)(function).compile(kinds)
    except Exception as found:  # the compiler may fail in any way
        branches = "bool(Mask" in str(found).partition("There are")[0]
        return f"{_where(found, function)}: {BRANCH if branches else gist(found)}"
    return ""


def _where(error: Exception, function: Any) -> str:
    """File, line and text of what the compiler cannot do; those of the function if it only tells a line of its own."""
    code = function.__code__
    loc: Any = getattr(error, "loc", None)
    known = loc is not None and not of_library(loc.filename)
    return shown(code, loc.filename, loc.line) if known else _first_line(function)


def gist(error: Exception) -> str:
    """The compiler's first words on the matter, in one line."""
    lines = [line.strip(" >") for line in str(error).splitlines() if line.strip()]
    words = itertools.takewhile(lambda line: not line.startswith(("There are", "File ", "During:", "Raised from")), lines)
    return " ".join(line for line in words if not line.startswith("Failed in nopython"))[:GIST]


def method(function: Any, part: Any) -> Any:
    """The method of a generic function for a struct; None if there is no method."""
    return next((function.methods[cls] for cls in type(part).__mro__ if cls in function.methods), None)


def _of_the_user(function: Any, part: Any) -> Any:
    """The user's method of a generic function for a struct; None if there is none, or only one of the package's."""
    own = method(function, part)
    return None if own is None or _ours(getattr(own, "__module__", None)) else own


def _calls(problem: Any, x: np.ndarray, cotangents: tuple[int, ...]) -> Iterator[Call]:
    """Calls of all functions of a problem at one state x (n_state,)."""
    for m in cotangents:
        yield from _system_calls(problem.system, x, problem.n_control, m)
    if problem.loss_function is not None:
        yield from _loss_calls(problem.loss_function, x, problem.n_control)
    yield from _observation_calls(getattr(problem, "observation", None), x)
    if isinstance(problem.controller, forward.Controller):
        yield from _controller_calls(problem.controller, np.zeros(problem.n_seen, x.dtype) + x[0], problem.n_control)


def _system_calls(system: Any, x: np.ndarray, n_control: int, m: int) -> Iterator[Call]:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, x.dtype)

    n, c, lam = x.size, zeros(n_control), np.ones((m, x.size), x.dtype)
    x_next, scratch = zeros(n), zeros(forward.sample_scratch(system))
    yield forward.step, system, x, c, x_next
    yield backward.step_vjp, system, x, c, lam, zeros(m, n), zeros(m, n_control)
    yield forward.step_sample, system, x, c, x_next, scratch
    yield backward.step_sample_vjp, system, x, x_next, c, lam, zeros(m, n), zeros(m, n_control), scratch
    b, scratch = BATCH, zeros(forward.scratch_size(system, BATCH, m, n, n_control))
    x, c, x_next, lam = (np.stack([values] * b) for values in (x, c, x_next, lam))
    yield forward.step_batch, system, x, c, x_next, scratch
    yield backward.step_batch_vjp, system, x, x_next, c, lam, zeros(b, m, n), zeros(b, m, n_control), scratch


def _loss_calls(loss: Any, x: np.ndarray, n_control: int) -> Iterator[Call]:
    one, c = x.dtype.type(1), np.zeros(n_control, x.dtype)
    if forward.is_running(type(loss)):
        yield forward.running_cost, loss, 0, x, c
        yield backward.running_cost_vjp, loss, 0, x, c, one, np.zeros_like(x), np.zeros_like(c)
        yield forward.final_cost, loss, x
        yield backward.final_cost_vjp, loss, x, one, np.zeros_like(x)
    else:
        yield forward.cost, loss, x
        yield backward.cost_vjp, loss, x, one, np.zeros_like(x)


def _observation_calls(observation: Any, x: np.ndarray) -> Iterator[Call]:
    if observation is not None:
        seen = np.zeros(type(observation).size(observation, x.size), x.dtype)
        yield forward.observe, observation, 0, x, seen
        yield backward.observe_vjp, observation, 0, x, np.ones_like(seen), np.zeros_like(x)


def _controller_calls(controller: Any, x: np.ndarray, n_control: int) -> Iterator[Call]:
    theta, c = np.full(forward.parameter_count(controller), 0.1, x.dtype), np.zeros(n_control, x.dtype)
    yield forward.control, controller, theta, x, c
    yield backward.control_vjp, controller, theta, x, np.ones_like(c), np.zeros_like(theta), np.zeros_like(x)


def _try(function: Any, part: Any, *arrays: Any) -> None:
    """Call a method of a generic function if it is the user's."""
    own = _of_the_user(function, part)
    if own is None:
        return
    _check_signature(function, own)
    try:
        result = _call(own, part, *arrays)
    except (NameError, IndexError, dataclasses.FrozenInstanceError) as error:
        raise _told(error, own) from error
    except AttributeError as error:
        if isinstance(error.obj, Struct | np.ndarray | types.ModuleType):
            raise _told(error, own) from error
    except Exception:  # 1 / 0, square roots of -1, the compiler's own functions: not so in compiled code, or it says so itself
        return
    else:
        if function in (forward.cost, forward.running_cost, forward.final_cost) and not _is_number(result):
            told = {type(None): "nothing", Counted: f"an array of shape {np.shape(result)}"}.get(type(result), repr(result))
            name = "final_cost" if function is forward.final_cost else "cost"
            raise OwnLineError(f"{_first_line(own)}: it returns {told}; {name} must return a number")


def _check_signature(function: Any, own: Any) -> None:
    """Raise an error if a method does not take the arguments of its generic function."""
    wanted = list(inspect.signature(function).parameters)
    try:
        inspect.signature(own).bind(*wanted)
    except TypeError as error:
        raise OwnLineError(f"{_first_line(own)}: {error}; it must take ({', '.join(wanted)})") from None


def _call(own: Any, part: Any, *arrays: Any) -> Any:
    """Call a user's method in plain Python; raises `_Enough` if that takes too long."""
    counted, budget = [values.view(Counted) if isinstance(values, np.ndarray) else values for values in arrays], [ACCESSES]
    for values in counted:
        if isinstance(values, Counted):
            values.left = budget
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(own, {})(part, *counted)


def _told(error: Exception, own: Any) -> OwnLineError:
    """An error of plain Python with file and line."""
    code, line = users_line(error) or (own.__code__, own.__code__.co_firstlineno)
    words = str(error).replace(f"'{Counted.__name__}' object", "an array")
    return OwnLineError(f"{shown(code, code.co_filename, line)}: {words}")


def _first_line(own: Any) -> str:
    code = getattr(own, "py_func", own).__code__
    return shown(code, code.co_filename, code.co_firstlineno)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.ndarray) and np.ndim(value) == 0


def plain(function: Any, known: dict[Any, Callable]) -> Any:
    """A copy of a user's function that calls plain Python instead of compiled helpers (`njit`)."""
    function = getattr(function, "py_func", function)
    if not isinstance(function, types.FunctionType) or _ours(function.__module__) or of_library(function.__code__.co_filename):
        return function
    if function not in known:
        names = dict(function.__globals__)
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
        copy.__kwdefaults__ = function.__kwdefaults__
        known[function] = copy
        for name in _names(function.__code__) & names.keys():
            names[name] = plain(names[name], known)
        for cell, original in zip(cells, function.__closure__ or ()):
            try:
                cell.cell_contents = plain(original.cell_contents, known)
            except ValueError:  # not yet filled
                continue
    return known[function]


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _ours(module: str | None) -> bool:
    return module is not None and module.startswith("stablebptt.")
