"""Merge cart-pole runs that version 0.1 made into results: ``python docs/reproduction/merge_version_0_1.py FILE.h5 FOLDER``.

The file has a value per run in the columns poles, variant, seed, status, .., and every fifth epoch of the histories (run, epoch).
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

from stablebptt.data.results import CURVES, Result
from stablebptt.tasks import keeping
from stablebptt.tasks.sweeps import make_plan

SAME = {"task": "cartpole", "clip": "norm", "steps": 100, "duration": 1.0, "epochs_planned": 1000}


def results_in(path: str) -> list[Result]:
    """The runs in the file, under the configurations that the same plan has today."""
    with h5py.File(path) as file:
        columns = {name: dataset.asstr()[:] if dataset.dtype.kind == "O" else dataset[:] for name, dataset in file.items()}
        version = str(file.attrs["stablebptt_version"])
    for name, value in SAME.items():
        assert (columns[name] == value).all(), name
    return [_result(columns, number, version) for number in range(len(columns["seed"]))]


def _result(columns: dict[str, np.ndarray], number: int, version: str) -> Result:
    run = {name: column[number] for name, column in columns.items() if name in CURVES}
    run |= {name: column.tolist()[number] for name, column in columns.items() if column.shape == columns["seed"].shape}
    train = {"variant": run["variant"], "clip": run["clip"], "epochs": run["epochs_planned"], "seed": run["seed"]}
    (planned,) = make_plan({"task": run["task"], "options": {"poles": run["poles"]}, "train": train})
    words = {"status": run["status"], "version": version, "versions": json.dumps({"stablebptt": version}), "git_commit": ""}
    numbers = {
        "epochs": run["epochs_planned"],
        "last_test_loss": run["last_test_loss"],
        "best_test_loss": run["best_test_loss"],
        "best_epoch": -1,  # the file does not say it
        "solved_below": 0.05,
        "first_epoch_solved": run["first_epoch_below_0.05"],
        "seconds": run["seconds"],
    }
    history = {"epoch": columns["epoch"].astype(np.int32), **{name: run[name] for name in CURVES}}
    return Result(json.loads(json.dumps(planned.config)), words, numbers, history)


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(exist_ok=True)
    print(dict(keeping.merge_into(Path(sys.argv[2]) / "cartpole.h5", results_in(sys.argv[1]))))
