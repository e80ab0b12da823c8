"""Training in plain NumPy: mini-batches, clipping, optimizer, losses after each epoch; docs/method.md, section 4."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np

from stablebptt.data import atomic, run_file
from stablebptt.kernels.generics import tape_width
from stablebptt.tasks import TASKS, checks, descriptions, optimizers
from stablebptt.tasks.custom import TASK as CUSTOM
from stablebptt.tasks.custom import Described, custom_facts
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.problems import ORDER, TESTING, TRAINING, Problem, stream
from stablebptt.tasks.settings import CHECKPOINT_SECONDS, Settings, make_settings, settings_of  # noqa: F401  (also found here)
from stablebptt.tasks.variants import Gates, gates

HISTORY = tuple(run_file.HISTORY)
TRAJECTORIES = 4


@dataclass(frozen=True)
class Ask:
    """What a training wants computed next: the gradient or, of `states`, the parts of the loss."""

    what: str
    theta: np.ndarray
    states: np.ndarray


# A training asks, gets a Gradient or loss parts for it, and ends with a Run: so many of them can be answered together.
Training = Generator[Ask, Any, "Run"]


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a number of whole epochs; never changed, only replaced."""

    epoch: int
    theta: np.ndarray
    optimizer: optimizers.State
    best_theta: np.ndarray
    best_loss: float
    best_epoch: int
    history: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Run:
    """A training, finished or not.

    Attributes
    ----------
    config : dict, words and numbers that describe it
    history : dict of arrays (epochs,), see `HISTORY`
    theta, best_theta : parameters after the last epoch, and those of the lowest test loss
    problem : Problem
    trajectories : dict of arrays: time, states, controls, loss of a few test states; phase 0 before, 1 after training
    status : "complete", "interrupted" or "diverged: ..."
    """

    config: dict[str, Any]
    history: dict[str, np.ndarray]
    theta: np.ndarray
    best_theta: np.ndarray
    problem: Problem
    trajectories: dict[str, np.ndarray]
    status: str


def train(
    problem: Problem,
    variant: Any = Settings.variant,
    epochs: int = Settings.epochs,
    seed: int = Settings.seed,
    out: str | FilePath | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Run:
    """Train a controller.

    Parameters
    ----------
    problem, variant, epochs, seed : what, how, how long; the seed decides data, weights and order
    out : run file; written at least every `checkpoint_seconds` and at the end, always as a whole
    resume : go on from the checkpoint in `out`, if there is one, to the same result as without a break
    force : replace an existing file
    report : called with a `Progress` after every epoch
    **settings : clip ("none", "value", "norm"), clip_at, optimizer, batch_size, train_count, test_count, shuffle, on_divergence
        ("stop", or "skip": leave out updates that are not finite, and count them in the history)

    Raises
    ------
    DivergedError
        With epoch, batch and time step; the file then holds the epochs before. Ctrl-C leaves a complete file, too.
    BlockingIOError
        If another process writes `out`.
    FileExistsError
        If `out` exists and neither `force` nor `resume` is given.
    """
    chosen = make_settings(variant=variant, epochs=epochs, seed=seed, **settings)
    opened = check_training(problem, chosen, checkpoint_seconds)
    path = None if out is None else usable(atomic.expanded(out), resume, force)
    if path is not None:
        check_options(problem)
    return drive(problem, opened, begin(problem, chosen, opened, path, resume, checkpoint_seconds, report))


def drive(problem: Problem, opened: Gates, asking: Generator[Ask, Any, Any]) -> Any:
    """Answer what a generator asks for until it ends; its result."""
    try:
        ask = next(asking)
        while True:
            try:
                answer = next(answers(problem, opened, [ask]))
            except BaseException as error:
                ask = asking.throw(error)  # a training saves what it has
            else:
                ask = asking.send(answer)
    except StopIteration as end:
        return end.value
    finally:
        asking.close()  # wherever Ctrl-C struck, a training that has not ended saves what it has


def check_training(problem: Problem, chosen: Settings, checkpoint_seconds: float) -> Gates:
    """The gates of a training, if it can be done."""
    opened = gates(chosen.variant, problem.steps, problem.dtype)
    _config(problem, chosen)
    checks.real("checkpoint_seconds", checkpoint_seconds, least=0)
    batch = min(chosen.batch_size, chosen.train_count)
    row = (problem.steps + 1.0) * (problem.n_state + problem.n_control) + 4.0 * tape_width(problem.controller)
    checks.memory(f"mini-batches of {batch}", np.dtype(problem.dtype).itemsize * batch * row)
    return opened


def answers(problem: Problem, opened: Gates, asks: list[Ask], lane: int = 0) -> Iterator[Any]:
    """What several trainings that stand at the same point asked for; one answer overwrites the last."""
    thetas, states = [ask.theta for ask in asks], [ask.states for ask in asks]
    if asks[0].what == "gradient":
        return problem.differentiate_all(thetas, states, opened, lane)
    return problem.all_parts(thetas, states, lane)


def begin(
    problem: Problem,
    chosen: Settings,
    opened: Gates,
    path: FilePath | None,
    resume: bool,
    checkpoint_seconds: float,
    report: Callable[[Progress], None] | None,
) -> Training:
    """A training, step by step; whatever ends it, it leaves a complete file.

    The file is written before the first epoch, too, so that what can fail in it fails then. An old file that it replaces stays
    until an epoch is done, or the training has diverged.
    """
    with atomic.locked(path) if path is not None else contextlib.nullcontext():
        old = path is not None and path.exists() and not resume
        progress = _resumed(path, problem, chosen) if path is not None and resume and path.exists() else None
        progress = progress or _start(problem, chosen)
        training = problem.sample(chosen.train_count, chosen.seed, TRAINING)
        testing = problem.sample(chosen.test_count, chosen.seed, TESTING)
        if path is not None and progress.epoch < chosen.epochs:
            run_file.save(path, _run(problem, chosen, progress, testing, "running"), progress, rehearsal=old)
        status, saved = "interrupted", time.monotonic()
        try:
            while progress.epoch < chosen.epochs:
                progress = yield from _epoch(problem, chosen, opened, progress, training, testing)
                if report is not None:
                    report(progress)
                if path is not None and time.monotonic() - saved > checkpoint_seconds:
                    run_file.save(path, _run(problem, chosen, progress, testing, "running"), progress)
                    saved = time.monotonic()
            status = "complete"
        except DivergedError as error:
            status = f"diverged: {error}"
            raise
        finally:
            run = _run(problem, chosen, progress, testing, status)
            if path is not None and not (old and progress.epoch == 0 and status == "interrupted"):
                run_file.save(path, run, progress)
        return run


def load(path: str | FilePath, problem: Problem | None = None) -> Run:
    """The run in a file.

    A run of a system of one's own needs its `problem` to compute with; without it, it can be looked at. (A file never decides
    what code is imported.)

    Raises
    ------
    FileFormatError
        If the file is damaged or not a run file.
    OSError
        If it cannot be read.
    """
    content = run_file.load(path)
    made = problem_of(content.config, path)
    if problem is not None:
        here = {name: value for name, value in problem.options.items() if name != "code"}  # new code may look at old runs
        there = {"task": made.task, "options": made.options}
        if found := descriptions.differences(there, {"task": problem.task, "options": here}):
            what, advice = f"{path} is a run of another problem", "give the problem it was made with"
            raise ValueError(descriptions.refusal(what, found, advice))
        made = problem
    problem = made
    _check_parameters(content, problem, path)
    theta, best = (np.asarray(values, problem.dtype) for values in (content.theta, content.best_theta))
    return Run(content.config, content.history, theta, best, problem, content.trajectories, content.status)


def problem_of(config: dict[str, Any], path: Any) -> Problem:
    """The problem that a file's configuration describes (of a problem of one's own: its description)."""
    try:
        if config["task"] == CUSTOM:
            return cast(Problem, Described(config))
        return TASKS[config["task"]](**config["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise run_file.FileFormatError(f"{path}: the configuration makes no problem ({error})") from None


def check_options(problem: Problem) -> None:
    """Raise a ValueError if a problem was changed, so that its options would make another one from a file."""
    options = problem.options
    promised = custom_facts(options) if problem.task == CUSTOM else descriptions.facts(TASKS[problem.task](**options))
    if found := descriptions.differences(promised, descriptions.facts(problem), ("as it was made", "now")):
        advice = "make another with sb.problem(...), or train without a file"
        raise ValueError(descriptions.refusal("the problem was changed, so that no file could make it again", found, advice))


def usable(path: FilePath, resume: bool, force: bool) -> FilePath:
    """Find out before the work, not after it, that a file cannot be written."""
    atomic.check_folder(path)
    if path.exists() and not (resume or force):
        raise FileExistsError(f"{path} exists; choose another name, replace it with force, or go on with resume")
    return atomic.target(path)


def _start(problem: Problem, settings: Settings) -> Progress:
    theta = problem.init(settings.seed)
    return Progress(0, theta, optimizers.begin(settings.optimizer, theta), theta, math.inf, 0, ())


def look(path: FilePath, problem: Problem, settings: Settings) -> None:
    """Raise an error if the training in a file cannot go on."""
    _resumed(path, problem, settings)


def _resumed(path: FilePath, problem: Problem, settings: Settings) -> Progress:
    """The checkpoint in a file, if it belongs to this training."""
    content = run_file.load(path)
    known = {**content.config, "options": problem_of(content.config, path).options}
    wanted = {**_config(problem, settings), "epochs": known.get("epochs")}
    if found := descriptions.differences(known, wanted):
        advice = "give the options it was made with, or another file"
        raise ValueError(descriptions.refusal(f"{path} cannot be resumed", found, advice))
    _check_parameters(content, problem, path)
    return _checkpoint(content, settings, path)


def _checkpoint(content: run_file.Content, settings: Settings, path: FilePath) -> Progress:
    """Where the training in a file stands."""
    point = content.checkpoint
    epoch, best_epoch, best_loss = int(point["epoch"][0]), int(point["best_epoch"][0]), float(point["best_loss"][0])
    if epoch > settings.epochs:
        raise ValueError(f"{path} cannot be resumed: it holds {epoch} epochs, more than {settings.epochs}; give at least {epoch}")
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
    """Raise an error if a file's parameters have other names, shapes or places than the problem's."""
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
        raise (ValueError if problem.task == CUSTOM else run_file.FileFormatError)(message)
    for name, values in views.items():
        if not np.array_equal(values, content.layers[name], equal_nan=True):
            raise run_file.FileFormatError(f"{path}: /controller/{name} is not what /checkpoint/theta says, or in another order")


def _epoch(
    problem: Problem,
    settings: Settings,
    opened: Gates,
    progress: Progress,
    training: np.ndarray,
    testing: np.ndarray,
) -> Generator[Ask, Any, Progress]:
    """One pass over the training states, and the losses after it."""
    started, epoch = time.perf_counter(), progress.epoch + 1
    theta, state = progress.theta, progress.optimizer
    order = _order(settings, epoch)
    losses, norms, cosines, skipped = [], [], [], 0
    skip = settings.on_divergence == "skip"
    for batch, first in enumerate(range(0, settings.train_count, settings.batch_size), 1):
        x0 = training[order[first : first + settings.batch_size]] if settings.shuffle else (
            training[first : first + settings.batch_size]
        )  # fmt: skip
        result = yield Ask("gradient", theta, x0)
        try:
            problem.check(result, theta, x0, opened)
        except DivergedError as error:
            if skip:
                skipped += 1
                continue
            raise _located(problem, error, epoch, batch) from None
        update = optimizers.clip(result.value, settings.clip, settings.clip_at)
        with np.errstate(over="ignore", invalid="ignore"):  # seen below
            new_theta, new_state = settings.optimizer.apply(theta, update, state)
            new_theta = new_theta.astype(theta.dtype, copy=False)  # a rule of one's own may compute in double
        if skip and not np.all(np.isfinite(new_theta)):
            skipped += 1
            continue
        theta, state = new_theta, new_state
        norms.append(result.norm2 if settings.clip == "none" else float(np.sum(np.square(update, dtype=np.float64))))
        losses.append(result.loss.total)
        cosines.append(result.cosine)
    if not np.all(np.isfinite(theta)):
        raise _located(problem, DivergedError("a parameter is not finite"), epoch, None)
    row: list[Any] = [epoch, _mean(losses)]
    totals = []
    for name, states in (("training", training), ("test", testing)):
        total, physics = problem.total(*(yield Ask("losses", theta, states)))
        if not skip and not np.all(np.isfinite(total)):
            where = _first_bad_step(problem, theta, states[~np.isfinite(total)][:1])
            lost = DivergedError(f"the loss on the {name} states is not finite{where[0]}", step=where[1])
            raise _located(problem, lost, epoch, None)
        totals.append((total.mean(), physics.mean()))
    (train_loss, train_physics), (test_loss, test_physics) = totals
    row += [train_loss, test_loss, train_physics, test_physics, _mean(norms), _mean(cosines)]
    row += [skipped, time.perf_counter() - started]
    progress = replace(
        progress, epoch=epoch, theta=theta, optimizer=state, history=(*progress.history, tuple(float(value) for value in row))
    )
    if math.isfinite(test_loss) and test_loss < progress.best_loss:
        progress = replace(progress, best_theta=theta, best_loss=float(test_loss), best_epoch=epoch)
    return progress


def _mean(values: list[float]) -> float:
    """Mean over the updates that were made; NaN if there was none."""
    return float(np.mean(values)) if values else math.nan


def _order(settings: Settings, epoch: int) -> np.ndarray:
    """Order of the training states: as published always the same; shuffled it depends on seed and epoch alone."""
    if not settings.shuffle:
        return np.arange(settings.train_count)
    return stream(settings.seed, ORDER, epoch).permutation(settings.train_count)


def _located(problem: Problem, error: DivergedError, epoch: int, batch: int | None) -> DivergedError:
    place = f"epoch {epoch}" + (f", batch {batch}" if batch is not None else ", after its last batch")
    message = f"{problem.task} diverged in {place}: {error}"
    return DivergedError(message, epoch=epoch, batch=batch, step=error.step)


def _first_bad_step(problem: Problem, theta: np.ndarray, x0: np.ndarray) -> tuple[str, int | None]:
    try:
        problem.rollout(theta, x0)
    except DivergedError as error:
        return f": {error}", error.step
    return "", None


def _config(problem: Problem, settings: Settings) -> dict[str, Any]:
    elsewhere = {} if problem.backend == "cpu" else {"backend": problem.backend}
    config = {"task": problem.task, "options": problem.options, **settings.describe(), **elsewhere}
    return {name: checks.plain(name, value) for name, value in config.items()}


def _run(problem: Problem, settings: Settings, progress: Progress, testing: np.ndarray, status: str) -> Run:
    columns = np.array(progress.history, np.float64).reshape(-1, len(HISTORY)).T
    return Run(
        config=_config(problem, settings),
        history=dict(zip(HISTORY, columns)),
        theta=progress.theta,
        best_theta=progress.best_theta,
        problem=problem,
        trajectories=trajectories(problem, [problem.init(settings.seed), progress.theta], testing[:TRAJECTORIES]),
        status=status,
    )


def trajectories(problem: Problem, thetas: list[np.ndarray], x0: np.ndarray) -> dict[str, np.ndarray]:
    """Rollouts of several controllers (the phases) from the same states x0 (n, *state_shape).

    Returns
    -------
    time (T+1,) [s], states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n)
    """
    paths = [problem.follow(theta, x0) for theta in thetas]
    return {
        "time": problem.time,
        "states": np.stack([path.states for path in paths]),
        "controls": np.stack([path.controls for path in paths]),
        "loss": np.stack([problem.losses(theta, x0)[0] for theta in thetas]),
    }
