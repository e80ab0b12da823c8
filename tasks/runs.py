"""A run: its progress, its result, and its way back from a file."""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np

from stablebptt.data import run_file
from stablebptt.tasks import TASKS, arguments, descriptions, optimizers, policies
from stablebptt.tasks.bars import Tell, each
from stablebptt.tasks.custom import TASK as CUSTOM
from stablebptt.tasks.custom import Described, custom_facts
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.pictures import notebook
from stablebptt.tasks.problems import TESTING, Problem
from stablebptt.tasks.settings import without_place, without_sources
from stablebptt.tasks.starts import Start, in_file

__all__ = ["Progress", "Run", "load"]

HISTORY = tuple(run_file.HISTORY)
# Test states whose rollouts are stored.
TRAJECTORIES = 4
# States that are rolled out at once.
PART = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Progress:
    """State of a run after a number of whole epochs. It is immutable.

    Attributes
    ----------
    epoch : epochs done
    theta, best_theta (n_parameters,) : parameters after the last epoch, and those of the lowest test loss
    optimizer : state of the optimizer
    best_loss, best_epoch : the lowest test loss and its epoch
    history : per epoch a row of numbers, in the order of `HISTORY`
    start : what the run began with, where its seed did not decide

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> seen = []
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, report=lambda progress: seen.append(progress.epoch))
    >>> seen
    [1, 2]
    """

    epoch: int
    theta: np.ndarray
    optimizer: optimizers.State
    best_theta: np.ndarray
    best_loss: float
    best_epoch: int
    history: tuple[tuple[float, ...], ...]
    start: Start = field(default_factory=Start)

    @property
    def test_loss(self) -> float | None:
        """The last test loss that was computed; None before the first."""
        loss, known = HISTORY.index("test_loss"), HISTORY.index("evaluated")
        return next((row[loss] for row in reversed(self.history) if row[known]), None)

    def __repr__(self) -> str:
        return f"Progress(epoch={self.epoch}, best_loss={self.best_loss:.4g}, best_epoch={self.best_epoch})"


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run, finished or not. A notebook shows it as a table with its learning curve.

    Attributes
    ----------
    config : dict, the configuration in words and numbers
    history : dict of arrays (epochs,), see `HISTORY`
    theta, best_theta (n_parameters,) : parameters after the last epoch, and those of the lowest test loss
    problem : Problem
    trajectories : dict of arrays: time (T+1,) [s], states (2, n, T+1, *state), controls (2, n, T, *control), loss (2, n) of a few
        test states; phase 0 before, 1 after training
    status : "complete", "stopped: ..." (by a callback), "interrupted" or "diverged: ..."

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> run.status, len(run.history["test_loss"])
    ('complete', 2)
    """

    config: dict[str, Any]
    history: dict[str, np.ndarray]
    theta: np.ndarray
    best_theta: np.ndarray
    problem: Problem
    trajectories: dict[str, np.ndarray]
    status: str

    @functools.cached_property
    def policy(self) -> policies.Policy:
        """The controller after the last epoch as a function of states, in plain NumPy."""
        return policies.of(self.problem, self.theta)

    @functools.cached_property
    def best_policy(self) -> policies.Policy:
        """The controller of the lowest test loss, likewise."""
        return policies.of(self.problem, self.best_theta)

    def plot(self, trajectory: int | None = None, **options: Any) -> Any:
        """A matplotlib figure: the learning curves, or the rollouts from one of the stored test states.

        Parameters
        ----------
        trajectory : number of a test state
        **options : of the learning curves: curves (of "test", "train", "update", "cosine"), smooth (epochs)
        """
        return notebook.plot(self, trajectory, **options)

    def animate(self, trajectory: int = 0, **options: Any) -> notebook.Film:
        """A film of the rollouts from one of the stored test states. A notebook plays it; `save` writes it.

        Parameters
        ----------
        trajectory : number of a test state
        **options : fps, every (time steps per picture), dpi
        """
        return notebook.Film(notebook.of_run(self), trajectory, **options)

    def __repr__(self) -> str:
        return notebook.told(self)

    def _repr_html_(self) -> str:
        return notebook.table(self)


def load(path: str | FilePath, problem: Problem | None = None) -> Run:
    """The run in a file.

    The run of a custom problem needs its `problem` to compute. Without it, the run can only be inspected and plotted. (A file
    never decides which code is imported.)

    Parameters
    ----------
    path : of a run file
    problem : with custom parts, whose code the file does not hold

    Raises
    ------
    FileFormatError
        If the file is damaged or not a run file.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> bool((sb.load("run.h5").theta == run.theta).all())
    True
    """
    content = run_file.load(path)
    stored = problem_of(content.config, path)
    if problem is not None:
        check_same(path, stored, problem, "give the problem it was made with")
    problem = stored if problem is None else problem
    _check_parameters(content, problem, path)
    theta, best = (np.asarray(values, problem.dtype) for values in (content.theta, content.best_theta))
    return Run(content.config, content.history, theta, best, problem, content.trajectories, content.status)


def check_same(path: str | FilePath, stored: Problem, given: Problem, advice: str) -> None:
    """Raise an error if the problem given is not the one in a file; its code may be newer."""
    there, here = ({"task": each.task, "options": {**each.options, "code": None}} for each in (stored, given))
    if found := _differences(there, here):
        raise ArgumentError(descriptions.refusal(f"{path} is a run of another problem", found, advice))


def problem_of(config: dict[str, Any], path: Any) -> Problem:
    """The problem in a file's configuration; of a custom problem only its description."""
    try:
        if config["task"] == CUSTOM:
            return cast(Problem, Described(config))
        return TASKS[config["task"]](**config["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise run_file.FileFormatError(f"{path}: the configuration makes no problem ({error})") from None


def check_options(problem: Problem) -> None:
    """Raise an ArgumentError if a problem was changed after it was made: its options in a file would make another one."""
    options = problem.options
    promised = custom_facts(options) if problem.task == CUSTOM else descriptions.facts(TASKS[problem.task](**options))
    if found := descriptions.differences(promised, descriptions.facts(problem), ("as it was made", "now")):
        advice = "make another with sb.problem(...), or train without a file"
        raise ArgumentError(descriptions.refusal("the problem was changed, so that no file could make it again", found, advice))


def begin(problem: Problem, settings: Any, start: Start) -> Progress:
    """Progress before the first epoch."""
    theta = initial(problem, settings, start)
    return Progress(0, theta, optimizers.begin(settings.optimizer, theta), theta, math.inf, 0, (), start)


def initial(problem: Problem, settings: Any, start: Start) -> np.ndarray:
    """Parameters before the first epoch (n_parameters,)."""
    return problem.init(settings.seed) if start.theta is None else start.theta


def resumed(path: FilePath, problem: Problem, settings: Any, start: Start) -> Progress:
    """The checkpoint in a file, if it belongs to this run; of its start, what is not given is taken from the file."""
    content = run_file.load(path)
    known = {**content.config, "options": problem_of(content.config, path).options}
    wanted = {**config_of(problem, settings, start.or_else(content.start)), "epochs": known.get("epochs")}
    if found := _differences(known, wanted):
        advice = "give the options it was made with, or another file"
        raise ArgumentError(descriptions.refusal(f"{path} cannot be resumed", found, advice))
    _check_parameters(content, problem, path)
    progress = replace(_checkpoint(content, settings, path), start=in_file(problem, content.start, path))
    progress.start.check(settings)
    if progress.epoch < settings.epochs and content.attributes["format_version"] != run_file.FORMAT_VERSION:
        advice = "train anew into another file"
        raise ArgumentError(f"{path} cannot be resumed: version 0.1 made it, whose last bits differ; {advice}")
    return progress


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """`descriptions.differences`; where arguments of a function that makes problems differ, they are named, not what follows."""
    there, here = (
        {**each, "optimizer": without_sources(each.get("optimizer")), "variant": without_place(each.get("variant"))}
        for each in (there, here)
    )
    found = descriptions.differences(there, here)
    made = [config["options"].get("arguments") for config in (there, here)]
    if found and all(isinstance(each, dict) for each in made):
        names = dict.fromkeys(name for each in made for name in each)
        first, second = (
            {**config, "options": {name: (config["options"] | each).get(name) for name in names}}
            for config, each in zip((there, here), made)
        )
        return descriptions.differences(first, second) or found
    return found


def _checkpoint(content: run_file.Content, settings: Any, path: FilePath) -> Progress:
    """Progress of the run in a file."""
    point = content.checkpoint
    epoch, best_epoch, best_loss = int(point["epoch"][0]), int(point["best_epoch"][0]), float(point["best_loss"][0])
    if epoch > settings.epochs:
        more = f"it holds {epoch} epochs, more than {settings.epochs}; give at least {epoch}"
        raise ArgumentError(f"{path} cannot be resumed: {more}")
    if epoch == settings.epochs and content.history["evaluated"][-1:].tolist() == [0]:
        why = f"epoch {epoch} was not evaluated (evaluate_every is {settings.evaluate_every}), so it cannot be the last"
        raise ArgumentError(f"{path} cannot be resumed: {why}; give at least {epoch + 1} epochs")
    columns = [content.history[name] for name in HISTORY]
    history = tuple(tuple(float(v) for v in row) for row in zip(*columns))
    optimizer = {}
    for name, first in optimizers.begin(settings.optimizer, point["theta"]).items():
        values = point.get(f"optimizer_{name}", np.zeros(0))
        if values.size != np.size(first) or values.ndim != max(np.ndim(first), 1):
            raise run_file.FileFormatError(f"{path}: the checkpoint's {name} is not that of {type(settings.optimizer).__name__}")
        optimizer[name] = values.astype(first.dtype).reshape(np.shape(first))
    return Progress(epoch, point["theta"], optimizer, content.best_theta, best_loss, best_epoch, history)


def _check_parameters(content: run_file.Content, problem: Problem, path: Any) -> None:
    """Raise an error if a file's parameters differ in name, shape or order from the problem's."""
    for values in (content.theta, content.best_theta):
        if values.shape != (problem.n_parameters,):
            raise run_file.FileFormatError(f"{path}: the parameters do not fit the configuration")
    if isinstance(problem, Described):
        return
    views = {name: np.atleast_1d(values) for name, values in problem.layers(content.theta).items()}
    here, there = ({name: values.shape for name, values in layers.items()} for layers in (views, content.layers))
    if here != there:
        first = next(name for name in (*here, *there) if here.get(name) != there.get(name))
        wanted, found = (f"shape {s[first]}" if first in s else "no such parameter" for s in (here, there))
        message = f"{path}: its controller has another layout: {first} is {found} there, {wanted} here"
        raise (ArgumentError if problem.task == CUSTOM else run_file.FileFormatError)(message)
    for name, values in views.items():
        if not np.array_equal(values, content.layers[name], equal_nan=True):
            raise run_file.FileFormatError(f"{path}: /controller/{name} is not what /checkpoint/theta says, or in another order")


def config_of(problem: Problem, settings: Any, start: Start | None = None) -> dict[str, Any]:
    """The configuration of a run, in words and numbers for a file."""
    elsewhere = {} if problem.backend == "cpu" else {"backend": problem.backend}
    begun = {} if start is None else start.describe()
    config = {"task": problem.task, "options": problem.options, **settings.describe(), **begun, **elsewhere}
    return {name: arguments.plain(name, value) for name, value in config.items()}


def run_of(problem: Problem, settings: Any, progress: Progress, testing: np.ndarray, status: str) -> Run:
    """The run at this progress, with rollouts from the first of the test states `testing` (count, *state_shape)."""
    columns = np.array(progress.history, np.float64).reshape(-1, len(HISTORY)).T
    keys = problem.keys(len(testing), settings.seed, TESTING)[:TRAJECTORIES]
    thetas = [initial(problem, settings, progress.start), progress.theta]
    return Run(
        config=config_of(problem, settings, progress.start),
        history=dict(zip(HISTORY, columns)),
        theta=progress.theta,
        best_theta=progress.best_theta,
        problem=problem,
        trajectories=trajectories(problem, thetas, testing[:TRAJECTORIES], keys=keys),
        status=status,
    )


def trajectories(
    problem: Problem, thetas: list[np.ndarray], x0: np.ndarray, tell: Tell | None = None, *, keys: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Rollouts of several controllers (the phases) from the same states x0 (n, *state_shape), a part of them after another.

    keys (n,) : what is random for each state; by default that of seed 0

    Returns
    -------
    time (T+1,) [s], states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n)
    """
    parts = [slice(first, first + PART) for first in range(0, len(x0), PART)]
    keys = problem.keys(len(x0)) if keys is None else keys

    def rolled(theta: np.ndarray) -> list[np.ndarray]:
        paths = [problem.follow(theta, x0[part], keys[part]) for part in each(parts, tell)]
        return [np.concatenate(values) for values in zip(*((path.states, path.controls, path.loss) for path in paths))]

    phases = zip(("states", "controls", "loss"), zip(*map(rolled, thetas)))
    return {"time": problem.time} | {name: np.stack(values) for name, values in phases}
