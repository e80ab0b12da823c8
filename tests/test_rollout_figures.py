"""Pictures and films of rollouts: axes, labels, lines and data, not pixels."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import stablebptt as sb
from stablebptt.tasks import films, rollout_figures
from stablebptt.tasks.rollouts import load_rollouts

PROBLEMS = {
    "cartpole": {"poles": 2, "steps": 9, "hidden": (5,)},
    "guidance": {"drivers": 2, "evaders": 3, "steps": 8, "hidden": (5,)},
    "quantum": {"points": 9, "width": 4, "steps": 7, "target": 2},
}


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for task, options in PROBLEMS.items():
        sb.train(sb.problem(task, **options), "C", 2, out=folder / f"{task}.h5", train_count=8, test_count=8)
        found[task] = load_rollouts(folder / f"{task}.h5")
    return found


def test_files_give_back_the_rollouts(rollouts):
    for task, found in rollouts.items():
        assert found.phases == ("before training", "after training") and found.count == 4
        assert found.states.shape == (2, 4, found.problem.steps + 1, *found.problem.state_shape), task


def test_cartpole(rollouts):
    found = rollouts["cartpole"]
    figure = rollout_figures.draw(found, 1)
    assert figure.get_suptitle() == "cartpole, 2 poles, initial state 1"
    assert len(figure.axes) == 8
    labels = [axes.get_ylabel() for axes in figure.axes[::2]]
    assert labels == ["height [m]", "angle [rad]", "cart [m]", "force [N]"]
    for column in (0, 1):
        plane, angles, cart, force = figure.axes[column::2]
        assert f"loss {found.loss[column, 1]:.3g}" in plane.get_title()
        assert np.array_equal(angles.get_lines()[1].get_ydata(), found.states[column, 1, :, 2, 0])
        assert np.array_equal(cart.get_lines()[0].get_ydata(), found.states[column, 1, :, 0, 0])
        assert np.array_equal(force.get_lines()[0].get_ydata(), found.controls[column, 1, :, 0])
        assert force.get_xlabel() == "time [s]" and plane.get_xlim()[1] - plane.get_xlim()[0] >= 2.4
        pole = plane.get_lines()[1].get_xydata()  # from the cart to the tip, at time 0
        assert np.hypot(*(pole[1] - pole[0])) == pytest.approx(1.0, rel=1e-6)  # twice the half length
        q = found.states[column, 1, 0, 1, 0]
        np.testing.assert_allclose(pole[1] - pole[0], [np.sin(q), np.cos(q)], atol=1e-6)
    legend = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
    assert legend == ["pole 1", "pole 2"]


def test_guidance(rollouts):
    found = rollouts["guidance"]
    figure = rollout_figures.draw(found, 0)
    assert len(figure.axes) == 2
    for column, axes in enumerate(figure.axes):
        paths = [line.get_xydata() for line in axes.get_lines()]
        for number in range(5):
            way, start, end = paths[3 * number : 3 * number + 3]
            expected = found.states[column, 0, :, number, 0]
            assert np.array_equal(way, expected) and np.array_equal(start[0], expected[0])
            assert np.array_equal(end[0], expected[-1])
        assert np.array_equal(paths[-1], [[0, 0]]) and axes.get_xlim() == axes.get_ylim() and axes.get_aspect() == 1
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"driver", "evader", "start", "end", "target"}


def test_drivers_that_leave_do_not_shrink_the_picture(rollouts):
    found = rollouts["guidance"]
    states = found.states.copy()
    states[1, 0, -1, 0, 0] = 1e4
    figure = rollout_figures.draw(dataclasses.replace(found, states=states), 0)
    assert figure.axes[1].get_xlim()[1] < 20
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["", "1 driver left the picture"]


def test_quantum(rollouts):
    found = rollouts["quantum"]
    figure = rollout_figures.draw(found, 2)
    panels = figure.axes[:6]
    assert [axes.get_ylabel() for axes in panels[::2]] == ["place in the box", "tilt (control)", "overlap with\neigenstate 2"]
    places, values = rollout_figures.density(found.states[:, 2], 9)
    np.testing.assert_allclose(values.sum(axis=-1) * places[1], 1, rtol=1e-5)  # a probability
    assert places[0] == 0 and places[-1] == pytest.approx(2) and np.all(values[..., [0, -1]] == 0)
    shown = panels[1].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(shown).reshape(values[1].T.shape), values[1].T)
    overlap = panels[5].get_lines()[0].get_ydata()
    assert found.loss[1, 2] == pytest.approx(np.sum(1 - overlap[1:]), rel=1e-4)


def test_systems_that_are_not_ours(rollouts):
    found = rollouts["cartpole"]
    problem = dataclasses.replace(found.problem, task="springs", title="springs")
    other = dataclasses.replace(found, problem=problem)
    figure = rollout_figures.draw(other, 0)
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [f"state [{problem.state_units}]", "control [N]"]
    assert len(figure.axes[0].get_lines()) == 6
    _, update = films.film(other, 0)
    update(3)


def test_a_trajectory_that_is_not_there(rollouts):
    for draw in (rollout_figures.draw, films.film):
        with pytest.raises(ValueError, match="trajectory is 4; it must be at most 3"):
            draw(rollouts["cartpole"], 4)


@pytest.mark.parametrize("task", PROBLEMS)
def test_films_move(rollouts, task):
    found = rollouts[task]
    figure, update = films.film(found, 0)
    assert [axes.get_title() for axes in figure.axes] == list(found.phases)
    update(found.problem.steps)
    assert f"t = {found.time[-1]:5.2f}" in figure.get_suptitle()
    last = found.states[1, 0, -1]
    drawn = [line.get_xydata() for line in figure.axes[1].get_lines()]
    if task == "cartpole":
        assert drawn[-1][0, 0] == last[0, 0]
    elif task == "guidance":
        heads = [line[0] for line in drawn[-5:]]
        np.testing.assert_array_equal(heads, last[:, 0])
    else:
        np.testing.assert_allclose(drawn[1][1:-1, 1], np.sum(last.astype(float) ** 2, axis=-1) / 0.2, rtol=1e-6)


def test_a_gif_has_all_pictures(rollouts, tmp_path):
    path = tmp_path / "film.gif"
    pictures = films.save_film(rollouts["guidance"], 0, path, fps=10, every=3, dpi=40)
    assert pictures == 3 + 11  # steps 0, 3, 6; the last one for one second more
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames >= 4
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="every is 0"):
        films.save_film(rollouts["guidance"], 0, path, every=0)
    with pytest.raises(ValueError, match=r"choose from .gif, .mp4"):
        films.save_film(rollouts["guidance"], 0, tmp_path / "film.avi")


def test_mp4_needs_ffmpeg(rollouts, tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    if shutil.which("ffmpeg"):
        films.save_film(rollouts["guidance"], 0, path, dpi=40)
        assert b"ftyp" in path.read_bytes()[:32]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="ffmpeg"):
        films.save_film(rollouts["guidance"], 0, tmp_path / "other.mp4")
    assert not (tmp_path / "other.mp4").exists()
