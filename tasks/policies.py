"""A trained controller in plain NumPy, for use elsewhere. Nothing is compiled, a saved one needs NumPy alone; docs/training.md.

A policy is a row of stages. A stage is an immutable dataclass of arrays and plain values that maps numbers (n,), or rows of them
(B, n), to others; what it computes in front of or behind the network is a stage, too. `STAGES` names them for files, and
`stages_of` makes them from a problem.
"""

import io
import itertools
import json
import math
import operator
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stablebptt.data import atomic
from stablebptt.data.errors import FileFormatError
from stablebptt.tasks.errors import ArgumentError

FORMAT, VERSION = "stablebptt-policy", 1
WORDS = "policy"  # name of the array that holds all words of a file, as JSON in UTF-8
MOST_STAGES, LARGEST_FILE, MOST_PLACES = 1000, 1 << 30, 10**8
SHARE_A, SHARE_B, SHARE_FAR = math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi), 100.0  # of gelu


def gelu(z: np.ndarray) -> np.ndarray:
    """``z (1 + tanh(a z + b z^3)) / 2``."""
    near = np.clip(z, -SHARE_FAR, SHARE_FAR)
    return z * ((1 + np.tanh(near * (SHARE_A + SHARE_B * near * near))) / 2)


# What stands behind the sum of a layer; each may work in place. kernels/activations.py has them for the simulation.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda z: z,
    "tanh": lambda z: np.tanh(z, out=z),
    "relu": lambda z: np.maximum(z, 0, out=z),
    "gelu": gelu,
    "silu": lambda z: z * ((1 + np.tanh(z / 2)) / 2),
    "softplus": lambda z: np.logaddexp(z, 0, out=z),
    "sin": lambda z: np.sin(z, out=z),
}


class Stage(Protocol):
    """What a policy is made of: a dataclass of arrays, words, numbers and lists of them."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The stage's numbers (outputs,) or (B, outputs) for x (n,) or (B, n)."""

    def outputs(self, inputs: int) -> int:
        """How many numbers it makes of so many; a ValueError if it does not take so many."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a network: ``activation(window @ kernel + bias)`` for every window of the numbers below.

    Attributes
    ----------
    kernel (window, outputs), bias (outputs,) : weights, the same for every window
    windows, stride : how many there are, and numbers from one to the next; a dense layer has one, which sees everything
    activation : a name in `ACTIVATIONS`
    """

    kernel: np.ndarray
    bias: np.ndarray
    windows: int = 1
    stride: int = 1
    activation: str = "identity"

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2 or self.bias.shape != self.kernel.shape[1:] or self.kernel.dtype.kind != "f":
            raise ValueError(f"a layer has a kernel of shape {self.kernel.shape} and a bias of shape {self.bias.shape}")
        if not (type(self.windows) is type(self.stride) is int and self.windows >= 1 and self.stride >= 1):
            raise ValueError(f"a layer has {self.windows!r} windows at distance {self.stride!r}")
        if self.windows * len(self.kernel) > MOST_PLACES:
            raise ValueError(f"a layer has {self.windows} windows of {len(self.kernel)} numbers; that is too many")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"a layer has the activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        object.__setattr__(self, "_places", self.places() if self.windows > 1 else None)

    def places(self) -> np.ndarray:
        """Places (windows, window) of the numbers below that each window sees."""
        return self.stride * np.arange(self.windows)[:, None] + np.arange(len(self.kernel))

    def outputs(self, inputs: int) -> int:
        window, outputs = self.kernel.shape
        if (self.windows - 1) * self.stride + window > inputs or (self.windows == 1 and window != inputs):
            raise ValueError(f"a layer has windows of {window} numbers; they do not fit {inputs} numbers below")
        return self.windows * outputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        places = self._places  # type: ignore[attr-defined]
        below = x if places is None else x[..., places].reshape(-1, places.shape[1])
        z = below.dot(self.kernel)
        z += self.bias
        z = ACTIVATIONS[self.activation](z)
        return z if places is None else z.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the network sees of a state: numbers by their places (n,), each as it is (turns 0), its sine (1) or its cosine (2)."""

    places: np.ndarray
    turns: np.ndarray

    def __post_init__(self) -> None:
        kinds, shapes = {self.places.dtype.kind, self.turns.dtype.kind}, {self.places.shape, self.turns.shape}
        whole = kinds == {"i"} and shapes == {(self.places.size,)}
        if not whole or not np.isin(self.turns, (0, 1, 2)).all() or (self.places < 0).any():
            raise ValueError("an observation has places or turns that are none")
        object.__setattr__(self, "_sines", np.flatnonzero(self.turns == 1))
        object.__setattr__(self, "_cosines", np.flatnonzero(self.turns == 2))

    def outputs(self, inputs: int) -> int:
        if (self.places >= inputs).any():
            raise ValueError(f"an observation sees number {self.places.max()} of {inputs}")
        return len(self.places)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        seen = x[..., self.places]
        for places, function in ((self._sines, np.sin), (self._cosines, np.cos)):  # type: ignore[attr-defined]
            if len(places):
                seen[..., places] = function(seen[..., places])
        return seen


@dataclass(frozen=True, eq=False)
class Scaled:
    """``(y - shift) factor``; shift and factor (n,)."""

    shift: np.ndarray
    factor: np.ndarray

    def outputs(self, inputs: int) -> int:
        if not self.shift.shape == self.factor.shape == (inputs,):
            raise ValueError(f"a scale has shapes {self.shift.shape} and {self.factor.shape} for {inputs} numbers")
        return inputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.shift) * self.factor


@dataclass(frozen=True, eq=False)
class Limited:
    """Controls within their limits, ``centre + reach tanh(u)``; centre and reach (n_control,)."""

    centre: np.ndarray
    reach: np.ndarray

    def outputs(self, inputs: int) -> int:
        if not self.centre.shape == self.reach.shape == (inputs,):
            raise ValueError(f"limits have shapes {self.centre.shape} and {self.reach.shape} for {inputs} controls")
        return inputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.centre + self.reach * np.tanh(x)


STAGES: dict[str, Any] = {"layer": Layer, "seen": Seen, "scaled": Scaled, "limited": Limited}


def stages_of(problem: Any, theta: np.ndarray) -> tuple[Stage, ...]:
    """The stages of a problem's controller with parameters theta (n_parameters,): observation, network, bounds."""
    from stablebptt.kernels.bounds import bounds
    from stablebptt.kernels.generics import State
    from stablebptt.kernels.network import Network

    controller = problem.controller
    if not isinstance(controller, Network):
        raise ArgumentError(f"the controller {type(controller).__name__} is your own; a policy knows our networks only")
    arrays = [np.array(values) for values in problem.layers(np.asarray(theta, problem.dtype)).values()]
    sizes = controller.windows()
    found: list[Stage] = [] if type(problem.observation) is State else _seen(problem)
    for number, (stride, window, windows, outputs) in enumerate(sizes, 1):
        kernel, bias = arrays[2 * number - 2 : 2 * number]
        activation = "identity" if number == len(sizes) else type(controller.activation).__name__.lower()
        found.append(Layer(kernel.reshape(window, outputs), bias, windows, stride, activation))
    limits = bounds(problem.limits, problem.n_control, problem.dtype)
    return tuple([*found, Limited(limits.centre, limits.reach)] if limits.limited else found)


class _View(NamedTuple):
    """An observation taken apart: places and turns as in `Seen`, and the scales (shift, factor) behind them, in turn."""

    places: list[int]
    turns: list[int]
    scales: list[Any]


class _Sight:
    """What an observation may look at: the state, and the signals (T,) that are found in it, one after the other."""

    def __init__(self, problem: Any) -> None:
        self.n_state, self.steps = problem.n_state, np.arange(problem.steps)
        self.signals: list[np.ndarray] = []

    def place(self, signal: np.ndarray) -> int:
        """Where a signal is seen, behind the numbers of the state."""
        self.signals.append(signal)
        return self.n_state + len(self.signals) - 1


def _seen(problem: Any) -> list[Stage]:
    """The stages of a problem's observation."""
    view = _view(problem.observation, _Sight(problem))
    scales = [Scaled(*(np.asarray(row, problem.dtype) for row in scale)) for scale in view.scales]
    return [Seen(np.array(view.places, np.int64), np.array(view.turns, np.int64)), *scales]


def signals_of(problem: Any) -> np.ndarray | None:
    """The signals (T, n) that a problem's observation sees beside the state; None if there are none."""
    sight = _Sight(problem)
    _view(problem.observation, sight)
    return np.array(sight.signals, problem.dtype).T.copy() if sight.signals else None


def _view(observation: Any, sight: _Sight) -> _View:
    """An observation without its noise, which belongs to the simulation."""
    from stablebptt.kernels import seen
    from stablebptt.kernels.generics import State

    kind, n_state = type(observation), sight.n_state
    plain = range(n_state)
    if kind is State:
        return _View(list(plain), [0] * n_state, [])
    if kind is seen.Choice:
        return _View([int(place) for place in observation.places], [0] * len(observation.places), [])
    if kind is seen.Angles:
        pairs = [(place, turn) for place in plain for turn in ((1, 2) if observation.turned[place] else (0,))]
        return _View([place for place, _ in pairs], [turn for _, turn in pairs], [])
    if kind is seen.Clock:
        return _View([sight.place(sight.steps * observation.dt)], [0], [])
    if kind is seen.Reference:
        times = [np.minimum(sight.steps + ahead, len(observation.values) - 1) for ahead in range(observation.ahead + 1)]
        places = [sight.place(column[time]) for time in times for column in observation.values.T]
        return _View(places, [0] * len(places), [])
    if kind is seen.Noisy:
        return _view(observation.inner, sight)
    if kind is seen.Scaled:
        inner = _view(observation.inner, sight)
        return inner._replace(scales=[*inner.scales, (observation.shift, observation.factor)])
    if kind is seen.Both:
        return _joined(_view(observation.first, sight), _view(observation.second, sight))
    raise ArgumentError(f"the observation {kind.__name__} is your own; a policy knows ours only")


def _joined(first: _View, second: _View) -> _View:
    """What two observations see, one after the other; a scale that only one of them has leaves the other as it is."""
    scales = []
    for one, other in itertools.zip_longest(first.scales, second.scales):
        pairs = [
            (np.zeros(len(view.places)), np.ones(len(view.places))) if scale is None else scale
            for view, scale in ((first, one), (second, other))
        ]
        scales.append(tuple(np.concatenate(rows) for rows in zip(*pairs)))
    return _View(first.places + second.places, first.turns + second.turns, scales)


@dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """A function of states: ``policy(x)`` is the control of one state, or the controls of a batch, as in the simulation.

    A policy that sees the time or a reference is a function of the time step, too: ``policy(x, t)``.
    `Run.policy` and `Run.best_policy` are those of a run, `save` and `Policy.load` write and read a file.

    Attributes
    ----------
    title : of the problem
    state_shape, control_shape : shapes of one state and one control
    stages : what it computes, one after the other
    signals (T, n) : numbers that it sees in every time step behind those of the state; None if it sees the state alone
    dtype : precision of its arrays

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> run.policy(problem.sample(4, seed=1)).shape
    (4, 1)
    """

    title: str
    state_shape: tuple[int, ...]
    control_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    signals: np.ndarray | None = None
    dtype: Any = field(init=False)

    def __post_init__(self) -> None:
        size = self.n_state
        if self.signals is not None:
            if self.signals.ndim != 2 or self.signals.dtype.kind != "f" or not self.signals.size:
                raise ValueError(f"signals have the shape {self.signals.shape}; they are (time steps, numbers)")
            size += self.signals.shape[1]
        for stage in self.stages:
            size = stage.outputs(size)
        if size != math.prod(self.control_shape) or not self.stages:
            raise ValueError(f"the stages make {size} numbers; a control has the shape {self.control_shape}")
        arrays = [values for stage in self.stages for values in _fields(stage).values() if isinstance(values, np.ndarray)]
        arrays += [] if self.signals is None else [self.signals]
        dtypes = {values.dtype for values in arrays if values.dtype.kind == "f"}
        if len(dtypes) != 1:
            raise ValueError(f"the arrays are in {', '.join(sorted(map(str, dtypes)))}; they must be in one precision")
        object.__setattr__(self, "dtype", dtypes.pop())

    @property
    def n_state(self) -> int:
        """Numbers in a state."""
        return math.prod(self.state_shape)

    def __call__(self, states: Any, t: int | None = None) -> np.ndarray:
        """Controls (\\*control_shape) of a state (\\*state_shape), or (.., \\*control_shape) of states (.., \\*state_shape).

        t : time step, 0 to T-1, for policies with signals; others do not depend on it
        """
        x = np.asarray(states, self.dtype)
        shape = x.shape
        if shape == self.state_shape:
            x = x.reshape(-1)
            if self.signals is not None:
                x = self._with_signals(x, t)
            for stage in self.stages:
                x = stage(x)
            return x.reshape(self.control_shape)
        batch = len(shape) - len(self.state_shape)
        if batch < 1 or shape[batch:] != self.state_shape:
            raise ArgumentError(f"states have shape {shape}; they must be {self.state_shape}, or several of them")
        x = x.reshape(math.prod(shape[:batch]), self.n_state)
        if self.signals is not None:
            x = self._with_signals(x, t)
        for stage in self.stages:
            x = stage(x)
        return x.reshape(*shape[:batch], *self.control_shape)

    def _with_signals(self, x: np.ndarray, t: int | None) -> np.ndarray:
        """Numbers of states (.., n_state), with the signals of a time step behind them."""
        assert self.signals is not None
        steps, n = self.signals.shape
        if t is None or not 0 <= operator.index(t) < steps:
            raise ArgumentError(f"t is {t}; this policy sees the time, give the time step: policy(x, t), t from 0 to {steps - 1}")
        return np.concatenate([x, np.broadcast_to(self.signals[t], (*x.shape[:-1], n))], axis=-1)

    def __repr__(self) -> str:
        shapes = f"states {self.state_shape}, controls {self.control_shape}"
        return f"Policy({self.title}): {shapes}, {len(self.stages)} stages, {self.dtype}"

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the policy as .npz; an existing file is replaced with `force` only.

        Parameters
        ----------
        path : of the file
        force : replace an existing file
        """
        place = atomic.target(atomic.expanded(path))
        atomic.check_folder(place)
        if place.exists() and not force:
            raise FileExistsError(f"{path} exists; choose another name, or replace it with force=True")
        arrays: dict[str, np.ndarray] = {}
        stages = []
        for number, stage in enumerate(self.stages):
            values = _fields(stage)
            arrays |= {f"{number}_{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}
            words = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
            kind = next(name for name, kind in STAGES.items() if kind is type(stage))
            stages.append({"stage": kind, **words})
        if self.signals is not None:
            arrays["signals"] = self.signals
        shapes = {"state_shape": self.state_shape, "control_shape": self.control_shape}
        about = {"format": FORMAT, "version": VERSION, "title": self.title, **shapes, "stages": stages}
        content = io.BytesIO()
        np.savez(content, **{WORDS: np.frombuffer(json.dumps(about).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
        with atomic.replacing(place) as beside:
            beside.write_bytes(content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """The policy in a file.

        Parameters
        ----------
        path : of a file of `save`

        Raises
        ------
        FileFormatError
            If the file is damaged, or holds no policy.
        OSError
            If it cannot be read.
        """
        arrays = _arrays(atomic.expanded(path), path)
        try:
            about = json.loads(bytes(arrays.pop(WORDS)))
            if (about["format"], about["version"]) != (FORMAT, VERSION):
                raise ValueError(f"it says {about['format']!r}, version {about['version']!r}")
            shapes = (_shape(about["state_shape"]), _shape(about["control_shape"]))
            stages = tuple(_stage(number, words, arrays) for number, words in enumerate(about["stages"]))
            return cls(str(about["title"]), *shapes, stages, arrays.get("signals"))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"{path} holds no policy of this version ({' '.join(str(error).split())})") from None


def of(problem: Any, theta: np.ndarray) -> Policy:
    """The policy of a problem's controller with parameters theta (n_parameters,)."""
    stages = stages_of(problem, theta)
    return Policy(problem.title, problem.state_shape, problem.control_shape, stages, signals_of(problem))


def _fields(stage: Any) -> dict[str, Any]:
    return {each.name: getattr(stage, each.name) for each in fields(stage)}


def _stage(number: int, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Stage:
    """A stage of a file."""
    given = dict(words)
    kind = STAGES[given.pop("stage")]
    known = {each.name for each in fields(kind)}
    given |= {name: arrays[f"{number}_{name}"] for name in known if f"{number}_{name}" in arrays}
    if unknown := given.keys() - known:
        raise ValueError(f"stage {number} has {sorted(unknown)[0]!r}, which is not known")
    stage: Stage = kind(**given)
    return stage


def _shape(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(n) is int and 1 <= n < LARGEST_FILE for n in given):
        raise ValueError(f"a shape is {given!r}")
    return tuple(given)


def _arrays(place: Path, path: Any) -> dict[str, np.ndarray]:
    """All arrays of an .npz file of sensible size; nothing in it is executed."""
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
            if len(members) > MOST_STAGES or sum(member.file_size for member in members) > LARGEST_FILE:
                raise ValueError("it is too large")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, TypeError, SyntaxError, EOFError) as error:
        raise FileFormatError(f"{path} is no policy, or damaged ({' '.join(str(error).split())})") from None


def _array(content: bytes) -> np.ndarray:
    """The array of numbers in a .npy file that claims no more than it has."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, transposed, dtype = header(file)
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of {dtype} with the shape {shape} is not all there")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if transposed else "C").copy()
