"""docs/files.md names every dataset and attribute that there is, and no other; and CF readers find what they expect."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.data import run_file, storage
from stablebptt.tasks import families, keeping, reports

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "files.md").read_text("utf-8")
FILES = {"run": "{}.h5", "rollouts": "paths_{}.h5"}
INTERNAL = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"}  # of HDF5's dimension scales


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, rollouts of it, a report and results, of every task."""
    folder = tmp_path_factory.mktemp("files")
    sizes = {"train_count": 8, "test_count": 8}
    for task, record in sb.tasks.TASKS.items():
        problem = sb.problem(task, **{**record.small, "steps": 3})
        given = {"start": problem.init(9), "train_states": problem.sample(8), "test_states": problem.sample(8)}
        sb.train(problem, epochs=1, out=folder / f"{task}.h5", **(given if task == "quantum" else sizes))
        assert call(task, "simulate", folder / f"{task}.h5", "--count", 2, "--out", folder / f"paths_{task}.h5") == 0
    reports.write(folder, keep=folder / "results")
    return folder


def datasets(path):
    """Datasets and their axes, the names of layers and of the optimizer's state left open; scales of axes apart."""
    found, scales = {}, set()

    def visit(name, item):
        if not isinstance(item, h5py.Dataset):
            return
        name = re.sub("optimizer_[a-z]+", "optimizer_<name>", re.sub("(dense|conv)_[0-9]", "<layer>", f"/{name}"))
        if item.is_scale:
            scales.add(name)
        else:
            found[name] = [axis[0].name.rpartition("/")[2] for axis in item.dims]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found, scales


def files(folder):
    """All files that there are in the fixture's folder."""
    return sorted(folder.rglob("*.h5"))


def entries(folder):
    """Columns that the configurations bring to files of results."""
    results = [result for path in (folder / "results").glob("*.h5") for result in keeping.load(path)]
    return {f"/runs/{name}" for result in results for name in families.facts(result)} - {"/runs/variant", "/runs/clip"}


def listed(pattern):
    return set(re.findall(rf"^\| `({pattern}[^`]*)`", PAGE, re.MULTILINE))


@pytest.mark.slow
def test_all_datasets_are_listed(folder):
    found, scales = set(), set()
    for path in files(folder):
        arrays, axes = datasets(path)
        found |= arrays.keys()
        scales |= axes
    named = listed("/[a-z]")
    assert {"/history/skipped", "/checkpoint/optimizer_<name>"} < named
    varied = {f"/runs/{name}" for name in ("task", "start", "train_states", "test_states")}
    brought = entries(folder) | varied
    assert found - brought <= named, found - brought - named
    assert named <= found | scales, named - found - scales
    words = PAGE[PAGE.index("## Layout") : PAGE.index("`config` is JSON")]
    for scale in scales - named:
        assert re.search(rf"\b{re.escape(scale.rpartition('/')[2])}\b", words), scale


@pytest.mark.slow
def test_the_axes_are_as_listed(folder):
    told = dict(re.findall(r"^\| `(/[a-z][^`]*)` \| ([^|]*) \|", PAGE, re.MULTILINE))
    for path in folder.glob("*.h5"):
        for name, axes in datasets(path)[0].items():
            kinds = [kind.split(", ") for kind in told[name].split("; or ")]
            if kinds[0][-1].startswith("and those"):
                assert axes[: len(kinds[0]) - 1] == kinds[0][:-1], name
            else:
                assert [re.sub("optimizer_[a-z]+", "optimizer_<name>", axis) for axis in axes] in kinds, name


def test_all_attributes_are_listed(folder):
    of_files, of_datasets = set(), set()
    for path in files(folder):
        with h5py.File(path) as file:
            of_files |= set(file.attrs)
            file.visititems(lambda name, item: of_datasets.update(item.attrs))
    assert {name[2:] for name in listed("/@")} | {"git_commit"} == of_files | {"git_commit"}
    assert {name[1:] for name in listed("@")} == of_datasets - INTERNAL


def test_what_cf_readers_expect(folder):
    for path in files(folder):
        attributes, groups = run_file.read_any(path)
        assert attributes["Conventions"] == "CF-1.8" and all(attributes[name] for name in run_file.ABOUT)
        for name, variable in ((n, v) for group in groups.values() for n, v in group.items()):
            assert run_file.UNIT.fullmatch(variable.units) and variable.long_name, name
        with h5py.File(path) as file:
            flags = [item for group in file.values() for item in group.values() if "flag_values" in item.attrs]
            assert flags and all(item.attrs["flag_values"].dtype == item.dtype for item in flags)
    assert run_file.read_any(folder / "cartpole.h5")[0]["title"] == "cartpole, 1 pole"


@pytest.mark.parametrize("task", ["cartpole", "pendulum", "guidance", "quantum"])
def test_time_is_in_seconds(folder, task):
    """As the public interface says; pictures of tasks without a time scale name no unit."""
    group = run_file.read_any(folder / f"{task}.h5")[1]["trajectories"]
    assert {group[name].units for name in ("time", "control_time")} == {"s"}


@pytest.mark.parametrize("words, unit", [
    ("m", "m"), ("kg m/s^2", "kg m/s^2"), ("m s-1", "m s-1"), ("1", "1"), ("1/s", "1/s"), ("rad", "rad"), ("", "1"), (" ", "1"),
    ("m, m/s", "1"), ("m; rad", "1"), ("rad (angle)", "1"), ("$^", "1"), ("m/", "1"), ("2 apples", "1"),
])  # fmt: skip
def test_units_that_programs_read(words, unit):
    variable = run_file._measured(np.zeros(1), ("x",), words, "x")
    assert variable.units == unit
    assert variable.attributes == ({} if unit == words or not words.strip() else {"component_units": words})


def test_mixed_units_are_kept_in_words(folder):
    states = run_file.read_any(folder / "cartpole.h5")[1]["trajectories"]["states"]
    assert states.units == "1" and states.attributes["component_units"] == "m, m/s (cart); rad, rad/s (poles)"
    with pytest.raises(storage.FileFormatError, match="not a file of this package"):
        storage.read(folder / "cartpole.h5", ("other",))
    assert json.loads(run_file.read_any(folder / "paths_cartpole.h5")[0]["config"])["task"] == "cartpole"
