"""A problem is data: system, controller, loss, horizon and precision. An engine computes with it."""

import functools
import importlib
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stablebptt.kernels.bounds import bounds
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Observation, State, System, parameter_count
from stablebptt.kernels.network import Network
from stablebptt.kernels.noise import Noise
from stablebptt.kernels.rollout import Episode
from stablebptt.tasks import arguments, bars, divergence, variants
from stablebptt.tasks.engine import Engine, Gradient, Loss, Path
from stablebptt.tasks.errors import ArgumentError, DivergedError
from stablebptt.tasks.settings import LARGEST_SEED
from stablebptt.tasks.task import OUTPUT_INITS

if TYPE_CHECKING:
    from stablebptt.tasks.diagnose import Diagnosis

STATE = State()
# Streams of random numbers of one seed.
WEIGHTS, STATES, TRAINING, TESTING, ORDER, KEYS, GATES = range(7)
# The tape holds the activations of all time steps up to this many bytes; beyond, they are recomputed, chunk by chunk.
TAPE_BYTES = 1 << 28
# States that are rolled out together without a gradient.
EVALUATION_BATCH = 64
ENGINES = {"cpu": "stablebptt.tasks.cpu", "cuda": "stablebptt.tasks.cuda"}
# Limits for the words of an axis: HDF5 stores at most 64 KiB in an attribute.
MOST_WORDS, MOST_LETTERS = 4000, 40_000


@dataclass(frozen=True)
class Axis:
    """Names of one axis of a state or control, for files and pictures.

    Attributes
    ----------
    name : of the dimension in files, such as "body"
    long_name : what the axis counts, in a few words
    places : one word, or one number, for every index along the axis; any sequence
    units : of the numbers, such as "m"

    Examples
    --------
    States of shape (2, 2), two masses with a place and a rate each:

    >>> masses = Axis("mass", "the masses on the chain", ("left", "right"))
    >>> numbers = Axis("quantity", "place, then its rate", ("place", "rate"))
    >>> masses.units
    '1'
    """

    name: str
    long_name: str
    places: tuple[Any, ...]
    units: str = "1"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ArgumentError(f"the name of an axis is {self.name!r}; it must be a word, such as 'body'")
        object.__setattr__(self, "places", _places(self.name, self.places))


def _places(name: str, given: Any) -> tuple[Any, ...]:
    """Words or finite numbers that files can store."""
    places = tuple(given.tolist() if isinstance(given, np.ndarray) else given) if isinstance(given, Iterable) else ()
    if all(isinstance(place, str) for place in places):
        fits = not isinstance(given, str) and all(place.strip() and place.isprintable() for place in places)
        if fits and (len(places) > MOST_WORDS or sum(len(place.encode()) for place in places) > MOST_LETTERS):
            raise ArgumentError(f"axis {name} has more words than a file keeps: {MOST_WORDS}, of {MOST_LETTERS} letters together")
    else:
        values = np.array(places, object)
        fits = values.ndim == 1 and np.array(places).dtype.kind in "iuf" and bool(np.all(np.isfinite(values.astype(float))))
    if not fits or not places:
        shown = textwrap.shorten(repr(given), 60, placeholder=" ...")
        raise ArgumentError(f"the places of axis {name} are {shown}; give printable words or finite numbers, and do not mix them")
    return places


def stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """The random generator of one seed for one purpose (`WEIGHTS`, `STATES`, ..)."""
    return np.random.default_rng([arguments.whole("seed", seed, 0, LARGEST_SEED), purpose, *more])


def mean_weights(loss: str, steps: int, *, of_states: bool = True) -> np.ndarray:
    """Time weights (T+1,) of a loss at the last state ("final"), or of its mean over x_1 .. x_T ("continuous").

    If the loss is none of states alone, the mean is over the costs of all time steps, and the cost of the last state is added.
    """
    weights = np.zeros(steps + 1)
    if loss == "continuous":
        weights[slice(1, None) if of_states else slice(0, -1)] = 1.0 / steps
    if loss == "final" or not of_states:
        weights[-1] = 1.0
    return weights


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """What is learned. `sb.problem` makes it, with the published set-up as default.

    Attributes
    ----------
    task, options : name and keywords to make this problem again
    title : a few words, for pictures
    system, controller, loss_function : structs with methods for the generic functions of `kernels` and `adjoint`
    state_shape, control_shape : shapes of one state and one control
    steps, dt : horizon T and time step [s]
    time_weights (T+1,) : weight of the mean cost at every time step
    regularization : rho, weight of the mean squared control
    dtype : np.float32 or np.float64
    output_init : initial kernel of the last layer: "glorot" or "zero"
    draw : function (random, count) -> initial states (count, *state_shape)
    state_axes, control_axes : names for files and pictures
    observation : what the controller sees of a state; by default the state itself
    limits (2, n_control) : lowest and highest controls; None for no limits
    disturbance : standard deviations of noise and pushes (n_state,) on the states, and the chance of a push in a time step
    state_units, control_units : units for files and pictures
    tape_bytes : memory for the activations of a gradient; beyond, they are recomputed, chunk by chunk
    backend : the engine, "cpu" or "cuda"
    first : time step at which it begins; windows begin later

    Examples
    --------
    >>> problem = sb.problem("cartpole", poles=2, steps=5, hidden=(5,))
    >>> x0, theta = problem.sample(3, seed=0), problem.init(seed=0)
    >>> problem.rollout(theta, x0).states.shape
    (3, 6, 3, 2)
    >>> problem.gradient(theta, x0, variant="C").value.shape == theta.shape
    True
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)  # the record of the task fills them in
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
    observation: Observation = STATE
    limits: Any = None
    disturbance: Mapping[str, Any] = field(default_factory=dict)
    state_units: str = "1"
    control_units: str = "1"
    regularization: float = 0.0
    tape_bytes: int = TAPE_BYTES
    backend: str = "cpu"
    first: int = 0

    def __post_init__(self) -> None:
        if np.shape(self.time_weights) != (self.steps + 1,):
            raise ArgumentError(
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
        """Raise an error if the precision of a part, or the sizes of the network, do not fit the problem."""
        if self.dtype not in (np.float32, np.float64):
            raise ArgumentError(f"dtype is {self.dtype!r}; it must be np.float32 or np.float64")
        parts = (("system", System), ("observation", Observation), ("controller", Struct), ("loss_function", Struct))
        for name, base in parts:
            part = getattr(self, name)
            if not isinstance(part, base):
                raise ArgumentError(f"{name} is {part!r}; it must be an instance of a subclass of {base.__name__}")
            for key in type(part).fields:
                kind = np.asarray(getattr(part, key)).dtype
                if kind.kind == "f" and kind != self.dtype:
                    wanted = np.dtype(self.dtype)
                    raise ArgumentError(f"{name}.{key} is in {kind}, the problem in {wanted}; make another by sb.problem(...)")
        if isinstance(self.controller, Network) and (sizes := self.controller.sizes()) != (self.n_seen, self.n_control):
            shapes = f"{self.n_seen} and {self.n_control}"
            raise ArgumentError(f"the network has {sizes[0]} inputs and {sizes[1]} controls; the problem has {shapes}")

    def noise(self) -> Noise:
        """What is random during a rollout."""
        seen = np.asarray(type(self.observation).noise(self.observation, self.n_state), self.dtype)
        zeros = np.zeros(self.n_state)
        state, push = (np.asarray(self.disturbance.get(name, zeros), self.dtype) for name in ("noise", "push"))
        chance = self.dtype(self.disturbance.get("chance", 0.0))
        return Noise(bool(seen.any() or state.any() or push.any()), seen, state, push, chance)

    def episode(self) -> Episode:
        """What the kernels take of this problem."""
        return Episode(
            system=self.system,
            observation=self.observation,
            controller=self.controller,
            bounds=bounds(self.limits, self.n_control, self.dtype),
            loss=self.loss_function,
            noise=self.noise(),
            time_weights=self.time_weights,
            regularization=float(self.regularization),
            n_state=self.n_state,
            n_seen=self.n_seen,
            n_control=self.n_control,
            first=self.first,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that computes with this problem."""
        engine: Engine = importlib.import_module(ENGINES[self.backend]).Engine(self)
        return engine

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the engine: a copy makes its own."""
        return {name: value for name, value in vars(self).items() if name not in ("engine", "is_random", "n_parameters")}

    def __repr__(self) -> str:
        shapes = f"states {self.state_shape}, controls {self.control_shape}, {self.steps} steps of {self.dt:g}"
        where = "" if self.backend == "cpu" else f", on {self.backend}"
        return f"Problem({self.title}): {shapes}, {self.n_parameters} parameters, {np.dtype(self.dtype).name}{where}"

    @functools.cached_property
    def n_parameters(self) -> int:
        """Numbers in theta."""
        return parameter_count(self.controller)

    @property
    def n_state(self) -> int:
        """Numbers in a state."""
        return math.prod(self.state_shape)

    @property
    def n_seen(self) -> int:
        """Numbers that the controller sees."""
        return type(self.observation).size(self.observation, self.n_state)

    @property
    def n_control(self) -> int:
        """Numbers in a control."""
        return math.prod(self.control_shape)

    @property
    def time(self) -> np.ndarray:
        """Times (T+1,)."""
        return self.dt * np.arange(self.first, self.first + self.steps + 1)

    def sample(self, count: int, seed: int = 0, purpose: int = STATES) -> np.ndarray:
        """Random initial states (count, *state_shape); `purpose` selects one of the streams of a seed.

        Parameters
        ----------
        count : how many
        seed : decides them
        """
        count = arguments.whole("count", count, 1)
        arguments.memory(f"{count} states", 16.0 * count * self.n_state)
        return arguments.sampled(self.draw(stream(seed, purpose), count), (count, *self.state_shape), self.dtype)

    @functools.cached_property
    def is_random(self) -> bool:
        """Whether anything but the initial state differs between samples: fields of the system, noise, pushes."""
        return bool(self.noise().active) or type(self.system).value_count(self.system) > 0

    def keys(self, count: int, seed: int = 0, purpose: int = STATES, epoch: int = 0) -> np.ndarray:
        """Keys (count,) of samples, which decide all that is random about them; see `stablebptt.kernels.noise`.

        Parameters
        ----------
        count : how many
        seed, purpose : as in `sample`
        epoch : training draws others in every epoch
        """
        return stream(seed, KEYS, purpose, epoch).integers(2**62, size=arguments.whole("count", count, 1))

    def init(self, seed: int = 0) -> np.ndarray:
        """Initial parameters (n_parameters,): Glorot uniform kernels and zero biases; `output_init` decides the last kernel.

        A kernel is a parameter whose name ends in "kernel". Its last two axes are inputs and outputs (a missing axis counts as
        length 1). Axes before them are the window of a convolution.

        Parameters
        ----------
        seed : decides the kernels
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
        """Named views into theta (n_parameters,), in its order.

        Parameters
        ----------
        theta (n_parameters,) : parameters
        """
        arguments.unmasked("theta", theta)
        theta = np.asarray(theta)
        if theta.shape != (self.n_parameters,):
            raise ArgumentError(f"theta has shape {theta.shape}; it must be ({self.n_parameters},)")
        views, offset = {}, 0
        for name, shape in arguments.layout(self.controller).items():
            size = int(np.prod(shape))
            views[name] = theta[offset : offset + size].reshape(shape)
            offset += size
        return views

    def rollout(self, theta: np.ndarray, x0: np.ndarray, *, seed: int = 0, threads: int | None = None) -> Path:
        """Roll out the controller with parameters theta (n_parameters,) from x0 (B, *state_shape).

        Parameters
        ----------
        seed : decides what else is random: noise, pushes and fields of the system that vary. So everywhere.
        threads : of the CPU, at most; by default all. The result does not depend on them. So everywhere.
        theta (n_parameters,) : parameters
        x0 (B, *state_shape) : initial states

        Raises
        ------
        DivergedError
            If a state or control is not finite.
        """
        with arguments.threads(threads), bars.in_session_compiling():
            x0 = self._states(x0)
            path = self.follow(self._parameters(theta), x0, self._keys(x0, seed))
        divergence.check_path(path)
        return path

    def follow(self, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray | None = None) -> Path:
        """`rollout` without checks: theta (n_parameters,), x0 (B, *state_shape), keys (B,)."""
        found = next(self.engine.evaluate([theta], [x0], keys=None if keys is None else [keys], paths=True))
        return Path(self.time, found.states, found.controls, self.total(found.physics, found.effort)[0], self)

    def losses(
        self, theta: np.ndarray, x0: np.ndarray, *, seed: int = 0, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of x0 (B, *state_shape) with and without the regulariser, (B,) each in float64; NaN where a rollout diverged.

        Parameters
        ----------
        theta, x0, seed, threads : as in `rollout`
        """
        with arguments.threads(threads), bars.in_session_compiling():
            x0 = self._states(x0)
            keys = self._keys(x0, seed)
            found = next(self.engine.evaluate([self._parameters(theta)], [x0], keys=None if keys is None else [keys]))
        return self.total(found.physics, found.effort)

    def total(self, physics: Any, effort: Any) -> tuple[Any, Any]:
        """Losses with and without the regulariser, from physics and effort, (B,) each or their means."""
        return physics + self.regularization * effort / (self.steps * self.n_control), physics

    def loss(self, theta: np.ndarray, x0: np.ndarray, *, seed: int = 0, threads: int | None = None) -> Loss:
        """Mean loss of theta (n_parameters,) over x0 (B, *state_shape).

        Parameters
        ----------
        theta, x0, seed, threads : as in `rollout`

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        total, physics = self.losses(theta, x0, seed=seed, threads=threads)
        if not np.all(np.isfinite(total)):
            divergence.check_path(self.follow(self._parameters(theta), self._states(x0), self._keys(x0, seed)))
            raise DivergedError("the loss is not finite")
        return Loss(float(total.mean()), float(physics.mean()))

    def gradient(
        self, theta: np.ndarray, x0: np.ndarray, variant: Any = "R", *, seed: int = 0, threads: int | None = None
    ) -> Gradient:
        """Gradient (n_parameters,) of the mean loss over x0 (B, *state_shape), in a variant.

        Parameters
        ----------
        variant : "R", "M", "S", "N", "C", another join or gates (docs/joins.md), or a pair of gate schedules (a, b)
        theta, x0, seed, threads : as in `rollout`

        Raises
        ------
        DivergedError
            If a state, the loss or the gradient is not finite.
        """
        theta, x0 = self._parameters(theta), self._states(x0)
        seed = arguments.whole("seed", seed, 0, LARGEST_SEED)
        random = stream(seed, GATES) if variants.is_random(variant) else None
        gates, keys = variants.gates_of(variant, self, random), self._keys(x0, seed)
        with arguments.threads(threads), bars.in_session_compiling():
            own = None if keys is None else [keys]
            found = next(self.engine.gradients([theta], [x0], gates, keys=own, parts=True))
        divergence.check_gradient(self, found, theta, x0, gates, keys)
        return found.copy()

    def diagnose(self, theta: np.ndarray, x0: np.ndarray, *, seed: int = 0, threads: int | None = None) -> "Diagnosis":
        """What R and M are like at theta (n_parameters,), for x0 (B, *state_shape); docs/diagnosis.md explains how to read it.

        Parameters
        ----------
        theta, x0, seed, threads : as in `rollout`

        Raises
        ------
        DivergedError
            If a state, the loss or the gradient is not finite.
        """
        from stablebptt.tasks.diagnose import diagnose

        return diagnose(self, theta, x0, seed=seed, threads=threads)

    def _keys(self, x0: np.ndarray, seed: int) -> np.ndarray | None:
        """Keys (B,), if anything needs them."""
        return self.keys(len(x0), seed) if self.is_random else None

    def _parameters(self, theta: Any) -> np.ndarray:
        return arguments.array("theta", theta, (self.n_parameters,), self.dtype)

    def _states(self, x0: Any) -> np.ndarray:
        return arguments.array("x0", x0, ("B", *self.state_shape), self.dtype)
