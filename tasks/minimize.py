"""The loss and its gradient as a function, for the optimizers of SciPy and other packages."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from stablebptt.tasks import arguments
from stablebptt.tasks.custom import in_float64
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import gates_of


def minimize_fun(problem: Problem, x0: np.ndarray, variant: Any = "R") -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The loss of a batch as a function of the parameters, for ``scipy.optimize.minimize(fun, theta, jac=True)``.

    Everything is computed in float64, also for a problem in float32: SciPy's line searches and differences of gradients use steps
    that float32 cannot resolve. SciPy continues in the precision of its first point, and its methods TNC and SLSQP accept
    float64 only: start from ``problem.init().astype(float)``.

    Parameters
    ----------
    problem : in float32 or float64
    x0 : (B, *state_shape) initial states
    variant : of the gradient; only "R" is a gradient of the loss, so line searches may refuse the steps of the others

    Returns
    -------
    function theta (n_parameters,) -> (loss, gradient (n_parameters,)), a Python float and a new array in float64. Where the
    computation diverges, and at a theta that is not finite, the loss is infinite and the gradient zero, so a line search takes
    a smaller step

    Raises
    ------
    TypeError, ValueError
        If x0 or the variant does not fit the problem; the function raises them if theta does not.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> fun = sb.minimize_fun(problem, problem.sample(3, seed=0))
    >>> loss, gradient = fun(problem.init(seed=0).astype(float))
    >>> gradient.shape == (problem.n_parameters,)
    True
    """
    double = problem if problem.dtype is np.float64 else in_float64(problem)
    states = arguments.array("x0", x0, ("B", *problem.state_shape), np.float64).copy()
    gates_of(variant, problem)  # reports a wrong variant before an optimizer hides it

    def fun(theta: np.ndarray) -> tuple[float, np.ndarray]:
        if getattr(theta, "dtype", None) == np.float32:
            warnings.warn("theta is in float32, and so would SciPy go on; start from problem.init().astype(float)", stacklevel=2)
        theta = arguments.array("theta", theta, (double.n_parameters,), np.float64, finite=False)
        try:
            if np.all(np.isfinite(theta)):
                result = double.gradient(theta, states, variant)
                return float(result.loss.total), result.value.astype(np.float64)
        except DivergedError:
            pass
        return float("inf"), np.zeros(double.n_parameters)

    return fun
