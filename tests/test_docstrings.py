"""The API as it is documented: every public name is described, with its parameters, and its example runs."""

import doctest
import importlib.util
import inspect
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

import stablebptt as sb

ROOT = Path(__file__).resolve().parent.parent


def _reference():
    specification = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


REFERENCE = _reference()
MODULES = REFERENCE.modules()
# Examples that compile or train.
LONG = {
    "stablebptt.Policy", "stablebptt.Problem", "stablebptt.Run", "stablebptt.cfunc_address", "stablebptt.export",
    "stablebptt.load", "stablebptt.minimize_fun", "stablebptt.sweep", "stablebptt.train", "stablebptt.train_seeds",
    "stablebptt.tasks.adjoint_check.check", "stablebptt.tasks.adjoint_check.check_system",
    "stablebptt.tasks.engine.Gradient", "stablebptt.tasks.engine.Path", "stablebptt.tasks.evaluate.over_grid",
    "stablebptt.tasks.observations.normalised", "stablebptt.tasks.rollouts.Rollouts",
    "stablebptt.tasks.rollouts.load_rollouts", "stablebptt.tasks.runs.Progress", "stablebptt.tasks.sweeps.estimate",
    "stablebptt.tasks.sweeps.run_one",
}  # fmt: skip


def examples(long):
    """The public names whose examples are long, or those whose are not, with their values."""
    for module in MODULES:
        for name, value in REFERENCE.public(module).items():
            full = f"{module}.{name}"
            here = callable(value) and REFERENCE.home(module, name, value) == module and not REFERENCE.is_alias(name, value)
            if here and (full in LONG) == long:
                yield pytest.param(full, value, id=full)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_described(module):
    assert not REFERENCE.faults(module)


def test_what_lacks_is_found(monkeypatch):
    def bare(first, second):
        """Something with first."""

    monkeypatch.setattr(REFERENCE, "public", lambda module: {"bare": bare})
    assert REFERENCE.faults("stablebptt") == [
        "stablebptt.bare does not describe second", "stablebptt.bare has no example"
    ]  # fmt: skip
    bare.__doc__ = None
    assert "stablebptt.bare has no docstring" in REFERENCE.faults("stablebptt")


def run(full, value):
    """The example of a name, with NumPy, the package and the names of its module at hand."""
    names = {"np": np, "sb": sb, **REFERENCE.public(full.rpartition(".")[0])}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(value), names, full, None, 0)
    lines, here = [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=lines.append)
        finally:
            os.chdir(here)
    assert test.examples and not lines, "".join(lines)


@pytest.mark.parametrize(("full", "value"), list(examples(long=False)))
def test_examples(full, value):
    run(full, value)


@pytest.mark.slow
@pytest.mark.parametrize(("full", "value"), list(examples(long=True)))
def test_long_examples(full, value):
    run(full, value)
