"""Problems are compared by content, and refusals name what differs."""

import dataclasses
import json

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.adjoint import cost_vjp, step_vjp
from stablebptt.data import run_file
from stablebptt.kernels import Loss, System, cost, implements, step
from stablebptt.tasks import custom, descriptions, runs, training


class Tabled(System):
    """Number, and a long table; steps and losses are never computed here."""

    stiffness: float
    table: np.ndarray
    count: int = 2

    state_shape = (2,)
    control_shape = (1,)


class Away(Loss):
    place: float


@implements(step, Tabled)
def _step(system, x, c, x_next):
    x_next[0], x_next[1] = x[0], x[1] + c[0]


@implements(step_vjp, Tabled)
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    for v in range(lam.shape[0]):
        lam_x[v, 0] += lam[v, 0]
        lam_x[v, 1] += lam[v, 1]
        lam_c[v, 0] += lam[v, 1]


@implements(cost, Away)
def _cost(loss, x):
    return (x[0] - loss.place) ** 2


@implements(cost_vjp, Away)
def _cost_vjp(loss, x, cost_bar, x_bar):
    x_bar[0] += 2 * cost_bar * (x[0] - loss.place)


def sample(random, count):
    return random.uniform(-1, 1, (count, 2))


def make(stiffness=2.0, change=None, place=1.0, steps=3, count=2, **more):
    table = np.arange(3000.0)
    if change is not None:
        table[1500] = change
    system = Tabled(stiffness, table, count)
    given = {"controller": (2,), "sample": sample, "steps": steps, "dt": 0.1, **more}
    return sb.problem(system=system, loss=Away(place), **given)


def differ(one, other):
    return descriptions.differences(one.options, other.options)


def test_equal_numbers_are_equal_however_they_are_written():
    for other in (make(stiffness=2, place=1), make(stiffness=np.float64(2)), make(count=2.0), make(place=np.int32(1))):
        assert differ(make(), other) == []
    assert json.loads(json.dumps(make().options)) == make().options


def test_print_options_do_not_matter():
    before = make().options
    with np.printoptions(precision=2, threshold=5):
        assert descriptions.differences(before, make().options) == []


def test_the_field_that_differs_is_named():
    (line,) = differ(make(), make(change=-1.0))
    assert line.startswith("system.table: float32 array of shape (3000,)") and "\n" not in line
    assert differ(make(), make(stiffness=3.0)) == ["system.stiffness: 2.0 in the file, 3.0 given"]
    assert differ(make(), make(place=0.5, steps=4)) == [
        "steps: 3 in the file, 4 given",
        "loss.place: 1.0 in the file, 0.5 given",
    ]
    assert "controller.dense_0/kernel: [2, 2] in the file, [2, 3] given" in differ(make(), make(controller=(3,)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"stiffness": "2"}, "Tabled.stiffness is '2'; it must be a number"),
        ({"stiffness": True}, "Tabled.stiffness is True; it must be a number"),
        ({"count": 2.5}, "Tabled.count is 2.5; it must be a whole number"),
    ],
)
def test_fields_are_cast_to_their_annotations_or_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        make(**wrong)


def test_masked_and_textual_arrays_are_refused():
    for table, message in ((np.ma.masked_array([1.0, 2.0], [0, 1]), "masked"), (np.array(["a"]), "real numbers")):
        with pytest.raises(TypeError, match=f"Tabled.table.*{message}"):
            sb.problem(system=Tabled(1.0, table), controller=(2,), loss=Away(0.0), sample=sample, steps=1, dt=0.1)
    listed = sb.problem(system=Tabled(1.0, [1, 2.5]), controller=(2,), loss=Away(0.0), sample=sample, steps=1, dt=0.1)
    assert listed.system.table.dtype == np.float32


def factory(strength):
    class Local(System):
        dt: float

        state_shape = (2,)
        control_shape = (1,)

    @implements(step, Local)
    def _local(system, x, c, x_next):
        x_next[0], x_next[1] = strength * x[0], x[1] + c[0]

    @implements(step_vjp, Local)
    def _local_vjp(system, x, c, lam, lam_x, lam_c):
        for v in range(lam.shape[0]):
            lam_x[v, 0] += strength * lam[v, 0]
            lam_x[v, 1] += lam[v, 1]
            lam_c[v, 0] += lam[v, 1]

    return sb.problem(system=Local(0.1), controller=(2,), loss=Away(1.0), sample=sample, steps=3, dt=0.1)


def saved(problem, path, **settings):
    """A file of a run that nobody computed."""
    chosen = training.make_settings(train_count=2, test_count=2, **settings)
    theta = problem.init()
    progress = runs.Progress(0, theta, chosen.optimizer.init(theta), theta, np.inf, 0, ())
    states = np.zeros((2, 1, problem.steps + 1, *problem.state_shape))
    controls = np.zeros((2, 1, problem.steps, *problem.control_shape))
    paths = {"time": problem.time, "states": states, "controls": controls, "loss": np.zeros((2, 1))}
    history = {name: np.zeros(0) for name in runs.HISTORY}
    run = runs.Run(runs.config_of(problem, chosen), history, theta, theta, problem, paths, "interrupted")
    run_file.save(path, run, progress)
    return path


def test_factories_do_not_accept_each_others_files(tmp_path):
    path = saved(factory(1.0), tmp_path / "run.h5")
    assert sb.load(path, problem=factory(1.0)).status == "interrupted"
    with pytest.raises(ValueError, match=r"is a run of another problem: system\._local\.strength: 1\.0 in the file, 5\.0 given"):
        sb.load(path, problem=factory(5.0))


@pytest.mark.parametrize("change", [{"stiffness": 3.0}, {"change": 0.0}, {"place": 2.0}, {"steps": 4}])
def test_load_and_resume_refuse_alike(tmp_path, change):
    path = saved(make(), tmp_path / "run.h5")
    before = path.read_bytes()
    other = make(**change)
    with pytest.raises(ValueError) as loading:
        sb.load(path, problem=other)
    with pytest.raises(ValueError) as resuming:
        sb.train(other, epochs=1, train_count=2, test_count=2, out=path, resume=True)
    named = differ(make(), other)[0]
    for error in (loading.value, resuming.value):
        assert named in str(error) and "\n" not in str(error)
    assert path.read_bytes() == before


def test_resume_names_settings_that_differ(tmp_path):
    path = saved(make(), tmp_path / "run.h5")
    rule = sb.optimizers.adam(0.01)
    with pytest.raises(ValueError, match=r"variant: 'C' in the file, 'R' given; optimizer\.learning_rate: 0\.001 in the file"):
        sb.train(make(), variant="R", optimizer=rule, epochs=1, train_count=2, test_count=2, out=path, resume=True)
    with pytest.raises(ValueError, match="task: 'custom' in the file, 'cartpole' given; give"):
        sb.train(sb.problem("cartpole"), epochs=1, train_count=2, test_count=2, out=path, resume=True)


def test_files_of_version_0_1_compare_by_what_they_noted():
    old = dict(make().options)
    parts = ["Tabled(stiffness=np.float32(2.0), table=array([0., 1., ..., 2999.], dtype=float32), count=2)", "MLP(..)"]
    old |= {"parts": [*parts, "Away(place=np.float32(1.0))"], "code": "0123456789ab-0123456789ab"}
    assert descriptions.differences(old, make().options) == []
    assert descriptions.differences(old, make(stiffness=2.5).options) == ["system.stiffness: 2.0 in the file, 2.5 given"]
    assert descriptions.differences(old, make(place=1.5).options) == ["loss.place: 1.0 in the file, 1.5 given"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"regularization": 0.5}, "regularization: 0.0 as it was made, 0.5 now"),
        ({"dt": 0.2}, "dt: 0.1 as it was made, 0.2 now"),
        ({"time_weights": np.ones(4)}, "time_weights: float64 array"),
        ({"system": Tabled(np.float32(7), np.zeros(1, np.float32))}, "system.stiffness: 2.0 as it was made, 7.0 now"),
    ],
)
def test_a_changed_problem_is_not_written_into_a_file_that_makes_another(tmp_path, change, named):
    changed = dataclasses.replace(make(), **change)
    with pytest.raises(ValueError) as refused:
        sb.train(changed, epochs=1, out=tmp_path / "run.h5")
    assert named in str(refused.value)
    with pytest.raises(ValueError, match=r"regularization: 0\.0 as it was made, 0\.5 now"):
        sb.train(dataclasses.replace(sb.problem("cartpole"), regularization=0.5), epochs=1, out=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["cartpole", "guidance", "quantum", "custom"])
def test_another_horizon_needs_another_problem(task):
    problem = make() if task == "custom" else sb.problem(task, steps=5)
    with pytest.raises(ValueError, match=r"time_weights have shape .*; 30 steps need \(31,\)"):
        dataclasses.replace(problem, steps=30)
    with pytest.raises(ValueError, match="time_weights has a value that is not finite"):
        dataclasses.replace(problem, time_weights=np.full(problem.steps + 1, np.nan))
    runs.check_options(problem)  # as it was made, nothing differs


def test_a_sweep_remakes_only_what_was_planned():
    options = {**make().options, "source": f"{__name__}:make", "arguments": {"place": 2.0}}
    with pytest.raises(ValueError, match=r"has changed since the sweep was planned: loss\.place: 1\.0 in the file, 2\.0 given"):
        custom.remake(options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"control_shape": (3,)}, "the network has 2 inputs and 1 controls; the problem has 2 and 3"),
        ({"state_shape": (4,)}, "the network has 2 inputs and 1 controls; the problem has 4 and 1"),
        ({"dt": -1.0}, "dt is -1.0; it must be above 0"),
        ({"regularization": -1.0}, "regularization is -1.0; it must be at least 0"),
        ({"output_init": "none"}, "unknown output_init 'none'"),
        ({"dtype": "int32"}, "dtype is 'int32'; it must be np.float32 or np.float64"),
        ({"dtype": np.float64}, "system.stiffness is in float32, the problem in float64"),
        ({"system": Tabled(9.0, np.zeros(2, np.float32))}, "system.stiffness is in float64, the problem in float32"),
        ({"system": Away(1.0)}, "system is Away.*; it must be an instance of a subclass of System"),
        ({"controller": (5,)}, r"controller is \(5,\); it must be an instance of a subclass of Struct"),
    ],
)
def test_a_problem_cannot_be_changed_into_a_wrong_one(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(make(), **change)
