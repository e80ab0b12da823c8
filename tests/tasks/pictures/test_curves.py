"""Learning curves: what is drawn, not how it looks."""

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic import fake

import stablebptt as sb
from stablebptt.tasks.families import groups
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


def entries(figure):
    """What the legend names."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def looks(axes):
    return [(line.get_color(), line._unscaled_dash_pattern, line.get_marker()) for line in axes.get_lines()]


def test_mean_and_band_over_seeds(runs):
    figure = curves.learning_curves(runs)
    tests, updates, cosines = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["test loss", "squared norm of the updates", "cosine of M and R"]
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)
    assert entries(figure) == ["C (3 seeds)", "R (3 seeds)"]
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
    figure = curves.learning_curves([*runs[:2], *others], ("test",))
    axes, labels = figure.axes[0], entries(figure)
    assert len(labels) == 4 and labels[0].endswith("(2 seeds)")
    assert "learning rate 0.01" in labels[1] and "clip norm" in labels[2] and "poles 2" in labels[3]
    assert len({line.get_color() for line in axes.get_lines()}) == 4


def test_a_run_that_ended_early_does_not_shorten_the_others(runs):
    early = dataclasses.replace(runs[0], status="interrupted")
    early = with_history(early, test_loss=runs[0].history["test_loss"][:2])
    axes = curves.learning_curves([early, runs[1]], ("test",)).axes[0]
    line = axes.get_lines()[0]
    assert len(line.get_xdata()) == 4 and line.get_label() == "C (2 seeds, 1 unfinished)"
    assert line.get_ydata()[3] == runs[1].history["test_loss"][3]


def test_logarithmic_where_it_helps(runs):
    for values, scale in (([10.0, 1.0, 0.1, 0.01], "log"), ([1.0, 0.9, 0.8, 0.7], "linear"), ([1.0, 0.1, 0.0, 0.1], "linear")):
        figure = curves.learning_curves([with_history(runs[0], test_loss=np.array(values))], ("test",))
        assert figure.axes[0].get_yscale() == scale


def test_smoothing_is_centred_and_said(runs):
    run = with_history(runs[0], test_loss=np.array([4.0, 2.0, 6.0, 1.0]))
    for width, values in ((3, [3, 4, 3, 3.5]), (2, [5 / 1.5, 3.5, 3.75, 4 / 1.5]), (1, [4, 2, 6, 1])):
        figure = curves.learning_curves([run], ("test",), smooth=width)
        np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), values)
        assert (f"running means over {width} epochs, centred" in figure.get_suptitle()) == (width > 1)
    with pytest.raises(ValueError, match="smooth is 0"):
        curves.learning_curves([run], smooth=0)


def test_smoothing_stays_within_the_length(runs):
    figure = curves.learning_curves(runs[:1], ("test",), smooth=1000)
    assert "over 4 epochs" in figure.get_suptitle() and len(figure.axes[0].get_lines()[0].get_ydata()) == 4
    np.testing.assert_array_equal(curves.smoothed(np.array([1e30, np.nan, 1.0, 1.0, 1.0]), 3)[3:], 1.0)
    assert np.isnan(curves.smoothed(np.array([np.nan, np.nan, np.nan, 1.0]), 2)[0]) and len(curves.smoothed(np.zeros(0), 3)) == 0


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


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7, 20, 60])
def test_lines_that_can_be_told_apart(count):
    """Of runs in which more than one number differs: every line is named below the panels and looks like no other."""
    rates, sizes = (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6), range(1, 11)
    many = [fake(learning_rate=rate, batch_size=size) for size in sizes for rate in rates][:count]
    figure = curves.learning_curves(many, ("test", "update"))
    axes = figure.axes[0]
    assert len(set(entries(figure))) == count == len(axes.get_lines()) and len(set(map(str, looks(axes)))) == count
    figure.draw_without_rendering()
    below = figure.legends[0].get_window_extent()
    assert below.y1 <= min(a.get_tightbbox().y0 for a in figure.axes)
    assert 0 <= below.x0 and below.x1 <= figure.bbox.x1 and below.y0 >= 0


def test_a_swept_number_has_a_scale_of_colours():
    many = [fake(variant=v, learning_rate=10.0**-k, seed=s) for k in range(1, 11) for v in "CR" for s in range(2)]
    many[3] = dataclasses.replace(many[3], status="diverged: nan")
    figure = curves.learning_curves(many, ("test",))
    panel, scale = figure.axes
    assert scale.get_ylabel() == "learning rate (20 lines of 2 seeds)" and scale.get_yscale() == "log"
    assert len({line.get_color() for line in panel.get_lines()}) == 10
    assert {line.get_linestyle() for line in panel.get_lines()} == {"-", "--"}
    assert entries(figure) == ["C", "R", "R, learning rate 0.1 (2 seeds, 1 diverged)"]
    assert len(panel.collections) == 21  # bands, and a cross


def test_two_tasks():
    """What only one task has tells nothing; what varies within it does."""
    many = [fake(), fake("quantum"), fake("quantum", options={"target": 4}), fake("guidance")]
    figure = curves.learning_curves(many, ("test",))
    assert entries(figure) == [
        "C, task cartpole", "C, task quantum, target 3", "C, task quantum, target 4", "C, task guidance",
    ]  # fmt: skip
    assert figure.get_suptitle() == "4 problems"


def test_seeds_are_counted_once():
    run = fake()
    assert entries(curves.learning_curves([run, fake()])) == ["C"]
    assert entries(curves.learning_curves([run, fake(seed=1), run])) == ["C (2 seeds)"]
    other = fake(level=2.0)  # the same seed on another machine
    assert entries(curves.learning_curves([run, other])) == ["C (2 runs of 1 seed)"]


def test_few_epochs():
    many = [fake(variant=v, epochs=8, done=done, status="interrupted") for v, done in zip("CRM", (0, 1, 3))]
    figure = curves.learning_curves(many, ("test",))
    assert entries(figure) == [f"{v} (unfinished: {done} of 8 epochs)" for v, done in zip("CRM", (0, 1, 3))]
    point, line = figure.axes[0].get_lines()
    assert point.get_marker() == "o" and point.get_markevery() == [0] and line.get_markevery() == []
    figure = curves.learning_curves([fake(epochs=1)], ("test",))
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low < tick < high] == [1] and entries(figure) == ["C"]
    nothing = curves.learning_curves(many[:1], ("test",)).axes[0]
    assert nothing.texts[0].get_text() == "no epoch with a finite value" and not nothing.get_lines()


def test_runs_that_diverged_are_called_so():
    single, group = fake(variant="M", done=5, status="diverged: x"), [fake(), fake(seed=1, done=3, status="diverged: y")]
    group[1].history["test_loss"][-1] = np.inf
    figure = curves.learning_curves([single, *group], ("test",))
    assert entries(figure) == ["M (diverged in epoch 6)", "C (2 seeds, 1 diverged)"]
    crosses = [c.get_offsets().tolist()[0] for c in figure.axes[0].collections if len(c.get_offsets()) == 1]
    assert [5.0, single.history["test_loss"][4]] in crosses and [2.0, group[1].history["test_loss"][1]] in crosses
    assert np.isfinite(figure.axes[0].get_lines()[1].get_ydata()).all()


def test_a_run_without_a_finite_loss_did_not_diverge_in_an_epoch_beyond_its_last():
    assert entries(curves.learning_curves([fake(status="diverged: nan")], ("test",))) == ["C (diverged: no finite test loss)"]


def test_numbers_are_sorted_by_size_and_all_else_stays():
    many = [fake(variant=v, clip=c, batch_size=size) for size in (32, 8, 16) for v in "RC" for c in ("norm", "none")]
    expected = [(v, c, size) for v in "RC" for c in ("norm", "none") for size in ("8", "16", "32")]
    assert [tuple(alike.parts.values()) for alike in groups(many)] == expected


def test_a_gap_stays_a_gap(runs):
    run = with_history(runs[0], test_loss=np.array([3.0, np.nan, 2.0, 1.0]))
    line = curves.learning_curves([run], ("test",)).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [3, np.nan, 2, 1])
    assert line.get_markevery() == [0]


@pytest.mark.parametrize("epochs", [1, 2, 7, 30, 999, 6400, 100_000])
def test_epochs_are_whole_numbers_that_do_not_touch(epochs):
    figure = curves.new_figure(3.4, 2.7)
    axes = figure.subplots()
    axes.plot(np.arange(1, epochs + 1), np.ones(epochs))
    curves.epoch_axis(axes, epochs)
    FigureCanvasAgg(figure).draw()
    texts = [tick.label1 for tick in axes.xaxis.get_major_ticks() if axes.get_xlim()[0] <= tick.get_loc() <= axes.get_xlim()[1]]
    boxes = sorted(text.get_window_extent().extents[[0, 2]].tolist() for text in texts)
    assert boxes and all(one[1] + 3 < other[0] for one, other in itertools.pairwise(boxes))
    assert all(float(text.get_text()).is_integer() for text in texts)


def test_what_tells_runs_apart():
    def names(*runs):
        return [alike.name for alike in groups(list(runs))]

    assert names(fake(epochs=8), fake(epochs=9)) == ["C, epochs 8", "C, epochs 9"]
    assert names(fake(clip_at=1), fake(clip_at=1.0)) == ["C"]
    assert names(fake(), fake(optimizer=sb.optimizers.sgd(0.1))) == ["C, optimizer adam", "C, optimizer sgd"]
    rates = fake(), fake(learning_rate=0.01), fake(optimizer=sb.optimizers.sgd(0.1))  # sgd alone has a momentum, too
    adam = ["C, optimizer adam, learning rate 0.001", "C, optimizer adam, learning rate 0.01"]
    assert names(*rates) == [*adam, "C, optimizer sgd, learning rate 0.1"]
    assert names(fake(variant=(0.5, 1.0)), fake(variant=(0.25, 1.0))) == ["schedule [0.5, 1.0]", "schedule [0.25, 1.0]"]
    assert names(fake(variant=(0.5, 1.0)), fake()) == ["schedule", "C"]
    long = [fake(options={"hidden": [5] * n}) for n in (30, 31)]
    assert len(set(names(*long))) == 2 and max(map(len, names(*long))) < 80


def test_problems_of_ones_own_are_named_by_their_arguments():
    def own(stiffness, **more):
        options = {"arguments": {"stiffness": stiffness, **more}, "title": "spring", "parts": {"k": stiffness}}
        return dataclasses.replace(fake(), config=fake().config | {"task": "custom", "options": options})

    assert [alike.name for alike in groups([own(1, epochs=1), own(1, epochs=2)])] == ["C, option epochs 1", "C, option epochs 2"]
    assert [alike.name for alike in groups([own(1), own(2)])] == ["C, stiffness 1", "C, stiffness 2"]
    apart = own(1)
    apart.config["options"]["parts"] = {"k": 7}  # the code changed
    assert [alike.name for alike in groups([own(1), apart])] == ["C, parts.k 1", "C, parts.k 7"]
