"""The system of `spring.h5`; unchanged since that run was made."""

import stablebptt as sb
from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.kernels.compiler import implements
from stablebptt.kernels.generics import System, cost, step
from stablebptt.kernels.structs import Struct


class Spring(System):
    stiffness: float
    dt: float


class Square(Struct):
    scale: float


@implements(step, Spring)
def _step(s, x, c, x_next):
    x_next[1] = x[1] + s.dt * (c[0] - s.stiffness * x[0])
    x_next[0] = x[0] + s.dt * x_next[1]


@implements(step_vjp, Spring)
def _step_vjp(s, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        rate_bar = lam[v, 1] + s.dt * lam[v, 0]
        lam_x[v, 0] += lam[v, 0] - s.dt * s.stiffness * rate_bar
        lam_x[v, 1] += rate_bar
        lam_c[v, 0] += s.dt * rate_bar


@implements(cost, Square)
def _cost(loss, x):
    return loss.scale * (x[0] * x[0] + x[1] * x[1])


@implements(cost_vjp, Square)
def _cost_vjp(loss, x, bar, x_bar):
    for k in range(2):
        x_bar[k] += 2 * loss.scale * bar * x[k]


def draw(random, count):
    return random.uniform(-1, 1, (count, 2))


def make(stiffness=2.0):
    return sb.problem(
        system=Spring(stiffness, 0.1), controller=(4,), loss=Square(0.5), sample=draw, steps=4, dt=0.1, state_shape=(2,),
        control_shape=(1,), title="old spring",
    )  # fmt: skip
