"""Adjoint of the observations; mirror image of `stablebptt.kernels.seen`."""

import math

from stablebptt.adjoint.generics import observe_vjp
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.seen import Angles, Both, Choice, Clock, Noisy, Reference, Scaled


@implements(observe_vjp, Choice)
def _choose_vjp(observation, t, x, seen_bar, x_bar):
    for k in range(observation.places.size):
        x_bar[observation.places[k]] += seen_bar[k]


@implements(observe_vjp, Angles)
def _turn_vjp(observation, t, x, seen_bar, x_bar):
    place = 0
    for k in range(x.size):
        if observation.turned[k]:
            x_bar[k] += math.cos(x[k]) * seen_bar[place] - math.sin(x[k]) * seen_bar[place + 1]
            place += 2
        else:
            x_bar[k] += seen_bar[place]
            place += 1


@implements(observe_vjp, Clock)
def _tell_the_time_vjp(observation, t, x, seen_bar, x_bar):
    pass  # it does not depend on the state


@implements(observe_vjp, Reference)
def _look_ahead_vjp(observation, t, x, seen_bar, x_bar):
    pass  # it does not depend on the state


@implements(observe_vjp, Both)
def _see_both_vjp(observation, t, x, seen_bar, x_bar):
    observe_vjp(observation.first, t, x, seen_bar[: observation.split], x_bar)
    observe_vjp(observation.second, t, x, seen_bar[observation.split :], x_bar)


@implements(observe_vjp, Scaled)
def _scale_vjp(observation, t, x, seen_bar, x_bar):
    for k in range(observation.factor.size):
        seen_bar[k] *= observation.factor[k]
    observe_vjp(observation.inner, t, x, seen_bar, x_bar)


@implements(observe_vjp, Noisy)
def _see_through_noise_vjp(observation, t, x, seen_bar, x_bar):
    observe_vjp(observation.inner, t, x, seen_bar, x_bar)
