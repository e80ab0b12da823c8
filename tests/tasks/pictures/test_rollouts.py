"""Pictures and films of rollouts: axes, labels, lines and data, not pixels."""

import dataclasses
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import stablebptt as sb
from stablebptt.adjoint.generics import cost_vjp, step_vjp
from stablebptt.data import run_file
from stablebptt.data.storage import FileFormatError, Variable
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import System, cost, step
from stablebptt.tasks import quantum
from stablebptt.tasks.pictures import curves, films
from stablebptt.tasks.pictures import rollouts as rollout_pictures
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
    figure = rollout_pictures.draw(found, 1)
    assert figure.get_suptitle() == "cartpole, 2 poles, initial state 1"
    assert len(figure.axes) == 8
    labels = [axes.get_ylabel() for axes in figure.axes[::2]]
    assert labels == ["height [m]", "angle [rad]", "cart [m]", "force [N]"]
    for column in (0, 1):
        plane, angles, cart, force = figure.axes[column::2]
        assert f"loss {found.loss[column, 1]:.3g}" in plane.get_title()
        assert np.array_equal(angles.get_lines()[1].get_ydata(), found.states[column, 1, :, 2, 0])
        assert np.array_equal(cart.get_lines()[0].get_ydata(), found.states[column, 1, :, 0, 0])
        times, forces = force.get_lines()[0].get_data()  # the last one acts until the end
        assert np.array_equal(forces[:-1], found.controls[column, 1, :, 0]) and forces[-1] == forces[-2]
        assert np.array_equal(times, found.time)
        assert force.get_xlabel() == "time [s]" and plane.get_xlim()[1] - plane.get_xlim()[0] >= 2.4
        pole = plane.get_lines()[1].get_xydata()  # from the cart to the tip, at time 0
        assert np.hypot(*(pole[1] - pole[0])) == pytest.approx(1.0, rel=1e-6)  # twice the half length
        q = found.states[column, 1, 0, 1, 0]
        np.testing.assert_allclose(pole[1] - pole[0], [np.sin(q), np.cos(q)], atol=1e-6)
    legend = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
    assert legend == ["pole 1", "pole 2"]


def test_guidance(rollouts):
    found = rollouts["guidance"]
    figure = rollout_pictures.draw(found, 0)
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
    figure = rollout_pictures.draw(dataclasses.replace(found, states=states), 0)
    assert figure.axes[1].get_xlim()[1] < 20
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["", "1 driver left the picture"]


def test_quantum(rollouts):
    found = rollouts["quantum"]
    figure = rollout_pictures.draw(found, 2)
    panels = figure.axes[:6]
    assert [axes.get_ylabel() for axes in panels[::2]] == ["place in the box", "tilt (control)", "overlap with\neigenstate 2"]
    places, values = quantum.density(found.states[:, 2], 9)
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
    figure = rollout_pictures.draw(other, 0)
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [f"state [{problem.state_units}]", "control [N]"]
    assert len(figure.axes[0].get_lines()) == 6
    _, update = films.film(other, 0)
    update(3)


def test_a_trajectory_that_is_not_there(rollouts):
    for draw in (rollout_pictures.draw, films.film):
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


@pytest.mark.slow
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


# --- names of one's own -------------------------------------------------------------------------------------------


class Rest(System):
    """Nothing moves."""


class Nothing(Struct):
    """Costs nothing."""


@implements(step, Rest)
def _rest(system, x, c, x_next):
    for k in range(x.shape[0]):
        x_next[k] = x[k]


@implements(step_vjp, Rest)
def _rest_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        for k in range(lam.shape[1]):
            lam_x[v, k] += lam[v, k]


@implements(cost, Nothing)
def _nothing(loss, x):
    return 0 * x[0]


@implements(cost_vjp, Nothing)
def _nothing_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += 0 * cost_bar


def own(state_shape, control_shape=(1,), **more):
    return sb.problem(
        system=Rest(), controller=(2,), loss=Nothing(), sample=lambda random, count: random.random((count, *state_shape)),
        steps=5, dt=0.1, state_shape=state_shape, control_shape=control_shape, **more,
    )  # fmt: skip


def from_file(folder, problem):
    """Rollouts as a file gives them back, whose code is not known; nothing is computed."""
    random, path = np.random.default_rng(0), folder / "paths.h5"
    shapes = {"states": (6, *problem.state_shape), "controls": (5, *problem.control_shape), "loss": ()}
    arrays = {name: random.random((1, 2, *shape)) for name, shape in shapes.items()}
    run = SimpleNamespace(problem=problem, config={"task": "custom", "options": problem.options}, status="complete")
    run_file.save_paths(path, run, {"time": problem.time, **arrays}, 0)
    return load_rollouts(path)


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def rendered(figure):
    """Draw it as a file, where a formula that cannot be read would be found."""
    figure.savefig(io.BytesIO(), dpi=40)
    return figure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "axes", "names"),
    [
        ((2,), ["place", "x_dot"], ["place", "x_dot"]),
        ((2,), [("place", "rate")], ["place", "rate"]),
        ((2,), np.array(["place", "rate"]), ["place", "rate"]),
        ((2,), None, ["0", "1"]),
        ((2, 2), [["left", "right"], ["place", "rate"]], ["left, place", "left, rate", "right, place", "right, rate"]),
        ((2, 2), [sb.Axis("mass", "the masses", ["left", "right"]), ["place", "rate"]],
         ["left, place", "left, rate", "right, place", "right, rate"]),
        ((2, 1), [sb.Axis("depth", "depth", (0.5, 1.25), "m"), sb.Axis("what", "what", ("heat",))], ["0.5, heat", "1.25, heat"]),
    ],
)  # fmt: skip
def test_names_reach_the_pictures(tmp_path, shape, axes, names):
    """From the problem through the file into the picture and the film; for states and for controls."""
    for problem in (own(shape, state_axes=axes), own((1,), shape, control_axes=axes)):
        found = from_file(tmp_path, problem)
        states, controls = rendered(rollout_pictures.draw(found, 1)).axes
        assert sorted(map(texts, (states, controls)), key=len) == [[], names]
        assert states.get_ylabel() == "state [1]" and controls.get_ylabel() == "control [1]"
        (film,) = rendered(films.film(found, 0)[0]).axes
        assert texts(film) == texts(states)
    if axes is not None and isinstance(axes[0], sb.Axis):
        assert (found.control_axes[0].name, found.control_axes[0].units) == (axes[0].name, axes[0].units)


def test_a_single_number_is_named_at_its_axis(tmp_path):
    problem = own((1,), state_axes=["place"], control_axes=["force"], state_units="m", control_units="N")
    found = from_file(tmp_path, problem)
    assert [axes.get_ylabel() for axes in rollout_pictures.draw(found, 0).axes] == ["place [m]", "force [N]"]
    assert films.film(found, 0)[0].axes[0].get_ylabel() == "place [m]"


@pytest.mark.thinned(4)
@pytest.mark.parametrize(("shape", "count"), [((12,), 12), ((13,), 13), ((65,), 65), ((13, 5), 65)])
def test_a_picture_of_the_first_numbers_says_so(tmp_path, shape, count):
    found = from_file(tmp_path, own(shape, shape))
    note = f"the first 12 of {count}" if count > 12 else None
    for axes in (*rendered(rollout_pictures.draw(found, 0)).axes, *rendered(films.film(found, 0)[0]).axes):
        assert len(axes.get_lines()) == len(texts(axes)) == 12
        assert ((note or "of") in axes.get_ylabel()) == (count > 12)
        assert axes.get_legend().get_title().get_text() == (note or "")
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
        assert len(looks) == 12
    lines = rollout_pictures.draw(found, 0).axes[0].get_lines()
    assert np.array_equal([line.get_ydata() for line in lines], found.states[0, 0].reshape(6, -1).T[:12])


ODD = ["_x", "$", "$\\frac{", "a$b$c", "$\\theta$", "θ̇ é", "100 %", "#&{}^_~", "\\", "a_b", "two  spaces"]


def test_odd_names_are_shown_as_they_are(tmp_path):
    found = from_file(tmp_path, own((len(ODD),), state_axes=ODD, title="a $\\bad{ title_", state_units="$^", control_units="$_{"))
    figure, (film, update) = rollout_pictures.draw(found, 0), films.film(found, 0)
    update(3)
    assert texts(rendered(figure).axes[0]) == ODD == texts(rendered(film).axes[0])
    assert figure.get_suptitle().startswith("a $\\bad{ title_") and film.get_suptitle().startswith("a $\\bad{ title_")
    assert figure.axes[0].get_ylabel() == "state [$^]"


def test_long_names_stay_within_the_picture(tmp_path):
    names = [f"the temperature of room {k}, which lies on the upper floor of house {k}" for k in range(12)]
    names[3] = "w" * 300
    found = from_file(tmp_path, own((12,), state_axes=names))
    for figure, letters, lines in ((rollout_pictures.draw(found, 0), 30, 3), (films.film(found, 0)[0], 20, 1)):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        shown = [text.split("\n") for text in texts(axes)]
        assert all(len(text) <= lines and max(map(len, text)) <= letters for text in shown)
        assert len({tuple(text) for text in shown}) == 12 and shown[3][0].startswith("www")
        outer, inner = figure.bbox, axes.get_legend().get_window_extent()
        assert inner.y0 >= outer.y0 and inner.x1 <= outer.x1 and axes.bbox.height > 0.3 * outer.height


@pytest.mark.parametrize(
    ("axes", "error", "words"),
    [
        ("ab", TypeError, "state_axes is 'ab'; give a list of words"),
        (sb.Axis("a", "a", ("b", "c")), TypeError, r"state_axes is Axis\(name='a'.*for every axis an Axis"),
        (2, TypeError, "state_axes is 2"),
        (["a", "b", "c"], ValueError, r"state_axes have \[3\] places; the shape is \(2,\)"),
        ([["a", "b"], ["c"]], ValueError, r"state_axes have \[2, 1\] places"),
        ([["a", 1]], ValueError, "places of axis state_0 are .*do not mix them"),
        ([[1, 2j]], ValueError, "places of axis state_0 are"),
        ([[1, np.nan]], ValueError, "places of axis state_0 are"),
        ([[True, False]], ValueError, "places of axis state_0 are"),
        ([[10**30, 1]], ValueError, "places of axis state_0 are"),
        ([[[1], [2]]], ValueError, "places of axis state_0 are"),
        (["a", " "], ValueError, "places of axis state_0 are"),
        (["a", "b\0"], ValueError, "places of axis state_0 are"),
        (["a", "\ud800"], ValueError, "places of axis state_0 are"),
        ([7], ValueError, "places of axis state_0 are 7"),
        (["a" * 30_000, "b" * 30_000], ValueError, "more words than a file keeps"),
    ],
)
def test_axes_that_do_not_fit(axes, error, words):
    with pytest.raises(error, match=words):
        own((2,), state_axes=axes)


def test_the_largest_axes_can_be_kept(tmp_path):
    names = [f"名{k:04d}ab" for k in range(4000)]
    found = from_file(tmp_path, own((4000,), state_axes=names))
    assert found.state_axes[0].places == tuple(names)


def test_names_of_older_and_of_foreign_files(tmp_path, monkeypatch):
    def places(**attributes):
        return run_file._places(Variable(np.arange(2), ("a",), "1", "a", {"flag_values": [0, 1], **attributes}))

    assert places(flag_meanings="place angle_rate") == ("place", "angle rate")
    assert places(flag_meanings="a_b c", names='["a_b", "c"]') == ("a_b", "c")
    for names in ("[", "3", '["a"]', "[1, 2]", "[" * 60_000, 5):
        assert places(flag_meanings="x y z", names=names) == (0, 1)
    bad = Variable(np.array([np.nan]), ("a",), "1", "a")
    monkeypatch.setattr(run_file, "_axes", lambda group, name: [(bad, (np.nan,))])
    with pytest.raises(FileFormatError, match="places of axis a are"):
        from_file(tmp_path, own((1,)))


def test_odd_titles_of_learning_curves(rollouts):
    run = sb.train(rollouts["guidance"].problem, "C", 1, train_count=4, test_count=4)
    problem = dataclasses.replace(run.problem, title="$\\bad{")
    odd = dataclasses.replace(run, problem=problem, config={**run.config, "note": "$_{"})
    figure = rendered(curves.learning_curves([run, odd], ("test",)))
    assert "$\\bad{" in figure.get_suptitle() and "C, note $_{" in [text.get_text() for text in figure.legends[0].get_texts()]
