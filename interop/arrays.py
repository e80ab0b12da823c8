"""Steps and costs of a batch and their vjps, with NumPy arrays in and out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stablebptt.adjoint.generics import parameter_names
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import State, is_of_states, scratch_size
from stablebptt.tasks import arguments, batches, variants
from stablebptt.tasks.engine import Gradient
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.evaluate import with_fields
from stablebptt.tasks.problems import Problem


def step(problem: Problem, x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Next states (B, *state_shape) of states x (B, *state_shape) under controls c (B, *control_shape)."""
    x, c = _flat(problem, x, c)
    return _stepped(problem, x, c).reshape(-1, *problem.state_shape)


def step_vjp(problem: Problem, x: np.ndarray, c: np.ndarray, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cotangents ``S_x^T lam`` (B, *state_shape) and ``S_c^T lam`` (B, *control_shape), for lam (B, *state_shape) of `step`."""
    lam_x, lam_c = step_vjps(problem, x, c, np.asarray(lam)[:, None])
    return lam_x[:, 0], lam_c[:, 0]


def step_vjps(problem: Problem, x: np.ndarray, c: np.ndarray, lams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`step_vjp` of m cotangents: lams (B, m, *state_shape) -> (B, m, *state_shape) and (B, m, *control_shape)."""
    x, c = _flat(problem, x, c)
    lams = arguments.array("lam", lams, (len(x), "m", *problem.state_shape), problem.dtype, finite=False)
    batch, m = lams.shape[:2]
    lam_x, lam_c = np.zeros((batch, m, problem.n_state), problem.dtype), np.zeros((batch, m, problem.n_control), problem.dtype)
    x_next, scratch = _stepped(problem, x, c), _scratch(problem, len(x), m)
    batches.step_batch_vjp(problem.system, x, x_next, c, lams.reshape(lam_x.shape), lam_x, lam_c, scratch)
    return lam_x.reshape(lams.shape), lam_c.reshape(batch, m, *problem.control_shape)


def cost(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Costs (B,) of states x (B, *state_shape)."""
    x = _states(problem, x)
    values = np.empty(len(x), problem.dtype)
    batches.costs(problem.loss_function, x, values)
    return values


def cost_vjp(problem: Problem, x: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """Cotangents (B, *state_shape) of the states, for cotangents bars (B,) of `cost`."""
    x = _states(problem, x)
    x_bar = np.zeros_like(x)
    batches.costs_vjp(problem.loss_function, x, arguments.array("bars", bars, (len(x),), problem.dtype, finite=False), x_bar)
    return x_bar.reshape(-1, *problem.state_shape)


def gradient(problem: Problem, theta: Any, x0: Any, variant: Any, values: Mapping[str, float]) -> Gradient:
    """Loss and gradient of the problem's own controller, with these numbers in its system."""
    if values and not parameter_names(problem.system):
        name = type(type(problem.system).inside(problem.system)).__name__
        raise ArgumentError(f"{name} has no method for step_parameters_vjp(system, x, c, lam, p_bar), so give no parameters")
    variants.gates_of(variant, problem)  # refuses gates that are drawn for every update
    if problem.backend != "cpu":
        raise ArgumentError("the problem computes on a device, which gives no gradient of x0; make it without backend=")
    return (with_fields(problem, values) if values else problem).gradient(np.asarray(theta), np.asarray(x0), variant)


def bare(problem: Problem) -> None:
    """Raise an error for what another framework's controller does not know: it sees states, and its controls have no limits."""
    there = {
        "bound": problem.limits is not None,
        "observe": type(problem.observation) is not State,
        "vary, disturb or noise": problem.is_random,
        "costs of time and control": not is_of_states(problem.loss_function),
    }
    if found := [name for name, used in there.items() if used]:
        raise ArgumentError(f"the problem has {' and '.join(found)}; a controller of another framework needs one without")


def given(problem: Problem, name: str, value: Any, shape: tuple[Any, ...], kind: type, make: Callable[[np.ndarray], Any]) -> Any:
    """Another framework's array (of type `kind`) that fits, as in `expect`; what is none is converted and made one."""
    if not isinstance(value, kind):
        value = make(arguments.array(name, value, shape, problem.dtype, finite=False))
    expect(problem, name, value, shape)
    return value


def expect(problem: Problem, name: str, value: Any, shape: tuple[Any, ...]) -> None:
    """Raise an error if another framework's array does not have this shape and the problem's precision.

    A leading letter in `shape` stands for any number of samples.
    """
    given = tuple(value.shape)
    if len(given) != len(shape) or not given[0] or given[isinstance(shape[0], str) :] != shape[isinstance(shape[0], str) :]:
        raise ArgumentError(f"{name} has shape {given}; it must be ({', '.join(map(str, shape))})")
    found, wanted = str(value.dtype).removeprefix("torch."), np.dtype(problem.dtype).name
    if found != wanted:
        other = f", or make the problem with dtype={found!r}" if found in ("float32", "float64") else ""
        raise ArgumentError(f"{name} is in {found} and the problem in {wanted}; convert it{other}")


def _stepped(problem: Problem, x: np.ndarray, c: np.ndarray) -> np.ndarray:
    x_next = np.empty_like(x)
    batches.step_batch(problem.system, x, c, x_next, _scratch(problem, len(x), 1))
    return x_next


def _scratch(problem: Problem, batch: int, m: int) -> np.ndarray:
    return aligned((scratch_size(problem.system, batch, m, problem.n_state, problem.n_control),), problem.dtype)


def _flat(problem: Problem, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = _states(problem, x)
    c = arguments.array("c", c, (len(x), *problem.control_shape), problem.dtype, finite=False)
    return x, c.reshape(len(x), problem.n_control)


def _states(problem: Problem, x: np.ndarray) -> np.ndarray:
    states = arguments.array("x", x, ("B", *problem.state_shape), problem.dtype, finite=False)
    return states.reshape(len(states), problem.n_state)
