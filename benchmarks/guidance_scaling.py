"""Cost of guidance over the number of evaders: ``python benchmarks/guidance_scaling.py``.

It prints microseconds per step of a batch of 16 (one register of float32), forward and backward with two cotangents, and
nanoseconds per pair of objects.
"""

import numpy as np
from common import seconds
from numba import njit

import stablebptt as sb
from stablebptt.adjoint.generics import step_batch_vjp
from stablebptt.kernels.core.dispatch import OPTIONS
from stablebptt.kernels.generics import scratch_size, step_batch

BATCH, COTANGENTS, DRIVERS = 16, 2, 2


@njit(**OPTIONS)
def forward(times, system, x, c, x_next, scratch):
    for _ in range(times):
        step_batch(system, x, c, x_next, scratch)


@njit(**OPTIONS)
def backward(times, system, x, x_next, c, lam, lam_x, lam_c, scratch):
    for _ in range(times):
        lam_x[:] = 0
        step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


def main():
    print(f"{'evaders':>8}{'pairs':>8}{'forward us':>12}{'backward us':>13}{'forward ns/pair':>17}{'backward ns/pair':>18}")
    for evaders in (4, 16, 64, 256):
        problem = sb.problem("guidance", drivers=DRIVERS, evaders=evaders)
        x = problem.sample(BATCH).reshape(BATCH, -1)
        c, x_next = np.zeros((BATCH, 2 * DRIVERS), np.float32), np.empty_like(x)
        lam = np.random.default_rng(0).standard_normal((BATCH, COTANGENTS, x.shape[1])).astype(np.float32)
        lam_x, lam_c = np.zeros_like(lam), np.zeros((BATCH, COTANGENTS, c.shape[1]), np.float32)
        scratch = np.zeros(scratch_size(problem.system, BATCH, COTANGENTS, x.shape[1], c.shape[1]), np.float32)
        times = max(2, 20_000 // evaders**2)
        system = problem.system
        ahead = seconds(lambda: forward(times, system, x, c, x_next, scratch), 40) / times * 1e6  # noqa: B023
        back = seconds(lambda: backward(times, system, x, x_next, c, lam, lam_x, lam_c, scratch), 40) / times * 1e6  # noqa: B023
        objects = DRIVERS + evaders
        pairs = objects * (objects - 1) // 2
        per = (1e3 * ahead / pairs, 1e3 * back / pairs)
        print(f"{evaders:8}{pairs:8}{ahead:12.2f}{back:13.2f}{per[0]:17.1f}{per[1]:18.1f}")


if __name__ == "__main__":
    main()
