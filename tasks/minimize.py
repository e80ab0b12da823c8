"""Training with the optimizers of SciPy (or anybody's): a function and its gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stablebptt.tasks import checks
from stablebptt.tasks.problems import Problem


def minimize_fun(problem: Problem, x0: np.ndarray, variant: Any = "R") -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The loss of a batch as a function of the parameters, for ``scipy.optimize.minimize(fun, theta, jac=True)``.

    Parameters
    ----------
    x0 : (B, *state_shape) initial states
    variant : of the gradient; the variants other than "R" are no gradients of the loss, so line searches may refuse their steps

    Returns
    -------
    function theta (n_parameters,) -> (loss, gradient (n_parameters,)), in float64; where the computation diverges the loss is
    infinite and the gradient zero, so that a line search takes a smaller step
    """
    from stablebptt.tasks.errors import DivergedError

    states = checks.array("x0", x0, ("B", *problem.state_shape), problem.dtype)
    problem.losses(problem.init(), states)  # says what is wrong with x0 before an optimizer hides it

    def fun(theta: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            result = problem.gradient(np.asarray(theta).astype(problem.dtype), states, variant)
        except DivergedError:
            return float("inf"), np.zeros(problem.n_parameters)
        return result.loss.total, result.value.astype(np.float64)

    return fun
