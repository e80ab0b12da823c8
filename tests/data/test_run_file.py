"""Run files: every group that the interface names, readable by others."""

import json

import h5py
import numpy as np
import pytest

import stablebptt as sb
from stablebptt.data import run_file
from stablebptt.data.storage import FileFormatError, encode, read, write

GROUPS = {
    "history": {"epoch", "loss", "train_loss", "test_loss", "train_physics_loss", "test_physics_loss",
                "gradient_norm2", "cosine", "seconds"},
    "controller/dense_0": {"kernel", "bias"},
    "controller/dense_2": {"kernel", "bias"},
    "best/dense_1": {"kernel", "bias"},
    "trajectories": {"time", "states", "controls", "loss"},
    "checkpoint": {"epoch", "theta", "optimizer_mean", "optimizer_square", "random_state", "best_loss"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    problem = sb.problem("cartpole", poles=2, steps=12, hidden=(9, 8))
    sb.train(problem, epochs=3, seed=2, out=path, train_count=16, test_count=8)
    return path


def test_groups_and_attributes(run_path):
    run = sb.load(run_path)
    with h5py.File(run_path) as file:
        assert file.attrs["format"] == "stablebptt-run" and file.attrs["format_version"] == 2
        assert json.loads(file.attrs["config"]) == run.config
        assert json.loads(file.attrs["versions"])["stablebptt"] == sb.__version__
        assert "T" in file.attrs["created"] and file.attrs["status"] == "complete"
        for group, names in GROUPS.items():
            assert names <= set(file[group]), group
        layers = run.problem.layers(run.theta)
        for name, values in layers.items():
            assert np.array_equal(file[f"controller/{name}"][()], values)
        best = run.problem.layers(run.best_theta)
        assert np.array_equal(file["best/dense_1/kernel"][()], best["dense_1/kernel"])
        assert file["trajectories/states"].shape == (2, 4, 13, 3, 2)
        assert file["trajectories/controls"].shape == (2, 4, 12, 1)
        assert file["trajectories/time"].attrs["units"] == "s"


def test_trajectories_are_before_and_after(run_path):
    run = sb.load(run_path)
    x0 = run.trajectories["states"][0, :, 0]
    assert np.array_equal(x0, run.trajectories["states"][1, :, 0])
    for phase, theta in enumerate((run.problem.init(2), run.theta)):
        assert np.array_equal(run.trajectories["states"][phase], run.problem.rollout(theta, x0).states)
        assert np.array_equal(run.trajectories["loss"][phase], run.problem.losses(theta, x0)[0])


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_gives_named_dimensions(run_path, engine):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine), reason=f"{engine} is not installed (extra: test)")
    named = {
        ("history", "test_loss"): ("epoch",),
        ("trajectories", "states"): ("phase", "sample", "time", "body", "quantity"),
        ("trajectories", "controls"): ("phase", "sample", "control_time", "force"),
        ("controller/dense_0", "kernel"): ("input", "output"),
        ("checkpoint", "theta"): ("parameter",),
    }
    for (group, name), dims in named.items():
        with xarray.open_dataset(run_path, group=group, engine=engine) as dataset:
            assert dataset[name].dims == dims
    with xarray.open_dataset(run_path, group="trajectories", engine=engine) as dataset:
        assert dataset["quantity"].attrs["flag_meanings"] == "position rate"
        assert float(dataset["states"].sel(time=0.5, method="nearest").time) == pytest.approx(0.5)


def changed(path, target, change):
    attributes, groups = read(path, {"stablebptt-run"})
    change(attributes, groups)
    write(target, encode(attributes, groups))
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, g: a.update(format_version=99), "version 99"),
        (lambda a, g: a.update(config="{"), "configuration"),
        (lambda a, g: a.update(config="[]"), "configuration"),
        (lambda a, g: a.update(config='{"task": "fusion", "options": {}}'), "makes no problem"),
        (lambda a, g: a.update(config='{"task": "cartpole", "options": {"poles": -1}}'), "makes no problem"),
        (lambda a, g: a.update(config='{"task": "cartpole", "options": {"poles": 3}}'), "do not fit"),
        (lambda a, g: a.pop("status"), "lacks 'status'"),
        (lambda a, g: g.pop("history"), "lacks 'history'"),
        (lambda a, g: g["checkpoint"].pop("theta"), "lacks 'theta'"),
    ],
)
def test_wrong_content(run_path, tmp_path, change, words):
    target = changed(run_path, tmp_path / "wrong.h5", change)
    with pytest.raises(FileFormatError, match=words):
        sb.load(target)


def test_a_file_of_a_later_version_can_be_inspected(run_path, tmp_path):
    from stablebptt.data import summary

    def later(attributes, groups):
        attributes.update(format_version=3, mood="good")
        groups["news"] = {"x": groups["history"]["epoch"]}

    facts = summary.summarize(changed(run_path, tmp_path / "later.h5", later))
    assert facts["unknown_attributes"] == ["mood"] and "version 2" in facts["note"]
    assert "/news/x" in facts["datasets"] and "mood" in summary.text(facts)


def test_an_edited_file_still_opens(run_path, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(run_path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file.attrs["remark"] = "mine"
    assert np.array_equal(sb.load(copy).theta, sb.load(run_path).theta)


def test_commit_is_read_from_a_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "__file__", str(tmp_path / "data" / "run_file.py"))
    assert run_file.commit() == ""
    (tmp_path / ".git" / "refs").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/main\n")
    (tmp_path / ".git" / "refs" / "main").write_text("abc123\n")
    assert run_file.commit() == "abc123"
