"""Losses that were not computed, with --evaluate-every: what everything that reads a history makes of them."""

import dataclasses
import html
import json
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic import fake

import stablebptt as sb
from stablebptt.console import output
from stablebptt.data import summary
from stablebptt.data.run_file import LOSSES, Content
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import bars, report_pages, reports, sweeps
from stablebptt.tasks.pictures import curves, notebook
from stablebptt.tasks.sweeps import drive, workers

SIZES = {"train_count": 8, "test_count": 5}
SMALL = "--steps 4 --hidden 4 --train-count 8 --test-count 5 --variant R".split()


@pytest.fixture(scope="module")
def problem():
    return sb.problem("cartpole", steps=4, hidden=(4,))


def stopped(problem, path, done, every=3):
    """The file of a run that was interrupted after some epochs."""

    def stop(progress):
        if progress.epoch == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sb.train(problem, "C", 20, out=path, evaluate_every=every, report=stop, **SIZES)
    return sb.load(path)


def at(run, *epochs):
    """Test losses of some epochs."""
    return [run.history["test_loss"][epoch - 1] for epoch in epochs]


# --- at the terminal ----------------------------------------------------------------------------------------------


def test_a_training_at_the_terminal(run):
    result = run("cartpole", "train", *SMALL, "--epochs", 5, "--evaluate-every", 2, "--json", "--out", "run.h5")
    assert result.code == 0, result.err
    records, full = [json.loads(line) for line in result.out.splitlines()], sb.load("run.h5").history
    for record, due in zip(records[:5], (0, 1, 0, 1, 1), strict=True):
        assert type(record["evaluated"]) is int and record["evaluated"] == due
        assert all((record[name] is None) == (not due) for name in LOSSES) and record["loss"] > 0
        assert not due or record["test_loss"] == full["test_loss"][record["epoch"] - 1]
    assert records[5]["event"] == "finished" and records[5]["test_loss"] == full["test_loss"][-1]
    assert records[5]["best_epoch"] in (2, 4, 5)
    assert "evaluate_every is 0; it must be at least 1" in run("cartpole", "train", "--evaluate-every", 0, "--out", "x.h5").err
    text = " ".join(run("cartpole", "train", "--help").out.split("Training:\n")[1].split())
    assert "--evaluate-every INTEGER Epochs per evaluation; the last is always evaluated. [default: 1]" in text


def test_resuming_takes_it_from_the_file(run):
    words = ["cartpole", "train", *SMALL, "--out", "run.h5"]
    assert run(*words, "--epochs", 2, "--evaluate-every", 2).code == 0
    assert run(*words, "--epochs", 5, "--resume").code == 0
    found = sb.load("run.h5")
    assert found.config["evaluate_every"] == 2 and found.history["evaluated"].tolist() == [0, 1, 0, 1, 1]
    result = run(*words, "--epochs", 9, "--resume", "--evaluate-every", 3)
    assert result.code == 2 and "evaluate_every: 2 in the file, 3 given" in result.err and result.err.count("\n") == 1


def test_seeds_and_variables(run, monkeypatch):
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_EVALUATE_EVERY", "2")
    assert run("cartpole", "train", *SMALL, "--epochs", 3, "--seeds", "0:2", "--quiet", "--out", "runs").code == 0
    for seed in range(2):
        assert sb.load(f"runs/seed_{seed}.h5").history["evaluated"].tolist() == [0, 1, 1]


def test_lines_and_bars_show_the_last_loss_that_is_known(problem, monkeypatch, capsys):
    told, seen = [], []
    monkeypatch.setattr(output, "_lines", lambda line, at_once: lambda done, total, words: told.append(words))
    with output.progress(5, quiet=False, as_json=False) as report:
        run = sb.train(problem, "R", 5, evaluate_every=2, report=report, **SIZES)
    losses = [f"test loss {loss:.5g}" for loss in at(run, 2, 4, 5)]
    assert told == ["", losses[0], losses[0], losses[1], losses[2]]
    monkeypatch.setattr(bars, "_format", lambda drawn, done, words: seen.append(words) or "{percentage:3.0f}%")
    sb.train(problem, "R", 5, evaluate_every=2, progress=True, **SIZES)
    assert seen == told


# --- files in words -----------------------------------------------------------------------------------------------


def test_inspecting_a_run_between_two_evaluations(problem, tmp_path):
    run = stopped(problem, tmp_path / "run.h5", 8)
    found = summary.summarize(tmp_path / "run.h5")
    assert found["evaluated"] == [0, 0, 1, 0, 0, 1, 0, 0] and json.loads(json.dumps(found)) == found
    assert found["test_loss"] == [None, None, at(run, 3)[0], None, None, at(run, 6)[0], None, None]
    losses, text = found["losses"], summary.text(found)
    assert (losses["epochs"], losses["last_epoch"], losses["last_test_loss"]) == (8, 6, at(run, 6)[0])
    assert losses["last_train_loss"] == run.history["train_loss"][5] and losses["best_epoch"] in (3, 6)
    assert f"last {at(run, 6)[0]:.6g} (epoch 6), lowest" in text and "evaluate_every 3" in " ".join(text.split())
    names, *rows = (line.split(",") for line in summary.csv_text(tmp_path / "run.h5").splitlines())
    assert [row[names.index("evaluated")] for row in rows] == list("00100100")


def test_the_small_curve_has_no_gaps_but_those_that_were_computed():
    values = [None, None, 3.0, None, None, 6.0, None, None, None, None, None, 2.0, None]
    due = [value is not None for value in values]
    assert summary.through(values, due)[2:12] == [3.0, 4.0, 5.0, 6.0, *np.linspace(6, 2, 7)[1:]]
    assert np.isnan(summary.through(values, due)[:2] + summary.through(values, due)[12:]).all()
    due[8] = True  # a NaN
    np.testing.assert_array_equal(summary.through(values, due)[5:], [6, *[np.nan] * 5, 2, np.nan])
    assert np.isnan(summary.through([None] * 3, [0] * 3)).all()
    marks = [line.partition("|")[2] for line in summary.text_plot(summary.through([9.0, None, None, 1.0], [1, 0, 0, 1]))[:-2]]
    assert {place for line in marks for place, mark in enumerate(line) if mark == "*"} == {0, 1, 2, 3}


def test_files_of_other_lengths_are_refused(problem, tmp_path):
    sb.train(problem, "R", 3, out=tmp_path / "run.h5", **SIZES)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file["history/evaluated"]
        file["history"].create_dataset("evaluated", data=np.ones((2, 2)), fletcher32=True)
        file["history/evaluated"].attrs.update(units="1", long_name="x")
    with pytest.raises(FileFormatError, match="columns of the history are not of one length"):
        sb.load(tmp_path / "run.h5")
    assert "epochs      0 of 3" in summary.text(summary.summarize(tmp_path / "run.h5"))


# --- everything that reads ----------------------------------------------------------------------------------------


READERS = {
    "repr": repr,
    "table": lambda run: run._repr_html_(),
    "curves": lambda run: [run.plot(curves=tuple(curves.CURVES), smooth=n).draw_without_rendering() for n in (1, 3, 99)],
    "learned": output.learned,
    "trajectory": lambda run: run.plot(0),
}
COMMANDS = [
    "inspect run.h5", "inspect run.h5 --json", "inspect run.h5 --csv", "inspect run.h5 --datasets", "report .",
    "plot run.h5 other.h5 --curve train --smooth 2 --out a.png", "cartpole simulate run.h5 --count 2 --best --out b.h5",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("done", [1, 3, 7])
def test_every_reader_copes(run, problem, tmp_path, done):
    """With a run that was interrupted before, at and after an evaluation: no error, no warning."""
    found = stopped(problem, tmp_path / "run.h5", done)
    sb.train(problem, "C", 20, seed=1, out=tmp_path / "other.h5", evaluate_every=3, **SIZES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in READERS.values():
            read(found)
        for words in COMMANDS if done != 3 else COMMANDS[:1]:
            result = run(*words.split())
            assert result.code == 0, (words, result.err)


def test_a_run_in_words(problem, tmp_path):
    early, late = stopped(problem, tmp_path / "a.h5", 2), stopped(problem, tmp_path / "b.h5", 4)
    assert "2 of 20 epochs, interrupted\n  test loss none" in repr(early) and "<img" not in early._repr_html_()
    loss = f"{at(late, 3)[0]:.4g}"
    assert repr(late).endswith(f"4 of 20 epochs, interrupted\n  test loss {loss} (epoch 3), lowest {loss} (epoch 3)")
    assert f"<td>{html.escape(notebook.facts(late)['test loss'])}</td>" in late._repr_html_()
    (line,) = [line for line in notebook.learning_curve(late).axes[0].get_lines() if line.get_label() == "test loss"]
    assert line.get_xydata().tolist() == [[3, at(late, 3)[0]]]
    assert "losses      none computed yet" in summary.text(summary.summarize(tmp_path / "a.h5"))


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_line_goes_through_the_evaluated_epochs():
    run = fake(epochs=12, evaluate_every=5)
    tests, updates = curves.learning_curves([run], ("test", "update")).axes
    assert tests.get_lines()[0].get_xydata().tolist() == [[epoch, at(run, epoch)[0]] for epoch in (5, 10, 12)]
    assert updates.get_lines()[0].get_xdata().tolist() == list(range(1, 13))
    assert len(tests.get_lines()[0].get_markevery()) == 0  # none stands alone
    figure = curves.learning_curves([run], ("test",), smooth=11)  # five on either side
    expected = [np.mean(at(run, *epochs)) for epochs in ((5, 10), (5, 10, 12), (10, 12))]
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), expected)


def test_a_loss_that_is_not_finite_stays_a_gap():
    run = fake(epochs=12, evaluate_every=3)
    run.history["test_loss"][5] = np.nan
    line = curves.learning_curves([run], ("test",)).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), [[3, at(run, 3)[0]], [6, np.nan], *[[k, at(run, k)[0]] for k in (9, 12)]])
    assert line.get_markevery() == [0]


def test_a_mean_goes_through_epochs_that_all_know():
    """One of the seeds was the shorter run at first; the fourth ended before the others."""
    runs = [fake(seed=seed, epochs=12, evaluate_every=5) for seed in range(3)]
    runs[1].history["evaluated"][6] = 1
    runs[1].history["test_loss"][6] = 1e3
    runs.append(fake(seed=3, epochs=12, evaluate_every=5, done=7, status="diverged: x"))
    line, found = curves.learning_curves(runs, ("test",)).axes[0].get_lines()[0], reports.families(map(content, runs))
    means = [np.mean([at(run, epoch)[0] for run in runs if len(run.history["epoch"]) >= epoch]) for epoch in (5, 10, 12)]
    assert line.get_xdata().tolist() == [5, 10, 12]
    np.testing.assert_allclose(line.get_ydata(), means)
    drawn = reports.draw(found, "cartpole").axes[0].get_lines()[0]
    np.testing.assert_allclose(drawn.get_xydata(), line.get_xydata())
    assert [[5, at(runs[3], 5)[0]]] in [each.get_offsets().tolist() for each in line.axes.collections]  # a cross


# --- sweeps and reports -------------------------------------------------------------------------------------------


def content(run):
    return Content(run.config, {}, run.history, run.theta, run.theta, {}, {}, run.status, path=f"s{run.config['seed']}.h5")


def test_numbers_of_a_report():
    whole, part, early = (fake(seed=seed, epochs=12, evaluate_every=5, done=done) for seed, done in enumerate((12, 8, 3)))
    part, early = (dataclasses.replace(run, status="interrupted") for run in (part, early))
    (family,) = found = reports.families(map(content, (whole, part, early)))
    np.testing.assert_array_equal(family.last(), [*at(whole, 12), *at(part, 5), np.nan])
    np.testing.assert_array_equal(family.best(), [*at(whole, 12), *at(part, 5), np.nan])
    assert [(row[4], row[6]) for row in reports.run_rows(found)] == [
        ("12/12", f"{at(whole, 12)[0]:.4g}"), ("8/12", f"{at(part, 5)[0]:.4g}"), ("3/12", "-")
    ]  # fmt: skip
    table = reports.table(found)["runs"]
    np.testing.assert_array_equal(table["last_test_loss"].values, family.last())
    page = report_pages.markdown(reports.page_of(Path("x"), found, [], {}))
    assert re.search(r"the same in all: .*evaluate every 5", page)


def test_a_plan_and_its_runs(tmp_path):
    plan = 'task = "cartpole"\n[options]\nsteps = 4\nhidden = [4]\n[train]\nepochs = 3\ntrain_count = 8\ntest_count = 5\n'
    (tmp_path / "plan.toml").write_text(f"{plan}evaluate_every = [1, 2]\n")
    often, rarely = sweeps.read_plan(tmp_path / "plan.toml")
    for planned, due in ((often, [1, 1, 1]), (rarely, [0, 1, 1])):
        outcome, run = sweeps.run_one(planned, tmp_path), sb.load(tmp_path / planned.name)
        assert run.history["evaluated"].tolist() == due and run.config == planned.config
        assert outcome.status == "complete" and outcome.test_loss == run.history["test_loss"][-1]
    assert [run.name for run in (often, rarely)] == [run.name for run in sweeps.read_plan(tmp_path / "plan.toml")]
    with pytest.raises(ValueError, match="evaluate_every is 0; it must be at least 1"):
        sweeps.make_plan({"task": "cartpole", "train": {"evaluate_every": 0}})


def test_runs_that_are_evaluated_in_every_epoch_keep_their_names():
    """Those of version 0.1: a sweep goes on with a folder of older runs."""
    (planned,) = sweeps.make_plan({"task": "cartpole", "options": {"steps": 6, "hidden": [5]}, "train": {"epochs": 3}})
    assert planned.config["evaluate_every"] == 1
    assert planned.name == "cartpole-1-pole-C-none-seed0-50bef633.h5"


def test_how_an_interrupted_run_of_a_sweep_stands(problem, tmp_path):
    run = stopped(problem, tmp_path / "late.h5", 5)
    outcome = workers.outcome_of(tmp_path / "late.h5")
    assert (outcome.status, outcome.epochs, outcome.test_loss) == ("interrupted", 5, at(run, 3)[0])
    stopped(problem, tmp_path / "early.h5", 2)
    early = output.event(workers.outcome_of(tmp_path / "early.h5"))
    assert early["epochs"] == 2 and np.isnan(early["test_loss"]) and np.isnan(early["best_test_loss"])


def test_an_estimate_counts_the_evaluations(monkeypatch):
    monkeypatch.setattr(drive, "_compile", lambda runs: None)
    monkeypatch.setattr(drive, "_update_seconds", lambda config, settings: 1.0)
    train = {"epochs": 10, "train_count": 8, "test_count": 8, "evaluate_every": [1, 5]}
    runs = sweeps.make_plan({"task": "cartpole", "options": {"steps": 4, "hidden": [4]}, "train": train})
    assert list(sweeps.estimate(runs).runs.values()) == pytest.approx([10 * (1 + 0.7), 10 * (1 + 0.7 / 5)])
