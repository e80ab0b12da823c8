"""Optimizers in plain NumPy, in the form of Keras; docs/method.md, section 4.

A rule is immutable. ``state = rule.init(theta)`` makes its state, a dict of arrays. ``theta, state = rule.apply(theta,
gradient, state)`` returns new parameters and a new state and leaves its arguments unchanged.
"""

import inspect
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from stablebptt.data import storage
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.settings import CLIP_MODES

State = dict[str, np.ndarray]


def clip(gradient: np.ndarray, mode: str = "none", at: float = 1.0) -> np.ndarray:
    """Clip a gradient (n_parameters,).

    mode "none" returns it unchanged, "value" limits each component to [-at, at], "norm" limits the 2-norm to `at`. NaN stays NaN.
    """
    arguments.choice("clip mode", mode, CLIP_MODES)
    if not (at > 0 and math.isfinite(at)):
        raise ArgumentError(f"clip at {at}; it must be a positive number")
    arguments.unmasked("gradient", gradient)
    if mode == "value":
        return np.clip(gradient, -at, at)
    if mode == "norm":
        norm = math.sqrt(np.sum(np.square(gradient, dtype=np.float64)))
        return gradient * (at / norm) if norm > at else gradient
    return gradient


@dataclass(frozen=True)
class Rule:
    """Base of the update rules.

    A rule of your own is a frozen dataclass with any fields it needs. The run file stores them, so they are numbers, words, or
    lists and tables of them.
    """

    learning_rate: float
    _below: ClassVar[dict[str, float]] = {}  # fields that may not be negative, each with its upper bound

    def __post_init__(self) -> None:
        arguments.real("learning_rate", self.learning_rate, above=0)
        for name, limit in self._below.items():
            arguments.real(name, getattr(self, name), least=0, below=limit)
        for field in fields(self):
            object.__setattr__(self, field.name, arguments.native(getattr(self, field.name)))

    @property
    def name(self) -> str:
        """Name of the rule in files and on the command line."""
        return type(self).__name__.lower()

    def init(self, theta: np.ndarray) -> State:
        """The state before the first update of theta (n_parameters,)."""
        raise NotImplementedError

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """One update: new theta (n_parameters,) and new state, from gradient (n_parameters,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adam(Rule):
    """Adam as published, with epsilon outside the root and bias correction folded into the step size."""

    _below: ClassVar[dict[str, float]] = {"beta1": 1.0, "beta2": 1.0, "epsilon": math.inf}
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"count": np.zeros(1, np.int64), "mean": np.zeros_like(theta), "square": np.zeros_like(theta)}

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        count = state["count"] + 1
        t = int(count[0])
        alpha = self.learning_rate * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        mean = gradient - state["mean"]
        mean *= 1 - self.beta1
        mean += state["mean"]
        square = gradient * gradient
        square -= state["square"]
        square *= 1 - self.beta2
        square += state["square"]
        step = np.sqrt(square)
        step += self.epsilon
        np.divide(mean, step, out=step)
        step *= alpha
        return theta - step, {"count": count, "mean": mean, "square": square}


@dataclass(frozen=True)
class Sgd(Rule):
    """Gradient descent, with momentum (0, or 0.8, 0.9, 0.95 as published): ``v = momentum v - rate g; theta += v``."""

    _below: ClassVar[dict[str, float]] = {"momentum": 1.0}
    learning_rate: float = 0.01
    momentum: float = 0.0

    def init(self, theta: np.ndarray) -> State:
        return {"velocity": np.zeros_like(theta)} if self.momentum else {}

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        if not self.momentum:
            return theta - self.learning_rate * gradient, {}
        velocity = self.momentum * state["velocity"] - self.learning_rate * gradient
        return theta + velocity, {"velocity": velocity}


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad as published: ``a += g^2; theta -= rate g / sqrt(a + epsilon)``."""

    _below: ClassVar[dict[str, float]] = {"initial": math.inf, "epsilon": math.inf}
    learning_rate: float = 0.001
    initial: float = 0.1
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"accumulator": np.full_like(theta, self.initial)}

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        accumulator = state["accumulator"] + gradient * gradient
        step = self.learning_rate * gradient / np.sqrt(accumulator + self.epsilon)
        return theta - step, {"accumulator": accumulator}


@dataclass(frozen=True)
class Adadelta(Rule):
    """Adadelta as published: steps of the size of past steps over past gradients, both as running root mean squares."""

    _below: ClassVar[dict[str, float]] = {"rho": 1.0, "epsilon": math.inf}
    learning_rate: float = 0.001
    rho: float = 0.95
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"gradients": np.zeros_like(theta), "steps": np.zeros_like(theta)}

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        gradients = self.rho * state["gradients"] + (1 - self.rho) * gradient * gradient
        step = gradient * np.sqrt(state["steps"] + self.epsilon) / np.sqrt(gradients + self.epsilon)
        steps = self.rho * state["steps"] + (1 - self.rho) * step * step
        return theta - self.learning_rate * step, {"gradients": gradients, "steps": steps}


@dataclass(frozen=True)
class Rmsprop(Rule):
    """RMSprop as published: ``s = rho s + (1 - rho) g^2; theta -= rate g / sqrt(s + epsilon)``."""

    _below: ClassVar[dict[str, float]] = {"rho": 1.0, "epsilon": math.inf}
    learning_rate: float = 0.001
    rho: float = 0.9
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"square": np.zeros_like(theta)}

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        square = self.rho * state["square"] + (1 - self.rho) * gradient * gradient
        return theta - self.learning_rate * gradient / np.sqrt(square + self.epsilon), {"square": square}


def begin(rule: Rule, theta: np.ndarray) -> State:
    """The state before the first update of theta (n_parameters,). An update with ones checks that a file can store it."""
    state = rule.init(theta)
    with np.errstate(all="ignore"):
        after = rule.apply(theta, np.ones_like(theta), state)[1]
    first, then = _types(rule, state), _types(rule, after)
    if first != then:
        who = f"the state of {type(rule).__name__}"
        raise ArgumentError(f"{who} is {first} at first and {then} after an update; it must stay alike")
    return state


def _types(rule: Rule, state: Any) -> dict[str, str]:
    """Types and shapes of the arrays of a state that a file can store."""
    who = f"the state of {type(rule).__name__}"
    if not isinstance(state, dict):
        raise ArgumentError(f"{who} is of type {type(state).__name__}; it must be a dict of arrays")
    for name, values in state.items():
        if not isinstance(name, str) or not storage.is_name(name):
            raise ArgumentError(f"{who} has the name {name!r}; a name must be {storage.NAME_RULE}")
        arguments.unmasked(f"{who}: {name}", values)
        if not isinstance(values, np.generic | np.ndarray) or values.dtype.kind not in "fiu":
            raise ArgumentError(f"{who}: {name} is of type {type(values).__name__}; it must be an array of real numbers")
    return {name: f"{values.dtype} {values.shape}" for name, values in state.items()}


# Rules by the names that they have in Python, in files and on the command line.
adam, sgd, adagrad, adadelta, rmsprop = Adam, Sgd, Adagrad, Adadelta, Rmsprop
RULES: dict[str, Any] = {"adam": adam, "sgd": sgd, "adagrad": adagrad, "adadelta": adadelta, "rmsprop": rmsprop}


def describe(rule: Rule) -> dict[str, Any]:
    """Name and fields of a rule, for a file."""
    return {"name": rule.name, **asdict(rule)}


def from_description(description: dict[str, Any]) -> Rule:
    """The rule with the description that `describe` returns."""
    values = dict(description)
    name = arguments.choice("optimizer", values.pop("name", None), tuple(RULES))
    arguments.known(name, values, inspect.signature(RULES[name]).parameters)
    return RULES[name](**values)
