"""What controllers see: ready-made observations, and ways to put them together; docs/controllers.md."""

import math
from typing import Any

import numpy as np

from stablebptt.kernels.core.dispatch import implements, like
from stablebptt.kernels.generics import Observation, observe


class Choice(Observation):
    """Some numbers of the state.

    places (n,) : which
    """

    places: np.ndarray

    def size(self, n_state: int) -> int:
        """As many as are chosen."""
        return len(self.places)


class Angles(Observation):
    """Sine and cosine in place of some numbers of the state, which are angles [rad]; the others as they are.

    turned (n_state,) : 1 for an angle, else 0
    """

    turned: np.ndarray

    def size(self, n_state: int) -> int:
        """One more per angle."""
        return n_state + int(self.turned.sum())


class Clock(Observation):
    """The time.

    dt : length of a time step, in the unit that is seen
    """

    dt: float

    def size(self, n_state: int) -> int:
        """One number."""
        return 1


class Reference(Observation):
    """A signal at this time step and at the next ones; its last value goes on.

    values (N, n) : of the signal, one row per time step
    ahead : how many values after this one are seen
    """

    values: np.ndarray
    ahead: int

    def size(self, n_state: int) -> int:
        """All numbers of all these values."""
        return int(self.values.shape[1]) * (1 + self.ahead)


class Both(Observation):
    """What one observation sees, then what another one sees.

    split : numbers that the first one sees
    """

    first: Observation
    second: Observation
    split: int

    def size(self, n_state: int) -> int:
        """Those of both."""
        return self.split + type(self.second).size(self.second, n_state)

    def noise(self, n_state: int) -> np.ndarray:
        """Those of both."""
        return np.concatenate([type(part).noise(part, n_state) for part in (self.first, self.second)])


class Scaled(Observation):
    """``(y - shift) factor`` of what an observation sees.

    shift, factor (n,) : of every number
    """

    inner: Observation
    shift: np.ndarray
    factor: np.ndarray

    def size(self, n_state: int) -> int:
        """That of the inner one."""
        return type(self.inner).size(self.inner, n_state)

    def noise(self, n_state: int) -> np.ndarray:
        """Scaled, too."""
        return np.abs(np.asarray(self.factor)) * type(self.inner).noise(self.inner, n_state)


class Noisy(Observation):
    """What an observation sees, with normal noise, which the rollout adds.

    deviation (n,) : standard deviations
    """

    inner: Observation
    deviation: np.ndarray

    def size(self, n_state: int) -> int:
        """That of the inner one."""
        return type(self.inner).size(self.inner, n_state)

    def noise(self, n_state: int) -> np.ndarray:
        """Together with noise of the inner one."""
        inner: Any = type(self.inner).noise(self.inner, n_state)
        return np.hypot(inner, self.deviation)


@implements(observe, Choice)
def _choose(observation, t, x, seen):
    for k in range(observation.places.size):
        seen[k] = x[observation.places[k]]


@implements(observe, Angles)
def _turn(observation, t, x, seen):
    place = 0
    for k in range(x.size):
        if observation.turned[k]:
            seen[place] = math.sin(x[k])
            seen[place + 1] = math.cos(x[k])
            place += 2
        else:
            seen[place] = x[k]
            place += 1


@implements(observe, Clock)
def _tell_the_time(observation, t, x, seen):
    seen[0] = like(x, t) * observation.dt


@implements(observe, Reference)
def _look_ahead(observation, t, x, seen):
    last, n = observation.values.shape[0] - 1, observation.values.shape[1]
    for ahead in range(observation.ahead + 1):
        for k in range(n):
            seen[ahead * n + k] = observation.values[min(t + ahead, last), k]


@implements(observe, Both)
def _see_both(observation, t, x, seen):
    observe(observation.first, t, x, seen[: observation.split])
    observe(observation.second, t, x, seen[observation.split :])


@implements(observe, Scaled)
def _scale(observation, t, x, seen):
    observe(observation.inner, t, x, seen)
    for k in range(observation.factor.size):
        seen[k] = (seen[k] - observation.shift[k]) * observation.factor[k]


@implements(observe, Noisy)
def _see_through_noise(observation, t, x, seen):
    observe(observation.inner, t, x, seen)
