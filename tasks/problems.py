"""A problem is data: a system, a controller and a loss, and how long and how precisely; an engine computes with it."""

import functools
import importlib
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import System, parameter_count
from stablebptt.kernels.network import Network
from stablebptt.tasks import arguments, divergence, variants
from stablebptt.tasks.engine import Engine, Gradient, Loss, Path
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.settings import LARGEST_SEED
from stablebptt.tasks.task import OUTPUT_INITS

# Streams of random numbers that one seed opens.
WEIGHTS, STATES, TRAINING, TESTING, ORDER = range(5)
# Activations of all time steps are kept up to this many bytes; beyond, they are computed again, chunk by chunk.
TAPE_BYTES = 1 << 28
# States that are rolled out together where no gradient is asked for.
EVALUATION_BATCH = 64
ENGINES = {"cpu": "stablebptt.tasks.cpu", "cuda": "stablebptt.tasks.cuda"}
# Names of the places of an axis: HDF5 keeps 64 KiB in an attribute.
MOST_WORDS, MOST_LETTERS = 4000, 40_000


@dataclass(frozen=True)
class Axis:
    """Names of one axis of a state or control: files and pictures show them.

    Attributes
    ----------
    name : of the dimension in files, such as "body"
    long_name : what the axis counts, in a few words
    places : for every place along the axis a word, or for every place a number; any sequence of them
    units : of the numbers, such as "m"

    Examples
    --------
    States of shape (2, 2), two masses with a place and a rate each:

    >>> Axis("mass", "the masses on the chain", ("left", "right"))
    >>> Axis("quantity", "place, then its rate", ("place", "rate"))
    """

    name: str
    long_name: str
    places: tuple[Any, ...]
    units: str = "1"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the name of an axis is {self.name!r}; it must be a word, such as 'body'")
        object.__setattr__(self, "places", _places(self.name, self.places))


def _places(name: str, given: Any) -> tuple[Any, ...]:
    """Words or finite numbers, as files can keep them."""
    places = tuple(given.tolist() if isinstance(given, np.ndarray) else given) if isinstance(given, Iterable) else ()
    if all(isinstance(place, str) for place in places):
        fits = not isinstance(given, str) and all(place.strip() and place.isprintable() for place in places)
        if fits and (len(places) > MOST_WORDS or sum(len(place.encode()) for place in places) > MOST_LETTERS):
            raise ValueError(f"axis {name} has more words than a file keeps: {MOST_WORDS}, of {MOST_LETTERS} letters together")
    else:
        values = np.array(places, object)
        fits = values.ndim == 1 and np.array(places).dtype.kind in "iuf" and bool(np.all(np.isfinite(values.astype(float))))
    if not fits or not places:
        shown = textwrap.shorten(repr(given), 60, placeholder=" ...")
        raise ValueError(f"the places of axis {name} are {shown}; give printable words, or finite numbers, and do not mix them")
    return places


def stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """The random numbers of one seed for one purpose."""
    return np.random.default_rng([arguments.whole("seed", seed, 0, LARGEST_SEED), purpose, *more])


def mean_weights(loss: str, steps: int) -> np.ndarray:
    """Time weights (T+1,) of a loss at the last state, or of its mean over x_1 .. x_T."""
    weights = np.zeros(steps + 1)
    weights[-1 if loss == "final" else slice(1, None)] = 1.0 if loss == "final" else 1.0 / steps
    return weights


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """What is learned, with the published set-up as default; made by `problem`.

    Attributes
    ----------
    task, options : name and keywords that make this problem again
    title : the problem in a few words, for pictures
    system, controller, loss_function : structs with methods for the generic functions of `kernels` and `adjoint`
    state_shape, control_shape : shapes of one state and one control
    steps, dt : horizon T and time step, in `time_units` ("s"; "1" where time has no dimension)
    time_weights (T+1,) : weight of the mean cost at every time step
    regularization : rho
    dtype : np.float32 or np.float64
    output_init : "glorot" or "zero", of the kernel of the last layer
    draw : function (random, count) that draws initial states
    state_axes, control_axes : names for files and pictures
    tape_bytes : memory for the activations of a gradient; beyond, they are computed again, chunk by chunk
    backend : "cpu" or "cuda": which engine computes
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)  # a task's record fills them in
    title: str
    system: System
    controller: Any
    loss_function: Struct
    state_shape: tuple[int, ...]
    control_shape: tuple[int, ...]
    steps: int
    dt: float
    time_weights: np.ndarray
    dtype: Any
    output_init: str
    draw: Callable[[np.random.Generator, int], np.ndarray] = field(repr=False)
    state_axes: tuple[Axis, ...] = field(repr=False)
    control_axes: tuple[Axis, ...] = field(repr=False)
    state_units: str = "1"
    control_units: str = "1"
    time_units: str = "s"
    regularization: float = 0.0
    tape_bytes: int = TAPE_BYTES
    backend: str = "cpu"

    def __post_init__(self) -> None:
        if np.shape(self.time_weights) != (self.steps + 1,):
            raise ValueError(
                f"time_weights have shape {np.shape(self.time_weights)}; {self.steps} steps need ({self.steps + 1},). "
                "Make a problem with another horizon by sb.problem(..., steps=...)"
            )
        arguments.array("time_weights", self.time_weights, (self.steps + 1,), np.float64)
        arguments.real("dt", self.dt, above=0)
        arguments.real("regularization", self.regularization, least=0)
        arguments.choice("output_init", self.output_init, OUTPUT_INITS)
        arguments.choice("backend", self.backend, tuple(ENGINES))
        self._check_parts()
        paths = (self.steps + 1.0) * EVALUATION_BATCH * (self.n_state + self.n_control)
        arguments.memory(self.title, np.dtype(self.dtype).itemsize * (paths + 10.0 * self.n_parameters))

    def _check_parts(self) -> None:
        """Raise an error if system, controller and loss are in another precision, or the network has other sizes."""
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {self.dtype!r}; it must be np.float32 or np.float64")
        for name, base in (("system", System), ("controller", Struct), ("loss_function", Struct)):
            part = getattr(self, name)
            if not isinstance(part, base):
                raise TypeError(f"{name} is {part!r}; it must be an instance of a subclass of {base.__name__}")
            for key in type(part).fields:
                kind = np.asarray(getattr(part, key)).dtype
                if kind.kind == "f" and kind != self.dtype:
                    wanted = np.dtype(self.dtype)
                    raise ValueError(f"{name}.{key} is in {kind}, the problem in {wanted}; make another by sb.problem(...)")
        if isinstance(self.controller, Network) and (sizes := self.controller.sizes()) != (self.n_state, self.n_control):
            shapes = f"{self.n_state} and {self.n_control}"
            raise ValueError(f"the network has {sizes[0]} inputs and {sizes[1]} controls; the problem has {shapes}")

    @functools.cached_property
    def engine(self) -> Engine:
        """What computes with this problem."""
        made: Engine = importlib.import_module(ENGINES[self.backend]).Engine(self)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """A copy has an engine of its own."""
        return {name: value for name, value in vars(self).items() if name != "engine"}

    def __repr__(self) -> str:
        shapes = f"states {self.state_shape}, controls {self.control_shape}, {self.steps} steps of {self.dt:g}"
        shapes += "" if self.time_units == "1" else f" {self.time_units}"
        where = "" if self.backend == "cpu" else f", on {self.backend}"
        return f"Problem({self.title}): {shapes}, {self.n_parameters} parameters, {np.dtype(self.dtype).name}{where}"

    @property
    def n_parameters(self) -> int:
        return parameter_count(self.controller)

    @property
    def n_state(self) -> int:
        return int(np.prod(self.state_shape))

    @property
    def n_control(self) -> int:
        return int(np.prod(self.control_shape))

    @property
    def time(self) -> np.ndarray:
        """Times (T+1,)."""
        return self.dt * np.arange(self.steps + 1)

    def sample(self, count: int, seed: int = 0, purpose: int = STATES) -> np.ndarray:
        """Random initial states (count, *state_shape); `purpose` tells apart the streams of one seed."""
        count = arguments.whole("count", count, 1)
        arguments.memory(f"{count} states", 16.0 * count * self.n_state)
        return arguments.sampled(self.draw(stream(seed, purpose), count), (count, *self.state_shape), self.dtype)

    def init(self, seed: int = 0) -> np.ndarray:
        """Initial parameters (n_parameters,): Glorot uniform kernels, zero biases; the last kernel as `output_init` says.

        A kernel is what has a name that ends in "kernel"; its last two axes are inputs and outputs (of fewer axes, the missing
        ones have length 1), those before them the field of a convolution.
        """
        random, layout = stream(seed, WEIGHTS), arguments.layout(self.controller)
        last = next((name for name in reversed(layout) if name.endswith("kernel")), None)
        parts = []
        for name, shape in layout.items():
            values = np.zeros(shape)
            if name.endswith("kernel"):
                *window, inputs, outputs = tuple(shape) + (1,) * (2 - len(shape))
                limit = np.sqrt(6 / (int(np.prod(window)) * (inputs + outputs)))
                values = np.asarray(random.uniform(-limit, limit, shape))
                if name == last and self.output_init == "zero":
                    values = np.zeros(shape)
            parts.append(values.ravel())
        return np.concatenate(parts).astype(self.dtype)

    def layers(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Named views into theta, in its order."""
        arguments.unmasked("theta", theta)
        theta = np.asarray(theta)
        if theta.shape != (self.n_parameters,):
            raise ValueError(f"theta has shape {theta.shape}; it must be ({self.n_parameters},)")
        views, place = {}, 0
        for name, shape in arguments.layout(self.controller).items():
            size = int(np.prod(shape))
            views[name] = theta[place : place + size].reshape(shape)
            place += size
        return views

    def rollout(self, theta: np.ndarray, x0: np.ndarray) -> Path:
        """Roll the controller out from x0 (B, *state_shape).

        Raises
        ------
        DivergedError
            If a state or control is not finite.
        """
        path = self.follow(self._parameters(theta), self._states(x0))
        divergence.check_path(path)
        return path

    def follow(self, theta: np.ndarray, x0: np.ndarray) -> Path:
        """`rollout` without checks."""
        found = next(self.engine.evaluate([theta], [x0], paths=True))
        return Path(self.time, found.states, found.controls, self.total(found.physics, found.effort)[0], self)

    def losses(self, theta: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses of every sample, in float64: with and without the regulariser, (B,) each; NaN where it diverged."""
        found = next(self.engine.evaluate([self._parameters(theta)], [self._states(x0)]))
        return self.total(found.physics, found.effort)

    def total(self, physics: Any, effort: Any) -> tuple[Any, Any]:
        """Losses with and without the regulariser from their parts."""
        return physics + self.regularization * effort / (self.steps * self.n_control), physics

    def loss(self, theta: np.ndarray, x0: np.ndarray) -> Loss:
        """Mean loss over x0 (B, *state_shape).

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        total, physics = self.losses(theta, x0)
        if not np.all(np.isfinite(total)):
            self.rollout(theta, x0[~np.isfinite(total)][:1])
            raise DivergedError("the loss is not finite")
        return Loss(float(total.mean()), float(physics.mean()))

    def gradient(self, theta: np.ndarray, x0: np.ndarray, variant: Any = "R") -> Gradient:
        """Gradient of the mean loss over x0 (B, *state_shape), in a variant.

        Parameters
        ----------
        variant : "R", "M", "S", "N", "C" or a pair of gate schedules (a, b); see `stablebptt.tasks.variants.gates`

        Raises
        ------
        DivergedError
            If a state, the loss or the gradient is not finite.
        """
        theta, x0 = self._parameters(theta), self._states(x0)
        gates = variants.gates(variant, self.steps, self.dtype)
        found = next(self.engine.gradients([theta], [x0], gates, parts=True))
        divergence.check_gradient(self, found, theta, x0, gates)
        return found.copy()

    def _parameters(self, theta: Any) -> np.ndarray:
        return arguments.array("theta", theta, (self.n_parameters,), self.dtype)

    def _states(self, x0: Any) -> np.ndarray:
        return arguments.array("x0", x0, ("B", *self.state_shape), self.dtype)
