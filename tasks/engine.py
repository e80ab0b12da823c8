"""The protocol of the engines, and the results they return."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from stablebptt.tasks.variants import Gates

__all__ = ["Gradient", "Loss", "Path"]

Keys = list[np.ndarray] | None
# Queue of single calls: they may come between the launch of many runs and the last of their results.
ALONE = -1


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """A rollout: time (T+1,) [s], states (B, T+1, *state), controls (B, T, *control); loss (B,) and the problem, if known.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> path = problem.rollout(problem.init(seed=0), problem.sample(3, seed=0))
    >>> path.states.shape, path.controls.shape
    ((3, 6, 1, 2), (3, 5, 1))
    """

    time: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    loss: Any = None
    problem: Any = None

    def plot(self, sample: int = 0) -> Any:
        """A matplotlib figure of the rollout from one initial state.

        Parameters
        ----------
        sample : number of the initial state
        """
        from stablebptt.tasks.pictures import notebook
        from stablebptt.tasks.pictures import rollouts as rollout_pictures

        return rollout_pictures.draw(notebook.of_path(self), sample)

    def animate(self, sample: int = 0, **options: Any) -> Any:
        """A film of the rollout from one initial state, for notebooks; options: fps, every, dpi.

        Parameters
        ----------
        sample : number of the initial state
        **options : fps, every (time steps per picture), dpi
        """
        from stablebptt.tasks.pictures import notebook

        return notebook.Film(notebook.of_path(self), sample, **options)

    def __repr__(self) -> str:
        return f"Path of {len(self.states)} rollouts: states {self.states.shape}, controls {self.controls.shape}"


@dataclass(frozen=True)
class Loss:
    """Mean loss of a batch, with (total) and without (physics) the regulariser.

    Examples
    --------
    >>> float(Loss(total=1.5, physics=1.25))
    1.5
    """

    total: float
    physics: float

    def __float__(self) -> float:
        return self.total


@dataclass(frozen=True, eq=False, repr=False)
class Gradient:
    """A gradient of the mean loss.

    Attributes
    ----------
    value (n_parameters,) : the gradient
    loss : mean loss of the batch
    norm2 : squared 2-norm
    regular, modified (n_parameters,) : R and M of variant C and other joins; None for other variants
    cosine : of the angle between R and M; NaN for other variants
    x0 (B, *state_shape) : adjoint of the initial states; of a join, that of R; None from a device
    parameters : derivatives by the system's parameters, by name, if it has a method for `step_parameters_vjp`; of a join, R's
    last (B, *state_shape) : last states of the rollouts; None from a device

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> gradient = problem.gradient(problem.init(seed=0), problem.sample(3, seed=0), variant="C")
    >>> gradient.value.shape == gradient.regular.shape == (problem.n_parameters,)
    True
    """

    value: np.ndarray
    loss: Loss
    norm2: float
    regular: np.ndarray | None = None
    modified: np.ndarray | None = None
    cosine: float = float("nan")
    x0: np.ndarray | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    last: np.ndarray | None = None

    def __repr__(self) -> str:
        cosine = "" if self.regular is None else f", cosine of R and M {self.cosine:.3f}"
        return f"Gradient of {len(self.value)} parameters: norm {math.sqrt(self.norm2):.4g}{cosine}; {self.loss}"

    def copy(self) -> Self:
        """A copy with its own arrays."""
        arrays = {name: getattr(self, name) for name in ("value", "regular", "modified", "x0", "last")}
        return replace(self, **{name: array.copy() for name, array in arrays.items() if array is not None})


class Evaluation(NamedTuple):
    """Loss parts of the rollouts of a batch, per sample in float64; states and controls on request.

    physics (B,) : loss without the regulariser; NaN where a rollout diverged
    effort (B,) : sum of squared controls
    states (B, T+1, *state), controls (B, T, *control)
    """

    physics: np.ndarray
    effort: np.ndarray
    states: Any = None
    controls: Any = None


class Engine(Protocol):
    """Computes with a problem, always for S controllers with their own states. It does not check their numbers.

    The work begins with the call. Results come one by one; each overwrites the last one, and each call overwrites the results of
    the last call with the same `queue`. With two queues, the device works for one half of the runs and the host for the other.
    """

    def prepare(self, x0: np.ndarray) -> None:
        """Compile what a training needs all at once, if that takes less time than one by one.

        x0 (B, *state_shape) : states to try a user's functions at, if they do not compile
        """

    def evaluate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], *, keys: Keys = None, paths: bool = False, queue: int = ALONE
    ) -> Iterator[Evaluation]:
        """Roll out thetas, S times (n_parameters,), from x0s, S times (B, *state_shape); `paths` returns states and controls.

        keys : S times (B,), what is random for each sample; by default its number in the batch
        """

    def gradients(
        self,
        thetas: list[np.ndarray],
        x0s: list[np.ndarray],
        gates: Gates,
        *,
        keys: Keys = None,
        parts: bool = False,
        queue: int = ALONE,
    ) -> Iterator[Gradient]:
        """Gradients (n_parameters,) of the mean losses of S controllers.

        parts : also return what an update does not need: R and M of a join, `x0`, `parameters`, `last`
        """
