"""Results in small files: what is kept of a run, how runs are merged, and that files from elsewhere are not trusted."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from synthetic import fake

import stablebptt as sb
from stablebptt.data import results, run_file, storage
from stablebptt.data.run_file import Content
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import keeping, sweeps

VERSIONS = {"stablebptt": "0.2.0", "numpy": "2.0"}
PLAN = {"task": "cartpole", "options": {"steps": 4, "hidden": [3], "poles": [1, 2]}}
PLAN["train"] = {"variant": ["R", "C"], "seed": "0:2", "epochs": 2, "train_count": 8, "test_count": 8}


def content(version="0.2.0", **given):
    """A run file's content that nobody trained."""
    run, nothing = fake(**given), np.zeros(1)
    attributes = {"versions": json.dumps({**VERSIONS, "stablebptt": version}), "git_commit": "abc"}
    return Content(run.config, attributes, run.history, nothing, nothing, {}, {}, run.status)


def kept(folder, task="cartpole"):
    return keeping.load(folder / f"{task}.h5")


@pytest.mark.parametrize("epochs, every, first, apart", [
    (1000, 1, 5, 5), (1000, 5, 5, 5), (200, 1, 1, 1), (201, 1, 1, 2), (300, 1, 2, 2), (7, 5, 5, 2), (1, 1, 1, 0), (0, 1, None, 0),
])  # fmt: skip
def test_histories_are_thinned(epochs, every, first, apart):
    run = content(epochs=max(epochs, 1), done=epochs, evaluate_every=every)
    found = keeping.thinned(run.history)
    assert len(found["epoch"]) <= results.POINTS
    if epochs:
        assert found["epoch"][0] == first and found["epoch"][-1] == epochs and set(np.diff(found["epoch"])) <= {apart}
        np.testing.assert_array_equal(found["test_loss"], run.history["test_loss"][found["epoch"] - 1].astype(np.float32))
        assert np.isfinite(found["test_loss"]).all()


def test_numbers_come_from_the_whole_history():
    run = content(epochs=1000)
    run.history["test_loss"] = np.linspace(2.0, 1.0, 1000)
    run.history["test_loss"][[332, 701]] = 0.04, 0.01  # epochs that are not kept
    numbers = keeping.result_of(run).numbers
    assert numbers["first_epoch_solved"] == 333 and numbers["best_epoch"] == 702 and numbers["best_test_loss"] == 0.01
    assert numbers["last_test_loss"] == 1.0 and numbers["solved_below"] == 0.05 and numbers["epochs"] == 1000
    assert numbers["seconds"] == run.history["seconds"].sum()
    assert keeping.result_of(content(level=9.0)).numbers["first_epoch_solved"] == -1


def test_what_is_kept_comes_back(tmp_path):
    runs = [content(seed=seed, variant=v, options={"poles": p}) for seed in range(3) for v in "RC" for p in (2, 1)]
    runs += [content(seed=9, epochs=3, status="diverged: <epoch> 3"), content(task="quantum", done=0, status="interrupted")]
    counts = keeping.keep(runs, tmp_path / "results")
    assert counts == {"kept_new": 14, "kept_replaced": 0, "kept_as_before": 0}
    found = kept(tmp_path / "results")
    assert [(r.config["seed"]) for r in found[:3]] == [0, 1, 2] and len(found) == 13
    wanted = {keeping.identity(r): r for r in map(keeping.result_of, runs)}
    assert all(keeping.same(result, wanted[keeping.identity(result)]) for result in found)
    assert found[0].words["version"] == "0.2.0" and json.loads(found[0].words["versions"]) == VERSIONS
    (empty,) = kept(tmp_path / "results", "quantum")
    assert not len(empty.history["epoch"]) and np.isnan(empty.numbers["last_test_loss"]) and empty.status == "interrupted"


def test_a_run_is_never_there_twice(tmp_path):
    keeping.keep([content(seed=0), content(seed=1)], tmp_path)
    before = (tmp_path / "cartpole.h5").read_bytes()
    assert keeping.keep([content(seed=1)], tmp_path)["kept_as_before"] == 1
    assert (tmp_path / "cartpole.h5").read_bytes() == before
    other = content(seed=1, version="0.3.0", level=2.0, evaluate_every=2)
    assert keeping.keep([other, content(seed=2)], tmp_path) == {"kept_new": 1, "kept_replaced": 1, "kept_as_before": 0}
    found = kept(tmp_path)
    assert [r.config["seed"] for r in found] == [0, 1, 2] and [r.words["version"] for r in found] == ["0.2.0", "0.3.0", "0.2.0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cartpole.h5"]


@pytest.mark.parametrize("first, then, stays", [
    ({"epochs": 8}, {"epochs": 4}, "first"),
    ({"epochs": 4}, {"epochs": 8, "done": 3, "status": "running"}, "first"),
    ({"epochs": 4}, {"epochs": 8, "done": 5, "status": "running"}, "then"),
    ({"epochs": 8, "done": 5, "status": "running"}, {"epochs": 8}, "then"),
    ({"epochs": 8}, {"epochs": 8, "done": 2, "status": "diverged: x"}, "then"),
    ({"epochs": 8, "version": "0.1.0"}, {"epochs": 8}, "then"),
])  # fmt: skip
def test_which_of_two_stays(first, then, stays):
    one, other = (keeping.result_of(content(**given)) for given in (first, then))
    (found,), _ = keeping.merged([one], [other])
    assert found is {"first": one, "then": other}[stays]


def test_the_order_does_not_depend_on_that_of_merging(random):
    runs = [keeping.result_of(content(seed=s, variant=v)) for s in (0, 2, 10) for v in ("R", "C", (0.5, 1.0))]
    wanted = [keeping.identity(r) for r in keeping.merged([], runs)[0]]
    halves = random.permutation(len(runs))
    first, _ = keeping.merged([], [runs[k] for k in halves[:4]])
    assert [keeping.identity(r) for r in keeping.merged(first, [runs[k] for k in halves[4:]])[0]] == wanted


def test_xarray_reads_it(tmp_path):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    keeping.keep([content(seed=s, epochs=4 + s, options={"poles": 2}) for s in range(2)], tmp_path)
    with xarray.open_dataset(tmp_path / "cartpole.h5", group="runs") as runs:
        assert runs.sizes["run"] == 2 and runs.last_test_loss.dims == runs.poles.dims == ("run",)
        assert runs.seed.values.tolist() == [0, 1] and runs.epochs_planned.values.tolist() == [4, 5]
    with xarray.open_dataset(tmp_path / "cartpole.h5", group="histories") as histories:
        assert histories.test_loss.dims == ("run", "point") and histories.epoch.values[0].tolist() == [1, 2, 3, 4, 0]
        assert np.isnan(histories.test_loss.values[0, 4])


def groups_of(path):
    return storage.read(path, (run_file.RESULTS_FORMAT,))


def damages():
    def column(group, name, values):
        def damage(groups):
            groups[group][name] = dataclasses.replace(groups[group][name], values=np.array(values))
        return damage

    def config(text):
        def damage(groups):
            letters = groups["runs"]["config"].values
            letters[:] = np.frombuffer(text.ljust(letters.shape[1]), np.uint8)
        return damage

    yield "lacks", lambda groups: groups["runs"].pop("version")
    yield "lacks", lambda groups: groups.pop("histories")
    yield "words", column("runs", "status", [7, 7])
    yield "none", config(b'{"task": 1}')
    yield "Expecting", config(b"no JSON")
    yield "grow", column("histories", "epoch", [[1, 3, 2, 4], [1, 2, 3, 4]])
    yield "grow", column("histories", "epoch", [[1.0, 2, 3, 4], [1, 2, 3, 4]])
    yield "grow", column("histories", "epoch", [[0, 2, 3, 4], [1, 2, 3, 4]])


@pytest.mark.parametrize("message, damage", [*damages()])
def test_damage_is_refused(tmp_path, message, damage):
    path = tmp_path / "cartpole.h5"
    keeping.keep([content(seed=s, epochs=4) for s in range(2)], tmp_path)
    attributes, groups = groups_of(path)
    damage(groups)
    storage.write(path, storage.encode(attributes, groups))
    with pytest.raises(FileFormatError, match=message):
        kept(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileFormatError, match=message):
        keeping.keep([content(seed=3)], tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [{"task": "../../escape"}, {"task": "cartpole", "options": {"poles": "x" * 9}}])
def test_configurations_that_make_no_problem_are_refused(tmp_path, change):
    run = content()
    result = keeping.result_of(run)
    results.save(tmp_path / "cartpole.h5", [dataclasses.replace(result, config={**run.config, **change})], [{}], "x")
    with pytest.raises(FileFormatError, match="makes no problem"):
        kept(tmp_path)


def test_columns_of_other_lengths_are_refused(tmp_path):
    keeping.keep([content(seed=s, epochs=4) for s in range(2)], tmp_path)
    path = tmp_path / "cartpole.h5"
    with h5py.File(path, "r+") as file:  # it loses its checksum, and is checked piece by piece
        del file["runs/seconds"]
        file["runs"].create_dataset("seconds", data=np.zeros(3))
    with pytest.raises(FileFormatError, match="column of numbers"):
        kept(tmp_path)


@pytest.mark.slow
def test_the_command(tmp_path, run):
    for planned in sweeps.make_plan(PLAN):
        sweeps.run_one(planned, tmp_path / "sweep" / str(planned.config["options"]["poles"]))
    told = run("report", "sweep/1", "sweep/2", "--keep", "results", "--json")
    first, second = map(json.loads, told.out.splitlines())
    assert told.code == 0 and first["runs"] == second["runs"] == first["kept_new"] == second["kept_new"] == 4
    found = kept(tmp_path / "results")
    assert len(found) == 8 and {r.words["version"] for r in found} == {sb.__version__}
    by_name = {keeping.identity(r): r for r in found}
    for path in (tmp_path / "sweep").glob("*/*.h5"):
        there, here = run_file.load(path), keeping.result_of(run_file.load(path))
        assert by_name[keeping.identity(here)].numbers["last_test_loss"] == there.history["test_loss"][-1]
    assert "kept as before: 4" in run("report", "sweep/1", "--keep", "results").out
    assert run("inspect", "results/cartpole.h5").code == run("inspect", "results/cartpole.h5", "--csv").code == 0
    assert run("report", "results").code == 4  # it holds no run file
    (tmp_path / "results" / "cartpole.h5").write_bytes(b"no HDF5")
    assert run("report", "sweep/1", "--keep", "results").code == 4
