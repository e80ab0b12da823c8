"""A trained controller in plain NumPy, for use elsewhere. Nothing is compiled, a saved one needs NumPy alone; docs/training.md.

A policy is a row of stages. A stage is an immutable dataclass of arrays and plain values that maps numbers (n,), or rows of them
(B, n), to others; what it computes in front of or behind the network is a stage, too. `STAGES` names them for files, and
`stages_of` makes them from a problem.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stablebptt.data import atomic
from stablebptt.data.errors import FileFormatError
from stablebptt.tasks.errors import ArgumentError

FORMAT, VERSION = "stablebptt-policy", 1
WORDS = "policy"  # name of the array that holds all words of a file, as JSON in UTF-8
MOST_STAGES, LARGEST_FILE, MOST_PLACES = 1000, 1 << 30, 10**8
# What stands behind the sum of a layer; each may work in place.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"linear": lambda x: x, "tanh": lambda x: np.tanh(x, out=x)}


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
    activation: str = "linear"

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2 or self.bias.shape != self.kernel.shape[1:] or self.kernel.dtype.kind != "f":
            raise ValueError(f"a layer has a kernel of shape {self.kernel.shape} and a bias of shape {self.bias.shape}")
        if not (type(self.windows) is type(self.stride) is int and self.windows >= 1 and self.stride >= 1):
            raise ValueError(f"a layer has {self.windows!r} windows at distance {self.stride!r}")
        if self.windows * len(self.kernel) > MOST_PLACES:
            raise ValueError(f"a layer has {self.windows} windows of {len(self.kernel)} numbers; that is too many")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"a layer has the activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        places = self.stride * np.arange(self.windows)[:, None] + np.arange(len(self.kernel)) if self.windows > 1 else None
        object.__setattr__(self, "_places", places)

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


STAGES: dict[str, Any] = {"layer": Layer}


def stages_of(problem: Any, theta: np.ndarray) -> tuple[Stage, ...]:
    """The stages of a problem's controller with parameters theta (n_parameters,)."""
    from stablebptt.kernels.network import Network

    controller = problem.controller
    if not isinstance(controller, Network):
        raise ArgumentError(f"the controller {type(controller).__name__} is your own; a policy knows our networks only")
    arrays = [np.array(values) for values in problem.layers(np.asarray(theta, problem.dtype)).values()]
    sizes = controller.windows()
    found: list[Stage] = []
    for (stride, window, windows, outputs), kernel, bias in zip(sizes, arrays[::2], arrays[1::2]):
        activation = "linear" if len(found) == len(sizes) - 1 else "tanh"
        found.append(Layer(kernel.reshape(window, outputs), bias, windows, stride, activation))
    return tuple(found)


@dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """A function of states: ``policy(x)`` is the control of one state, or the controls of a batch, as in the simulation.

    `Run.policy` and `Run.best_policy` are those of a run, `save` and `Policy.load` write and read a file.

    Attributes
    ----------
    title : of the problem
    state_shape, control_shape : shapes of one state and one control
    stages : what it computes, one after the other
    """

    title: str
    state_shape: tuple[int, ...]
    control_shape: tuple[int, ...]
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        size = self.n_state
        for stage in self.stages:
            size = stage.outputs(size)
        if size != math.prod(self.control_shape) or not self.stages:
            raise ValueError(f"the stages make {size} numbers; a control has the shape {self.control_shape}")
        arrays = [values for stage in self.stages for values in _fields(stage).values() if isinstance(values, np.ndarray)]
        dtypes = {values.dtype for values in arrays}
        if len(dtypes) != 1:
            raise ValueError(f"the arrays are in {', '.join(sorted(map(str, dtypes)))}; they must be in one precision")
        object.__setattr__(self, "dtype", dtypes.pop())

    @property
    def n_state(self) -> int:
        """Numbers in a state."""
        return math.prod(self.state_shape)

    def __call__(self, states: Any) -> np.ndarray:
        """Controls (\\*control_shape) of a state (\\*state_shape), or (.., \\*control_shape) of states (.., \\*state_shape)."""
        x = np.asarray(states, self.dtype)  # type: ignore[attr-defined]
        shape = x.shape
        if shape == self.state_shape:
            x = x.reshape(-1)
            for stage in self.stages:
                x = stage(x)
            return x.reshape(self.control_shape)
        batch = len(shape) - len(self.state_shape)
        if batch < 1 or shape[batch:] != self.state_shape:
            raise ArgumentError(f"states have shape {shape}; they must be {self.state_shape}, or several of them")
        x = x.reshape(math.prod(shape[:batch]), self.n_state)
        for stage in self.stages:
            x = stage(x)
        return x.reshape(*shape[:batch], *self.control_shape)

    def __repr__(self) -> str:
        shapes = f"states {self.state_shape}, controls {self.control_shape}"
        return f"Policy({self.title}): {shapes}, {len(self.stages)} stages, {self.dtype}"  # type: ignore[attr-defined]

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the policy as .npz; an existing file is replaced with `force` only."""
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
        shapes = {"state_shape": self.state_shape, "control_shape": self.control_shape}
        about = {"format": FORMAT, "version": VERSION, "title": self.title, **shapes, "stages": stages}
        content = io.BytesIO()
        np.savez(content, **{WORDS: np.frombuffer(json.dumps(about).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
        with atomic.replacing(place) as beside:
            beside.write_bytes(content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """The policy in a file.

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
            return cls(str(about["title"]), *shapes, stages)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"{path} holds no policy of this version ({' '.join(str(error).split())})") from None


def of(problem: Any, theta: np.ndarray) -> Policy:
    """The policy of a problem's controller with parameters theta (n_parameters,)."""
    stages = stages_of(problem, theta)
    return Policy(problem.title, problem.state_shape, problem.control_shape, stages)


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
