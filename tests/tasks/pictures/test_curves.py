"""Learning curves: what is drawn, not how it looks."""

import dataclasses

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks.pictures import curves

COUNTS = {"train_count": 16, "test_count": 8}


def made(variant="C", seed=0, epochs=4, poles=1, **settings):
    problem = sb.problem("cartpole", poles=poles, steps=6, hidden=(5,))
    return sb.train(problem, variant, epochs, seed, **COUNTS, **settings)


@pytest.fixture(scope="module")
def runs():
    return [made(variant, seed) for variant in "CR" for seed in range(3)]


def with_history(run, **columns):
    return dataclasses.replace(run, history={**run.history, **columns})


def test_mean_and_band_over_seeds(runs):
    figure = curves.learning_curves(runs)
    tests, updates, cosines = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["test loss", "squared norm of the updates", "cosine of M and R"]
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)
    assert [text.get_text() for text in tests.get_legend().get_texts()] == ["C (3 seeds)", "R (3 seeds)"]
    for lines, members in zip(tests.get_lines(), (runs[:3], runs[3:])):
        values = np.array([run.history["test_loss"] for run in members])
        np.testing.assert_allclose(lines.get_ydata(), values.mean(axis=0))
        assert np.array_equal(lines.get_xdata(), [1, 2, 3, 4])
    assert len(tests.collections) == 2 and len(cosines.get_lines()) == 1
    band = tests.collections[0].get_paths()[0].vertices[:, 1]
    values = np.array([run.history["test_loss"] for run in runs[:3]])
    assert band.min() == pytest.approx(values.min()) and band.max() == pytest.approx(values.max())
    colours = [line.get_color() for line in tests.get_lines()]
    assert colours == [curves.COLOURS["C"], curves.COLOURS["R"]]
    assert cosines.get_yscale() == "linear" and updates.get_lines()[0].get_linestyle() == "-"


def test_only_runs_that_differ_in_the_seed_share_a_line(runs):
    others = [made(seed=9, optimizer=sb.optimizers.adam(0.01)), made(poles=2), made(clip="norm")]
    axes = curves.learning_curves([*runs[:2], *others], ("test",)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 4 and labels[0].endswith("(2 seeds)")
    assert "learning rate 0.01" in labels[1] and "poles 2" in labels[2] and "clip norm" in labels[3]
    assert len({line.get_color() for line in axes.get_lines()}) == 4


def test_a_run_that_ended_early_does_not_shorten_the_others(runs):
    early = with_history(runs[0], test_loss=runs[0].history["test_loss"][:2])
    axes = curves.learning_curves([early, runs[1]], ("test",)).axes[0]
    line = axes.get_lines()[0]
    assert len(line.get_xdata()) == 4 and line.get_label() == "C (2 seeds, 1 ended early)"
    assert line.get_ydata()[3] == runs[1].history["test_loss"][3]


def test_logarithmic_where_it_helps(runs):
    for values, scale in (([10.0, 1.0, 0.1, 0.01], "log"), ([1.0, 0.9, 0.8, 0.7], "linear"), ([1.0, 0.1, 0.0, 0.1], "linear")):
        figure = curves.learning_curves([with_history(runs[0], test_loss=np.array(values))], ("test",))
        assert figure.axes[0].get_yscale() == scale


def test_smoothing(runs):
    run = with_history(runs[0], test_loss=np.array([4.0, 2.0, 6.0, 1.0]))
    figure = curves.learning_curves([run], ("test",), smooth=2)
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [4, 3, 4, 3.5])
    assert "2 epochs" in figure.get_suptitle()
    with pytest.raises(ValueError, match="smooth is 0"):
        curves.learning_curves([run], smooth=0)


def test_curves_that_are_not_there(runs):
    assert len(curves.learning_curves(runs[3:]).axes) == 2  # R has no cosine
    with pytest.raises(ValueError, match="only runs of variant C"):
        curves.learning_curves(runs[3:], ("cosine",))
    with pytest.raises(ValueError, match="choose from test, train, update, cosine"):
        curves.learning_curves(runs, ("speed",))


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, runs):
    path = tmp_path / "p.png"
    path.write_bytes(b"before")

    class Broken:
        def savefig(self, *arguments, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curves.save(Broken, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    curves.save(lambda: curves.learning_curves(runs), path)
    assert path.read_bytes().startswith(b"\x89PNG")
