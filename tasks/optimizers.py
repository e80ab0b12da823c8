"""Optimizers in plain NumPy, in the form of Keras; docs/method.md, section 4, and docs/training.md.

A rule is immutable. ``state = rule.init(theta)`` makes its state, a dict of arrays. ``theta, state = rule.apply(theta,
gradient, state)`` returns new parameters and a new state and leaves its arguments unchanged. A chain of rules is a rule: what
one of them would subtract from theta is the gradient of the next.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np

from stablebptt.data import storage
from stablebptt.tasks import arguments, schedules
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.schedules import Schedule
from stablebptt.tasks.settings import CLIP_MODES

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "Chain",
    "Clipping",
    "Decay",
    "Part",
    "Rmsprop",
    "Rule",
    "Sgd",
    "adadelta",
    "adagrad",
    "adam",
    "chain",
    "clip",
    "clipping",
    "decay",
    "rmsprop",
    "sgd",
]

State = dict[str, np.ndarray]
UPDATES = "updates"  # of a rule with a schedule: the part of its state that counts

def clip(gradient: np.ndarray, mode: str = "none", at: float = 1.0) -> np.ndarray:
    """Clip a gradient (n_parameters,).

    mode "none" returns it unchanged, "value" limits each component to [-at, at], "norm" limits the 2-norm to `at`. NaN stays NaN.

    Parameters
    ----------
    gradient (n_parameters,) : is not changed
    mode : "none", "value" or "norm"
    at : limit, above 0

    Examples
    --------
    >>> sb.clip(np.array([3.0, 4.0]), "norm", 1.0).tolist()
    [0.6000000000000001, 0.8]
    """
    arguments.choice("clip mode", mode, CLIP_MODES)
    if not (at > 0 and math.isfinite(at)):
        raise ArgumentError(f"clip at {at}; it must be a positive number")
    arguments.unmasked("gradient", gradient)
    return clipped(gradient, _norm2(gradient) if mode == "norm" else 0.0, mode, at)[0]


def clipped(gradient: np.ndarray, norm2: float, mode: str, at: float) -> tuple[np.ndarray, float]:
    """What `clip` makes of a gradient (n_parameters,), and its squared norm; norm2 is that of the gradient, if it matters."""
    if mode == "value":
        update = np.clip(gradient, -at, at)
        return update, _norm2(update)
    if mode == "norm" and (norm := math.sqrt(norm2)) > at:
        return gradient * (at / norm), at * at
    return gradient, norm2


def _norm2(vector: np.ndarray) -> float:
    """The squared norm of a vector (n,), summed in float64."""
    return float(np.sum(np.square(vector, dtype=np.float64)))


@dataclass(frozen=True)
class Part:
    """Base of what a chain may hold: an update rule, or a change of the gradient.

    A part is a frozen dataclass. It has `step`; or, if it is never followed by another one, `apply`.

    Examples
    --------
    >>> isinstance(sb.optimizers.clipping("norm"), Part)
    True
    """

    @property
    def name(self) -> str:
        """Name in files and on the command line."""
        return type(self).__name__.lower()

    def init(self, theta: np.ndarray) -> State:
        """The state before the first update of theta (n_parameters,).

        Parameters
        ----------
        theta (n_parameters,) : parameters
        """
        return {}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """What an update subtracts from theta (n_parameters,), and the new state, from gradient (n_parameters,).

        Parameters
        ----------
        theta, gradient (n_parameters,), state : as in `apply`
        """
        raise NotImplementedError

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """One update: new theta (n_parameters,) and new state, from gradient (n_parameters,).

        Parameters
        ----------
        theta, gradient (n_parameters,) : parameters and gradient; they are not changed
        state : of `init`, or of the last update
        """
        arguments.unmasked("gradient", gradient)
        step, state = self.step(theta, gradient, state)
        return theta - step, state

    def over(self, updates: int) -> Self:
        """The same for a run of so many updates: schedules without a length get this one.

        Parameters
        ----------
        updates : of the whole run
        """
        return self


def _begins(init: Callable[..., Any]) -> Callable[..., Any]:
    """`init` of a rule; with a schedule the state also counts the updates."""

    @functools.wraps(init)
    def begin(rule: Any, theta: np.ndarray) -> Any:
        if not isinstance(rule.learning_rate, Schedule):
            return init(rule, theta)
        state = init(rule.at(0), theta)
        if not isinstance(state, dict) or UPDATES in state:
            told = f"has the name {UPDATES!r}, which counts" if isinstance(state, dict) else f"is of type {type(state).__name__}"
            raise ArgumentError(f"the state of {type(rule).__name__} {told}; with a schedule it must be a dict of other names")
        return {**state, UPDATES: np.zeros(1, np.int64)}

    return begin


def _follows(update: Callable[..., Any]) -> Callable[..., Any]:
    """`step` or `apply` of a rule, with the learning rate that a schedule has now."""

    @functools.wraps(update)
    def follow(rule: Any, theta: np.ndarray, gradient: np.ndarray, state: State) -> Any:
        if not isinstance(rule.learning_rate, Schedule):
            return update(rule, theta, gradient, state)
        done, known = state[UPDATES], {name: values for name, values in state.items() if name != UPDATES}
        result, after = update(rule.at(int(done[0])), theta, gradient, known)
        return result, {**after, UPDATES: done + 1}

    return follow


@dataclass(frozen=True)
class Rule(Part):
    """Base of the update rules.

    A rule of your own is a frozen dataclass with any fields it needs. The run file stores them, so they are numbers, words, or
    lists and tables of them. Its learning rate may be a schedule: `init` and `apply` find the number of the update in its place.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one

    Examples
    --------
    A rule of your own:

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class SignDescent(Rule):
    ...     learning_rate: float = 0.01
    ...     def step(self, theta, gradient, state):
    ...         return self.learning_rate * np.sign(gradient), state
    >>> theta, state = SignDescent().apply(np.zeros(2), np.array([3.0, -4.0]), {})
    >>> theta.tolist()
    [-0.01, 0.01]
    """

    learning_rate: Any  # a number or a schedule; a schedule may be given as its spelling
    init = _begins(Part.init)
    _below: ClassVar[dict[str, float]] = {}  # fields that may not be negative, each with its upper bound

    def __init_subclass__(cls, **options: Any) -> None:
        """Let every rule follow a schedule, whether it is ours or a user's."""
        super().__init_subclass__(**options)
        for name, following in (("init", _begins), ("step", _follows), ("apply", _follows)):
            if name in vars(cls):
                setattr(cls, name, following(vars(cls)[name]))

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", schedules.read("learning_rate", self.learning_rate))
        for name, limit in self._below.items():
            arguments.real(name, getattr(self, name), least=0, below=limit)
        for field in fields(self):
            object.__setattr__(self, field.name, arguments.native(getattr(self, field.name)))

    def over(self, updates: int) -> Self:
        if not isinstance(self.learning_rate, Schedule):
            return self
        return self._with(self.learning_rate.over(updates))

    def at(self, update: int) -> Self:
        """The rule with the learning rate of the update with this number, counted from 0.

        Parameters
        ----------
        update : its number, counted from 0
        """
        return self._with(schedules.at(self.learning_rate, update))

    def _with(self, learning_rate: Any) -> Self:
        """The same rule with another rate, which may also be 0."""
        changed = copy.copy(self)
        object.__setattr__(changed, "learning_rate", learning_rate)
        return changed


@dataclass(frozen=True)
class Adam(Rule):
    """Adam as published, with epsilon outside the root and bias correction folded into the step size.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    beta1, beta2 : shares that the running means of gradient and square keep
    epsilon : added to the root

    Examples
    --------
    >>> rule, theta = sb.optimizers.adam(0.001), np.zeros(2)
    >>> theta, state = rule.apply(theta, np.array([1.0, -2.0]), rule.init(theta))
    >>> theta.round(6).tolist()
    [-0.001, 0.001]
    """

    _below: ClassVar[dict[str, float]] = {"beta1": 1.0, "beta2": 1.0, "epsilon": math.inf}
    learning_rate: Any = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"count": np.zeros(1, np.int64), "mean": np.zeros_like(theta), "square": np.zeros_like(theta)}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
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
        return step, {"count": count, "mean": mean, "square": square}


@dataclass(frozen=True)
class Sgd(Rule):
    """Gradient descent, with momentum (0, or 0.8, 0.9, 0.95 as published): ``v = momentum v - rate g; theta += v``.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    momentum : share of the velocity that is kept

    Examples
    --------
    >>> rule, theta = sb.optimizers.sgd(0.1), np.zeros(2)
    >>> theta, state = rule.apply(theta, np.array([1.0, -2.0]), rule.init(theta))
    >>> theta.round(6).tolist()
    [-0.1, 0.2]
    """

    _below: ClassVar[dict[str, float]] = {"momentum": 1.0}
    learning_rate: Any = 0.01
    momentum: float = 0.0

    def init(self, theta: np.ndarray) -> State:
        return {"velocity": np.zeros_like(theta)} if self.momentum else {}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        if not self.momentum:
            return self.learning_rate * gradient, {}
        velocity = self.momentum * state["velocity"] - self.learning_rate * gradient
        return -velocity, {"velocity": velocity}


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad as published: ``a += g^2; theta -= rate g / sqrt(a + epsilon)``.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    initial : of the sum of squares
    epsilon : added below the root

    Examples
    --------
    >>> rule, theta = sb.optimizers.adagrad(0.1), np.zeros(2)
    >>> theta, state = rule.apply(theta, np.array([1.0, -2.0]), rule.init(theta))
    >>> theta.round(6).tolist()
    [-0.095346, 0.098773]
    """

    _below: ClassVar[dict[str, float]] = {"initial": math.inf, "epsilon": math.inf}
    learning_rate: Any = 0.001
    initial: float = 0.1
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"accumulator": np.full_like(theta, self.initial)}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        accumulator = state["accumulator"] + gradient * gradient
        step = self.learning_rate * gradient / np.sqrt(accumulator + self.epsilon)
        return step, {"accumulator": accumulator}


@dataclass(frozen=True)
class Adadelta(Rule):
    """Adadelta as published: steps of the size of past steps over past gradients, both as running root mean squares.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    rho : share that the running means keep
    epsilon : added below both roots

    Examples
    --------
    >>> rule, theta = sb.optimizers.adadelta(1.0), np.zeros(2)
    >>> theta, state = rule.apply(theta, np.array([1.0, -2.0]), rule.init(theta))
    >>> theta.round(6).tolist()
    [-0.001414, 0.001414]
    """

    _below: ClassVar[dict[str, float]] = {"rho": 1.0, "epsilon": math.inf}
    learning_rate: Any = 0.001
    rho: float = 0.95
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"gradients": np.zeros_like(theta), "steps": np.zeros_like(theta)}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        gradients = self.rho * state["gradients"] + (1 - self.rho) * gradient * gradient
        step = gradient * np.sqrt(state["steps"] + self.epsilon) / np.sqrt(gradients + self.epsilon)
        steps = self.rho * state["steps"] + (1 - self.rho) * step * step
        return self.learning_rate * step, {"gradients": gradients, "steps": steps}


@dataclass(frozen=True)
class Rmsprop(Rule):
    """RMSprop as published: ``s = rho s + (1 - rho) g^2; theta -= rate g / sqrt(s + epsilon)``.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    rho : share that the running mean keeps
    epsilon : added below the root

    Examples
    --------
    >>> rule, theta = sb.optimizers.rmsprop(0.1), np.zeros(2)
    >>> theta, state = rule.apply(theta, np.array([1.0, -2.0]), rule.init(theta))
    >>> theta.round(6).tolist()
    [-0.316228, 0.316228]
    """

    _below: ClassVar[dict[str, float]] = {"rho": 1.0, "epsilon": math.inf}
    learning_rate: Any = 0.001
    rho: float = 0.9
    epsilon: float = 1e-7

    def init(self, theta: np.ndarray) -> State:
        return {"square": np.zeros_like(theta)}

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        square = self.rho * state["square"] + (1 - self.rho) * gradient * gradient
        return self.learning_rate * gradient / np.sqrt(square + self.epsilon), {"square": square}


@dataclass(frozen=True)
class Clipping(Part):
    """A gradient that is clipped, as by `clip`.

    Parameters
    ----------
    mode, at : as in `clip`

    Examples
    --------
    >>> rule = sb.optimizers.chain(sb.optimizers.clipping("value", 0.5), sb.optimizers.sgd(1.0))
    >>> rule.apply(np.zeros(1), np.array([9.0]), rule.init(np.zeros(1)))[0].tolist()
    [-0.5]
    """

    mode: str = "norm"
    at: float = 1.0

    def __post_init__(self) -> None:
        arguments.choice("clip mode", self.mode, CLIP_MODES)
        object.__setattr__(self, "at", arguments.real("at", self.at, above=0))

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        return clip(gradient, self.mode, self.at), {}


@dataclass(frozen=True)
class Decay(Rule):
    """Weight decay: adds ``rate weight theta``; decoupled behind a rule, with its rate (AdamW), a penalty in front of it.

    Parameters
    ----------
    learning_rate : a number, a schedule, or the spelling of one
    weight : share of theta

    Examples
    --------
    >>> sb.optimizers.decay(0.01)
    Decay(learning_rate=1.0, weight=0.01)
    """

    learning_rate: Any = 1.0
    weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", arguments.real("weight", self.weight, above=0))

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        return gradient + theta * (self.learning_rate * self.weight), {}


@dataclass(frozen=True)
class Chain(Part):
    """Parts in a row; what one would subtract from theta is the gradient of the next, and what the last one has is subtracted.

    Parameters
    ----------
    parts : rules, clippings and decays

    Examples
    --------
    >>> len(sb.optimizers.chain(sb.optimizers.clipping("norm"), sb.optimizers.adam()).parts)
    2
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        given = self.parts if isinstance(self.parts, tuple | list) else ()
        parts = tuple(from_description(dict(part)) if isinstance(part, Mapping) else part for part in given)
        if not parts or not all(isinstance(part, Part) for part in parts):
            told = arguments.told(self.parts)
            raise ArgumentError(f"a chain has the parts {told}; give rules, such as clipping('norm'), adam()")
        for part in parts[:-1]:
            if type(part).step is Part.step:
                raise ArgumentError(f"{type(part).__name__} has no `step`; it can only be the last part of a chain")
        object.__setattr__(self, "parts", parts)

    def init(self, theta: np.ndarray) -> State:
        return self._joined([part.init(theta) for part in self.parts])

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        found = []
        for part, known in zip(self.parts, self._apart(state)):
            gradient, after = part.step(theta, gradient, known)
            found.append(after)
        return gradient, self._joined(found)

    def apply(self, theta: np.ndarray, gradient: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arguments.unmasked("gradient", gradient)
        found = []
        *first, last = zip(self.parts, self._apart(state))
        for part, known in first:
            gradient, after = part.step(theta, gradient, known)
            found.append(after)
        theta, after = last[0].apply(theta, gradient, last[1])
        return theta, self._joined([*found, after])

    def over(self, updates: int) -> Self:
        return replace(self, parts=tuple(part.over(updates) for part in self.parts))

    def _joined(self, states: list[State]) -> State:
        """One state of the states of all parts, with their numbers before the names."""
        return {f"{k}_{name}": values for k, state in enumerate(states) for name, values in state.items()}

    def _apart(self, state: State) -> list[State]:
        """The states of all parts."""
        states: list[State] = [{} for _ in self.parts]
        for name, values in state.items():
            number, _, own = name.partition("_")
            states[int(number)][own] = values
        return states


def chain(*parts: Part) -> Chain:
    """Rules in a row: ``chain(clipping("norm", 1), adam(0.001), decay(0.01, 0.001))`` clips, and decays weights as AdamW does.

    Parameters
    ----------
    parts : rules, clippings and decays

    Examples
    --------
    >>> chain(clipping("norm"), adam(0.001)).name
    'chain'
    """
    return Chain(parts)


def decay(weight: float = 0.01, learning_rate: Any = 1.0) -> Decay:
    """Weight decay, for a chain: behind a rule it takes ``learning_rate weight theta`` from theta in every update.

    Parameters
    ----------
    weight : share of theta
    learning_rate : a number, a schedule, or the spelling of one

    Examples
    --------
    >>> rule = chain(sgd(0.1), decay(0.5, 0.1))
    >>> rule.apply(np.ones(1), np.zeros(1), rule.init(np.ones(1)))[0].tolist()
    [0.95]
    """
    return Decay(learning_rate, weight)


def begin(rule: Part, theta: np.ndarray) -> State:
    """The state before the first update of theta (n_parameters,). An update with ones checks that a file can store it."""
    state = rule.init(theta)
    with np.errstate(all="ignore"):
        after = rule.apply(theta, np.ones_like(theta), state)[1]
    first, then = _types(rule, state), _types(rule, after)
    if first != then:
        who = f"the state of {type(rule).__name__}"
        raise ArgumentError(f"{who} is {first} at first and {then} after an update; it must stay alike")
    return state


def _types(rule: Part, state: Any) -> dict[str, str]:
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
adam, sgd, adagrad, adadelta, rmsprop, clipping = Adam, Sgd, Adagrad, Adadelta, Rmsprop, Clipping
RULES: dict[str, Any] = {"adam": adam, "sgd": sgd, "adagrad": adagrad, "adadelta": adadelta, "rmsprop": rmsprop}
PARTS: dict[str, Any] = {**RULES, "chain": Chain, "clipping": Clipping, "decay": Decay}


def describe(rule: Part) -> dict[str, Any]:
    """Name and fields of a rule, for a file; of a rule of the user's also its source."""
    source = _source(type(rule))
    values = {name: _described(getattr(rule, name), value) for name, value in asdict(rule).items()}
    return {"name": rule.name, **({} if source is None else {"source": source}), **values}


def _described(value: Any, plain: Any) -> Any:
    """A field of a rule in words and numbers; `plain` is what it is without names."""
    if isinstance(value, Schedule):
        return str(value)
    if isinstance(value, tuple) and any(isinstance(item, Part) for item in value):
        return [describe(item) for item in value]
    return plain


def _source(kind: type) -> str | None:
    """Where the class of a user's rule lies, as `custom.find` takes it; None for ours."""
    if kind.__module__.partition(".")[0] == "stablebptt" or "<locals>" in kind.__qualname__:
        return None
    return str(vars(kind).get("found_as") or f"{kind.__module__}:{kind.__qualname__}")


def from_description(description: dict[str, Any]) -> Part:
    """The rule with the description that `describe` returns. Its sources are imported: they must be the user's own words."""
    values = dict(description)
    name, source = values.pop("name", None), values.pop("source", None)
    if source is not None:
        return _own(str(source), values)
    arguments.choice("optimizer", name, tuple(PARTS if isinstance(name, str) and name in PARTS else RULES))
    arguments.known(name, values, inspect.signature(PARTS[name]).parameters)
    made: Part = PARTS[name](**values)
    return made


def _own(source: str, values: dict[str, Any]) -> Part:
    """A rule of the user's: a class that is given its fields, or a rule, some of whose fields are replaced."""
    from stablebptt.tasks.custom import find

    found = find(source)
    if isinstance(found, Part):
        arguments.known(source, values, [field.name for field in fields(found)])
        return replace(found, **values)
    if not (isinstance(found, type) and issubclass(found, Part)):
        kind = "a class" if isinstance(found, type) else type(found).__name__
        raise ArgumentError(f"{source} is {kind}, not a rule; it must be a subclass of sb.optimizers.Rule, or a rule")
    if _source(found) is not None:
        setattr(found, "found_as", source)  # noqa: B010  (workers of a sweep look in the same place)
    arguments.known(source, values, inspect.signature(found).parameters)
    try:
        return found(**values)
    except TypeError as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{source}: {error}; give its fields in a table: optimizer = {{source = \"{source}\", ..}}") from None
