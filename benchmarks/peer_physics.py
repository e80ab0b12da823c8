"""The published systems in arrays of JAX or PyTorch, written anew: what the peers of `peers.py` compute with.

`xp` is ``jax.numpy`` or ``torch``. States are (B, *state_shape), controls (B, *control_shape), costs (B,); equations as in
docs/cartpole.md, guidance.md and quantum.md. Where two objects of the guidance meet, derivatives are not defined here.
"""

from typing import Any, NamedTuple


class CartPole(NamedTuple):
    """Cart-pole with time step dt [s]."""

    dt: float

    def step(self, xp: Any, x: Any, c: Any) -> Any:
        gravity, m, mass, length = 9.8, 0.1, 1.1, 0.5
        angle, rate = x[:, 1:, 0], x[:, 1:, 1]
        sin, cos = xp.sin(angle), xp.cos(angle)
        lift = sin * rate * rate
        push = (c + m * length * lift) / mass
        acceleration = (gravity * sin - cos * push) / (length * (4 / 3 - m / mass * cos * cos))
        pull = (lift - acceleration * cos).sum(1)
        velocity = x[:, 0, 1] + self.dt * (c[:, 0] + m * length * pull) / mass
        cart = xp.stack((x[:, 0, 0] + self.dt * velocity, velocity), -1)
        rate = rate + self.dt * acceleration
        poles = xp.stack((angle + self.dt * rate, rate), -1)
        return xp.concatenate((cart[:, None], poles), 1)

    def cost(self, xp: Any, x: Any) -> Any:
        return 1 - xp.cos(x[:, 1:, 0]).mean(1)


def pair_forces(xp: Any, a: Any, b: Any, law: Any) -> Any:
    """Forces (B, A, 2) ``sum_j law(d) (b_j - a_i)`` at the distances ``d = 0.1 + |b_j - a_i|``."""
    r = b[:, None] - a[:, :, None]
    square = (r * r).sum(-1)
    if a is b:
        square = square + xp.eye(a.shape[1])  # no object pulls at itself; its distance only has to have a derivative
    return (law(0.1 + xp.sqrt(square))[..., None] * r).sum(2)


class Guidance(NamedTuple):
    """A number of drivers, then evaders, with time step dt; the target is the origin."""

    dt: float
    drivers: int

    def step(self, xp: Any, x: Any, c: Any) -> Any:
        place, velocity, dt = x[:, :, 0], x[:, :, 1], self.dt
        drivers, evaders = place[:, : self.drivers], place[:, self.drivers :]
        u = drivers - evaders.sum(1)[:, None]
        across = xp.stack((-u[..., 1], u[..., 0]), -1)
        steered = c[..., :1] * u + c[..., 1:] * across
        spread = pair_forces(xp, drivers, drivers, lambda d: -0.2 / (d * d))
        evade = pair_forces(xp, evaders, drivers, lambda d: -15 / (d * d))
        flock = pair_forces(xp, evaders, evaders, lambda d: 0.2 * (0.5 / d - 1) / d)
        driver_velocity = (1 - dt) * velocity[:, : self.drivers] + dt * (steered + spread)
        evader_velocity = (1 - 4 * dt) * velocity[:, self.drivers :] + dt * (evade + flock)
        return xp.stack((place + dt * velocity, xp.concatenate((driver_velocity, evader_velocity), 1)), 2)

    def cost(self, xp: Any, x: Any) -> Any:
        evaders = x[:, self.drivers :, 0]
        return (evaders * evaders).mean((1, 2))


class Quantum(NamedTuple):
    """A particle in a tilted box: hopping ``dt / (2 dx^2)``, tilts ``x_k dt / 2`` (Nx,), and the target (Nx,).

    One step is ``psi' = 2 A^-1 psi - psi`` with ``A = tridiagonal(-i hopping, 1 + i (2 hopping + c tilts), -i hopping)``.
    `solve` is the function (hopping, detuning (B, Nx), psi (B, Nx, 2)) -> A^-1 psi.
    """

    hopping: float
    tilts: Any
    target: Any
    solve: Any

    def step(self, xp: Any, x: Any, c: Any) -> Any:
        return 2 * self.solve(self.hopping, 2 * self.hopping + c * self.tilts, x) - x

    def cost(self, xp: Any, x: Any) -> Any:
        overlap = (x * self.target[:, None]).sum(1)
        return 1 - (overlap * overlap).sum(1)


def cyclic_reduction(xp: Any, hopping: float, detuning: Any, re: Any, im: Any) -> Any:
    """Solution of ``tridiagonal(-i hopping, 1 + i detuning, -i hopping) y = (re, im)``, by parallel cyclic reduction.

    All arrays are (.., Nx). In each round every row is freed of its two neighbours; these are then twice as far away. The
    matrix stays symmetric, so `e` is the element that couples row k to row ``k + distance`` and that row to row k.
    """
    n, distance = detuning.shape[-1], 1
    zeros = xp.zeros_like(detuning)
    below, above = shifted(xp, distance)
    b_re, b_im = zeros + 1, detuning
    e_re, e_im = zeros, above(below(zeros - hopping))
    while distance < n:
        below, above = shifted(xp, distance)
        w_re, w_im = inverse(b_re, b_im)
        up_re, up_im = product(e_re, e_im, above(w_re), above(w_im))  # e / b of the row above
        down_re, down_im = product(below(e_re), below(e_im), below(w_re), below(w_im))
        s_re, s_im = product(up_re, up_im, e_re, e_im)
        t_re, t_im = product(down_re, down_im, below(e_re), below(e_im))
        p_re, p_im = product(up_re, up_im, above(re), above(im))
        q_re, q_im = product(down_re, down_im, below(re), below(im))
        f_re, f_im = product(up_re, up_im, above(e_re), above(e_im))
        re, im = re - p_re - q_re, im - p_im - q_im
        b_re, b_im = b_re - s_re - t_re, b_im - s_im - t_im
        e_re, e_im, distance = -f_re, -f_im, 2 * distance
    return product(re, im, *inverse(b_re, b_im))


def product(a_re: Any, a_im: Any, b_re: Any, b_im: Any) -> Any:
    """Product of complex numbers (re, im)."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


def inverse(re: Any, im: Any) -> Any:
    """Inverse of complex numbers (re, im)."""
    scale = 1 / (re * re + im * im)
    return re * scale, -im * scale


def shifted(xp: Any, distance: int) -> Any:
    """Functions array (.., Nx) -> values of rows ``k - distance`` and ``k + distance``, 0 outside."""

    def below(x: Any) -> Any:
        return xp.concatenate((xp.zeros_like(x[..., :distance]), x[..., :-distance]), -1)

    def above(x: Any) -> Any:
        return xp.concatenate((x[..., distance:], xp.zeros_like(x[..., :distance])), -1)

    return below, above
