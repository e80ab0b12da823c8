"""What is trained is kept: any controller, number and file name; what cannot be kept is refused before the first epoch."""

import contextlib
import dataclasses
import json
import math
import os
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import call

import stablebptt as sb
from stablebptt.adjoint.generics import control_vjp, cost_vjp, step_vjp
from stablebptt.data import atomic, run_file, storage, summary
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import Controller, System, control, cost, step
from stablebptt.tasks import arguments, optimizers, reports, rollouts, runs, sweeps, training, variants
from stablebptt.tasks.cpu import Engine
from stablebptt.tasks.engine import Loss
from stablebptt.tasks.pictures.curves import smoothed

# --- a system of one's own; all its controllers have six parameters and share one compilation -----------------------

LAYOUTS = {
    "one name": {"k": (6,)},
    "a layer": {"gain/kernel": (2, 3)},
    "a kernel with one axis": {"kernel": (6,)},
    "no axes": {"a": (), "b": (2,), "kernel": (), "c/kernel": (2,)},
    "deep and mixed": {"a/b/c": (1, 2), "a/d": (1,), "k": (1, 1, 1), "a/b/e": (1,), "a/f/g/h/i/j/k/l": (1,)},
    "names of axes": {"k": (1, 1), "k_0": (1,), "k_1/x": (1,), "k_0_": (1,), "k_2": (2,)},
    "as ours, otherwise": {"dense_0/kernel": (1, 2), "dense_0/bias": (3,), "dense_1/bias": (1, 1)},
    "as ours, with more": {"dense_0/bias": (2,), "dense_0/output": (1,), "conv/bias": (2,), "conv/feature/x": (1,)},
    "as ours, a vector": {"dense_0/kernel": (4,), "dense_0/bias": (2,)},
    "letters": {"Verstärkung/κ": (2,), "a b (c) [d].%$#'\"": (2,), "0/_x": (1,), "日本": (1,)},
    "numpy's numbers": {"gain/kernel": (np.int64(2), np.int32(3))},
    "lists": {"gain/kernel": [3, 2]},
}
NAMES = list(LAYOUTS)


class Drift(System):
    """``x' = x + dt c``."""

    dt: float = 0.1

    state_shape = (2,)
    control_shape = (1,)


@implements(step, Drift)
def _step(system, x, c, x_next):
    for k in range(x.shape[0]):
        x_next[k] = x[k] + system.dt * c[0]


@implements(step_vjp, Drift)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for k in range(lam.shape[1]):
            lam_x[v, k] += lam[v, k]
            lam_c[v, 0] += system.dt * lam[v, k]


class Near(Struct):
    """Half the squared distance from 0."""


@implements(cost, Near)
def _cost(loss, x):
    return (x[0] * x[0] + x[1] * x[1]) / 2


@implements(cost_vjp, Near)
def _cost_vjp(loss, x, cost_bar, x_bar):
    for k in range(x.shape[0]):
        x_bar[k] += cost_bar * x[k]


class Six(Controller):
    """``c = sum_k theta_k x_(k mod 2) + theta_5``; its layout is one of `LAYOUTS`."""

    number: int

    def layout(self):
        return LAYOUTS[NAMES[self.number]]


@implements(control, Six)
def _control(controller, theta, x, c):
    c[0] = theta[5]
    for k in range(6):
        c[0] += theta[k] * x[k % 2]


@implements(control_vjp, Six)
def _control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    theta_bar[5] += c_bar[0]
    for k in range(6):
        theta_bar[k] += c_bar[0] * x[k % 2]
        x_bar[k % 2] += c_bar[0] * theta[k]


COUNTS = {"train_count": 8, "test_count": 5, "variant": "R"}


def six(layout="one name", **options):
    given = {"system": Drift(), "controller": Six(NAMES.index(layout)), "loss": Near(), "steps": 3, "dt": 0.1, "dtype": "float64"}
    return sb.problem(**{**given, "sample": lambda random, count: random.uniform(-1, 1, (count, 2)), **options})


def pole(**options):
    return sb.problem("cartpole", **{"steps": 4, "hidden": (4,), **options})


def train(problem, epochs=2, **settings):
    return sb.train(problem, epochs=epochs, **{**COUNTS, **settings})


@contextlib.contextmanager
def interrupted():
    with pytest.raises(KeyboardInterrupt):
        yield


def stop(*unused, **more):
    raise KeyboardInterrupt


# --- controllers of any layout --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_saved_loaded_inspected_and_resumed(tmp_path, layout):
    problem = six(layout)
    whole = train(problem, 3, out=tmp_path / "whole.h5")
    train(problem, 1, out=tmp_path / "parts.h5")
    train(problem, 3, out=tmp_path / "parts.h5", resume=True)
    for name in ("whole.h5", "parts.h5"):
        run = sb.load(tmp_path / name, problem=problem)
        assert np.array_equal(run.theta, whole.theta) and np.array_equal(run.best_theta, whole.best_theta)
        assert sb.load(tmp_path / name).history["test_loss"].tolist() == whole.history["test_loss"].tolist()
    layers = problem.layers(whole.theta)
    assert np.array_equal(np.concatenate([values.ravel() for values in layers.values()]), whole.theta)
    with h5py.File(tmp_path / "whole.h5") as file:
        for name, shape in LAYOUTS[layout].items():
            assert layers[name].shape == tuple(shape) and np.shares_memory(layers[name], whole.theta)
            assert np.array_equal(file[f"controller/{name}"][()], np.atleast_1d(layers[name]))
            assert file[f"best/{name}"].shape == (tuple(shape) or (1,))
    facts = summary.summarize(tmp_path / "whole.h5")
    assert {f"/controller/{name}" for name in LAYOUTS[layout]} <= set(facts["datasets"])
    assert f"/controller/{next(iter(layers))}" in summary.datasets_text(facts) and json.dumps(facts)
    assert rollouts.load_rollouts(tmp_path / "whole.h5").count == 4


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_opens_any_layout(tmp_path, engine):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine), reason=f"{engine} is not installed (extra: test)")
    for layout, shapes in LAYOUTS.items():
        path, problem = tmp_path / f"{NAMES.index(layout)}.h5", six(layout)
        theta = np.arange(6.0)
        groups = run_file._layers("controller", problem, theta)
        storage.write(path, storage.encode({"format": run_file.RUN_FORMAT}, groups))
        for name, values in problem.layers(theta).items():
            group, _, part = f"controller/{name}".rpartition("/")
            with xarray.open_dataset(path, group=group, engine=engine) as dataset:
                found = dataset[part]
                assert np.array_equal(found.values, np.atleast_1d(values)), (layout, name)
                assert len(set(found.dims)) == found.ndim and not set(found.dims) & {n.split("/")[0] for n in shapes}


def test_axes_of_our_layers_keep_their_names():
    groups = run_file._layers("controller", pole(), pole().init())
    assert groups["controller/dense_0"]["kernel"].dims == ("input", "output")
    assert groups["controller/dense_1"]["bias"].dims == ("output",)
    quantum = sb.problem("quantum", points=9, width=2, steps=2)
    groups = run_file._layers("best", quantum, quantum.init())
    assert groups["best/conv_1"]["kernel"].dims == ("tap", "channel", "feature")


def test_names_are_kept_in_one_form_of_unicode(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "one name", {"e\u0301": (6,)})
    assert list(six().layers(np.zeros(6))) == ["\u00e9"]


@pytest.mark.slow
def test_recomputed_activations_of_an_own_controller(monkeypatch):
    """A controller without activations has nothing to keep; here it says that it has."""
    problem = six(steps=40)
    theta, x0 = problem.init(1) + 0.3, problem.sample(7)
    kept = [problem.gradient(theta, x0, variant).value for variant in "RMNC"]
    monkeypatch.setattr("stablebptt.adjoint.rollout.tape_width", lambda controller: 1)
    again = dataclasses.replace(problem, tape_bytes=0)
    for variant, values in zip("RMNC", kept):
        assert np.array_equal(again.gradient(theta, x0, variant).value, values), variant
    for subject, expected in ((problem, True), (again, False)):
        works = [work for [work] in subject.engine._works.gradients.values()]
        assert {arena.forward.kept for work in works for arena in work.arenas} == {expected}


class Any6(Controller):
    """A controller whose layout is given, for mistakes."""

    said: int = 6


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({}, "is empty"),
        ([("k", (6,))], "is of type list"),
        ({"": (6,)}, "has the name ''"),
        ({".": (6,)}, "has the name '.'"),
        ({"..": (6,)}, "has the name '..'"),
        ({"/k": (6,)}, "has the name '/k'"),
        ({"k/": (6,)}, "has the name 'k/'"),
        ({"a//b": (6,)}, "has the name 'a//b'"),
        ({"a/./b": (6,)}, "has the name 'a/./b'"),
        ({" k": (6,)}, "has the name ' k'"),
        ({"k\n": (6,)}, r"has the name 'k\\n'"),
        ({"k\0": (6,)}, "has the name"),
        ({"\ud800": (6,)}, "has the name"),
        ({"-k": (6,)}, "has the name '-k'"),
        ({"k" * 201: (6,)}, "200 bytes"),
        ({"a/b/c/d/e/f/g/h/i": (6,)}, "up to 8 words"),
        ({3: (6,)}, "has the name 3"),
        ({"k": 6}, "the shape of 'k' is 6; it must be a tuple"),
        ({"k": "6"}, "the shape of 'k' is '6'"),
        ({"k": (6.0,)}, r"the shape of 'k'\[0\] is 6.0; it must be a whole number"),
        ({"k": (True, 6)}, "whole number"),
        ({"k": (0, 6)}, r"the shape of 'k'\[0\] is 0; it must be at least 1"),
        ({"k": (-6,)}, "at least 1"),
        ({"k": (1,) * 33}, "at most 32"),
        ({"a": (3,), "a/b": (3,)}, "a parameter 'a' and, in a layer of that name, 'a/b'"),
        ({"\u00e9": (3,), "e\u0301": (3,)}, "twice"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_are_refused_at_once(monkeypatch, layout, words):
    monkeypatch.setattr(Any6, "layout", lambda self: layout, raising=False)
    for function in (control, control_vjp):
        monkeypatch.setitem(function.methods, Any6, None)
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        six(controller=Any6())
    assert "the layout of Any6" in str(caught.value) and "\n" not in str(caught.value)


class Bare(Struct):
    """A struct that says nothing of its parameters."""


def test_a_controller_without_a_layout_is_refused():
    with pytest.raises(TypeError, match=r"the layout of Bare is missing; define layout\(self\)"):
        six(controller=Bare())


def test_a_layout_of_too_many_names_is_refused(monkeypatch):
    layout = {f"k{i}": (1,) for i in range(2001)}
    monkeypatch.setattr(Any6, "layout", lambda self: layout, raising=False)
    with pytest.raises(ValueError, match="has 4002 names, layers and axes; a run file keeps at most 4000"):
        arguments.layout(Any6())


def test_kernels_of_few_axes_have_fans():
    """Glorot's limit needs inputs and outputs: axes that are not there have length 1."""
    many = [six("a kernel with one axis").init(seed) for seed in range(50)]
    limit = math.sqrt(6 / (6 + 1))
    assert 0.95 * limit < np.abs(many).max() <= limit
    mixed = six("no axes").init(3)  # a, b (2,), kernel, c/kernel (2,)
    assert np.all(mixed[:3] == 0) and np.all(mixed[3:] != 0)
    assert np.all(six("no axes", output_init="zero").init(3)[[0, 1, 2, 4, 5]] == 0)
    flat, square = six("a layer").init(0), np.random.default_rng([0, 0]).uniform(-1, 1, 6)
    np.testing.assert_allclose(flat, square * math.sqrt(6 / 5), rtol=1e-15)


def test_a_file_of_another_layout_is_refused(tmp_path):
    train(six("a layer"), 1, out=tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    with pytest.raises(ValueError, match=r"controller|cannot be resumed|is not the one"):
        sb.load(tmp_path / "run.h5", problem=six("lists"))
    content, other = run_file.load(tmp_path / "run.h5"), six("lists")
    with pytest.raises(ValueError, match=r"another layout: gain/kernel is shape \(2, 3\) there, shape \(3, 2\) here"):
        runs._check_parameters(content, other, "run.h5")
    with pytest.raises(ValueError, match=r"another layout: k is no such parameter there, shape \(6,\) here"):
        runs._check_parameters(content, six(), "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == before


def test_parameters_in_another_order_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "one name", {"a": (3,), "b": (3,)})
    train(six(), 2, out=tmp_path / "run.h5")
    sb.load(tmp_path / "run.h5", problem=six())
    monkeypatch.setitem(LAYOUTS, "one name", {"b": (3,), "a": (3,)})
    with pytest.raises(sb.FileFormatError, match="/controller/b is not what /checkpoint/theta says, or in another order"):
        sb.load(tmp_path / "run.h5", problem=six())


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in an empty folder whose `make` is the problem with a layout of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{os.getpid()}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("from test_saving import six\n\ndef make(layout='a layer'):\n    return six(layout)\n")
    monkeypatch.setitem(sys.modules, "test_saving", sys.modules[__name__])
    yield f"{name}:make"
    sys.modules.pop(name, None)


def test_commands_take_any_layout(tmp_path, own_module, capsys):
    counts = ["--train-count", 8, "--test-count", 5, "--quiet"]
    words = ["custom", "train", own_module, "--set", "layout=deep and mixed", "--variant", "R", *counts, "--out", "r.h5"]
    assert call(*words, "--epochs", 1) == 0, capsys.readouterr().err
    assert call(*words, "--epochs", 2, "--resume") == 0, capsys.readouterr().err
    assert call("custom", "simulate", own_module, "--set", "layout=deep and mixed", "r.h5", "--out", "p.h5") == 0
    assert call("inspect", "r.h5", "--datasets") == 0
    assert call("plot", "r.h5", "--out", "c.png") == call("plot", "p.h5", "--out", "p.png") == 0
    assert "a/f/g/h/i/j/k/l" in capsys.readouterr().out
    runs = sweeps.make_plan(
        {"task": own_module, "options": {"layout": ["one name", "deep and mixed"]}, "train": {**COUNTS, "epochs": 1}}
    )
    assert [sweeps.run_one(planned, tmp_path / "s").status for planned in runs] == ["complete"] * 2
    assert call("report", tmp_path / "s") == 0


# --- the best epoch ---------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("losses", "epoch", "lowest"),
    [
        ([3.0, 1.0, 2.0], 2, 1.0),
        ([3.0, NAN, 2.0], 3, 2.0),
        ([NAN, 1.0, 1.0], 2, 1.0),
        ([-INF, 4.0, INF], 2, 4.0),
        ([NAN, NAN], 0, NAN),
        ([INF], 0, NAN),
        ([], 0, NAN),
    ],
)
def test_best_ignores_what_is_not_finite(losses, epoch, lowest):
    history = {"epoch": np.arange(1.0, len(losses) + 1), "test_loss": np.array(losses)}
    assert run_file.best(history) == pytest.approx((epoch, lowest), nan_ok=True)


@pytest.fixture
def spoiled(monkeypatch):
    """Let the test loss (of five states) of some epochs not be finite."""
    losses = Engine._losses

    def spoil(*epochs):
        seen = []

        def given(self, theta, x0, keys):
            found = losses(self, theta, x0, keys)
            if len(x0) == 5:
                seen.append(1)
                if len(seen) in epochs:
                    found = found._replace(physics=np.full_like(found.physics, NAN))
            return found

        monkeypatch.setattr(Engine, "_losses", given)

    return spoil


@pytest.mark.thinned(4)
@pytest.mark.parametrize("bad", [(1,), (2,), (3,), (1, 2, 3)])
def test_all_places_name_the_same_best_epoch(tmp_path, monkeypatch, capsys, spoiled, bad):
    monkeypatch.chdir(tmp_path)
    words = "cartpole train --steps 4 --hidden 4 --train-count 8 --test-count 5 --variant R --epochs 3 --json --quiet"
    spoiled(*bad)
    lost = len(bad) == 3  # not one test loss is finite: that is no success, and no event of one is told
    assert call(*words.split(), "--on-divergence", "skip", "--out", "run.h5") == (3 if lost else 0), capsys.readouterr().err
    said = {"best_epoch": 0, "best_test_loss": None} if lost else json.loads(capsys.readouterr().out.splitlines()[-1])
    capsys.readouterr()
    run, content = sb.load("run.h5"), run_file.load("run.h5")
    losses = run.history["test_loss"]
    assert np.isnan(losses).tolist() == [epoch in bad for epoch in (1, 2, 3)]
    epoch, lowest = run_file.best(run.history)
    assert epoch == content.checkpoint["best_epoch"][0] == said["best_epoch"]
    if lost:
        assert epoch == 0 and content.checkpoint["best_loss"][0] == INF
        assert np.array_equal(run.best_theta, run.problem.init(0))
    else:
        assert lowest == np.nanmin(losses) == content.checkpoint["best_loss"][0] == said["best_test_loss"]
    assert call("inspect", "run.h5", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["losses"]
    assert (facts["best_epoch"], facts["best_test_loss"]) == (epoch, said["best_test_loss"])
    assert call("inspect", "run.h5") == 0
    text = capsys.readouterr().out
    assert ("none of them finite" if epoch == 0 else f"lowest {lowest:.6g} (epoch {epoch})") in text
    assert sweeps.outcome_of(Path("run.h5")).best_test_loss == pytest.approx(lowest, nan_ok=True)
    (family,) = reports.families([run])
    assert family.best()[0] == pytest.approx(lowest, nan_ok=True) and family.solved() == (lowest < 0.05)
    assert reports.rows([family])[0][6] == ("-" if epoch == 0 else f"{lowest:.4g}")
    assert call("plot", "run.h5", "--smooth", 2, "--out", "c.png") == 0


def test_running_means_leave_out_what_is_not_finite():
    assert smoothed(np.array([1.0, NAN, 3.0, 5.0]), 3).tolist() == [1.0, 2.0, 4.0, 4.0]
    assert np.isnan(smoothed(np.array([NAN, NAN, 2.0]), 2)[0]) and smoothed(np.array([NAN, 2.0]), 2)[1] == 2.0


# --- numbers of NumPy -------------------------------------------------------------------------------------------------


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def test_numbers_of_numpy_become_pythons(tmp_path):
    settings = {
        "seed": np.int64(1), "epochs": np.int32(1), "clip": np.str_("value"), "clip_at": np.float32(1), "shuffle": np.bool_(True),
        "batch_size": np.uint8(4), "train_count": np.array(8), "test_count": np.int16(5), "variant": np.str_("R"),
        "optimizer": sb.optimizers.sgd(np.float32(0.01), np.float64(0.5)), "on_divergence": np.str_("skip"),
    }  # fmt: skip
    problem = pole(steps=np.int64(4), poles=np.int64(1), duration=np.float32(1), hidden=np.array([4]), loss=np.str_("final"))
    run = sb.train(problem, out=tmp_path / "run.h5", **settings)
    assert is_plain(run.config) and sb.load(tmp_path / "run.h5").config == run.config
    assert run.config["clip_at"] == 1.0 and run.config["shuffle"] is True and run.config["seed"] == 1
    assert run.config["optimizer"] == {"name": "sgd", "learning_rate": float(np.float32(0.01)), "momentum": 0.5}
    plain = {**settings, "seed": 1, "epochs": 1, "clip": "value", "clip_at": 1.0, "shuffle": True, "batch_size": 4}
    plain |= {"train_count": 8, "test_count": 5, "variant": "R", "on_divergence": "skip"}
    plain["optimizer"] = sb.optimizers.sgd(float(np.float32(0.01)), 0.5)
    same = sb.train(pole(), resume=True, out=tmp_path / "run.h5", **plain)
    assert np.array_equal(same.theta, run.theta) and same.config == run.config


def test_options_of_every_task_take_numpys_numbers():
    half, three = np.float32(0.5), np.int64(3)
    made = [
        sb.problem(
            "guidance", drivers=np.int8(1), evaders=np.uint16(2), target=np.array([1.0, 2.0], np.float32), hidden=np.array([3]),
            steps=three, duration=np.float64(1), regularization=half, dtype=np.dtype("float64"),
        ),
        sb.problem("quantum", points=np.int64(9), width=np.int32(2), weights=np.array([1, 3]), dt=half, steps=np.array(3)),
        six(steps=three, dt=half, state_shape=np.array([2]), control_shape=np.int64(1), regularization=np.float64(0)),
    ]  # fmt: skip
    for problem in made:
        assert is_plain(problem.options), problem.options
    assert made[0].options["target"] == [1.0, 2.0] and made[1].options["weights"] == [1.0, 3.0]
    assert made[2].state_shape == (2,) and made[2].control_shape == (1,)


def test_arguments_of_ones_own_function_become_plain(own_module, tmp_path):
    problem = sb.tasks.custom.from_source(own_module, layout=np.str_("one name"))
    assert type(problem.options["arguments"]["layout"]) is str
    mixed = {"a": np.arange(2), "b": (np.float32(0.5), [np.bool_(True), None])}
    assert arguments.plain("x", mixed) == {"a": [0, 1], "b": [0.5, [True, None]]}
    assert type(arguments.plain("x", np.longdouble(2))) is float
    for value, words in (
        ({"day": np.datetime64("2020-01-01")}, "x.day is of type datetime64"),
        ([1, 2j], r"x\[1\] is of type complex"),
        ({1: 2}, "x is of type dict"),
        (np.array([1j]), "x is of type ndarray"),
        (np.ma.array([1.0]), "x is a masked array"),
        (Path("x"), r"x is of type \w*Path; a run file keeps words, numbers"),
    ):
        with pytest.raises(TypeError, match=words):
            arguments.plain("x", value)


SCHEDULES = [
    (np.ones(4), np.zeros(4)), ([1, 1, 1, 1], (0, 0, 0, 0)), (np.float32(1), np.int64(0)), (1, False), [1.0, np.array(0)],
    (np.ones(4, bool), np.zeros(4, np.float16)),
]  # fmt: skip


@pytest.mark.thinned(3)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_gates_are_kept(tmp_path, schedule):
    problem = pole()
    run = train(problem, 1, variant=schedule, out=tmp_path / "run.h5")
    assert is_plain(run.config) and np.array_equal(run.theta, train(problem, 1, variant="M").theta)
    again = train(problem, 2, variant=schedule, out=tmp_path / "run.h5", resume=True)
    assert len(again.history["epoch"]) == 2
    restored = training.settings_of(sb.load(tmp_path / "run.h5").config)
    opened = variants.gates(restored.variant, 4)
    assert np.all(opened.physics == 1) and np.all(opened.network == 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shuffle": 1}, "shuffle is 1; it must be True or False"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; it must be True or False"),
        ({"shuffle": None}, "shuffle is None"),
        ({"shuffle": np.int64(0)}, "shuffle is "),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"seed": np.bool_(True)}, "seed is .*True.*; it must be a whole number"),
        ({"seed": np.float64(1)}, "seed is .*; it must be a whole number"),
        ({"seed": np.array([1])}, "seed is .*; it must be a whole number"),
        ({"epochs": np.timedelta64(3, "s")}, "epochs is .*; it must be a whole number"),
        ({"clip_at": True}, "clip_at is True; it must be a number"),
        ({"clip_at": np.bool_(True)}, "clip_at is .*True.*; it must be a number"),
        ({"clip_at": np.complex64(1)}, "clip_at is .*; it must be a number"),
        ({"clip_at": np.array([1.0])}, "clip_at is .*; it must be a number"),
        ({"clip_at": np.timedelta64(3, "s")}, "clip_at is .*; it must be a number"),
        ({"clip_at": np.ma.array(1.0)}, "clip_at is .*; it must be a number"),
        ({"clip_at": b"1"}, "clip_at is b'1'; it must be a number"),
        ({"clip_at": 10**400}, "it must be finite"),
        ({"clip": np.array(["norm"])}, "unknown clip .*; choose from none, value, norm"),
        ({"on_divergence": True}, "unknown on_divergence True; choose from stop, skip"),
        ({"variant": np.ones((2, 4))}, "variant is array.*; give one of R, M, S, N, C, or a pair"),
        ({"variant": (1, "0")}, r"gate b \(network\) is '0'; it must be numeric"),
        ({"variant": (1j, 0)}, r"gate a \(physics\) is 1j; it must be numeric"),
        ({"variant": (np.ma.ones(4), 0)}, r"gate a \(physics\) is a masked array"),
        ({"variant": (1, [np.ma.masked, 0, 0, 0])}, r"gate b \(network\) is a masked array"),
    ],
)
def test_a_bool_is_no_number_and_a_number_no_bool(settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        train(pole(), **settings)


def test_masked_arrays_are_refused_wherever_arrays_come_in():
    problem = pole()
    theta, x0 = problem.init(), problem.sample(3)
    masked = np.ma.masked_invalid
    for doing in (
        lambda: problem.loss(masked(theta), x0),
        lambda: problem.gradient(theta, masked(x0)),
        lambda: problem.rollout(theta, list(masked(x0))),
        lambda: problem.gradient(theta, x0, (masked(np.ones(4)), 1)),
        lambda: problem.layers(masked(theta)),
        lambda: sb.minimize_fun(problem, masked(x0)),
        lambda: sb.clip(masked(theta), "norm"),
        lambda: pole(hidden=masked(np.array([4]))),
        lambda: sb.problem("guidance", target=masked(np.zeros(2))),
        *(lambda make=make: make().apply(theta, masked(theta), make().init(theta)) for make in optimizers.RULES.values()),
    ):
        with pytest.raises(TypeError, match=r"is a masked array; give plain numbers"):
            doing()


# --- samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda n: np.zeros((n, 3)), r"sample gave the shape \(8, 3\); it must give .* of shape \(8, 2\)"),
        (lambda n: np.zeros((n - 1, 2)), r"sample gave the shape \(7, 2\)"),
        (lambda n: np.zeros(2), r"sample gave the shape \(2,\)"),
        (lambda n: np.zeros((n, 2, 1)), r"sample gave the shape \(8, 2, 1\)"),
        (lambda n: np.zeros((n, 2)).tolist(), "sample gave list; it must give an array of floating-point numbers"),
        (lambda n: None, "sample gave NoneType"),
        (lambda n: 1.0, "sample gave float"),
        (lambda n: np.zeros((n, 2), complex), "sample gave ndarray of complex128"),
        (lambda n: np.zeros((n, 2), int), "sample gave ndarray of int64"),
        (lambda n: np.zeros((n, 2), bool), "sample gave ndarray of bool"),
        (lambda n: np.zeros((n, 2), object), "sample gave ndarray of object"),
        (lambda n: np.ma.zeros((n, 2)), "what sample gave is a masked array"),
        (lambda n: np.full((n, 2), NAN), r"what sample gave has a value that is not finite in float64, at \(0, 0\)"),
        (lambda n: np.array([[0.0, 0.0]] * (n - 1) + [[0.0, INF]]), r"not finite in float64, at \(7, 1\)"),
    ],
)
def test_what_a_sampler_may_not_give(tmp_path, given, words):
    problem = six(sample=lambda random, count: given(count))
    with pytest.raises((TypeError, ValueError), match=words):
        problem.sample(8)
    with pytest.raises((TypeError, ValueError), match="sample gave"):
        train(problem, out=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_what_a_sampler_gives_is_copied_in_the_problems_precision():
    kept = np.arange(6.0).reshape(3, 2)
    counts = []
    problem = six(sample=lambda random, count: counts.append(count) or kept, dtype="float64")
    states = problem.sample(np.int64(3))
    states += 1
    assert kept[0, 0] == 0 and type(counts[0]) is int
    single = six(sample=lambda random, count: np.zeros((count, 2), np.float16), dtype="float32").sample(2)
    assert single.dtype == np.float32 and single.flags.c_contiguous
    with pytest.raises(ValueError, match="not finite in float32"):
        six(sample=lambda random, count: np.full((count, 2), 1e39), dtype="float32").sample(2)


# --- the file at epoch 0 ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_is_there_before_the_first_epoch_and_all_can_read_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, differentiate = Path("run.h5"), Engine._gradient

    def look(self, *given):
        run = sb.load(path)
        assert run.status == "running" and len(run.history["epoch"]) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_gradient", look)
    with interrupted():
        train(pole(), out=path)
    monkeypatch.setattr(Engine, "_gradient", differentiate)
    run = sb.load(path)
    assert run.status == "interrupted" and np.array_equal(run.theta, run.problem.init(0))
    assert np.array_equal(run.trajectories["states"][0], run.trajectories["states"][1])
    assert call("inspect", path) == call("inspect", path, "--trajectory", 0) == call("inspect", path, "--json") == 0
    out, err = capsys.readouterr()
    assert "epochs      0" in out and err == ""
    for number, words in enumerate((["plot"], ["plot", "--trajectory", 1], ["plot", "--smooth", 3])):
        assert call(*words[:1], path, *words[1:], "--out", f"{number}.png") == 0
    assert call("cartpole", "simulate", path, "--best", "--count", 2, "--out", "paths.h5", "--quiet") == 0
    assert "warning" not in capsys.readouterr().err
    outcome = sweeps.outcome_of(path)
    assert (outcome.status, outcome.epochs) == ("interrupted", 0) and math.isnan(outcome.best_test_loss)
    assert call("report", tmp_path) == 0
    resumed = train(pole(), out=path, resume=True)
    assert np.array_equal(resumed.theta, train(pole()).theta) and resumed.status == "complete"


def test_a_run_of_a_sweep_that_is_interrupted_before_its_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "write", stop)
    (planned,) = sweeps.make_plan({"task": "cartpole", "options": {"steps": 4, "hidden": [4]}, "train": {**COUNTS, "epochs": 1}})
    assert sweeps.run_one(planned, tmp_path).status == "interrupted" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("many", [False, True], ids=["train", "train_seeds"])
def test_what_can_fail_in_a_save_fails_before_the_first_epoch(tmp_path, monkeypatch, many):
    calls, place = [], tmp_path / "runs"
    place.mkdir()

    def broken(path, content, **more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(storage, "write", broken)
    monkeypatch.setattr(Engine, "_gradient", lambda *given: calls.append(1))
    with pytest.raises(OSError, match="No space left"):
        if many:
            sb.train_seeds(pole(), [0, 1], epochs=1, out=place, **COUNTS)
        else:
            train(pole(), out=place / "run.h5")
    assert not calls and list(place.iterdir()) == []


def test_an_old_file_stays_until_there_is_something_better(tmp_path, monkeypatch):
    path, differentiate = tmp_path / "run.h5", Engine._gradient
    train(pole(), out=path)
    before = path.read_bytes()
    monkeypatch.setattr(Engine, "_gradient", stop)
    with interrupted():
        train(pole(), out=path, force=True, seed=3)
    with interrupted():
        sb.train_seeds(pole(), [0], epochs=1, out=tmp_path / "more", **COUNTS)
    assert path.read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):  # found by the rehearsal
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        train(pole(), out=path, force=True, seed=3)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["more", "run.h5"]

    def second(progress):
        assert path.read_bytes() == before  # not written yet: checkpoint_seconds have not passed
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_gradient", differentiate)
    with interrupted():
        train(pole(), out=path, force=True, seed=3, report=second)
    run = sb.load(path)
    assert run.config["seed"] == 3 and len(run.history["epoch"]) == 1 and run.status == "interrupted"


def test_a_divergence_in_the_first_epoch_replaces_an_old_file(tmp_path, monkeypatch):
    path, differentiate = tmp_path / "run.h5", Engine._gradient
    train(pole(), out=path)

    def lost(self, *given):
        return dataclasses.replace(differentiate(self, *given), loss=Loss(NAN, NAN))

    monkeypatch.setattr(Engine, "_gradient", lost)
    with pytest.raises(sb.DivergedError, match="epoch 1"):
        train(pole(), out=path, force=True)
    run = sb.load(path)
    assert run.status.startswith("diverged: cartpole diverged in epoch 1") and len(run.history["epoch"]) == 0


def test_resuming_loses_nothing_when_it_is_interrupted_at_once(tmp_path, monkeypatch):
    path, differentiate = tmp_path / "run.h5", Engine._gradient
    train(pole(), 2, out=path)
    monkeypatch.setattr(Engine, "_gradient", stop)
    with interrupted():
        train(pole(), 4, out=path, resume=True)
    assert len(sb.load(path).history["epoch"]) == 2
    monkeypatch.setattr(Engine, "_gradient", differentiate)
    assert np.array_equal(train(pole(), 4, out=path, resume=True).theta, train(pole(), 4).theta)


# --- fewer epochs -----------------------------------------------------------------------------------------------------


def test_fewer_epochs_than_a_file_holds_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "cartpole train --steps 4 --hidden 4 --train-count 8 --test-count 5 --variant R --quiet --out run.h5".split()
    assert call(*words, "--epochs", 3) == 0
    before = Path("run.h5").read_bytes()
    capsys.readouterr()
    assert call(*words, "--epochs", 2, "--resume") == 2
    err = capsys.readouterr().err
    assert err == "stablebptt: run.h5 cannot be resumed: it holds 3 epochs, more than 2; give at least 3\n"
    assert Path("run.h5").read_bytes() == before and sorted(os.listdir()) == ["run.h5"]
    assert call(*words, "--epochs", 3, "--resume") == 0  # nothing to do
    again = sb.load("run.h5")
    assert len(again.history["epoch"]) == 3 and again.status == "complete"


def test_many_seeds_are_refused_before_one_is_changed(tmp_path):
    sb.train_seeds(pole(), [0], epochs=1, out=tmp_path, **COUNTS)
    sb.train_seeds(pole(), [1], epochs=3, out=tmp_path, **COUNTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"seed_1\.h5 cannot be resumed: it holds 3 epochs, more than 2"):
        sb.train_seeds(pole(), [0, 1, 2], epochs=2, out=tmp_path, resume=True, **COUNTS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- places -----------------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="pipes and links are those of POSIX")


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    train(pole(), out=path)
    return path


COMMANDS = {
    "train": "cartpole train --steps 4 --hidden 4 --train-count 8 --test-count 5 --epochs 1 --variant R --out {}.h5",
    "resume": "cartpole train --steps 4 --hidden 4 --train-count 8 --test-count 5 --epochs 1 --variant R --resume --out {}.h5",
    "simulate": "cartpole simulate RUN --count 2 --out {}.h5",
    "plot": "plot RUN --out {}.png",
    "trajectory": "plot RUN --trajectory 0 --out {}.png",
    "animate": "animate RUN --dpi 20 --every 4 --out {}.gif",
    "fields": "landscape fields --resolution 2 --out {}.png",
    "rotation": "landscape rotation --out {}.png",
}


def words_of(name, place, run_path):
    words = COMMANDS[name].format(place).replace("RUN", str(run_path)).split()
    return words if name == "resume" else [*words, "--force"]


@posix
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder", "a link to a pipe"])
def test_no_command_takes_the_place_of_what_is_no_file(tmp_path, monkeypatch, capsys, run_path, name, kind):
    monkeypatch.chdir(tmp_path)
    place = Path(words_of(name, "x", run_path)[-2 if name != "resume" else -1])
    made = place if "link" not in kind else Path("behind")
    with socket.socket(socket.AF_UNIX) as listener:
        if "pipe" in kind:
            os.mkfifo(made)
        elif kind == "a socket":
            listener.bind(str(made))
        else:
            made.mkdir()
        if made != place:
            place.symlink_to(made)
        before, there = made.lstat(), sorted(os.listdir())
        assert call(*words_of(name, "x", run_path)) == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(place) in err
    assert "is a folder" in err if kind == "a folder" else "not a regular file" in err
    assert made.lstat().st_mode == before.st_mode and made.lstat().st_ino == before.st_ino
    assert sorted(os.listdir()) == there


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFCHR, "a device"), (stat.S_IFBLK, "a device"), (0o150000, "something else")])
def test_devices_are_refused_before_anything_is_opened(tmp_path, monkeypatch, mode, word):
    path, ask = tmp_path / "run.h5", os.stat

    def faked(place, *given, **more):
        found = ask(tmp_path if os.fspath(place) == str(path) else place, *given, **more)
        return os.stat_result((mode, *found[1:])) if os.fspath(place) == str(path) else found

    def opened(*unused, **more):
        raise AssertionError("opened")

    monkeypatch.setattr(os, "stat", faked)
    monkeypatch.setattr(os, "open", opened)
    for doing in (
        lambda: sb.train(pole(), out=path, force=True),
        lambda: storage.write(path, b""),
        lambda: atomic.check_folder(path),
        lambda: atomic.locked(path).__enter__(),
    ):
        with pytest.raises(OSError, match=rf"run\.h5 is {word}, not a regular file; give another name"):
            doing()


@pytest.mark.thinned(3)
@posix
@pytest.mark.parametrize(
    ("name", "dangling"),
    [
        ("train", False), ("train", True), ("resume", False), ("resume", True), ("simulate", False), ("simulate", True),
        ("plot", False), ("animate", True), ("rotation", True),
    ],
)  # fmt: skip
def test_a_link_stays_a_link(tmp_path, monkeypatch, capsys, run_path, name, dangling):
    monkeypatch.chdir(tmp_path)
    place = Path(words_of(name, "x", run_path)[-2 if name != "resume" else -1])
    Path("there").mkdir()
    target = Path("there", place.name)
    if not dangling and name == "resume":
        target.write_bytes(run_path.read_bytes())
    elif not dangling:
        target.write_text("old")
    Path("hop").symlink_to(target)
    place.symlink_to("hop")
    expected = 2 if name == "resume" and not dangling else 0  # of two epochs, which are more than one
    assert call(*words_of(name, "x", run_path)) == expected, capsys.readouterr().err
    assert place.is_symlink() and Path("hop").is_symlink() and not target.is_symlink()
    assert target.stat().st_size > 100 and os.listdir("there") == [target.name]
    assert sorted(os.listdir()) == sorted(["hop", "there", place.name])


@posix
def test_links_without_end_and_into_nowhere(tmp_path):
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    (tmp_path / "c.h5").symlink_to("nowhere/x.h5")
    with pytest.raises(OSError, match="symbolic links"):
        train(pole(), out=tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(pole(), out=tmp_path / "c.h5")
    assert len(list(tmp_path.iterdir())) == 3


@posix
def test_two_names_of_one_file_lock_each_other(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "folder").symlink_to("there")
    real, link, other = tmp_path / "there" / "run.h5", tmp_path / "run.h5", tmp_path / "folder" / "run.h5"
    link.symlink_to(real)
    for first in (real, link, other):
        for second in (real, link, other):
            with atomic.locked(first):
                assert (tmp_path / "there" / ".run.h5.lock").exists() and not (tmp_path / ".run.h5.lock").exists()
                with pytest.raises(BlockingIOError, match="is being written by process"), atomic.locked(second):
                    pass
    (tmp_path / "there" / ".run.h5.part-x.h5").write_text("half")
    with atomic.locked(link):
        assert os.listdir(tmp_path / "there") == [".run.h5.lock"]


@posix
def test_a_lock_that_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / ".pipe.h5.lock")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".link.h5.lock").symlink_to("precious")
    for name in ("pipe.h5", "link.h5"):
        with pytest.raises(OSError, match=rf"{name}\.lock is a pipe|symbolic link"), atomic.locked(tmp_path / name):
            pass
    assert (tmp_path / "precious").read_text() == "precious" and len(list(tmp_path.iterdir())) == 3


@posix
def test_reports_and_sweeps_meet_pipes(tmp_path, run_path, capsys):
    (tmp_path / "run.h5").write_bytes(run_path.read_bytes())
    os.mkfifo(tmp_path / "other.error.txt")
    assert sweeps.outcome_of(tmp_path / "other.h5").status == "absent"
    (tmp_path / "report").mkdir()
    os.mkfifo(tmp_path / "report" / "report.md")
    assert call("report", tmp_path) == 5 and "report.md is a pipe" in capsys.readouterr().err
    os.mkfifo(tmp_path / "folder")
    assert call("sweep", "--paper", "cartpole", "--out", tmp_path / "folder") == 5
    assert "is not a folder" in capsys.readouterr().err


# --- what can be read again -------------------------------------------------------------------------------------------


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    def variable(values):
        return storage.Variable(values, tuple("abc"[: values.ndim]), "1", "x")

    monkeypatch.setattr(storage, "LARGEST_CHUNK", 1_000_000)
    monkeypatch.setattr(storage, "MOST_OBJECTS", 10)
    zeros = np.zeros(200_000)  # 1.6 MB, which gzip packs several hundredfold
    storage.write(tmp_path / "zeros.h5", storage.encode({"format": "x"}, {"g": {"z": variable(zeros)}}))
    assert np.array_equal(storage.read(tmp_path / "zeros.h5", ["x"])[1]["g"]["z"].values, zeros)
    with h5py.File(tmp_path / "zeros.h5") as file:
        assert file["g/z"].compression == "gzip" and file["g/z"].fletcher32
    many = {f"k{i}": {"x": variable(np.zeros(1))} for i in range(4)}
    with pytest.raises(ValueError, match="could not be read again"):
        storage.encode({"format": "x"}, many)
    with pytest.raises(ValueError, match="could not be read again"):
        storage.encode({"format": "x"}, {"/".join("abcdefghi"): {"a": variable(np.zeros(1))}})
    with pytest.raises(TypeError, match="units is None"):
        storage.Variable(np.zeros(1), ("x",), None, "x")


@pytest.mark.parametrize("name", ["time", "states", "phase", "a/b", "state"])
def test_axes_that_no_file_can_have(tmp_path, name):
    axes = sb.tasks.problems.Axis(name, "mine", (0, 1)), sb.tasks.problems.Axis("state", "another", (0,))
    with pytest.raises(ValueError, match=f"an axis is called '{name}'"):
        train(six(state_axes=axes[:1], control_axes=axes[1:]), out=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


# --- rules of one's own -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fading(optimizers.Rule):
    """Descent whose rate fades, with state of every shape; its fields are beyond the limits of ours."""

    period: int = 10
    power: float = 2.0
    beta1: float = 3.0
    shift: float = -1.0
    words: tuple = ("a", "b")
    table: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(3.0))

    def init(self, theta):
        return {"count": np.zeros((), np.int64), "square": np.zeros((2, len(theta))), "x": np.zeros(3), "square_0": np.ones(1)}

    def apply(self, theta, gradient, state):
        count = np.asarray(state["count"] + 1)
        rate = self.learning_rate / (1 + count / self.period) ** self.power
        square = state["square"] + np.stack([gradient, gradient**2])
        after = {**state, "count": count, "square": square, "x": state["x"] + self.table}
        return theta - rate * square[0].astype(np.float64), after


def test_a_rule_of_ones_own_has_any_fields_and_any_state(tmp_path):
    rule = Fading(np.float32(0.5), period=np.int64(7))
    assert (type(rule.learning_rate), type(rule.period)) == (float, int)
    whole = train(pole(), 4, out=tmp_path / "whole.h5", optimizer=rule)
    assert whole.theta.dtype == np.float32 and is_plain(whole.config) and whole.config["optimizer"]["period"] == 7
    train(pole(), 2, out=tmp_path / "parts.h5", optimizer=rule)
    parts = train(pole(), 4, out=tmp_path / "parts.h5", optimizer=rule, resume=True)
    assert np.array_equal(parts.theta, whole.theta) and np.array_equal(sb.load(tmp_path / "parts.h5").theta, whole.theta)
    first, second = (run_file.load(tmp_path / name).checkpoint for name in ("whole.h5", "parts.h5"))
    assert first.keys() == second.keys() and first["optimizer_square"].shape == (2, len(whole.theta))
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fading(0), "learning_rate is 0.0; it must be above 0"),
        (lambda: Fading("fast"), "learning_rate is 'fast'; it must be a number"),
        (lambda: Fading(True), "learning_rate is True; it must be a number"),
        (lambda: sb.optimizers.adam(0.1, beta1=1.0), "beta1 is 1.0; it must be below 1"),
        (lambda: sb.optimizers.adam(0.1, beta2=-0.1), "beta2 is -0.1; it must be at least 0"),
        (lambda: sb.optimizers.adam(0.1, epsilon=INF), "epsilon is inf; it must be finite"),
        (lambda: sb.optimizers.sgd(0.1, 1), "momentum is 1.0; it must be below 1"),
        (lambda: sb.optimizers.rmsprop(0.1, rho=NAN), "rho is nan; it must be finite"),
        (lambda: sb.optimizers.adadelta(0.1, rho=2), "rho is 2.0; it must be below 1"),
        (lambda: sb.optimizers.adagrad(0.1, initial=-1), "initial is -1.0; it must be at least 0"),
        (lambda: sb.optimizers.adagrad(0.1, np.ma.masked), "initial is masked; it must be a number"),
    ],
)
def test_the_limits_of_our_rules(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
    assert sb.optimizers.adagrad(5, initial=7).initial == 7 and sb.optimizers.adam(3.0, epsilon=2).epsilon == 2


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda g: [1], "the state of Broken is of type list"),
        (lambda g: {"n": 1}, "n is of type int; it must be an array of real numbers"),
        (lambda g: {"n": np.zeros(2, bool)}, "it must be an array of real numbers"),
        (lambda g: {"n": np.ma.zeros(2)}, "n is a masked array"),
        (lambda g: {"a/b": np.zeros(2)}, "has the name 'a/b'"),
        (lambda g: {"n": np.zeros(2 + (g is not None))}, r"is \{'n': 'float64 \(2,\)'\} at first and .* after an update"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused(tmp_path, state, words):
    class Broken(optimizers.Rule):
        def init(self, theta):
            return state(None)

        def apply(self, theta, gradient, known):
            return theta, state(gradient)

    with pytest.raises((TypeError, ValueError), match=words):
        train(pole(), optimizer=Broken(0.1), out=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "begin"),
    [
        ("---", "custom-R-none-seed0-"),
        ("日本", "custom-R-none-seed0-"),
        ("", "custom-R-none-seed0-"),
        ("..", "custom-R-none-seed0-"),
        ("-rf *", "rf-R-none-seed0-"),
        (".hidden (2)", "hidden-2-R-none-seed0-"),
        ("../../etc", "etc-R-none-seed0-"),
        ("spring, 2 places", "spring-2-places-R-none-seed0-"),
        ("x" * 300, "x" * 160 + "-R-none-seed0-"),
    ],
)
def test_names_of_files_never_begin_with_a_dash(title, begin):
    options = {**six().options, "title": title, "source": "m:f"}
    planned = sweeps.Planned({"task": "custom", "options": options, **training.Settings(variant="R").describe()})
    assert planned.name.startswith(begin) and planned.name.endswith(".h5") and len(f".{planned.name}.part-12345678.h5") < 255


# --- the commit -------------------------------------------------------------------------------------------------------

COMMIT, OTHER = "a" * 40, "b" * 40


def write_all(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


PACKED = "# pack-refs with: peeled fully-peeled sorted\n"
PACKED += f"{OTHER} refs/heads/mainly\n{COMMIT} refs/heads/main\n{OTHER} refs/tags/v1\n^{COMMIT}\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"p/.git/HEAD": f"{COMMIT}\n"}, COMMIT),
        ({"p/.git/HEAD": "ref: refs/heads/main\n", "p/.git/packed-refs": PACKED}, COMMIT),
        ({"p/.git/HEAD": "ref: refs/heads/main\n", "p/.git/packed-refs": PACKED, "p/.git/refs/heads/main": f"{OTHER}\n"}, OTHER),
        ({"p/.git/HEAD": "ref: refs/heads/new\n", "p/.git/packed-refs": PACKED}, ""),
        ({"p/.git/HEAD": "ref: refs/heads/new\n"}, ""),
        ({"p/.git/HEAD": "ref: refs/heads/.invalid\n", "p/.git/reftable/tables.list": ""}, ""),
        ({"p/.git": "gitdir: ../main/.git/worktrees/p\n", "main/.git/worktrees/p/HEAD": "ref: refs/heads/main\n",
          "main/.git/worktrees/p/commondir": "../..\n", "main/.git/packed-refs": PACKED}, COMMIT),
        ({"p/.git": "gitdir: ../main/.git/worktrees/p\n", "main/.git/worktrees/p/HEAD": "ref: refs/heads/main\n",
          "main/.git/worktrees/p/commondir": "../..\n", "main/.git/refs/heads/main": f"{OTHER}\n"}, OTHER),
        ({"p/.git": "gitdir: ../.git/modules/p\n", ".git/modules/p/HEAD": f"{COMMIT}\n"}, COMMIT),
        ({"p/.git": "gitdir: ../gone\n"}, ""),
        ({"p/.git/HEAD": "no commit\n"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_the_commit_of_every_kind_of_checkout(tmp_path, monkeypatch, files, expected):
    write_all(tmp_path, files)
    monkeypatch.setattr(run_file, "__file__", str(tmp_path / "p" / "data" / "run_file.py"))
    assert run_file.commit() == expected


def test_the_commit_is_what_git_says(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path / "main", capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"git does not do it: {done.stderr}")
        return done.stdout.strip()

    (tmp_path / "main").mkdir()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    git("worktree", "add", "-q", "../tree", "-b", "side")
    git("commit", "-q", "--allow-empty", "-m", "y")
    for packed in (False, True):
        if packed:
            git("pack-refs", "--all")
        for folder, name in (("main", "HEAD"), ("tree", "side")):
            monkeypatch.setattr(run_file, "__file__", str(tmp_path / folder / "data" / "run_file.py"))
            assert run_file.commit() == git("rev-parse", name) != ""
