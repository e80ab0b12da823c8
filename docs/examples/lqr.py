"""A linear-quadratic regulator: its known optimum shows which gradient variants reach it.

``x' = A x + B c``. The controller is linear, ``c = -K x``. The cost is the mean of ``x^T Q x`` over time plus rho times the mean
of ``c^2``. Over a long horizon the best K solves the discrete algebraic Riccati equation.
"""

import numpy as np
from scipy.linalg import solve_discrete_are

import stablebptt as sb
from stablebptt.adjoint import control_vjp, cost_vjp, step_vjp
from stablebptt.kernels import Controller, Loss, System, control, cost, implements, like, step

DT = 0.1
A = np.array([[1.0, DT], [0.0, 1.0]])  # a mass on a rail, pushed
B = np.array([[DT * DT / 2], [DT]])
Q = np.diag([1.0, 0.1])
RHO, STEPS = 0.1, 120


class Linear(System):
    """``x' = A x + B c``."""

    a: np.ndarray
    b: np.ndarray


class Quadratic(Loss):
    """Loss ``x^T Q x`` with a symmetric Q."""

    q: np.ndarray


class Gain(Controller):
    """``c = -K x``; theta is K, row by row."""

    n_state: int
    n_control: int

    def layout(self):
        return {"gain/kernel": (self.n_control, self.n_state)}


@implements(step, Linear)
def _step(system, x, c, x_next):
    for i in range(x.shape[0]):
        total = like(x, 0.0)
        for j in range(x.shape[0]):
            total += system.a[i, j] * x[j]
        for q in range(c.shape[0]):
            total += system.b[i, q] * c[q]
        x_next[i] = total


@implements(step_vjp, Linear)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for i in range(x.shape[0]):
            for j in range(x.shape[0]):
                lam_x[v, j] += system.a[i, j] * lam[v, i]
            for q in range(c.shape[0]):
                lam_c[v, q] += system.b[i, q] * lam[v, i]


@implements(cost, Quadratic)
def _cost(loss, x):
    total = like(x, 0.0)
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            total += x[i] * loss.q[i, j] * x[j]
    return total


@implements(cost_vjp, Quadratic)
def _cost_vjp(loss, x, cost_bar, x_bar):
    for i in range(x.shape[0]):
        for j in range(x.shape[0]):
            x_bar[i] += like(x, 2.0) * cost_bar * loss.q[i, j] * x[j]


@implements(control, Gain)
def _control(controller, theta, x, c):
    for q in range(c.shape[0]):
        total = like(x, 0.0)
        for j in range(x.shape[0]):
            total -= theta[q * x.shape[0] + j] * x[j]
        c[q] = total


@implements(control_vjp, Gain)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    for q in range(c_bar.shape[0]):
        for j in range(x.shape[0]):
            theta_bar[q * x.shape[0] + j] -= c_bar[q] * x[j]
            x_bar[j] -= c_bar[q] * theta[q * x.shape[0] + j]


def make_problem(steps=STEPS, dtype="float64"):
    """Bring the mass to rest at 0."""
    return sb.problem(
        system=Linear(A, B), controller=Gain(2, 1), loss=Quadratic(Q), state_shape=(2,), control_shape=(1,), steps=steps, dt=DT,
        sample=lambda random, count: random.uniform(-1, 1, (count, 2)), when="continuous", regularization=RHO, dtype=dtype,
        output_init="zero", title="linear-quadratic regulator",
    )  # fmt: skip


def optimum():
    """The best gain (1, 2), and the matrix P of its cost ``x0^T P x0`` (the sum over all time, x0 included)."""
    weight = RHO * np.eye(1)
    p = solve_discrete_are(A, B, Q, weight)
    return np.linalg.solve(weight + B.T @ p @ B, B.T @ p @ A), p


def descend(problem, x0, variant, updates, rate=0.01):
    """Losses along RMSprop from zero gain."""
    theta, rule = problem.init(), sb.optimizers.rmsprop(rate)
    state, losses = rule.init(theta), []
    for _ in range(updates):
        gradient = problem.gradient(theta, x0, variant)
        losses.append(gradient.loss.total)
        theta, state = rule.apply(theta, gradient.value, state)
    return np.array(losses)


def above_optimum(variant, updates, count=64):
    """Losses along `descend`, as distances from that of the best gain, relative to it."""
    problem, (gain, _) = make_problem(), optimum()
    x0 = problem.sample(count)
    return descend(problem, x0, variant, updates) / problem.loss(gain.ravel(), x0).total - 1
