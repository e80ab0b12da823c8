"""Random numbers that belong to a sample, a time step and a place: the same for any number of threads, and for every rollout.

A number is hashed from (key of the sample, time step, place), so nothing is stored and nothing depends on the order of draws.
"""

import math

import numpy as np

from stablebptt.kernels.core.dispatch import block, generic, implements, inline
from stablebptt.kernels.core.structs import Struct

# The constants of SplitMix64 (Steele, Lea and Flood 2014).
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


class Noise(Struct):
    """What is random during a rollout.

    active : whether anything is
    seen (n_seen,), state (n_state,) : standard deviations of normal noise on what is seen, and on the states after a step
    push (n_state,), chance : standard deviations of pushes, all numbers of a sample at once, and their chance in a time step
    """

    active: bool
    seen: np.ndarray
    state: np.ndarray
    push: np.ndarray
    chance: float


@inline
def _mixed(z):
    z = (z ^ (z >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    return z ^ (z >> _S31)


@block
def uniform(key, t, place):
    """A number above 0 and below 1, in float64."""
    z = _mixed(np.uint64(key) + _GOLDEN)
    z = _mixed((z ^ np.uint64(t)) + _GOLDEN)
    z = _mixed((z ^ np.uint64(place)) + _GOLDEN)
    return (float(z >> _S11) + 0.5) * 2.0**-53


@block
def normal(key, t, place):
    """A normally distributed number, in float64; places are even."""
    radius = math.sqrt(-2.0 * math.log(uniform(key, t, place)))
    return radius * math.cos(2.0 * math.pi * uniform(key, t, place + 1))


# Places of the numbers of one time step: noise of what is seen from 0 on, of states, of pushes, whether there is a push, fields.
_OF_STATES, _OF_PUSHES, _OF_CHANCES, OF_FIELDS = 1 << 40, 1 << 41, 1 << 42, 1 << 43


@inline
def _add(deviations, key, t, place, x):
    """Add noise to the numbers x of one sample."""
    for k in range(deviations.size):
        if deviations[k] != 0:
            x[k] += deviations[k] * x.dtype.type(normal(key, t, place + 2 * k))


@generic
def add_noise(noise, keys, t, seen):
    """Add noise to what is seen at time step t, seen (B, n_seen); keys (B,)."""


@generic
def disturb(noise, keys, t, x):
    """Disturb the states x (B, n_state) after time step t; keys (B,)."""


@implements(add_noise, Noise)
def _add_noise(noise, keys, t, seen):
    if noise.active:
        for b in range(seen.shape[0]):
            _add(noise.seen, keys[b], t, 0, seen[b])


@implements(disturb, Noise)
def _disturb(noise, keys, t, x):
    if noise.active:
        for b in range(x.shape[0]):
            _add(noise.state, keys[b], t, _OF_STATES, x[b])
            if uniform(keys[b], t, _OF_CHANCES) < noise.chance:
                _add(noise.push, keys[b], t, _OF_PUSHES, x[b])
