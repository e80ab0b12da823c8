"""What notebooks show."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks.settings import OPTIONS

COUNTS = {"train_count": 8, "test_count": 5}


@pytest.fixture(scope="module")
def run():
    return sb.train(sb.problem("cartpole", steps=4, hidden=(4,)), "C", 3, **COUNTS)


@pytest.mark.parametrize("what", ["run", "path", "gradient", "problem", "progress", "loss"])
def test_what_is_shown_fits_five_lines(run, what):
    problem, told = run.problem, []
    theta, x0 = run.theta, run.problem.sample(3)
    if what == "progress":
        sb.train(problem, "C", 1, report=told.append, **COUNTS)
    found = {
        "run": run,
        "path": problem.rollout(theta, x0),
        "gradient": problem.gradient(theta, x0, "C"),
        "problem": problem,
        "progress": told and told[0],
        "loss": problem.loss(theta, x0),
    }[what]
    shown = repr(found)
    assert shown.count("\n") < 5 and len(shown) < 400 and "array(" not in shown
    assert found == found and isinstance(hash(found), int) and (what in ("loss",) or found != object())


def test_a_run_in_words_and_as_a_table(run):
    losses = run.history["test_loss"]
    assert repr(run).startswith("Run of cartpole, 1 pole: variant C, seed 0\n  3 of 3 epochs, complete\n")
    assert f"lowest {losses.min():.4g} (epoch {losses.argmin() + 1})" in repr(run)
    shown = run._repr_html_()
    assert shown.count("<tr>") == 6 and "<th>variant</th><td>C</td>" in shown and "data:image/png;base64," in shown


def test_runs_compare_and_hash(run):
    other = sb.train(run.problem, "C", 3, **COUNTS)
    assert run == run and run != other and len({run, other, run}) == 2


@pytest.mark.slow
def test_pictures_and_films(run, tmp_path):
    path = run.problem.rollout(run.theta, run.problem.sample(2))
    for figure in (run.plot(), run.plot(1), run.plot(curves=("test",), smooth=2), path.plot(1)):
        assert figure._repr_png_().startswith(b"\x89PNG")
    for film in (run.animate(every=4, fps=2), path.animate(every=4, fps=2)):
        assert re.match(r'<img src="data:image/gif;base64,R0lG', film._repr_html_())
        assert film.save(tmp_path / "film.gif") >= 3 and Path(tmp_path / "film.gif").stat().st_size > 1000
    with pytest.raises(ValueError, match="knows no problem"):
        type(path)(path.time, path.states, path.controls).plot()
    with pytest.raises(ValueError, match="trajectory"):
        run.plot(17)


def test_an_unfinished_run_is_shown(run):
    empty = {name: np.zeros(0) for name in run.history}
    early = sb.tasks.runs.Run(run.config, empty, run.theta, run.theta, run.problem, run.trajectories, "interrupted")
    assert "0 of 3 epochs, interrupted\n  test loss none" in repr(early) and "<img" not in early._repr_html_()


def test_help_shows_every_option_with_default_and_meaning():
    for task in sb.tasks.TASKS.values():
        for option in task.options:
            assert f"{option.name} : default {option.default!r}" in sb.problem.__doc__ and option.help in sb.problem.__doc__
            assert option.name in inspect.signature(sb.problem).parameters
    for function in (sb.train, sb.train_seeds):
        for name, option in OPTIONS.items():
            if name != "seed" or function is sb.train:
                assert inspect.signature(function).parameters[name].default == option.default
            assert f"{name} : default {option.default!r}" in function.__doc__ and option.help in function.__doc__


def test_a_name_is_no_problem():
    with pytest.raises(TypeError, match=r"problem is 'cartpole'; give what sb.problem makes, such as sb.problem\('cartpole'\)"):
        sb.train("cartpole")
