"""A problem: a system, a controller and a loss, ready to roll out and to differentiate."""

import math
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stablebptt.adjoint.gradient import PathSpace, evaluate, gradient
from stablebptt.adjoint.sweep import SweepSpace, chunk_steps, sweep_space
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import System, new_tape, parameter_count, scratch_size, tape_width, weight_count
from stablebptt.kernels.network import Network
from stablebptt.kernels.structs import Struct
from stablebptt.tasks import checks
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.settings import LARGEST_SEED
from stablebptt.tasks.task import OUTPUT_INITS
from stablebptt.tasks.variants import Gates, gates

# Streams of random numbers that one seed opens.
WEIGHTS, STATES, TRAINING, TESTING, ORDER = range(5)
# Activations of all time steps are kept up to this many bytes; beyond, they are computed again, chunk by chunk.
TAPE_BYTES = 1 << 28
# States that are rolled out together where no gradient is asked for.
EVALUATION_BATCH = 64
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


@dataclass(frozen=True)
class Path:
    """A rollout: time (T+1,) [s], states (B, T+1, *state), controls (B, T, *control)."""

    time: np.ndarray
    states: np.ndarray
    controls: np.ndarray


@dataclass(frozen=True)
class Loss:
    """Mean loss of a batch, with (total) and without (physics) the regulariser."""

    total: float
    physics: float

    def __float__(self) -> float:
        return self.total


@dataclass(frozen=True)
class Gradient:
    """A gradient (n_parameters,) and the loss; of variant C also R, M and the cosine of the angle between them."""

    value: np.ndarray
    loss: Loss
    norm2: float
    regular: np.ndarray | None = None
    modified: np.ndarray | None = None
    cosine: float = float("nan")


def stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """The random numbers of one seed for one purpose."""
    return np.random.default_rng([checks.whole("seed", seed, 0, LARGEST_SEED), purpose, *more])


def mean_weights(loss: str, steps: int) -> np.ndarray:
    """Time weights (T+1,) of a loss at the last state, or of its mean over x_1 .. x_T."""
    weights = np.zeros(steps + 1)
    weights[-1 if loss == "final" else slice(1, None)] = 1.0 if loss == "final" else 1.0 / steps
    return weights


def first_step(bad: Callable[[int], bool], last: int) -> int:
    """The first step of 1 .. last that is bad, if all after it are (by bisection); `last` if none is."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bad(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class _GradientSpace:
    """Arenas of `Problem.differentiate`; `kept`: the tape holds the activations of all time steps."""

    tape: Any
    kept: bool
    path: PathSpace
    sweep: SweepSpace
    gradients: np.ndarray
    joined: np.ndarray


class _Spaces(threading.local):
    """Arenas of a problem, per thread: threads may share a problem."""

    def __init__(self) -> None:
        self.paths: dict[int, tuple[Any, PathSpace]] = {}
        self.gradients: dict[tuple[int, int], _GradientSpace] = {}
        self.queues: dict[int, Any] = {}  # of a device

    # An arena is scratch: copies of a problem (pickled, deep-copied) make their own.
    def __reduce__(self) -> tuple:
        return _Spaces, ()


@dataclass(frozen=True, eq=False)
class Problem:
    """What is learned, with the published set-up as default; made by `problem`.

    Attributes
    ----------
    task, options : name and keywords that make this problem again
    title : the problem in a few words, for pictures
    system, controller, loss_function : structs with methods for the generic functions of `kernels` and `adjoint`
    state_shape, control_shape : shapes of one state and one control
    steps, dt : horizon T and time step [s]
    time_weights (T+1,) : weight of the mean cost at every time step
    regularization : rho
    dtype : np.float32 or np.float64
    output_init : "glorot" or "zero", of the kernel of the last layer
    draw : function (random, count) that draws initial states
    state_axes, control_axes : names for files and pictures
    tape_bytes : memory for the activations of a gradient; beyond, they are computed again, chunk by chunk
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
    regularization: float = 0.0
    tape_bytes: int = TAPE_BYTES
    _spaces: _Spaces = field(default_factory=_Spaces, init=False, repr=False)  # a changed problem has arenas of its own

    def __post_init__(self) -> None:
        if np.shape(self.time_weights) != (self.steps + 1,):
            raise ValueError(
                f"time_weights have shape {np.shape(self.time_weights)}; {self.steps} steps need ({self.steps + 1},). "
                "Make a problem with another horizon by sb.problem(..., steps=...)"
            )
        checks.array("time_weights", self.time_weights, (self.steps + 1,), np.float64)
        checks.real("dt", self.dt, above=0)
        checks.real("regularization", self.regularization, least=0)
        checks.choice("output_init", self.output_init, OUTPUT_INITS)
        self._check_parts()
        paths = (self.steps + 1.0) * EVALUATION_BATCH * (self.n_state + self.n_control)
        checks.memory(self.title, np.dtype(self.dtype).itemsize * (paths + 10.0 * self.n_parameters))

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

    @property
    def backend(self) -> str:
        """Where it is computed: "cpu" or "cuda"."""
        return "cpu"

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
        """Times (T+1,) [s]."""
        return self.dt * np.arange(self.steps + 1)

    def sample(self, count: int, seed: int = 0, purpose: int = STATES) -> np.ndarray:
        """Random initial states (count, *state_shape); `purpose` tells apart the streams of one seed."""
        count = checks.whole("count", count, 1)
        checks.memory(f"{count} states", 16.0 * count * self.n_state)
        return checks.sampled(self.draw(stream(seed, purpose), count), (count, *self.state_shape), self.dtype)

    def init(self, seed: int = 0) -> np.ndarray:
        """Initial parameters (n_parameters,): Glorot uniform kernels, zero biases; the last kernel as `output_init` says.

        A kernel is what has a name that ends in "kernel"; its last two axes are inputs and outputs (of fewer axes, the missing
        ones have length 1), those before them the field of a convolution.
        """
        random, layout = stream(seed, WEIGHTS), checks.layout(self.controller)
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
        checks.unmasked("theta", theta)
        theta = np.asarray(theta)
        if theta.shape != (self.n_parameters,):
            raise ValueError(f"theta has shape {theta.shape}; it must be ({self.n_parameters},)")
        views, place = {}, 0
        for name, shape in checks.layout(self.controller).items():
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
        self.check_path(path.states.swapaxes(0, 1), path.controls.swapaxes(0, 1))
        return path

    def follow(self, theta: np.ndarray, x0: np.ndarray) -> Path:
        """`rollout` without checks."""
        batch, space = len(x0), self._evaluate(theta, x0)
        states = space.states.reshape(self.steps + 1, batch, *self.state_shape).swapaxes(0, 1).copy()
        controls = space.controls.reshape(self.steps, batch, *self.control_shape).swapaxes(0, 1).copy()
        return Path(self.time, states, controls)

    def losses(self, theta: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses of every sample, in float64: with and without the regulariser, (B,) each; NaN where it diverged."""
        return self.total(*self.parts(self._parameters(theta), self._states(x0)))

    def effort_weight(self, batch: int) -> Any:
        """Weight w of the controls of a batch: the mean loss contains ``w c^2 / 2`` of every control."""
        return self.dtype(2 * self.regularization / (batch * self.steps * self.n_control))

    def total(self, physics: Any, effort: Any) -> tuple[Any, Any]:
        """Losses with and without the regulariser from their parts."""
        return physics + self.regularization * effort / (self.steps * self.n_control), physics

    def parts(self, theta: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per sample, the loss without the regulariser (NaN where it diverged) and the sum of squared controls."""
        physics, effort = np.empty(len(x0)), np.empty(len(x0))
        for first in range(0, len(x0), EVALUATION_BATCH):
            part = slice(first, min(first + EVALUATION_BATCH, len(x0)))
            space = self._evaluate(theta, x0[part])
            physics[part], effort[part] = space.physics, space.effort
            physics[part][~np.isfinite(space.states[-1]).all(axis=1)] = np.nan  # a loss may not see every number
        return physics, effort

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
        opened = gates(variant, self.steps, self.dtype)
        result = self.differentiate(theta, x0, opened)
        self.check(result, theta, x0, opened)
        arrays = {name: getattr(result, name) for name in ("value", "regular", "modified")}
        copies = {name: None if values is None else values.copy() for name, values in arrays.items()}
        return Gradient(**copies, loss=result.loss, norm2=result.norm2, cosine=result.cosine)  # type: ignore[arg-type]

    def differentiate(self, theta: np.ndarray, x0: np.ndarray, opened: Gates) -> Gradient:
        """`gradient` without checks; the arrays are views of arenas that the next call overwrites."""
        batch, variants = len(x0), len(opened.physics)
        space = self._gradient_space(batch, variants)
        path, gradients, joined = space.path, space.gradients, space.joined
        results = np.zeros(7)
        effort_weight = self.effort_weight(batch)
        gradient(
            self.system, self.controller, self.loss_function, theta, x0.reshape(batch, self.n_state), self.time_weights,
            effort_weight, opened.physics, opened.network, space.tape, space.kept, path, space.sweep,
            gradients, joined if opened.joined else joined[:0], results,
        )  # fmt: skip
        regular2, modified2, product, joined2, physics, effort, finite = results.tolist()
        total, _ = self.total(physics, effort)
        loss = Loss(total, physics) if finite else Loss(math.nan, math.nan)  # a loss may not see every number
        if not opened.joined:
            return Gradient(gradients[0], loss, regular2)
        norms = math.sqrt(regular2) * math.sqrt(modified2)
        cosine = product / norms if norms > 0 else math.nan
        return Gradient(joined, loss, joined2, gradients[0], gradients[1], cosine)

    def differentiate_all(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], opened: Gates, lane: int = 0
    ) -> Iterator[Gradient]:
        """`differentiate` for several controllers, each with states of its own; the next result overwrites the last.

        On a device the work begins at once; calls of one lane overwrite each other's results.
        """
        return (self.differentiate(theta, x0, opened) for theta, x0 in zip(thetas, x0s))

    def all_parts(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], lane: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`parts` for several controllers, each with states of its own."""
        return (self.parts(theta, x0) for theta, x0 in zip(thetas, x0s))

    def check(self, result: Gradient, theta: np.ndarray, x0: np.ndarray, opened: Gates) -> None:
        """Raise DivergedError, with the first bad time step, if a result of `differentiate` is not finite."""
        if math.isfinite(result.loss.total) and math.isfinite(result.norm2):
            return
        path = self._evaluate(theta, x0)
        self.check_path(path.states, path.controls)
        if not math.isfinite(result.loss.total):
            step = first_step(lambda t: not self._finite_until(theta, x0, t), self.steps)
            raise DivergedError(f"the loss is not finite from time step {step} on, though all states are", step=step)
        back = first_step(lambda t: not self._finite_backwards(theta, x0, opened, self.steps - t), self.steps)
        step = self.steps - back
        raise DivergedError(f"the gradient is not finite from time step {step} backwards, though all states are", step=step)

    def _finite_until(self, theta: np.ndarray, x0: np.ndarray, step: int) -> bool:
        """Whether the costs of x_1 .. x_step and the controls before are finite together."""
        weights = np.where(np.arange(self.steps + 1) <= step, self.time_weights, 0.0)
        part = replace(self, time_weights=weights)._evaluate(theta, x0)
        efforts = np.square(part.controls[:step]).sum(axis=2).sum(axis=0) if self.regularization else np.zeros(1)
        return bool(np.all(np.isfinite(part.physics)) and np.all(np.isfinite(efforts)))

    def _finite_backwards(self, theta: np.ndarray, x0: np.ndarray, opened: Gates, step: int) -> bool:
        """Whether the gradient is finite if the sweep goes back no further than to `step`."""
        closed = np.arange(self.steps) <= step
        physics, network = (np.where(closed, 0, gates) for gates in (opened.physics, opened.network))
        part = Gates(physics.astype(self.dtype), network.astype(self.dtype), opened.joined)
        return math.isfinite(self.differentiate(theta, x0, part).norm2)

    def check_path(self, states: np.ndarray, controls: np.ndarray) -> None:
        """Raise DivergedError if a state (T+1, ..) or control (T, ..) is not finite."""
        for name, values in (("control", controls), ("state", states)):
            finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if not finite.all():
                step = int(np.argmin(finite))
                raise DivergedError(f"a {name} is not finite from time step {step} on", step=step)

    def _parameters(self, theta: Any) -> np.ndarray:
        return checks.array("theta", theta, (self.n_parameters,), self.dtype)

    def _states(self, x0: Any) -> np.ndarray:
        return checks.array("x0", x0, ("B", *self.state_shape), self.dtype)

    def _evaluate(self, theta: np.ndarray, x0: np.ndarray) -> PathSpace:
        tape, space = self._path_spaces(len(x0))
        flat = x0.reshape(len(x0), self.n_state)
        evaluate(self.system, self.controller, self.loss_function, theta, flat, self.time_weights, tape, space)
        return space

    def _path_space(self, batch: int, variants: int) -> PathSpace:
        return PathSpace(
            aligned((weight_count(self.controller),), self.dtype),
            aligned((self.steps + 1, batch, self.n_state), self.dtype),
            aligned((self.steps, batch, self.n_control), self.dtype),
            np.zeros(batch),
            np.zeros(batch),
            aligned((scratch_size(self.system, batch, variants),), self.dtype),
        )

    def _path_spaces(self, batch: int) -> tuple[Any, PathSpace]:
        known = self._spaces.paths
        if batch not in known:
            if len(known) > 4:
                known.clear()  # odd sizes must not pile up
            known[batch] = (new_tape(self.controller, batch, 1, 1, 1, self.dtype), self._path_space(batch, 1))
        return known[batch]

    def _gradient_space(self, batch: int, variants: int) -> _GradientSpace:
        known, key = self._spaces.gradients, (batch, variants)
        if key not in known:
            if len(known) > 4:
                known.clear()
            chunk = chunk_steps(batch) * batch
            row_bytes = tape_width(self.controller) * np.dtype(self.dtype).itemsize
            kept = self.steps * batch * row_bytes <= self.tape_bytes
            rows = self.steps * batch if kept else chunk
            slots = 1 if self.n_control == 1 else variants
            known[key] = _GradientSpace(
                new_tape(self.controller, rows, chunk, variants, slots, self.dtype),
                kept,
                self._path_space(batch, variants),
                sweep_space(batch, variants, self.n_state, self.n_control, self.dtype),
                np.zeros((variants, self.n_parameters), self.dtype),
                np.zeros(self.n_parameters, self.dtype),
            )
        return known[key]
