"""Training in plain NumPy: mini-batches, clipping, optimizer, losses after every N-th epoch; docs/method.md, section 4."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np

from stablebptt.data import atomic, run_file
from stablebptt.kernels.generics import tape_width
from stablebptt.tasks import arguments, bars, divergence, optimizers, runs, starts, variants, windows
from stablebptt.tasks.callbacks import Stop, of_history, several
from stablebptt.tasks.engine import Evaluation, Gradient
from stablebptt.tasks.errors import ArgumentError, DivergedError
from stablebptt.tasks.problems import GATES, ORDER, TESTING, TRAINING, Problem, stream
from stablebptt.tasks.runs import Progress, Run, check_options
from stablebptt.tasks.settings import CHECKPOINT_SECONDS, OPTIONS, Settings, make_settings
from stablebptt.tasks.settings import settings_of as settings_of  # also found here
from stablebptt.tasks.starts import NOTHING, Start
from stablebptt.tasks.task import document
from stablebptt.tasks.windows import Window

Report = Callable[[Progress], Any] | Sequence[Callable[[Progress], Any]]
# The device works for one half of the runs while the optimizers on the host work for the other.
QUEUES = 2


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
    report: Report | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    start: Any = None,
    train_states: Any = None,
    test_states: Any = None,
    **settings: Any,
) -> Run:
    """Train a controller.

    Parameters
    ----------
    problem : the problem
    variant : of the gradient: "R", "M", "S", "N", "C", another join or gates (docs/joins.md), or a pair of gate schedules (a, b)
    epochs : number of passes over the training states
    seed : decides data, weights and order
    out : run file; it is replaced as a whole at least every `checkpoint_seconds` [s] and at the end
    resume : continue from the checkpoint in `out`, if there is one; the result is the same bit for bit as without the break
    force : replace an existing file
    report : called with a `Progress` after every epoch, or several such functions; one that returns ``sb.Stop("reason")`` ends
        the run, which is then complete, with the status "stopped: reason". `sb.callbacks` has some
    progress : show a bar; by default in a notebook
    threads : of the CPU, at most; by default all. The result does not depend on them.
    start : a run of the same network to go on from (its parameters; the optimizer begins anew), or parameters (n_parameters,)
    train_states, test_states : (n, *state_shape), in place of states that the seed draws; the run file keeps them
    **settings : see below; and optimizer, a rule such as ``sb.optimizers.adam(0.001)``

    Raises
    ------
    DivergedError
        With epoch, batch and time step; the file then holds the epochs before. An interrupted run also leaves a complete file.
        So does a run that ends without a finite test loss.
    KeyboardInterrupt
        If it is interrupted; but in an interactive session (a notebook, IPython, Python's prompt) it returns the epochs that are
        done, as a run with the status "interrupted".
    BlockingIOError
        If another process writes `out`.
    FileExistsError
        If `out` exists and neither `force` nor `resume` is given.

    Examples
    --------
    >>> problem = sb.problem("cartpole", poles=1, steps=5, hidden=(5,))
    >>> run = sb.train(problem, variant="C", epochs=2, seed=0, train_count=8, test_count=8)
    >>> run.status
    'complete'
    """
    check_problem(problem)
    begun = starts.make(problem, start, train_states, test_states)
    chosen = make_settings(variant=variant, epochs=epochs, seed=seed, **begun.counts() | settings)
    how: dict[str, Any] = {"resume": resume, "force": force, "checkpoint_seconds": checkpoint_seconds, "threads": threads}
    return train_run(problem, chosen, out, report=report, progress=progress, start=begun, **how)


document(train, "Settings", OPTIONS.values())


def train_run(
    problem: Problem,
    settings: Settings,
    out: str | FilePath | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: Report | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    start: Start = NOTHING,
) -> Run:
    """`train` with settings and a start that are built already."""
    check_problem(problem)
    settings = settings.within(problem.steps)
    check_training(problem, settings, checkpoint_seconds, start)
    path = None if out is None else usable(atomic.expanded(out), resume=resume, force=force)
    if path is not None:
        check_options(problem)
    with arguments.threads(threads), bars.epochs(several(report), progress, settings.epochs) as told:
        how: dict[str, Any] = {"resume": resume, "checkpoint_seconds": checkpoint_seconds, "report": told, "start": start}
        [result] = advance([ActiveRun(problem, settings, path, ended=of_history(report), **how)])
    if isinstance(result, DivergedError):
        raise result
    return result


def check_problem(problem: Any) -> None:
    """Raise an error if something is given in place of a problem."""
    if not isinstance(problem, Problem):
        raise ArgumentError(f"problem is {problem!r:.60}; give what sb.problem makes, such as sb.problem('cartpole')")


def check_training(problem: Problem, settings: Settings, checkpoint_seconds: float, start: Start = NOTHING) -> None:
    """Raise an error, before a run begins, if the settings do not fit the problem, the start or the memory."""
    check_problem(problem)
    start.check(settings)
    variants.gates_of(settings.variant, problem, stream(settings.seed, GATES))
    windows.split(problem, settings)
    runs.config_of(problem, settings)
    arguments.real("checkpoint_seconds", checkpoint_seconds, least=0)
    batch = min(settings.batch_size, settings.train_count)
    row = (problem.steps + 1.0) * (problem.n_state + problem.n_control) + 4.0 * tape_width(problem.controller)
    arguments.memory(f"mini-batches of {batch}", np.dtype(problem.dtype).itemsize * batch * row)


class ActiveRun:
    """A run under way. As a context it holds the lock of its file, and it always leaves a complete file.

    The file is also written before the first epoch, so that errors in writing appear early. An old file that it replaces stays
    until one epoch is done or the run has diverged.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        path: FilePath | None,
        *,
        resume: bool,
        checkpoint_seconds: float,
        report: Callable[[Progress], Any] | None,
        start: Start = NOTHING,
        ended: Callable[[Progress], Stop | None] | None = None,
    ) -> None:
        self.problem, self.settings, self.path, self.resume, self.ended = problem, settings, path, resume, ended
        self.checkpoint_seconds, self.report, self.start = checkpoint_seconds, report, start
        self.draws = variants.is_random(settings.variant)
        self.gates = variants.gates_of(settings.variant, problem, stream(settings.seed, GATES))
        self.windows = windows.split(problem, settings)
        self.result: Run | DivergedError | None = None
        self.kept: int | None = None  # epochs in the file, once it is this run's
        self.entered = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            path, exists = self.path, False
            if path is not None:
                stack.enter_context(atomic.locked(path))
                exists = path.exists()
            self.replaces = exists and not self.resume
            given = self.problem, self.settings, self.start
            resumed = runs.resumed(path, *given) if path is not None and exists and self.resume else None
            self.kept = resumed.epoch if resumed else None
            self.progress = resumed or runs.begin(*given)
            self.states = _states(self.problem, self.settings, self.progress.start)
            purposes = {"training": TRAINING, "test": TESTING}
            self.keys = {
                name: self.problem.keys(len(states), self.settings.seed, purposes[name]) for name, states in self.states.items()
            }
            if self.goes_on:
                self.windows[0].problem.engine.prepare(self.states["test"])
                self._save("running", rehearsal=self.replaces)
            self.saved = time.monotonic()
            self.lock = stack.pop_all()
        self.entered = True
        if self.ended and self.kept and self.goes_on and (stop := self.ended(self.progress)):
            self.end(stop.status)
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()

    @property
    def goes_on(self) -> bool:
        """Whether epochs are left to do."""
        return self.result is None and self.progress.epoch < self.settings.epochs

    @property
    def is_due(self) -> bool:
        """Whether the epoch under way is evaluated."""
        return self.epoch % self.settings.evaluate_every == 0 or self.epoch == self.settings.epochs

    def begin_epoch(self) -> None:
        """Begin an epoch from the end of the last whole one."""
        self.started, self.epoch, self.batches = time.perf_counter(), self.progress.epoch + 1, 0
        self.theta, self.optimizer = self.progress.theta, self.progress.optimizer
        self.order = _order(self.settings, self.epoch)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.cosines: list[float] = []
        self.means: dict[str, tuple[Any, Any]] = {}
        self.skipped = 0

    def begin_batch(self) -> None:
        """Begin with the next mini-batch: states `x0` (B, *state_shape), keys `own_keys` (B,)."""
        first = self.batches * self.settings.batch_size
        part = slice(first, first + self.settings.batch_size)
        self.x0 = self.states["training"][self.order[part] if self.settings.shuffle else part]
        self.own_keys = self._epoch_keys()[part]
        if self.draws:
            random = stream(self.settings.seed, GATES, self.epoch, self.batches)
            self.gates = variants.gates_of(self.settings.variant, self.problem, random)
        self.batches += 1

    def _epoch_keys(self) -> np.ndarray:
        """The keys (n,) of the training states. What is random is drawn anew in every epoch."""
        if not self.problem.is_random:
            return self.keys["training"]
        if self.batches == 0:
            self.epoch_keys = self.problem.keys(len(self.states["training"]), self.settings.seed, TRAINING, self.epoch)
        return self.epoch_keys

    def update(self, result: Gradient, window: Window) -> None:
        """Update theta with the gradient of a window of the mini-batch; the next window begins where it ends.

        An update that is not finite ends the run or is skipped.
        """
        x0, settings, skip = self.x0, self.settings, self.settings.on_divergence == "skip"
        if len(self.windows) > 1:
            assert result.last is not None
            self.x0 = result.last
        try:
            divergence.check_gradient(window.problem, result, self.theta, x0, window.during(self.gates), self.own_keys)
        except DivergedError as error:
            if skip:
                self.skipped += 1
            else:
                self._diverge(error, f"batch {self.batches}", self.batches)
            return
        update, norm2 = optimizers.clipped(result.value, result.norm2, settings.clip, settings.clip_at)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            theta, state = settings.optimizer.apply(self.theta, update, self.optimizer)
            theta = theta.astype(self.theta.dtype, copy=False)  # a custom rule may compute in double precision
        if skip and not np.all(np.isfinite(theta)):
            self.skipped += 1
            return
        self.theta, self.optimizer = theta, state
        self.norms.append(norm2)
        self.losses.append(result.loss.total)
        self.cosines.append(result.cosine)

    def evaluate(self, name: str, found: Evaluation) -> None:
        """Record the mean losses on the training or test states."""
        total, physics = self.problem.total(found.physics, found.effort)
        if self.settings.on_divergence != "skip" and not np.all(np.isfinite(total)):
            bad = int(np.argmin(np.isfinite(total)))
            part = slice(bad, bad + 1)
            where, step = _first_bad_step(self.problem, self.theta, self.states[name][part], self.keys[name][part])
            self._diverge(DivergedError(f"the loss on the {name} states is not finite{where}", step=step))
            return
        self.means[name] = total.mean(), physics.mean()

    def check_parameters(self) -> None:
        """End the run if a parameter is not finite."""
        if not np.all(np.isfinite(self.theta)):
            self._diverge(DivergedError("a parameter is not finite"))

    def end_epoch(self) -> None:
        """Record and report the epoch. Save the run if it is time, or if this was the last epoch."""
        found = (self.means.get(name, (math.nan, math.nan)) for name in ("training", "test"))
        (train_loss, train_physics), (test_loss, test_physics) = found
        row = [self.epoch, _mean(self.losses), train_loss, test_loss, train_physics, test_physics, _mean(self.norms)]
        row += [_mean(self.cosines), self.skipped, self.is_due, time.perf_counter() - self.started]
        history = (*self.progress.history, tuple(float(value) for value in row))
        progress = replace(self.progress, epoch=self.epoch, theta=self.theta, optimizer=self.optimizer, history=history)
        if math.isfinite(test_loss) and test_loss < progress.best_loss:
            progress = replace(progress, best_theta=self.theta, best_loss=float(test_loss), best_epoch=self.epoch)
        self.progress = progress
        answer = None if self.report is None else self.report(progress)
        if isinstance(answer, Stop) and self.goes_on:
            self.end(answer.status)
        elif not self.goes_on:
            self._finish()
        elif time.monotonic() - self.saved > self.checkpoint_seconds:
            self._save("running")
            self.saved = time.monotonic()

    def end(self, status: str, error: DivergedError | None = None) -> None:
        """Save the run after its last whole epoch, once."""
        if self.result is not None:
            return
        with self.lock:
            if status == "interrupted" and self.progress.epoch == 0 and (self.path is None or self.replaces):
                return  # nothing to keep; and what rolls out may have to be compiled first
            run = self.run(status)
            self.result = error or run
            if self.path is not None:
                self._write(run)
        if error is not None and (saved := kept([self])):
            error.add_note(saved)

    def _finish(self) -> None:
        """End the run where it stands. If all epochs are done and none had a finite test loss, it is no success."""
        if self.goes_on or self.progress.best_epoch:
            self.end("interrupted" if self.goes_on else "complete")
            return
        epochs = self.progress.epoch
        lost = DivergedError(f"{self.problem.task} diverged: no test loss of {epochs} epochs is finite", epoch=epochs)
        self.end(f"diverged: {lost}", lost)

    def _diverge(self, error: DivergedError, place: str = "after its last batch", batch: int | None = None) -> None:
        place = f"epoch {self.epoch}, {place}"
        lost = DivergedError(f"{self.problem.task} diverged in {place}: {error}", epoch=self.epoch, batch=batch, step=error.step)
        self.end(f"diverged: {lost}", lost)

    def _save(self, status: str, *, rehearsal: bool = False) -> None:
        if self.path is not None:
            self._write(self.run(status), rehearsal=rehearsal)

    def run(self, status: str) -> Run:
        """The run as it stands."""
        return runs.run_of(self.problem, self.settings, self.progress, self.states["test"], status)

    def _write(self, run: Run, *, rehearsal: bool = False) -> None:
        assert self.path is not None
        run_file.save(self.path, run, self.progress, rehearsal=rehearsal)
        if not rehearsal:
            self.kept = self.progress.epoch


def advance(active: Sequence[ActiveRun]) -> list[Run | DivergedError]:
    """Advance runs that differ only in the seed together to their ends; returns the result of each.

    The engine works for one half of them while the optimizers work for the other. An error carries a note of what is saved. In an
    interactive session the results of interrupted runs are returned, too, if an epoch is done.
    """
    try:
        with contextlib.ExitStack() as stack:
            for run in active:
                stack.enter_context(run)
            turns = [_epochs(active[queue::QUEUES], queue) for queue in range(min(QUEUES, len(active)))]
            while turns:
                turns = [turn for turn in turns if next(turn, "over") != "over"]
    except KeyboardInterrupt as stop:
        saved = kept(active)
        if bars.in_session() and all(run.entered for run in active) and any(run.progress.epoch for run in active):
            done = max(run.progress.epoch for run in active)
            sys.stderr.write(f"interrupted after epoch {done}; what was learned is returned{'; ' * bool(saved)}{saved}\n")
        else:
            if saved:
                stop.add_note(f"{saved}; go on with resume=True" if any(run.kept is not None for run in active) else saved)
            raise
    return [run.result or run.run("interrupted") for run in active]


def kept(active: Sequence[ActiveRun]) -> str:
    """What the files of some runs hold, in a few words."""
    files = [(run.path, run.kept) for run in active if run.path is not None]
    epochs = [done for _, done in files if done is not None]
    if not files:
        return ""
    if not epochs:
        return "no epoch was done, and nothing is changed"
    least, most = min(epochs), max(epochs)
    count = f"{most} epoch{'s' * (most != 1)}" if least == most else f"{least} to {most} epochs"
    if len(files) == 1:
        return f"{files[0][0]} holds {count}"
    return f"{len(epochs)} of {len(files)} files in {files[0][0].parent} hold {count}"


def _epochs(active: Sequence[ActiveRun], queue: int) -> Iterator[None]:
    """Compute all epochs of some runs; yield whenever the engine has received work for them."""
    engine, settings, parts = active[0].problem.engine, active[0].settings, active[0].windows
    windows.share_work(parts)
    while active := _going(active):
        for run in active:
            run.begin_epoch()
        for _ in range(0, settings.train_count, settings.batch_size):
            for run in active:
                run.begin_batch()
            for window in parts:
                found = _gradients(active, window, queue)
                yield
                for run, gradient in zip(active, found):
                    run.update(gradient, window)
                if not (active := _going(active)):
                    return
        for run in active:
            run.check_parameters()
        for name in ("training", "test"):
            if not (due := [run for run in _going(active) if run.is_due]):
                break
            states, keys = [run.states[name] for run in due], [run.keys[name] for run in due]
            evaluated = engine.evaluate([run.theta for run in due], states, keys=keys, queue=queue)
            yield
            for run, evaluation in zip(due, evaluated):
                run.evaluate(name, evaluation)
        for run in _going(active):
            run.end_epoch()


def _gradients(active: Sequence[ActiveRun], window: Window, queue: int) -> Iterator[Gradient]:
    """The gradients for the next update of some runs, one by one if each run draws its own gates."""
    parts = len(active[0].windows) > 1  # the next window begins with the last states
    compute = functools.partial(window.problem.engine.gradients, parts=parts, queue=queue)
    if not active[0].draws:
        thetas, x0s = [run.theta for run in active], [run.x0 for run in active]
        return compute(thetas, x0s, window.during(active[0].gates), keys=[run.own_keys for run in active])
    given = ((run, window.during(run.gates)) for run in active)
    return (next(compute([run.theta], [run.x0], gates, keys=[run.own_keys])) for run, gates in given)


def _states(problem: Problem, settings: Settings, start: Start) -> dict[str, np.ndarray]:
    """Training and test states (n, *state_shape)."""
    training, test = start.train_states, start.test_states
    return {
        "training": problem.sample(settings.train_count, settings.seed, TRAINING) if training is None else training,
        "test": problem.sample(settings.test_count, settings.seed, TESTING) if test is None else test,
    }


def _going(active: Sequence[ActiveRun]) -> list[ActiveRun]:
    return [run for run in active if run.goes_on]


def usable(path: FilePath, *, resume: bool, force: bool) -> FilePath:
    """The file to write for `path`; raises an error before the run begins if it cannot be written."""
    if resume and force:
        raise ArgumentError("force=True replaces a file, resume=True goes on with it; give one of them")
    atomic.check_folder(path)
    if path.exists() and not (resume or force):
        raise FileExistsError(f"{path} exists; choose another name, replace it with force=True, or go on with resume=True")
    return atomic.target(path)


def _mean(values: list[float]) -> float:
    """Mean over the updates; NaN if there were none."""
    return float(np.mean(values)) if values else math.nan


def _order(settings: Settings, epoch: int) -> np.ndarray:
    """Order of the training states (train_count,): fixed, as published; if shuffled, seed and epoch alone decide it."""
    if not settings.shuffle:
        return np.arange(settings.train_count)
    return stream(settings.seed, ORDER, epoch).permutation(settings.train_count)


def _first_bad_step(problem: Problem, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> tuple[str, int | None]:
    try:
        divergence.check_path(problem.follow(theta, x0, keys))
    except DivergedError as error:
        return f": {error}", error.step
    return "", None
