"""A chain of n links that stands on a cart; the cart has to keep it upright.

State (1+n, 2): cart (x [m], rate [m/s]), then every link from below, each (angle [rad], rate [rad/s]); absolute angles, 0 is
upright. Control: a force on the cart [N]. Equal point masses sit at the ends of equal links. Every step solves with the mass
matrix, by an LDL^T factorisation in its scratch memory; the integrator is semi-implicit Euler. docs/pendulum_chain.md has more.

With m_i the mass that link i carries (all masses from its end on), the matrix and the right-hand side are

    M_00 = cart + m_1,    M_0i = m_i l cos q_i,    M_ij = m_max(i,j) l^2 cos(q_i - q_j)
    f_0 = F + sum_i m_i l sin(q_i) w_i^2,          f_i = m_i l g sin q_i - sum_j m_max(i,j) l^2 sin(q_i - q_j) w_j^2
"""

import math

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, final_cost_vjp, step_sample_vjp, step_vjp
from stablebptt.kernels import Loss, System, cost, final_cost, implements, inline, like, step, step_sample

LIMIT = 20.0  # of the force [N]


class Chain(System):
    """Number of links, time step [s], mass of the cart [kg], mass [kg] and length [m] of a link, gravity [m/s^2]."""

    links: int = 3
    dt: float = 0.02
    cart: float = 1.0
    mass: float = 0.1
    length: float = 1.0
    gravity: float = 9.8

    control_shape = (1,)

    def sample_scratch(self):
        """The factors of the mass matrix, and two right-hand sides."""
        return (self.links + 1) * (self.links + 3)


class Upright(Loss):
    """Weights of the cart's squared place, of all squared rates, and of the squared force, beside those of the angles."""

    place: float = 0.1
    rates: float = 0.01
    effort: float = 0.0001


@inline
def carried(s, i):
    """Mass that link i = 1 .. n carries."""
    return s.mass * like(s.mass, s.links - i + 1)


@inline
def entry(s, x, i, j):
    """Number i, j of the mass matrix, i >= j."""
    if i == 0:
        return like(x, 1.0) * (s.cart + carried(s, 1))
    if j == 0:
        return carried(s, i) * s.length * math.cos(x[2 * i])
    return carried(s, i) * s.length * s.length * math.cos(x[2 * i] - x[2 * j])


@inline
def factorise(s, x, m):
    """Write the factors of the mass matrix to m, row by row: D in the diagonal, L below it."""
    n = s.links + 1
    for j in range(n):
        for i in range(j, n):
            value = entry(s, x, i, j)
            for k in range(j):
                value -= m[i * n + k] * m[j * n + k] * m[k * n + k]
            m[i * n + j] = value
        for i in range(j + 1, n):
            m[i * n + j] /= m[j * n + j]


@inline
def solve(n, m, f):
    """Replace f by the solution of ``M y = f``; m from `factorise`."""
    for i in range(n):
        for k in range(i):
            f[i] -= m[i * n + k] * f[k]
    for i in range(n - 1, -1, -1):
        f[i] /= m[i * n + i]
        for k in range(i + 1, n):
            f[i] -= m[k * n + i] * f[k]


@inline
def accelerations(s, x, force, scratch):
    """Write the factors of the mass matrix, then the accelerations to scratch; returns views of both."""
    n = s.links + 1
    m, f = scratch[: n * n], scratch[n * n : n * n + n]
    factorise(s, x, m)
    f[0] = force
    for i in range(1, n):
        k = carried(s, i) * s.length
        f[0] += k * math.sin(x[2 * i]) * x[2 * i + 1] * x[2 * i + 1]
        f[i] = k * s.gravity * math.sin(x[2 * i])
    for j in range(2, n):
        for i in range(1, j):
            turn = carried(s, j) * s.length * s.length * math.sin(x[2 * i] - x[2 * j])
            f[i] -= turn * x[2 * j + 1] * x[2 * j + 1]
            f[j] += turn * x[2 * i + 1] * x[2 * i + 1]
    solve(n, m, f)
    return m, f


@implements(step_sample, Chain)
def _step_sample(s, x, c, x_next, scratch):
    _, acceleration = accelerations(s, x, c[0], scratch)
    for i in range(s.links + 1):
        rate = x[2 * i + 1] + s.dt * acceleration[i]
        x_next[2 * i + 1] = rate
        x_next[2 * i] = x[2 * i] + s.dt * rate


@implements(step_sample_vjp, Chain)
def _step_sample_vjp(s, x, x_next, c, lam, lam_x, lam_c, scratch):
    n = s.links + 1
    m, y = accelerations(s, x, c[0], scratch)
    f = scratch[n * n + n : n * n + n + n]
    for v in range(lam.shape[0]):
        # rate' = rate + dt y; place' = place + dt rate'
        for i in range(n):
            bar = lam[v, 2 * i + 1] + s.dt * lam[v, 2 * i]
            lam_x[v, 2 * i] += lam[v, 2 * i]
            lam_x[v, 2 * i + 1] += bar
            f[i] = s.dt * bar
        # y = M^-1 f: f_bar = M^-1 y_bar, M_bar = -f_bar y^T
        solve(n, m, f)
        lam_c[v, 0] += f[0]
        links_vjp(s, x, y, f, lam_x[v])


@inline
def links_vjp(s, x, y, f, bar):
    """Add to the cotangent of a state what comes through M and the right-hand side, with accelerations y and f_bar."""
    for i in range(1, s.links + 1):
        k, q, w = carried(s, i) * s.length, x[2 * i], x[2 * i + 1]
        sin, cos = k * math.sin(q), k * math.cos(q)
        bar[2 * i] += sin * (f[0] * y[i] + f[i] * y[0]) + cos * (f[0] * w * w + f[i] * s.gravity)
        bar[2 * i + 1] += like(x, 2.0) * sin * w * f[0]
    for j in range(2, s.links + 1):
        for i in range(1, j):
            k, q, wi, wj = carried(s, j) * s.length * s.length, x[2 * i] - x[2 * j], x[2 * i + 1], x[2 * j + 1]
            sin, cos = k * math.sin(q), k * math.cos(q)
            difference = sin * (f[i] * y[j] + f[j] * y[i]) + cos * (f[j] * wi * wi - f[i] * wj * wj)
            bar[2 * i] += difference
            bar[2 * j] -= difference
            bar[2 * i + 1] += like(x, 2.0) * sin * wi * f[j]
            bar[2 * j + 1] -= like(x, 2.0) * sin * wj * f[i]


@implements(step, Chain)
def _step(s, x, c, x_next):
    step_sample(s, x, c, x_next, np.empty((s.links + 1) * (s.links + 3), x.dtype))


@implements(step_vjp, Chain)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    step_sample_vjp(s, x, x, c, lam, lam_x, lam_c, np.empty((s.links + 1) * (s.links + 3), x.dtype))


@inline
def off_upright(loss, x):
    """Cost of a state."""
    value = loss.place * x[0] * x[0] + loss.rates * x[1] * x[1]
    for i in range(1, x.size // 2):
        value += like(x, 1.0) - math.cos(x[2 * i]) + loss.rates * x[2 * i + 1] * x[2 * i + 1]
    return value


@inline
def off_upright_vjp(loss, x, bar, x_bar):
    """Add the cotangent of a state."""
    two = like(x, 2.0)
    x_bar[0] += bar * two * loss.place * x[0]
    x_bar[1] += bar * two * loss.rates * x[1]
    for i in range(1, x.size // 2):
        x_bar[2 * i] += bar * math.sin(x[2 * i])
        x_bar[2 * i + 1] += bar * two * loss.rates * x[2 * i + 1]


@implements(cost, Upright)
def _cost(loss, t, x, c):
    return off_upright(loss, x) + loss.effort * c[0] * c[0]


@implements(cost_vjp, Upright)
def _cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    off_upright_vjp(loss, x, cost_bar, x_bar)
    c_bar[0] += cost_bar * like(x, 2.0) * loss.effort * c[0]


@implements(final_cost, Upright)
def _final_cost(loss, x):
    return off_upright(loss, x)


@implements(final_cost_vjp, Upright)
def _final_cost_vjp(loss, x, cost_bar, x_bar):
    off_upright_vjp(loss, x, cost_bar, x_bar)


def make_problem(links=3, steps=50, hidden=(32, 32), limit=LIMIT):
    """Keep the chain upright for a second; a controller that does nothing lets it fall."""

    def leaning(random, count):
        return random.uniform(-0.05, 0.05, (count, links + 1, 2))

    return sb.problem(
        system=Chain(links),
        controller=hidden,
        loss=Upright(),
        sample=leaning,
        steps=steps,
        dt=Chain.dt,
        state_shape=(links + 1, 2),
        time_weights=[1 / steps] * (steps + 1),
        bound=limit,
        title=f"chain of {links} links on a cart",
        state_axes=[["cart", *(f"link {i + 1}" for i in range(links))], ["place", "rate"]],
        control_axes=["force"],
        control_units="N",
    )
