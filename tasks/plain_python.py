"""Trial calls of the user's functions in plain Python before compilation, where mistakes have a file and a line.

Compiled code reads beyond the end of an array, and the compiler reports a typo at length. NumPy arrays check their bounds.
Functions of this package are not called. Code that only the compiler understands is left to the compiler.
"""

import itertools
import linecache
import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numba import from_dtype, njit, typeof
from numba.core.errors import NumbaError, UnsupportedBytecodeError

from stablebptt.adjoint import generics as backward
from stablebptt.kernels import generics as forward
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.lanes import view_type
from stablebptt.kernels.core.structs import Struct
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem

# Numbers that one call may read or write before it counts as good: a loop over all pairs is slow in Python.
ACCESSES = 50_000
COMPILER_ERRORS = (NumbaError, UnsupportedBytecodeError)
GIST = 240  # letters of the compiler's that are shown
BRANCH = "the condition differs between samples; write where(condition, a, b)"
# Samples of a batch.
BATCH = 3
LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))

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


def try_new(problem: Problem) -> None:
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
        With file and line, if a function uses a missing name or attribute, or an index out of bounds.
    """
    for x in states:
        for call in _calls(problem, x, cotangents):
            _try(*call)


def why_not_compiled(problem: Problem, error: Exception) -> Exception:
    """What the compiler has against one of the user's functions, with file and line; its own error, if it is none of them.

    Within the package's loops the compiler tells of every function on its way. So the user's are compiled alone.
    """
    for function, part, *arrays in _calls(problem, problem.sample(1).reshape(-1), (2,)):
        if own := _of_the_user(function, part):
            try:
                njit(**OPTIONS)(own).compile(tuple(map(typeof, (part, *arrays))))
            except COMPILER_ERRORS as found:
                return ArgumentError(f"{_where(found, own)}: {_gist(found)}")
    return error


def in_vectors(system: Any, dtype: Any = np.float64) -> Iterator[tuple[str, str]]:
    """Name of each of a user's steps, and why it is computed sample by sample; "" if registers full of samples compute it."""
    numbers = from_dtype(np.dtype(dtype))
    one, several = view_type(numbers), view_type(numbers, several=True)
    views = {forward.step: [one] * 3, backward.step_vjp: [one] * 2 + [several] * 3}
    views |= {forward.step_sample: [one] * 4, backward.step_sample_vjp: [one] * 3 + [several] * 3 + [one]}
    for function, kinds in views.items():
        if own := _of_the_user(function, system):
            try:
                njit(**OPTIONS)(own).compile((typeof(system), *kinds))
                yield function.__name__, ""
            except (*COMPILER_ERRORS, NotImplementedError) as found:
                branches = "bool(Mask" in str(found).partition("There are")[0]
                yield function.__name__, f"{_where(found, own)}: {BRANCH if branches else _gist(found)}"


def _where(error: Exception, function: Any) -> str:
    """File, line and text of what the compiler cannot do."""
    code = function.__code__
    loc = getattr(error, "loc", None)
    file, line = (code.co_filename, code.co_firstlineno) if loc is None else (loc.filename, loc.line)
    return _shown(code, file, line)


def _gist(error: Exception) -> str:
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
    yield from _loss_calls(problem.loss_function, x)
    if isinstance(problem.controller, forward.Controller):
        yield from _controller_calls(problem.controller, x, problem.n_control)


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


def _loss_calls(loss: Any, x: np.ndarray) -> Iterator[Call]:
    yield forward.cost, loss, x
    yield backward.cost_vjp, loss, x, x.dtype.type(1), np.zeros_like(x)


def _controller_calls(controller: Any, x: np.ndarray, n_control: int) -> Iterator[Call]:
    theta, c = np.full(forward.parameter_count(controller), 0.1, x.dtype), np.zeros(n_control, x.dtype)
    yield forward.control, controller, theta, x, c
    yield backward.control_vjp, controller, theta, x, np.ones_like(c), np.zeros_like(theta), np.zeros_like(x)


def _try(function: Any, part: Any, *arrays: Any) -> None:
    """Call a method of a generic function if it is the user's."""
    own = _of_the_user(function, part)
    if own is None:
        return
    counted, budget = [values.view(Counted) if isinstance(values, np.ndarray) else values for values in arrays], [ACCESSES]
    for values in counted:
        if isinstance(values, Counted):
            values.left = budget
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain(own, {})(part, *counted)
    except (NameError, IndexError, AttributeError) as error:
        if not isinstance(error, AttributeError) or isinstance(error.obj, Struct | np.ndarray | types.ModuleType):
            told = str(error).replace(f"'{Counted.__name__}' object", "an array")
            code, line = users_line(error) or (own.__code__, own.__code__.co_firstlineno)
            raise ArgumentError(f"{_shown(code, code.co_filename, line)}: {told}") from error
    except Exception:  # 1 / 0, square roots of -1, the compiler's own functions: not so in compiled code, or it says so itself
        return


def plain(function: Any, known: dict[Any, Callable]) -> Any:
    """A copy of a user's function that calls plain Python instead of compiled helpers (`njit`)."""
    function = getattr(function, "py_func", function)
    if not isinstance(function, types.FunctionType) or _ours(function.__module__) or _of_library(function.__code__.co_filename):
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


def _of_library(file: str) -> bool:
    return any(folder in Path(file).resolve().parents for folder in LIBRARIES)


def users_line(error: BaseException) -> tuple[types.CodeType, int] | None:
    """Function and line of the user's code that led to an error, or else of a library's."""
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("stablebptt", "importlib")
    ]
    users = [(code, line) for code, line in frames if not _of_library(code.co_filename)] or frames
    return users[-1] if users else None


def _shown(code: types.CodeType, file: str, line: int) -> str:
    """File, number and text of a line of a function."""
    text = linecache.getline(file, line).strip()
    return f"{file}, line {line}, in {code.co_name}" + (f" ({text})" if text else "")
