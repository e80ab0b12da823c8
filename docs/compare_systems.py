"""Train the systems of docs/systems.md by R, M and C over five seeds, and print its tables.

    python docs/compare_systems.py [FOLDER]

Runs go to FOLDER (default: the folder `runs` beside this file), which has a folder for each system and variant; broken off runs
are resumed.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

import stablebptt as sb
from stablebptt.adjoint import step_vjp
from stablebptt.tasks import custom

DOCS = Path(__file__).resolve().parent
SEEDS = range(5)
VARIANTS = "RMC"
# Epochs of each system; the rest is the same for all.
EPOCHS = {"acrobot": 200, "ball": 200, "quadrotor": 200, "burgers": 60, "pendulum_chain": 200}
SETTINGS = {"clip": "norm", "train_count": 128, "test_count": 128}
PROBES = 256  # numbers of the initial states for what is told beforehand, at most 32 states


def problem_of(name):
    """The problem of an example."""
    if str(DOCS / "examples") not in sys.path:
        sys.path.insert(0, str(DOCS / "examples"))
    return importlib.import_module(name).make_problem()


def train(name, folder):
    """Runs of a system, by variant, in the order of `SEEDS`."""
    problem, how = problem_of(name), {"resume": True, "progress": False, "threads": 1, **SETTINGS}
    return {
        variant: sb.train_seeds(problem, SEEDS, variant, EPOCHS[name], folder / f"{name}-{variant}", **how)
        for variant in VARIANTS
    }


def growth(problem, theta, x0):
    """How far the physics alone, at fixed controls, stretches a deviation from t = 0 to T: the largest stretch, per sample (B,).

    It is the growth of M's adjoint: ``lam_0 = J^T lam_T`` with ``J = dx_T/dx_0``.
    """
    path, n = problem.rollout(theta, x0), problem.n_state
    states, controls = (np.asarray(a, float).reshape(*a.shape[:2], -1) for a in (path.states, path.controls))
    system, found = custom.cast(problem.system, np.float64), []
    for xs, cs in zip(states, controls):
        lam = np.eye(n)
        for x, c in zip(xs[-2::-1], cs[::-1]):
            lam_x = np.zeros_like(lam)
            step_vjp(system, x, c, lam, lam_x, np.zeros((n, c.size)))
            lam = lam_x
        found.append(np.linalg.norm(lam, 2))
    return np.array(found)


def regular_to_modified(problem, theta, x0):
    """Norm of the cotangent of the initial states in R, relative to M: what the path through the network adds or takes away."""
    bars = [problem.gradient(theta, x0, variant).x0 for variant in "RM"]
    return np.linalg.norm(bars[0]) / np.linalg.norm(bars[1])


def told_beforehand(name, runs):
    """Growth, ratio of R to M, and cosine of R and M: untrained, and at the end of training with C; medians over seeds."""
    problem = problem_of(name)
    rows = []
    for seed, run in zip(SEEDS, runs["C"]):
        x0, thetas = problem.sample(min(32, PROBES // problem.n_state), seed), (problem.init(seed), run.theta)
        numbers = [(np.median(growth(problem, t, x0)), regular_to_modified(problem, t, x0)) for t in thetas]
        cosine = run.history["cosine"]
        rows.append([*numbers[0], np.mean(cosine[:5]), *numbers[1], np.mean(cosine[-len(cosine) // 4 :])])
    return np.median(rows, axis=0)


def final_loss(run):
    """Mean test loss of the last tenth of the epochs; infinite for a run that diverged."""
    if isinstance(run, sb.DivergedError):
        return np.inf
    losses = run.history["test_loss"]
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def report(folder):
    """Print both tables."""
    measured, results = [], []
    for name in EPOCHS:
        runs = train(name, folder)
        losses = {variant: np.array([final_loss(run) for run in runs[variant]]) for variant in VARIANTS}
        shown = [f"{np.median(v):.3g} ({v.min():.3g} to {v.max():.3g})" for v in losses.values()]
        pairs = [f"{(losses[a] < losses[b]).sum()} of {len(SEEDS)}" for a, b in ("CR", "MR", "CM")]
        results.append(f"| {name} | {' | '.join(shown + pairs)} |")
        measured.append(f"| {name} | {' | '.join(f'{value:.2g}' for value in told_beforehand(name, runs))} |")
    header = "| system | growth | R / M | cosine | growth, trained | R / M, trained | cosine, trained |"
    print(header, "|---" * 7 + "|", *measured, "", sep="\n")
    print("| system | R | M | C | C below R | M below R | C below M |", "|---" * 7 + "|", *results, sep="\n")


if __name__ == "__main__":
    report(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DOCS / "runs")
