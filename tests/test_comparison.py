"""The comparison of joins and gates in docs/joins.md: its tables are those of its results."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from stablebptt.tasks import keeping, variants

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "comparison"


@pytest.fixture(scope="module")
def made():
    """The module that makes the tables."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("make_tables")
    sys.path[:] = before


@pytest.fixture(scope="module")
def runs(made):
    return made.read()


def test_the_tables_are_those_of_the_results(made, runs):
    page = made.PAGE.read_text("utf-8")
    assert {found[1] for found in made.PART.findall(page)} == set(made.PARTS)
    assert made.filled(page, runs) == page, "run python docs/comparison/make_tables.py"


def test_no_rule_is_left_out(made, runs):
    assert len(set(made.RULES)) == len(made.RULES) and all(variants.describe(rule) == rule for rule in made.RULES)
    page = made.PAGE.read_text("utf-8")
    named = {word.split(":")[0] for word in re.findall(r"^\| `([^`]+)`", page.split("## What they do")[0], re.MULTILINE)}
    assert named <= {rule.split(":")[0] for rule in made.RULES} | {"R"}
    assert made.systems(runs)


def test_a_number_against_the_file(made):
    """One ratio of the first table, from the file alone."""
    last = {"R": [], "mgda": []}
    for result in keeping.load(FOLDER / "results" / "custom.h5"):
        config = result.config
        if config["options"]["title"] == made.NAMES["ball"] and config["optimizer"]["learning_rate"] == 0.001:
            if config["variant"] in last:
                last[config["variant"]].append((config["seed"], float(np.mean(result.history["test_loss"][-4:]))))
    ours, those = ([loss for seed, loss in sorted(last[rule])] for rule in ("mgda", "R"))
    ratio = np.exp(np.mean(np.log(np.divide(ours, those))))
    row = next(line for line in made.ratios(made.read()).splitlines() if line.startswith("| `mgda`"))
    headings = made.ratios(made.read()).splitlines()[0].split("|")
    cell = row.split("|")[[heading.strip() for heading in headings].index(made.NAMES["ball"])]
    assert len(ours) == 5 and float(cell.split()[0]) == pytest.approx(ratio, rel=0.06)


def test_what_the_numbers_mean(made):
    def run(*losses):
        return {seed: made.Trained(loss, loss, np.inf) for seed, loss in enumerate(losses)}

    given = {("ball", "R", 0.001): run(1, 1, 1, 1, 1), ("ball", "C", 0.001): run(2, 2, 2, 2, 2), ("ball", "M", 0.001): run(1, 2)}
    assert np.exp(made.equal(given, "ball", "C")) == pytest.approx(2) and made.whole(given, "ball", "M", 0.001) == []
    assert made.best(given, "ball", "C") is None  # of one rate alone
    others = ("R", 0.0003, 3), ("R", 0.003, 4), ("C", 0.0003, 0.5), ("C", 0.003, np.inf)
    given |= {("ball", rule, rate): run(*5 * (loss,)) for rule, rate, loss in others}
    assert made.best_rate(given, "ball", "C") == 0.0003 and np.exp(made.best(given, "ball", "C")) == pytest.approx(0.5)
    assert made.when(given["ball", "C", 0.001].values()) == "never"
