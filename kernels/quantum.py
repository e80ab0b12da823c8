"""A particle in a box [0, 2] with a floor that tilts: Crank-Nicolson with Nx interior points.

State (Nx, 2), flat ``re, im`` of psi_1 .. psi_Nx; control: the tilt c. ``(1 + i dt/2 H) psi' = (1 - i dt/2 H) psi`` with
``H = -d^2/dx^2 + c x``. The right-hand matrix is the conjugate of the left one A, so ``psi' = 2 A^-1 psi - psi``: one solve, with
``A = tridiagonal(-i a, 1 + i (2 a + c x_k dt / 2), -i a)`` and ``a = dt / (2 dx^2)``. Source: docs/quantum.md.
"""

import numpy as np

from stablebptt.kernels.core.dispatch import block, implements, inline, like
from stablebptt.kernels.core.simd import ONE, lanes, offset, padded, pointer
from stablebptt.kernels.core.views import Lanes, One, constant, from_lanes, get, padded_batch, put, to_lanes
from stablebptt.kernels.generics import Loss, System, cost, step, step_batch, step_sample

LENGTH = 2.0


class Quantum(System):
    """The box: Nx = `points` interior points, hopping ``a = dt / (2 dx^2)``, tilt ``dx dt / 2`` of one grid step."""

    points: int
    hopping: float
    tilt: float

    def scratch_size(self, batch: int, variants: int) -> int:
        """In lanes: states before and after, pivots, one solution, m cotangents twice; controls and their cotangents."""
        return padded(batch) * (2 * self.points * (4 + 2 * variants) + 1 + variants)

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
def number(view, k):
    """Complex number k, as (re, im)."""
    return get(view, 2 * k), get(view, 2 * k + 1)


@inline
def factorise(system, c, pivots):
    """Compute the inverse pivots of A, for `solve`."""
    a = system.hopping
    force = system.tilt * get(c, 0)
    re, im = constant(c, like(a, 0.0)), constant(c, like(a, 0.0))
    for k in range(system.points):
        re, im = pivot(a, force * like(a, k + 1), re, im)
        put(pivots, 2 * k, re)
        put(pivots, 2 * k + 1, im)


@inline
def solve(system, pivots, y):
    """Overwrite the right-hand side y with ``A^-1 y``."""
    a = system.hopping
    re, im = constant(y, like(a, 0.0)), constant(y, like(a, 0.0))
    for k in range(system.points):
        re, im = eliminate(a, number(pivots, k), number(y, k), (re, im))
        put(y, 2 * k, re)
        put(y, 2 * k + 1, im)
    for k in range(system.points - 2, -1, -1):
        re, im = substitute(a, number(pivots, k), number(y, k), (re, im))
        put(y, 2 * k, re)
        put(y, 2 * k + 1, im)


@block
def advance(system, x, c, x_next, pivots):
    """`step` on views."""
    factorise(system, c, pivots)
    for k in range(2 * system.points):
        put(x_next, k, get(x, k))
    solve(system, pivots, x_next)
    for k in range(2 * system.points):
        y = get(x_next, k)
        put(x_next, k, (y + y) - get(x, k))


@implements(step_sample, Quantum)
def _step_sample(system, x, c, x_next, scratch):
    advance(system, One(x), One(c), One(x_next), One(scratch))


@implements(step, Quantum)
def _step(system, x, c, x_next):
    step_sample(system, x, c, x_next, np.empty_like(x))


@inline
def places(system, adjoints, stride, scratch):
    """Addresses in the scratch space: x, x_next, pivots, solution, lam, lam_x, c, lam_c."""
    base, size = pointer(scratch), 2 * system.points * stride
    lam = offset(base, 4 * size)
    lam_x = offset(lam, adjoints * size)
    c = offset(lam_x, adjoints * size)
    return base, offset(base, size), offset(base, 2 * size), offset(base, 3 * size), lam, lam_x, c, offset(c, stride)


@implements(step_batch, Quantum)
def _step_batch(system, x, c, x_next, scratch):
    batch, n_state = x.shape
    stride = padded_batch(batch)
    x_lanes, next_lanes, pivots, _, _, _, c_lanes, _ = places(system, 1, stride, scratch)
    to_lanes(batch, n_state, pointer(x), n_state, x_lanes, stride)
    to_lanes(batch, 1, pointer(c), 1, c_lanes, stride)
    for b in range(0, batch, lanes(x_lanes)):
        advance(
            system,
            Lanes(offset(x_lanes, b), stride, ONE * n_state),
            Lanes(offset(c_lanes, b), stride, ONE),
            Lanes(offset(next_lanes, b), stride, ONE * n_state),
            Lanes(offset(pivots, b), stride, ONE * n_state),
        )
    from_lanes(batch, n_state, pointer(x_next), n_state, next_lanes, stride)


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
