"""The page on the reproduction: its tables are those of its results, and the statistics are what it says."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from stablebptt.data.results import CURVES, Result
from stablebptt.tasks import keeping

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reproduction"


@pytest.fixture(scope="module")
def made():
    """The module that makes the page."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("make_page")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def results(made):
    return made.judgement.read(made.RESULTS)


def test_the_tables_are_those_of_the_results(made, results):
    page = made.PAGE.read_text("utf-8")
    assert {found[1] for found in made.PART.findall(page)} == set(made.PARTS)
    assert made.filled(page, results) == page, "run python docs/reproduction/make_page.py"


def test_the_results_are_small_and_complete(results):
    assert all(path.stat().st_size < 3e6 for path in (FOLDER / "results").iterdir())
    assert not results.others and len(results.of("cartpole", 4, "C")) == 35
    for result in results.all():
        assert len(result.history["epoch"]) <= 200
        if result.status != "complete":
            continue
        assert result.history["epoch"][-1] == result.numbers["epochs"] == 1000
        assert result.history["test_loss"][-1] == np.float32(result.numbers["last_test_loss"])
        assert result.numbers["best_test_loss"] <= np.nanmin(result.history["test_loss"]) * (1 + 1e-6)
        first = result.numbers["first_epoch_solved"]
        solved = result.history["test_loss"] < result.numbers["solved_below"]
        assert (result.numbers["best_test_loss"] < result.numbers["solved_below"]) == (first > 0)
        assert not solved[result.history["epoch"] < first].any() if first > 0 else not solved.any()


def test_a_table_against_the_file(made, results):
    """One row of the page, from the file alone."""
    losses = {}
    for result in keeping.load(FOLDER / "results" / "cartpole.h5"):
        if result.config["options"]["poles"] == 3 and result.config["clip"] == "norm":
            losses.setdefault(result.config["variant"], []).append(result.numbers["last_test_loss"])
    ratio = np.exp(np.mean(np.log(np.divide(losses["C"], losses["R"]))))
    below = np.sum(np.less(losses["C"], losses["R"]))
    page = made.PAGE.read_text("utf-8")
    assert re.search(rf"3 poles: {ratio:.2g} \([^)]*\), {below} of 10", page)


def fake(made, variant, seed, loss, *, level=2, status="complete", clip="norm"):
    config = {"task": "cartpole", "options": {"poles": level}, "variant": variant, "seed": seed, "epochs": 1000, "clip": clip}
    numbers = {"epochs": 1000, "last_test_loss": loss, "first_epoch_solved": 5 if loss < 0.05 else -1}
    return Result(config, {"status": status}, numbers, dict.fromkeys(("epoch", *CURVES), np.ones(1)))


def given(made, *runs):
    found = {}
    for run in runs:
        place = "cartpole", run.config["options"]["poles"], run.config["variant"], run.config["clip"]
        found.setdefault(place, {})[run.config["seed"]] = run
    return made.judgement.Results(found, 0)


def test_pairs(made):
    """Seeds that both have, diverged runs as infinite, losses not below the floor."""
    losses = {"C": [0.1, 0.02, 0.0, 0.5], "R": [0.2, 0.01, 1e-3]}
    runs = [fake(made, variant, seed, loss) for variant, values in losses.items() for seed, loss in enumerate(values)]
    found = given(made, *runs, fake(made, "M", 0, 9.0, status="diverged: x"), fake(made, "M", 1, 9.0, status="running"))
    ratios = made.judgement.log_ratios(found, "cartpole", 2, "CR")
    assert ratios == pytest.approx({0: np.log(0.5), 1: np.log(2), 2: np.log(1e-3)})
    assert made.judgement.log_ratios(found, "cartpole", 2, "MR") == {0: np.inf}
    epochs = made.judgement.log_ratios(found, "cartpole", 2, "CR", made.judgement.epochs_until_solved)
    assert epochs == pytest.approx({0: 0, 1: 0, 2: 0}) and made.judgement.epochs_until_solved(runs[0]) == 1000


def test_clipping(made):
    """Ratios to clipping by norm over two levels, and to R; a diverged run; what is not there, and other seeds."""
    losses = {("R", "norm"): [0.1, 0.2], ("R", "none"): [0.4, 0.2], ("C", "norm"): [0.1, 0.05], ("C", "none"): [0.02, 0.1]}
    runs = [
        fake(made, variant, 0, loss, level=2 + k, clip=clip)
        for (variant, clip), values in losses.items()
        for k, loss in enumerate(values)
    ]
    more = fake(made, "M", 0, 9.0, status="diverged: x", clip="none"), fake(made, "M", 1, 0.5, clip="value")
    table = made.clipping(given(made, *runs, *more))
    assert "| Cart-pole | norm | - | - | - | - | -, 1, 0.25, - |" in table
    assert "|  | value | - | - | - | - | -, -, -, - |" in table
    assert "|  | none | 2, 0 of 2 | - | 0.63, 1 of 2 | - | -, 0.05, 0.5, - |" in table
    assert "| Cart-pole, 2 poles | R | 0.1 | - | 0.4 | 1, -, 1 |\n|  | M | - | - | diverged after epoch 1000 | -, -, 1 |" in table
    assert "| C | 0.1 | - | 0.02, solved in 5 | 1, -, 1 |" in table and "1 pole" not in table
    assert made.clipping(given(made, runs[0])) == "No run yet."
    assert "| Cart-pole, 2 poles | C | - | 0.5 | - |" in made.clipping(given(made, fake(made, "C", 0, 0.5, clip="value")))


@pytest.mark.parametrize("values, verdict", [
    ([-1.0, -1.2, -0.8, -1.1, -0.9, -1.0], "agrees"),
    ([1.0, 1.2, 0.8, 1.1, 0.9, 1.0], "does not"),
    ([1.0, -1.2, 0.8, -1.1, 0.9, -1.0], "undecided"),
    ([-1.0, -1.2, -0.8, -1.1, -0.9], "undecided"),
])  # fmt: skip
def test_verdicts(made, values, verdict):
    assert made.judgement.mean_of(values).verdict == verdict


def test_chances(made, random):
    """All choices of signs, as counted by hand; many values as a normal distribution has it."""
    assert made.judgement.mean_of([1.0] * 5).chance == 2 / 32 and made.judgement.mean_of([-1.0] * 6).chance == 2 / 64
    assert made.judgement.mean_of([3.0, -1.0]).chance == 1.0 and made.judgement.mean_of([0.0, 1.0]).chance == 1.0
    assert made.judgement.mean_of([2.0, 1.0, -1.0]).chance == 6 / 8
    values = random.normal(size=400)
    values += 1.96 * values.std() / 20 - values.mean()
    assert made.judgement.mean_of(values).chance == pytest.approx(0.05, abs=0.015)


def test_intervals(made, random):
    """They agree with those of a normal distribution where there are many values, and come out the same twice."""
    values = random.normal(0.3, 2.0, 400)
    found = made.judgement.mean_of(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx([found.mean - half, found.mean + half], abs=0.02)
    assert found == made.judgement.mean_of(values)
    assert found.needed == pytest.approx((2.8 * values.std(ddof=1) / values.mean()) ** 2, abs=1)
    assert made.judgement.mean_of([0.0, 0.0]).needed == np.inf


def test_trends(made):
    runs = [fake(made, v, seed, 0.1 * seed + 0.1 * (0.5**level if v == "C" else 1), level=level)
            for seed in (0,) for level in (1, 2, 3, 4) for v in "CR"]  # fmt: skip
    runs += [fake(made, v, 7, 0.3, level=level) for level in (1, 2, 3) for v in "CR"]
    assert made.judgement.trend(given(made, *runs), "cartpole", "CR").values == pytest.approx([np.log(0.5)])


def test_other_settings_are_not_judged(made, results):
    config = results.of("cartpole", 2, "C")[0].config
    assert made.judgement._published(config)
    for change in ({"epochs": 300}, {"batch_size": 4}, {"variant": "N"}, {"options": {**config["options"], "hidden": [50]}}):
        assert not made.judgement._published({**config, **change})
    for same in ({"seed": 77}, {"clip": "value"}, {"evaluate_every": 5}, {"options": {**config["options"], "poles": 4}}):
        assert made.judgement._published({**config, **same})


def test_every_change_changes_something(made):
    why, places = made.why, []
    for question in why.QUESTIONS.values():
        for change in why.changes(question).values():
            options = {**why.defaults(question.task), **question.options, **change.options}
            optimizer = {"learning_rate": change.rate, "epsilon": change.epsilon}
            places.append(why.place_of({"task": question.task, "options": options, "optimizer": optimizer, "seed": change.data}))
    assert places == [(asked, name) for asked, question in why.QUESTIONS.items() for name in why.changes(question)]
    assert ("target 4", "Glorot last kernel") not in places and ("two poles", "Glorot last kernel") in places
