"""A particle in a box [0, 2] with a floor that tilts: Crank-Nicolson with Nx interior points.

State (Nx, 2), flat ``re, im`` of psi_1 .. psi_Nx; control: the tilt c. ``(1 + i dt/2 H) psi' = (1 - i dt/2 H) psi`` with
``H = -d^2/dx^2 + c x``. The right-hand matrix is the conjugate of the left one A, so ``psi' = 2 A^-1 psi - psi``: one solve, with
``A = tridiagonal(-i a, 1 + i (2 a + c x_k dt / 2), -i a)`` and ``a = dt / (2 dx^2)``. Source: docs/quantum.md.
"""

import numpy as np

from stablebptt.kernels.core.dispatch import implements, inline, like
from stablebptt.kernels.generics import Loss, System, cost, step, step_sample

LENGTH = 2.0


class Quantum(System):
    """The box: Nx = `points` interior points, hopping ``a = dt / (2 dx^2)``, tilt ``dx dt / 2`` of one grid step."""

    points: int
    hopping: float
    tilt: float

    def sample_scratch(self) -> int:
        """Pivots and one solution of A."""
        return 4 * self.points


class Overlap(Loss):
    """Loss ``1 - |<psi, target>|^2`` with a real target (Nx,)."""

    target: np.ndarray


def quantum(points: int, dt: float, dtype: type = np.float64) -> Quantum:
    """The published box with Nx = points and time step dt."""
    dx = LENGTH / (points + 1)
    return Quantum(points, dtype(dt / (2 * dx * dx)), dtype(dx * dt / 2))


def eigenstate(points: int, number: int) -> np.ndarray:
    """Normalised eigenstate of the level box (Nx,), in float64; the ground state is number 1."""
    values = np.sin(number * np.pi * np.arange(1, points + 1) / (points + 1))
    return values / np.linalg.norm(values)


@inline
def pivot(a, detuning, re, im):
    """Inverse of the next pivot ``1 + i (2 a + detuning) + a^2 / previous pivot``, from the inverse (re, im) of the previous."""
    one = like(a, 1.0)
    den_re, den_im = a * a * re + one, a * a * im + (detuning + (a + a))
    scale = one / (den_re * den_re + den_im * den_im)
    return den_re * scale, -(den_im * scale)


@inline
def eliminate(a, inverse, right, before):
    """``(right + i a before) inverse`` of complex numbers (re, im): one row of the forward elimination."""
    r, s = right[0] - a * before[1], right[1] + a * before[0]
    return r * inverse[0] - s * inverse[1], r * inverse[1] + s * inverse[0]


@inline
def substitute(a, inverse, y, after):
    """``y + i a inverse after`` of complex numbers (re, im): one row of the back substitution."""
    re = y[0] - a * (inverse[1] * after[0] + inverse[0] * after[1])
    return re, y[1] + a * (inverse[0] * after[0] - inverse[1] * after[1])


@inline
def number(numbers, k):
    """Complex number k, as (re, im)."""
    return numbers[2 * k], numbers[2 * k + 1]


@inline
def factorise(system, c, pivots):
    """Compute the inverse pivots of A, for `solve`."""
    a = system.hopping
    force = system.tilt * c[0]
    re, im = like(a, 0.0), like(a, 0.0)
    for k in range(system.points):
        re, im = pivot(a, force * like(a, k + 1), re, im)
        pivots[2 * k] = re
        pivots[2 * k + 1] = im


@inline
def solve(system, pivots, y):
    """Overwrite the right-hand side y with ``A^-1 y``."""
    a = system.hopping
    re, im = like(a, 0.0), like(a, 0.0)
    for k in range(system.points):
        re, im = eliminate(a, number(pivots, k), number(y, k), (re, im))
        y[2 * k] = re
        y[2 * k + 1] = im
    for k in range(system.points - 2, -1, -1):
        re, im = substitute(a, number(pivots, k), number(y, k), (re, im))
        y[2 * k] = re
        y[2 * k + 1] = im


@implements(step_sample, Quantum)
def _step_sample(system, x, c, x_next, scratch):
    factorise(system, c, scratch)
    for k in range(2 * system.points):
        x_next[k] = x[k]
    solve(system, scratch, x_next)
    for k in range(2 * system.points):
        x_next[k] = (x_next[k] + x_next[k]) - x[k]


@implements(step, Quantum)
def _step(system, x, c, x_next):
    step_sample(system, x, c, x_next, np.empty_like(x))


@inline
def overlap(loss, x):
    """``<target, psi>``, real and imaginary part."""
    re, im = like(x, 0.0), like(x, 0.0)
    for k in range(loss.target.size):
        re += loss.target[k] * x[2 * k]
        im += loss.target[k] * x[2 * k + 1]
    return re, im


@implements(cost, Overlap)
def _cost(loss, x):
    re, im = overlap(loss, x)
    return like(x, 1.0) - re * re - im * im
