"""What a controller sees instead of the bare state: constructors, words and descriptions of observations; docs/controllers.md.

    sb.observations.angles(2, 4)                    sine and cosine of two angles of the state
    sb.observations.join(a, b, ..)                  one after the other
    "angles=2:4,time"                               the same in words, for command lines and plans
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stablebptt.kernels import seen as kinds
from stablebptt.kernels.generics import Observation, State
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

__all__ = ["angles", "choose", "join", "noisy", "normalised", "reference", "scale", "state", "time"]

WORDS = "state, choose=0:2, angles=2:4, time, noise=0.01"
CLASSES: dict[str, type[Observation]] = {
    cls.__name__: cls
    for cls in (State, kinds.Choice, kinds.Angles, kinds.Clock, kinds.Reference, kinds.Both, kinds.Scaled, kinds.Noisy)
}
# Numbers per observation that are not known before the problem: of a state, and the time step [s].
Late = Callable[[int, float], Observation]


def state() -> Late:
    """The state itself.

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.state())
    2
    """
    return lambda n_state, dt: State()


def choose(*places: int) -> Late:
    """Some numbers of the state, by their places in the flat state, counted from 0.

    Parameters
    ----------
    places : of the flat state, counted from 0

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.choose(0))
    1
    """
    return lambda n_state, dt: kinds.Choice(_places("choose", places, n_state))


def angles(*places: int) -> Late:
    """The state with sine and cosine in place of the angles [rad] at these places of the flat state, counted from 0.

    Parameters
    ----------
    places : of the flat state, counted from 0

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.angles(0))
    3
    """

    def made(n_state: int, dt: float) -> Observation:
        turned = np.zeros(n_state, np.int64)
        turned[_places("angles", places, n_state)] = 1
        return kinds.Angles(turned)

    return made


def time(unit: float = 1.0) -> Late:
    """The time, in units of so many seconds.

    Parameters
    ----------
    unit : seconds that count as 1

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.time())
    1
    """
    unit = arguments.real("unit", unit, above=0)
    return lambda n_state, dt: kinds.Clock(dt / unit)


def reference(values: Any, ahead: int = 0) -> Late:
    """A signal, values (N, n), at this time step and at the next ones; its last value goes on.

    Parameters
    ----------
    ahead : how many values after this one are seen
    values (N, n) : of the signal, one row per time step

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.reference(np.sin(np.arange(50)), ahead=2))
    3
    """
    rows = np.asarray(values, np.float64)
    rows = arguments.array("values", rows[:, None] if rows.ndim == 1 else rows, ("N", "n"), np.float64)
    ahead = arguments.whole("ahead", ahead, 0)
    return lambda n_state, dt: kinds.Reference(rows, ahead)


def join(*parts: Any) -> Late:
    """What several observations see, one after the other.

    Parameters
    ----------
    parts : observations, or words for them

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.join(sb.observations.angles(0), sb.observations.time()))
    4
    """
    if not parts:
        raise ArgumentError("join needs observations, such as join(angles(2), time())")

    def made(n_state: int, dt: float) -> Observation:
        *others, last = (of(part, n_state, dt) for part in parts)
        for part in reversed(others):
            last = kinds.Both(part, last, type(part).size(part, n_state))
        return last

    return made


def scale(inner: Any, shift: Any, factor: Any) -> Late:
    """``(y - shift) factor`` of what `inner` sees; shift and factor are numbers, or one per number that is seen.

    Parameters
    ----------
    inner : an observation, or words for it
    shift, factor : numbers, or arrays (n_seen,)

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.scale("state", 0.0, [0.5, 0.1]))
    2
    """
    return lambda n_state, dt: _scaled(of(inner, n_state, dt), n_state, shift, factor)


def noisy(inner: Any, deviation: Any) -> Late:
    """What `inner` sees, with normal noise of this standard deviation: a number, or one per number that is seen.

    The noise of a sample and a time step follows from the seed.

    Parameters
    ----------
    inner : an observation, or words for it
    deviation : a number, or an array (n_seen,)

    Examples
    --------
    >>> def seen(observe):
    ...     return sb.problem("pendulum", observe=observe).n_seen
    >>> seen(sb.observations.noisy("state", 0.01))
    2
    """

    def made(n_state: int, dt: float) -> Observation:
        part = of(inner, n_state, dt)
        return kinds.Noisy(part, _full("deviation", deviation, type(part).size(part, n_state)))

    return made


def normalised(problem: Any, inner: Any = None, *, seed: int = 0, count: int = 256) -> Late:
    """What `inner` sees, shifted and scaled to mean 0 and deviation 1, as measured once along rollouts of a problem.

    Parameters
    ----------
    problem : with the state as observation; its initial controller of this seed rolls `count` states out
    inner : an observation, or words for it; by default the state
    seed, count : decide the controller and the states

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> sb.problem("pendulum", observe=sb.observations.normalised(problem)).n_seen
    2
    """
    with np.errstate(all="ignore"):
        states = problem.follow(problem.init(seed), problem.sample(count, seed)).states[:, :-1]
    rows = states.reshape(count, problem.steps, problem.n_state).astype(np.float64)
    seen = of(inner, problem.n_state, problem.dt)
    values = np.empty((count, problem.steps, type(seen).size(seen, problem.n_state)))
    for t in range(problem.steps):
        look(seen, t, rows[:, t], values[:, t])
    values = values[np.isfinite(values).all(axis=(1, 2))]
    if len(values) == 0:
        raise ArgumentError("every rollout of the initial controller diverges, so nothing can be measured; give shift and factor")
    deviation = values.std(axis=(0, 1))
    factor = np.where(deviation > 1e-8, 1 / np.maximum(deviation, 1e-8), 1.0)
    return scale(seen, values.mean(axis=(0, 1)), factor)


def look(observation: Observation, t: int, x: np.ndarray, seen: np.ndarray) -> None:
    """What is seen of states x (B, n_state) at time step t, in plain Python: seen (B, n_seen)."""
    from stablebptt.kernels.generics import observe

    for row, out in zip(x, seen):
        observe(observation, t, row, out)


def of(given: Any, n_state: int, dt: float) -> Observation:
    """The observation that is given as a struct, by a function of this file, in words, or by its description."""
    if given is None:
        return State()
    if isinstance(given, Observation):
        return given
    if isinstance(given, Mapping):
        return from_description(given)
    if isinstance(given, str | list | tuple):
        return _of_words(given)(n_state, dt)
    if callable(given):
        made = given(n_state, dt)
        if isinstance(made, Observation):
            return made
    raise ArgumentError(f"observe is {given!r:.60}; give an observation such as sb.observations.angles(2), or words: {WORDS}")


def describe(observation: Observation) -> dict[str, Any] | None:
    """An observation of this package as plain words and numbers, for a file; None for the state itself."""
    if type(observation) is State:
        return None
    fields = {name: getattr(observation, name) for name in type(observation).fields}
    return {"kind": type(observation).__name__} | {
        name: describe(value) or {"kind": "State"} if isinstance(value, Observation) else arguments.plain(name, value)
        for name, value in fields.items()
    }


def is_ours(observation: Observation) -> bool:
    """Whether an observation and all in it belong to this package, so that a file can describe it."""
    inside = (getattr(observation, name) for name in type(observation).fields)
    return type(observation) in CLASSES.values() and all(is_ours(part) for part in inside if isinstance(part, Observation))


def from_description(given: Mapping[str, Any]) -> Observation:
    """The observation that `describe` described."""
    cls = CLASSES.get(str(given.get("kind")))
    if cls is None or set(given) != {"kind", *cls.fields}:
        raise ArgumentError(f"observe is {dict(given)!r:.80}; it is no description of an observation")
    return cls(*(_field(name, cls, given[name]) for name in cls.fields))


def _field(name: str, cls: type[Observation], value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_description(value)
    if name in ("places", "turned"):
        return np.array([arguments.whole(name, each, 0) for each in _row(name, value)], np.int64)
    if name in ("ahead", "split"):
        return arguments.whole(name, value, 0)
    if name == "dt":
        return arguments.real(name, value)
    shape = ("N", "n") if name == "values" else ("n",)
    return arguments.array(name, _row(name, value), shape, np.float64)


def _row(name: str, value: Any) -> Any:
    if not isinstance(value, list | tuple | np.ndarray):
        raise ArgumentError(f"{name} is {arguments.told(value)}; it must be a list of numbers")
    return value


def _of_words(given: Any) -> Late:
    """The observation in words: parts with commas between them, numbers with colons; noise is on all of them."""
    words = [word.strip() for word in (given.split(",") if isinstance(given, str) else given)]
    parts: list[Any] = []
    deviation: float | None = None
    for word in words:
        name, _, text = str(word).partition("=")
        numbers = text.split(":") if text else []
        if name in ("choose", "angles") and numbers:
            places = [_number(word, number, int) for number in numbers]
            parts.append((choose if name == "choose" else angles)(*places))
        elif name in ("state", "time") and not numbers:
            parts.append(state() if name == "state" else time())
        elif name == "noise" and len(numbers) == 1:
            deviation = _number(word, numbers[0], float)
        else:
            raise ArgumentError(f"observe has {word!r}; choose from {WORDS}")
    seen = join(*parts) if parts else state()
    return seen if deviation is None else noisy(seen, deviation)


def _number(word: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(f"observe has {word!r}; {text!r} is no number") from None


def _places(name: str, given: Sequence[int], n_state: int) -> np.ndarray:
    if not given:
        raise ArgumentError(f"{name} needs places of the state, counted from 0, such as {name}(2)")
    return np.array([arguments.whole(f"a place of {name}", place, 0, n_state - 1) for place in given], np.int64)


def _scaled(inner: Observation, n_state: int, shift: Any, factor: Any) -> Observation:
    size = type(inner).size(inner, n_state)
    return kinds.Scaled(inner, _full("shift", shift, size), _full("factor", factor, size))


def _full(name: str, value: Any, size: int) -> np.ndarray:
    """One number for each that is seen."""
    given = np.asarray(value, np.float64)
    return arguments.array(name, np.full(size, given) if given.ndim == 0 else given, (size,), np.float64)
