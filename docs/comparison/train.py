"""Train the runs that docs/joins.md compares: ``python docs/comparison/train.py --out FOLDER [SYSTEM ..]``.

Runs that are complete are skipped and interrupted ones resumed, so it can be stopped at any time; ``make_tables.py`` keeps them.
"""

import argparse
import importlib
import itertools
import sys
from pathlib import Path

import stablebptt as sb

HERE = Path(__file__).resolve().parent
# All of docs/joins.md. A gate's number leaves the shortest horizon, of 75 time steps, enough to matter.
RULES = (
    *("R", "M", "C", "minmod", "leaky:leak=0.1", "mean", "normalized", "S"),
    *("config", "config:length=minimum", "config:length=maximum", "config:length=harmonic", "config/layer"),
    *("imtlg", "pcgrad", "mgda", "projected"),
    *("R:decay=0.4", "M:decay=0.4", "C:decay=0.4", "R:truncate=20", "C:truncate=20", "R:random=50"),
)
SEEDS = range(5)
LEARNING_RATES = (0.001, 0.0003, 0.003)
# What the first five seeds suggest is looked at again with others: rules by system.
FRESH_SEEDS = range(5, 15)
LOOKED_AT_AGAIN = {"cartpole": ("R", "C", "config", "normalized")}
# The hardest case of every task of the paper, and three systems of docs/systems.md; how many epochs of each.
PUBLISHED = {"guidance": {"regularization": 0.001}, "cartpole": {"poles": 4}, "quantum": {"target": 5}}
EPOCHS = {"guidance": 200, "cartpole": 300, "quantum": 40, "ball": 200, "quadrotor": 200, "pendulum_chain": 200}
SETTINGS = {"clip": "norm", "evaluate_every": 5}
FEWER = {"train_count": 128, "test_count": 128}  # states of the three, as in docs/systems.md


def problem_of(system):
    """The problem of a system."""
    if system in PUBLISHED:
        return sb.problem(system, **PUBLISHED[system])
    if str(HERE.parent / "examples") not in sys.path:
        sys.path.insert(0, str(HERE.parent / "examples"))
    return importlib.import_module(system).make_problem()


def train(system, folder, rates, seeds=SEEDS, rules=RULES):
    """Train what is missing of a system, seed by seed, so that all rules are equally far."""
    problem, settings = problem_of(system), {**SETTINGS, **({} if system in PUBLISHED else FEWER)}
    (folder / system).mkdir(parents=True, exist_ok=True)
    for rate, seed, rule in itertools.product(rates, seeds, rules):
        path = folder / system / f"{rule.translate(str.maketrans(':=/', '---'))}-rate{rate}-seed{seed}.h5"
        how = {"resume": True, "progress": False, "threads": 1, "optimizer": sb.optimizers.adam(rate)}
        try:
            sb.train(problem, rule, EPOCHS[system], seed, path, **how, **settings)
        except sb.DivergedError as error:
            print(f"{path.name}: {error}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", default=list(EPOCHS), help=f"of {', '.join(EPOCHS)}; default: all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES)
    given = parser.parse_args()
    for system in given.systems:
        train(system, given.out, given.rates)
        train(system, given.out, LEARNING_RATES[:1], FRESH_SEEDS, LOOKED_AT_AGAIN.get(system, ()))


if __name__ == "__main__":
    main()
