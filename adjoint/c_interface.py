"""Systems and losses as plain C functions for C, C++, Fortran and Julia; docs/adding_a_system.md.

The numbers of the struct are compiled in. A function pointer stays valid until the process ends.
"""

from typing import Any

import numpy as np
from numba import carray, cfunc, types

from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import System, cost, step

HEADER = """\
/* Functions of stablebptt: addresses come from stablebptt.cfunc_address(struct, name). Arrays are contiguous; `{real}` is the
   precision of the struct. The functions keep nothing and may be called from any thread. */
#ifndef STABLEBPTT_{REAL}_H
#define STABLEBPTT_{REAL}_H
#include <stdint.h>

/* x_next = S(x, c): x, x_next [n_state], c [n_control] */
typedef void (*stablebptt_step_{real})(int64_t n_state, int64_t n_control, const {real} *x, const {real} *c, {real} *x_next);

/* Adds S_x^T lam to lam_x and S_c^T lam to lam_c for m cotangents: lam, lam_x [m][n_state], lam_c [m][n_control] */
typedef void (*stablebptt_step_vjp_{real})(int64_t n_state, int64_t n_control, int64_t m, const {real} *x, const {real} *c,
                                           const {real} *lam, {real} *lam_x, {real} *lam_c);

/* Returns l(x): x [n_state] */
typedef {real} (*stablebptt_cost_{real})(int64_t n_state, const {real} *x);

/* Adds cost_bar times the derivative of l to x_bar [n_state] */
typedef void (*stablebptt_cost_vjp_{real})(int64_t n_state, const {real} *x, {real} cost_bar, {real} *x_bar);

#endif
"""
_functions: dict[tuple[Any, ...], Any] = {}


def c_header(dtype: Any = np.float64) -> str:
    """Text of a C header with the function types for one precision.

    Parameters
    ----------
    dtype : np.float32 or np.float64

    Examples
    --------
    >>> "stablebptt_step_double" in sb.c_header(np.float64)
    True
    """
    real = {"float32": "float", "float64": "double"}[np.dtype(dtype).name]
    return HEADER.replace("{real}", real).replace("{REAL}", real.upper())


def cfunc_address(struct: Struct, name: str, dtype: Any = None) -> int:
    """Address of a C function: "step" or "step_vjp" of a system, "cost" or "cost_vjp" of a loss; `c_header` gives their types.

    Parameters
    ----------
    dtype : np.float32 or np.float64; by default that of the struct's numbers
    struct : a system or a loss
    name : "step", "step_vjp", "cost" or "cost_vjp"

    Raises
    ------
    ValueError, TypeError
        If the struct has no such function.

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Standing
    >>> sb.cfunc_address(Standing(), "cost", np.float64) != 0
    True
    """
    makers = {"step": _step, "step_vjp": _step_vjp} if isinstance(struct, System) else {"cost": _cost, "cost_vjp": _cost_vjp}
    if not isinstance(struct, Struct):
        raise TypeError(f"{struct!r} is no system and no loss")
    if name not in makers:
        raise ValueError(f"{type(struct).__name__} has no C function {name!r}; choose from {', '.join(makers)}")
    kind = np.dtype(dtype or _precision(struct)).type
    key = (id(struct), name, kind)
    if key not in _functions:  # the entry keeps the struct alive, so no other struct gets its id
        _functions[key] = (struct, makers[name](struct, types.float32 if kind is np.float32 else types.float64))
    return _functions[key][1].address


def _precision(struct: Struct) -> Any:
    for field in type(struct).fields:
        value = getattr(struct, field)
        if isinstance(value, np.ndarray | np.floating) and value.dtype.kind == "f":
            return value.dtype
    return np.float64


def _step(system: Any, real: Any) -> Any:
    pointer = types.CPointer(real)

    @cfunc(types.void(types.int64, types.int64, pointer, pointer, pointer), **OPTIONS)
    def function(n_state, n_control, x, c, x_next):
        step(system, carray(x, (n_state,)), carray(c, (n_control,)), carray(x_next, (n_state,)))

    return function


def _step_vjp(system: Any, real: Any) -> Any:
    pointer = types.CPointer(real)

    @cfunc(types.void(types.int64, types.int64, types.int64, *[pointer] * 5), **OPTIONS)
    def function(n_state, n_control, m, x, c, lam, lam_x, lam_c):
        bars, bars_x = carray(lam, (m, n_state)), carray(lam_x, (m, n_state))
        step_vjp(system, carray(x, (n_state,)), carray(c, (n_control,)), bars, bars_x, carray(lam_c, (m, n_control)))

    return function


def _cost(loss: Any, real: Any) -> Any:
    @cfunc(real(types.int64, types.CPointer(real)), **OPTIONS)
    def function(n_state, x):
        return cost(loss, carray(x, (n_state,)))

    return function


def _cost_vjp(loss: Any, real: Any) -> Any:
    pointer = types.CPointer(real)

    @cfunc(types.void(types.int64, pointer, real, pointer), **OPTIONS)
    def function(n_state, x, cost_bar, x_bar):
        cost_vjp(loss, carray(x, (n_state,)), cost_bar, carray(x_bar, (n_state,)))

    return function
