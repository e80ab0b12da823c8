"""Runs that nobody trained: configurations and histories, for pictures and reports."""

import json

import numpy as np

import stablebptt as sb
from stablebptt.data.run_file import LOSSES
from stablebptt.tasks import optimizers
from stablebptt.tasks.runs import HISTORY, Run
from stablebptt.tasks.settings import Settings

PROBLEMS = {}


def problem(task, **options):
    name = json.dumps([task, options])
    if name not in PROBLEMS:
        PROBLEMS[name] = sb.problem(task, **options)
    return PROBLEMS[name]


def fake(task="cartpole", variant="C", seed=0, epochs=8, *, done=None, status="complete", level=1.0, options=None, **settings):
    """A run with losses that fall from `level`; `done` epochs of it."""
    made = problem(task, **(options or {}))
    if rate := settings.pop("learning_rate", None):
        settings["optimizer"] = optimizers.adam(rate)
    count = epochs if done is None else done
    random = np.random.default_rng([seed, ord(str(variant)[0])])
    loss = level * np.exp(-np.arange(count) / epochs) * random.uniform(0.8, 1.2, count)
    history = dict.fromkeys(HISTORY, loss) | {"epoch": np.arange(1, count + 1), "skipped": np.zeros(count, int)}
    history["cosine"] = np.full(count, 0.5 if variant == "C" else np.nan)
    settings = Settings(variant=variant, epochs=epochs, seed=seed, **settings)
    due = (history["epoch"] % settings.evaluate_every == 0) | (history["epoch"] == epochs)
    history |= {"evaluated": due.astype(int), **{name: np.where(due, loss, np.nan) for name in LOSSES}}
    config = json.loads(json.dumps({"task": task, "options": made.options, **settings.describe()}))
    return Run(config, history, np.zeros(1), np.zeros(1), made, {}, status)
