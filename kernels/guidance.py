"""Guidance by repulsion: D drivers steer E evaders in the plane.

State (D+E, 2, 2), drivers first, flat per object ``x, y, vx, vy`` [the paper's lengths and lengths per time]; control (D, 2).
Source: docs/guidance.md; explicit Euler for positions and velocities.
"""

import math

import numpy as np

from stablebptt.kernels.core.dispatch import implements, inline, like
from stablebptt.kernels.core.vector_math import where
from stablebptt.kernels.generics import Loss, System, cost, step


class Guidance(System):
    """The herd, in the paper's units.

    drivers, evaders : numbers of objects
    dt : time step
    reach : length added to every distance
    evade, flock, spread : strengths of the forces driver on evader, evader on evader, driver on driver
    preferred : distance that evaders keep from each other
    evader_friction, driver_friction : [1 / time]
    """

    drivers: int
    evaders: int
    dt: float
    reach: float
    evade: float
    flock: float
    preferred: float
    spread: float
    evader_friction: float
    driver_friction: float


class Gathering(Loss):
    """Loss: mean squared distance of the evaders from a target, per direction; target_x, target_y are lengths."""

    drivers: int
    evaders: int
    target_x: float
    target_y: float


def guidance(drivers: int, evaders: int, dt: float, dtype: type = np.float64) -> Guidance:
    """The published herd with time step dt."""
    numbers = (dt, 0.1, 15.0, 0.2, 0.5, 0.2, 4.0, 1.0)
    return Guidance(drivers, evaders, *(dtype(value) for value in numbers))


@inline
def pull_terms(reach, near, far, rx, ry):
    """Strength q of a pair force ``q(d) r`` with ``q = (near / d + far) / d``, ``d = reach + |r|``; and ``q'(d) / |r|``.

    Two objects in one place exert no force; its derivative there is q(reach) in every direction.
    """
    zero, one = like(reach, 0.0), like(reach, 1.0)
    distance = math.sqrt(rx * rx + ry * ry)
    inverse = one / (distance + reach)
    strength = (inverse * near + far) * inverse
    together = distance == zero
    slope = (inverse * (near + near) + far) * inverse * inverse * where(together, zero, one / where(together, one, distance))
    return strength, -slope


@inline
def pull(reach, near, far, rx, ry):
    """Pair force along r."""
    strength, _ = pull_terms(reach, near, far, rx, ry)
    return strength * rx, strength * ry


@inline
def pair_law(system, i, j):
    """Coefficients (near, far) of the force of object i on object j > i along ``x_i - x_j``, and whether i feels the opposite."""
    none = like(system.dt, 0.0)
    if j < system.drivers:
        return -system.spread, none, True
    if i < system.drivers:
        return -system.evade, none, False
    return system.flock * system.preferred, -system.flock, True


@inline
def friction(system, o):
    """Friction of object o."""
    return system.driver_friction if o < system.drivers else system.evader_friction


@inline
def evader_sum(system, x):
    """Sum (not mean) of the evaders' positions."""
    sx, sy = like(system.dt, 0.0), like(system.dt, 0.0)
    for o in range(system.drivers, system.drivers + system.evaders):
        sx += x[4 * o]
        sy += x[4 * o + 1]
    return sx, sy


@implements(step, Guidance)
def _step(system, x, c, x_next):
    """One loop over pairs adds all forces to the next velocities."""
    dt = system.dt
    objects = system.drivers + system.evaders
    for o in range(objects):
        damping = like(dt, 1.0) - dt * friction(system, o)
        for k in range(4 * o, 4 * o + 2):
            x_next[k] = x[k] + dt * x[k + 2]
            x_next[k + 2] = damping * x[k + 2]
    sx, sy = evader_sum(system, x)
    for i in range(system.drivers):
        ux, uy = x[4 * i] - sx, x[4 * i + 1] - sy
        along, across = c[2 * i], c[2 * i + 1]
        x_next[4 * i + 2] += dt * (along * ux - across * uy)
        x_next[4 * i + 3] += dt * (along * uy + across * ux)
    for j in range(1, objects):
        px, py = x[4 * j], x[4 * j + 1]
        vx, vy = x_next[4 * j + 2], x_next[4 * j + 3]
        for i in range(j):
            near, far, mutual = pair_law(system, i, j)
            fx, fy = pull(system.reach, near, far, x[4 * i] - px, x[4 * i + 1] - py)
            vx += dt * fx
            vy += dt * fy
            if mutual:
                x_next[4 * i + 2] -= dt * fx
                x_next[4 * i + 3] -= dt * fy
        x_next[4 * j + 2] = vx
        x_next[4 * j + 3] = vy


@implements(cost, Gathering)
def _cost(loss, x):
    total = like(x, 0.0)
    for o in range(loss.drivers, loss.drivers + loss.evaders):
        dx, dy = x[4 * o] - loss.target_x, x[4 * o + 1] - loss.target_y
        total += dx * dx + dy * dy
    return total / x.dtype.type(2 * loss.evaders)
