"""The runs of plans on one CUDA device, all at once: ``python docs/reproduction/on_device.py --out FOLDER PLAN.toml ..``.

Runs that differ only in the seed share their launches, and the others share the device: each kind of run has a thread and a
queue of its own. Every kind leaves a folder of run files, which ``stablebptt report FOLDER/KIND --keep RESULTS`` collects.
"""

import argparse
import itertools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import stablebptt as sb
from stablebptt.tasks.problems import ENGINES
from stablebptt.tasks.seeds import train_runs
from stablebptt.tasks.settings import settings_of
from stablebptt.tasks.sweeps.plans import Planned, problem_of_run, read_plan


def kind(run: Planned) -> str:
    """What a run is, apart from its seed."""
    return json.dumps({**run.config, "seed": 0}, sort_keys=True)


def train(runs: list[Planned], out: Path, backend: str) -> str:
    """Train the runs of one kind; one line about it."""
    begin, folder = time.perf_counter(), out / runs[0].label.rpartition("-seed")[0]
    problem = sb.tasks.on_backend(problem_of_run(runs[0].config), backend)
    seeds = [run.config["seed"] for run in runs]
    ended = train_runs(problem, seeds, settings_of(runs[0].config), folder, resume=True, progress=False)
    lost = sum(isinstance(result, sb.DivergedError) for result in ended)
    return f"{folder.name}: {len(seeds)} runs, {lost} diverged, {time.perf_counter() - begin:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default="R,C,M,S", help="those of the plans to run")
    parser.add_argument("--epochs", type=int, help="in place of the plans'")
    parser.add_argument("--at-once", type=int, default=8, help="kinds of runs that share the device")
    parser.add_argument("--backend", default="cuda", choices=tuple(ENGINES))
    given = parser.parse_args()
    sys.setswitchinterval(1e-4)  # the threads wait for the device more than for each other
    runs = sorted((run for plan in given.plans for run in read_plan(plan, epochs=given.epochs)), key=kind)
    alike = [list(group) for _, group in itertools.groupby(runs, kind)]
    wanted = [group for name in given.variants.split(",") for group in alike if group[0].config["variant"] == name]
    with ThreadPoolExecutor(given.at_once) as pool:
        for line in pool.map(lambda group: train(group, given.out, given.backend), wanted):
            print(line, flush=True)


if __name__ == "__main__":
    main()
