"""Steps of registers full of samples beside steps sample by sample: ``python benchmarks/vectors.py``.

It prints nanoseconds per sample for a step forward, and back with two cotangents: the least of many repeats, in turns in one
process, in float32. Both are compiled from the same text. The floor of a step is not stated: it depends on its formulas alone.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import step_batch_vjp, step_sample_vjp
from stablebptt.kernels import kernel, step_batch, step_sample
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import scratch_size

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "examples"))
IN_A_ROW = 100


@kernel
def forward_alone(system, x, c, x_next, scratch):
    for _ in range(IN_A_ROW):
        for b in range(x.shape[0]):
            step_sample(system, x[b], c[b], x_next[b], scratch)


@kernel
def forward_together(system, x, c, x_next, scratch):
    for _ in range(IN_A_ROW):
        step_batch(system, x, c, x_next, scratch)


@kernel
def back_alone(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    for _ in range(IN_A_ROW):
        for b in range(x.shape[0]):
            step_sample_vjp(system, x[b], x_next[b], c[b], lam[b], lam_x[b], lam_c[b], scratch)


@kernel
def back_together(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    for _ in range(IN_A_ROW):
        step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


def problems():
    """Problems by name."""
    import double_pendulum
    import quadrotor

    yield "planar quadrotor, 4 Runge-Kutta steps", quadrotor.make_problem()
    yield "double pendulum on a cart", double_pendulum.make_problem()
    yield "cart-pole, 2 poles", sb.problem("cartpole", poles=2)
    yield "guidance, 2 drivers, 4 evaders", sb.problem("guidance")


def arrays(problem, batch, m=2):
    """Arguments of a step and of its vjp."""
    random, n, q = np.random.default_rng(0), problem.n_state, problem.n_control

    def filled(*shape):
        array = aligned(shape, np.float32)
        array[:] = random.standard_normal(shape)
        return array

    x, x_next, c = filled(batch, n), filled(batch, n), filled(batch, q)
    scratch = aligned((scratch_size(problem.system, batch, m, n, q),), np.float32)
    return (x, c, x_next, scratch), (x, x_next, c, filled(batch, m, n), filled(batch, m, n), filled(batch, m, q), scratch)


def least(functions, seconds):
    """Least seconds of each function, called in turns."""
    found = [np.inf] * len(functions)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for k, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            found[k] = min(found[k], (time.perf_counter() - begin) / IN_A_ROW)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per line of the table")
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    print(f"{given.batch} samples{'':36}sample by sample [ns]  in vectors [ns]  times as fast")
    for name, problem in problems():
        forward, backward = arrays(problem, given.batch)
        for way, alone, together, values in (
            ("forward", forward_alone, forward_together, forward),
            ("back", back_alone, back_together, backward),
        ):
            calls = [lambda f=f, v=values, s=problem.system: f(s, *v) for f in (alone, together)]
            for call in calls:
                call()
            one, many = (seconds / given.batch * 1e9 for seconds in least(calls, given.seconds))
            print(f"{name:<40}{way:<10}{one:>12.1f}{many:>18.1f}{one / many:>15.1f}")


if __name__ == "__main__":
    main()
