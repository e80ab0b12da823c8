"""The command line: one group per task, the same verbs everywhere.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 done, 1 other error, 2 wrong usage, 3 diverged, 4 damaged
or foreign file, 5 cannot read or write, 130 interrupted.
"""

import _thread
import dataclasses
import functools
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from stablebptt.console import output
from stablebptt.console.commands import Command, Group
from stablebptt.console.options import (
    CALLBACKS,
    CHECKS,
    DIAGNOSIS,
    EVALUATION,
    EXPORT,
    FIELDS,
    FILES,
    FILM,
    OWN,
    PICTURE,
    PLOT,
    QUIET,
    ROLLOUTS,
    START,
    SWEEP,
    TRAIN_NOTES,
    TRAINING,
    Option,
    names_of,
    of_task,
    options,
    section,
)
from stablebptt.console.output import show
from stablebptt.console.parameters import FILE, PREFIX, RUN, read_settings
from stablebptt.console.resuming import completed
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.task import CUSTOM, Task
from stablebptt.version import __version__

WRONG_USAGE, DIVERGED, BAD_FILE, NO_ACCESS, INTERRUPTED = 2, 3, 4, 5, 130


def _note_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(dict)["debug"] = value


def command(group: click.Group, name: str, epilog: str | None = None) -> Callable[[Callable], click.Command]:
    """A command with the options that all commands share."""
    words = [PREFIX, *([] if group is stablebptt else [str(group.name)]), name, "config"]

    def decorate(function: Callable) -> click.Command:
        function = click.option(
            "--debug",
            is_flag=True,
            callback=_note_debug,
            is_eager=True,
            expose_value=False,
            help="Show the traceback of an error.",
        )(function)
        function = click.option(
            "--config",
            type=FILE,
            callback=read_settings,
            is_eager=True,
            expose_value=False,
            envvar="_".join(words).upper(),
            help="TOML file with defaults, in tables named like the commands ([cartpole.train]).",
        )(function)
        settings = {"show_default": True}
        return group.command(name, cls=Command, epilog=epilog, context_settings=settings)(_usage(function))

    return decorate


def _usage(function: Callable) -> Callable:
    """What the library says of bad arguments is wrong usage here."""

    @functools.wraps(function)
    def command(*values: Any, **given: Any) -> None:
        try:
            with warnings.catch_warnings():
                if given.get("quiet"):
                    warnings.simplefilter("ignore")
                function(*values, **given)
        except ArgumentError as error:
            raise click.UsageError(str(error)) from error

    return command


class Commands(Group):
    """The commands of this package; and those of a task of the user's, by the name of its record, such as my_spring:TASK."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _own_task(name) if ":" in name else super().get_command(ctx, name)


@click.group(cls=Commands)
@click.version_option(__version__, "-V", "--version", prog_name="stablebptt")
def stablebptt() -> None:
    """Train neural controllers through physics simulators with stabilised backpropagation through time.

    Every option can also be set in the environment as STABLEBPTT_<COMMAND>_<OPTION> (for instance
    STABLEBPTT_CARTPOLE_TRAIN_POLES) and in a TOML file given with --config; the command line wins over the environment,
    the environment over the file. A module of your own may hold a task: MODULE:NAME is then a command, too
    (stablebptt my_spring:TASK --help).
    """


EVALUATE_NOTES = "\n".join([
    "Examples:",
    "  {command} run.h5 --vary pole_mass=0.05:0.2:7 --out picture.png",
    "  {command} run.h5 --vary pole_mass=0.05:0.2:7 --vary half_length=0.3:0.8:6 --out picture.png",
    "",
])  # fmt: skip


DIAGNOSE_NOTES = "\n".join([
    "Examples:",
    "  {command} run.h5 --out picture.png",
    "  {command} --seed 3",
    "",
])  # fmt: skip


# --- tasks --------------------------------------------------------------------------------------------------------


def _add_verbs(
    group: click.Group, named: list[Option], make: Callable[..., Any], load: Callable[..., Any], *, again: bool
) -> None:
    """The verbs of tasks.

    `make` makes the problem of the options `named`; `load` loads the run of a file, if `again` with the help of them.
    """
    names = names_of(named)

    def chosen(given: dict[str, Any]) -> dict[str, Any]:
        return {name: given.pop(name) for name in names if name in given}

    @command(group, "train", TRAIN_NOTES)
    @options([
        *section("Files and output", FILES), *section("Task", named), *section("Training", TRAINING),
        *section("Start", START), *section("Ends and logs", CALLBACKS),
    ])  # fmt: skip
    def train(**given: Any) -> None:
        """Train a controller and write a run file."""
        given = completed(given, group.name if group.name in TASKS else CUSTOM)
        _train(make(**chosen(given)), **given)

    @command(group, "simulate")
    @options([*(named if again else [FIELDS]), *ROLLOUTS])
    def simulate(run_file: Path, fields: str | None = None, **given: Any) -> None:
        """Roll the trained controller of a run file out from new initial states."""
        _simulate(_set(load(run_file, **chosen(given)), fields), origin=run_file, **given)

    @command(group, "evaluate", EVALUATE_NOTES)
    @options([*([each for each in named if each is not OWN[1]] if again else []), *EVALUATION])
    def evaluate(run_file: Path, fields: str | None, **given: Any) -> None:
        """Loss of a trained controller over numbers of its system: how well it copes with what it was not trained for."""
        own = chosen(given) | ({"arguments": _arguments_in(run_file)} if again else {})
        _evaluate(_set(load(run_file, **own), fields), **given)

    @command(group, "diagnose", DIAGNOSE_NOTES)
    @options([*named, *DIAGNOSIS])
    def diagnose(run_file: Path | None, **given: Any) -> None:
        """What R and M are like for a trained controller, or for an untrained one: adjoints, exponents, agreement, advice."""
        own = chosen(given)
        if run_file is None:
            _diagnose(make(**own), None, **given)
            return
        if typed := [name for name in own if name != "source" and not _is_free(name)]:
            raise click.UsageError(f"{run_file} says what {typed[0]} is; options of the task are for an untrained controller")
        run = load(run_file, **(own | {"arguments": _arguments_in(run_file)} if again else {}))
        _diagnose(run.problem, run, **given)

    @command(group, "check")
    @options([*named, *CHECKS])
    def check(as_json: bool, quiet: bool, **given: Any) -> None:
        """Test the adjoints against finite differences, in float64."""
        told = chosen(given)
        with output.compiling(quiet=quiet):
            _check(make(**told | ({"dtype": "float64"} if "dtype" in told else {})), given, as_json=as_json)


def _add_export(group: click.Group, named: list[Option], load: Callable[..., Any]) -> None:
    """Export: `load` loads the run of a file, with the help of the options `named`."""

    @command(group, "export")
    @options([*named, *EXPORT])
    def export(run_file: Path, out: Path, *, best: bool, force: bool, as_json: bool, quiet: bool, **given: Any) -> None:
        """Write the controller of a run for use elsewhere: ONNX, C, NumPy, PyTorch."""
        from stablebptt.interop.export import export

        run = load(run_file, **given)
        policy = run.best_policy if best else run.policy
        export(policy, out, force=force)
        shapes = {"state_shape": policy.state_shape, "control_shape": policy.control_shape}
        show({"file": str(out), **shapes, "dtype": str(policy.dtype)}, as_json=as_json)


def _published(task: Task) -> click.Group:
    """The commands of a task of this package."""

    def make(**given: Any) -> Any:
        from stablebptt.tasks import problem

        return problem(task, **given)

    def load(file: Path) -> Any:
        from stablebptt.tasks import runs

        run = runs.load(file)
        if run.problem.task != task.name:
            raise click.UsageError(f"{file} is a run of {run.problem.task}; use 'stablebptt {run.problem.task} simulate'")
        return run

    group = Group(task.name, help=f"{task.summary} What is not given is as published.")
    _add_verbs(group, [of_task(option) for option in task.all_options], make, load, again=False)
    return group


def _own_task(source: str) -> click.Group:
    """The commands of a task that a module of the user's holds."""
    from stablebptt.tasks import custom, runs

    try:
        task = custom.find(source)
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    if not isinstance(task, Task):
        kind, advice = type(task).__name__, f"for a function that makes a problem: stablebptt custom train {source}"
        raise click.UsageError(f"{source} is of type {kind}, not a task; {advice}")
    named = [of_task(option) for option in task.all_options]
    taken = {*names_of([*TRAINING, *START, *CALLBACKS, *FILES, *CHECKS]), "debug", "config"}.intersection(names_of(named))
    if clash := sorted(taken | stablebptt.commands.keys() & {task.name}):
        raise click.UsageError(f"{source}: there is a command or option {clash[0]!r} already; choose another name")

    def load(file: Path) -> Any:
        return runs.load(file, custom.from_file(task, runs.load(file).problem))

    group = Group(task.name, help=task.summary)
    _add_verbs(group, named, functools.partial(custom.from_source, source), load, again=False)
    _add_pictures(group, task)
    _add_export(group, [], load)
    return group


def _custom() -> click.Group:
    """The commands of a function of the user's that makes a problem."""

    def make(source: str, arguments: dict[str, Any]) -> Any:
        from stablebptt.tasks.custom import from_source

        return from_source(source, **arguments)

    def load(file: Path, **given: Any) -> Any:
        from stablebptt.tasks import runs

        return runs.load(file, make(**given))

    group = Group(CUSTOM, help="Train and try controllers for a system of your own; MODULE:FUNCTION makes the problem.")
    _add_verbs(group, OWN, make, load, again=True)
    _add_export(group, OWN, load)
    return group


def _train(
    problem: Any, *, out: Path, resume: bool, force: bool, checkpoint_seconds: float, quiet: bool, as_json: bool,
    seeds: str | None, backend: str, threads: int | None, **settings: Any,
) -> None:  # fmt: skip
    from stablebptt.tasks import arguments, on_backend, training
    from stablebptt.tasks.settings import settings_in_words

    watching = {name: settings.pop(name) for name in names_of(CALLBACKS)}
    start = _start(problem, **{name: settings.pop(name) for name in names_of(START)})
    free = [name for name in start.counts() if _is_free(name)]
    chosen = settings_in_words(settings | {name: start.counts()[name] for name in free})
    problem = on_backend(problem, backend)
    how: dict[str, Any] = {"resume": resume, "force": force, "checkpoint_seconds": checkpoint_seconds, "threads": threads}
    how["start"] = start
    if seeds is not None:
        numbers = arguments.span("seeds", seeds)
        if numbers is None:
            raise ArgumentError(f"seeds are {seeds!r}; give a range such as 0:132")
        by_seed = {seed: _callbacks(seed=seed, **watching) for seed in numbers}
        _train_seeds(problem, by_seed, chosen, out, how, quiet=quiet, as_json=as_json)
        return
    begin, callbacks = time.monotonic(), _callbacks(**watching)
    with _advice(chosen.clip, chosen.on_divergence), output.progress(chosen.epochs, quiet=quiet, as_json=as_json) as report:
        run = training.train_run(problem, chosen, out, report=[report, *callbacks], **how)
    record = {"file": str(out), "status": run.status, **output.learned(run), "seconds": round(time.monotonic() - begin, 3)}
    show(output.finished(record) if as_json else record, as_json=as_json)


def _is_free(option: str) -> bool:
    """Whether an option of the command is set nowhere."""
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.DEFAULT


def _start(
    problem: Any, *, start_from: Path | None, best: bool, train_states: Path | None, test_states: Path | None
) -> Any:
    """What a training begins with, from files."""
    from stablebptt.tasks import runs, starts

    if best and start_from is None:
        raise click.UsageError("--best goes with --start-from")
    run = None if start_from is None else runs.load(start_from)
    if run is not None and best:
        run = dataclasses.replace(run, theta=run.best_theta)
    states = [path if path is None else starts.states_in(path, problem.state_shape) for path in (train_states, test_states)]
    return starts.make(problem, run, *states)


def _callbacks(
    *, stop_at: float | None, patience: int | None, hours: float | None, log: Path | None, tensorboard: Path | None,
    seed: int | None = None,
) -> list[Callable[..., Any]]:  # fmt: skip
    """What watches a training, or that of one of many seeds, which has logs of its own."""
    from stablebptt.tasks import callbacks

    if seed is not None:
        log = log and log.with_stem(f"{log.stem}_seed_{seed}")
        tensorboard = tensorboard and tensorboard / f"seed_{seed}"
    makers = {
        callbacks.TargetLoss: stop_at,
        callbacks.Patience: patience,
        callbacks.WallTime: hours,
        callbacks.CsvLog: log,
        callbacks.TensorBoard: tensorboard,
    }
    return [maker(value) for maker, value in makers.items() if value is not None]


@contextmanager
def _advice(clip: str, on_divergence: str) -> Iterator[None]:
    """Say how to go on after a divergence: what is not done yet."""
    from stablebptt.tasks.errors import DivergedError

    try:
        yield
    except DivergedError as error:
        remedies = ["a smaller --learning-rate"]
        remedies += ["--clip norm"] * (clip == "none") + ["--on-divergence skip"] * (on_divergence == "stop")
        error.add_note(f"train anew (--force) with {' or '.join(remedies)}")
        raise


def _train_seeds(
    problem: Any, callbacks: dict[int, list[Any]], settings: Any, out: Path, how: dict[str, Any], *, quiet: bool, as_json: bool
) -> None:
    """Train many seeds together, each with its own callbacks, with the progress of the last of them."""
    from stablebptt.tasks.callbacks import of_history, several
    from stablebptt.tasks.errors import DivergedError
    from stablebptt.tasks.seeds import train_runs

    seeds = list(callbacks)
    watching = {seed: several(given) for seed, given in callbacks.items()}
    ended = {seed: of_history(given) for seed, given in callbacks.items()}
    epochs = dict.fromkeys(seeds, 0)
    with output.progress(settings.epochs, quiet=quiet or as_json, as_json=False) as shown:

        def report(seed: int, progress: Any) -> Any:
            epochs[seed] = progress.epoch
            if seed == seeds[-1]:
                shown(progress)
            if as_json:
                show({"event": "epoch", "seed": seed} | output.epoch_record(progress), as_json=True)
            watch = watching[seed]
            return None if watch is None else watch(progress)

        results = train_runs(problem, seeds, settings, out, report=report, ended=ended, **how)
    for seed, result in zip(seeds, results):
        if isinstance(result, DivergedError):
            record = {"epochs": epochs[seed], "status": str(result)}
        else:
            record = output.learned(result) | {"status": result.status}
        if as_json:
            show(output.finished({"seed": seed, "file": str(out / f"seed_{seed}.h5")} | record), as_json=True)
        else:
            output.say(f"seed {seed:>4}  " + "  ".join(f"{k.replace('_', ' ')} {output.short(v)}" for k, v in record.items()))
    lost = [seed for seed, result in zip(seeds, results) if isinstance(result, DivergedError)]
    if lost:
        named = f"{len(lost)} of {len(seeds)} trainings diverged: seeds {', '.join(map(str, lost))}"
        raise DivergedError(f"{named}; their files in {out} hold the epochs before")


def _simulate(
    run: Any, *, origin: Path, count: int, seed: int, out: Path, best: bool, force: bool, as_json: bool, quiet: bool,
    backend: str, threads: int | None,
) -> None:  # fmt: skip
    from stablebptt.data import run_file
    from stablebptt.tasks import arguments, on_backend
    from stablebptt.tasks.runs import trajectories

    _free(out, force=force)
    x0 = run.problem.sample(count, seed)
    with arguments.threads(threads), output.counter("{} of {} thousand states", quiet=quiet, as_json=as_json) as tell:
        keys = run.problem.keys(count, seed)
        paths = trajectories(on_backend(run.problem, backend), [run.best_theta if best else run.theta], x0, tell, keys=keys)
    run_file.save_paths(out, run, paths, seed, best_weights=best, origin=origin)
    loss = paths["loss"][0]
    show({"file": str(out), "count": count, "mean_loss": float(loss.mean()), "worst_loss": float(loss.max())}, as_json=as_json)


def _arguments_in(file: Path) -> dict[str, Any]:
    """Arguments of the user's function that made the problem of a run."""
    from stablebptt.tasks import runs

    return runs.load(file).problem.options.get("arguments") or {}


def _set(run: Any, fields: str | None) -> Any:
    """The run, with other numbers in its system."""
    if fields is None:
        return run
    import dataclasses

    from stablebptt.tasks import evaluate

    return dataclasses.replace(run, problem=evaluate.with_fields(run.problem, evaluate.fields_of(fields)))


def _evaluate(
    run: Any, *, axes: tuple[str, ...], out: Path | None, count: int, seed: int, best: bool, threads: int | None, force: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from stablebptt.tasks import arguments, evaluate
    from stablebptt.tasks.pictures import curves

    if out is not None:
        _free(out, force=force)
    named = dict(map(evaluate.axis_of, axes))
    x0, theta, records = run.problem.sample(count, seed), run.best_theta if best else run.theta, []
    with arguments.threads(threads), output.counter("{} of {} points", quiet=quiet, as_json=as_json) as tell:
        for record in evaluate.over_grid(run.problem, theta, named, x0, seed=seed, tell=tell):
            records.append(record)
            if as_json:
                show(record, as_json=True)
    if not as_json:
        known = [name for name in records[0] if any(record[name] == record[name] for record in records)]
        output.say("  ".join(f"{name:>12}" for name in known))
        for record in records:
            output.say("  ".join(f"{output.short(record[name]):>12}" for name in known))
    if out is not None:
        curves.save(lambda: evaluate.draw(records, named, run.problem.title), out)


def _diagnose(
    problem: Any, run: Any, *, out: Path | None, count: int, seed: int, best: bool, threads: int | None, force: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from stablebptt.tasks import arguments
    from stablebptt.tasks.diagnose import FORMATS

    if best and run is None:
        raise click.UsageError("--best goes with a run file")
    theta = problem.init(seed) if run is None else run.best_theta if best else run.theta
    if out is not None:
        arguments.choice("format", out.suffix.lower(), FORMATS)
        _free(out, force=force)
    with output.compiling(quiet=quiet):
        found = problem.diagnose(theta, problem.sample(count, seed), seed=seed, threads=threads)
    if out is not None:
        found.save(out)
    output.diagnosis(found, as_json=as_json)


def _check(problem: Any, how: dict[str, Any], *, as_json: bool) -> None:
    from stablebptt.tasks import adjoint_check, plain_python
    from stablebptt.tasks.custom import in_float64

    exact = problem if problem.dtype.__name__ == "float64" else in_float64(problem)
    output.findings(functools.partial(adjoint_check.check, exact, **how), as_json=as_json)
    output.in_vectors(plain_python.in_vectors(problem.system, problem.dtype), as_json=as_json)


for _task in TASKS.values():
    stablebptt.add_command(_published(_task))
stablebptt.add_command(_custom())


@command(stablebptt, "check")
@click.argument("source", metavar="MODULE:NAME")
@options(CHECKS)
def check(source: str, as_json: bool, quiet: bool, **how: Any) -> None:
    """Test a system of your own against finite differences: a class, a task, or a function that makes a problem."""
    from stablebptt.kernels.generics import System
    from stablebptt.tasks import adjoint_check as checking
    from stablebptt.tasks import plain_python
    from stablebptt.tasks.custom import find, from_source

    found = find(source)
    if isinstance(found, type) and issubclass(found, System):
        found = found()
    with output.compiling(quiet=quiet):
        if isinstance(found, System):
            output.findings(functools.partial(checking.check_system, found, **how), as_json=as_json)
            output.in_vectors(plain_python.in_vectors(found), as_json=as_json)
        else:
            _check(from_source(source), how, as_json=as_json)


# --- pictures and files -------------------------------------------------------------------------------------------


def _picture(out: Path, draw: Callable[[], Any], *, force: bool) -> None:
    """Draw and write a picture, if its place is free."""
    from stablebptt.tasks.pictures.curves import save

    _free(out, force=force)
    save(draw, out)


def _free(out: Path, *, force: bool) -> None:
    """Find out before the work that a file cannot be written."""
    from stablebptt.data.atomic import check_folder

    check_folder(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another name, or replace it with --force")


def _add_pictures(group: click.Group, task: Task | None = None) -> None:
    """What draws files: in the manner of a task of the user's, or in that of the file's own."""

    @command(group, "plot")
    @options(PLOT)
    def plot(
        files: tuple[Path, ...], trajectory: int | None, *, out: Path, force: bool, quiet: bool, curves: tuple[str, ...],
        smooth: int,
    ) -> None:  # fmt: skip
        """Draw the learning curves of run files, or the trajectories of a file.

        Runs that differ in nothing but the seed share a line, their mean, and a band from the lowest to the highest. Of a file
        that 'simulate' wrote, the trajectories are drawn.
        """
        from stablebptt.data import run_file
        from stablebptt.tasks.custom import own_code
        from stablebptt.tasks.pictures import rollouts as rollout_pictures
        from stablebptt.tasks.pictures.curves import learning_curves
        from stablebptt.tasks.rollouts import load_rollouts
        from stablebptt.tasks.runs import load

        if trajectory is None and len(files) == 1 and run_file.kind(files[0]) == run_file.PATHS_FORMAT:
            trajectory = 0
        if trajectory is None:
            runs = [load(file) for file in files]
            _picture(out, lambda: learning_curves(runs, curves, smooth), force=force)
            return
        if len(files) > 1:
            raise click.UsageError("--trajectory draws the trajectories of one file; give one file")
        rollouts, number = load_rollouts(files[0], task), trajectory
        with own_code(task):
            _picture(out, lambda: rollout_pictures.draw(rollouts, number, task), force=force)

    @command(group, "animate")
    @options(FILM)
    def animate(file: Path, trajectory: int, out: Path, force: bool, quiet: bool, fps: int, **look: int) -> None:
        """Make a film of a trajectory, untrained beside trained."""
        from stablebptt.tasks.custom import own_code
        from stablebptt.tasks.pictures import films
        from stablebptt.tasks.rollouts import load_rollouts

        rollouts = load_rollouts(file, task)
        _free(out, force=force)
        with own_code(task), output.counter("{} of {} pictures", quiet=quiet) as tell:
            pictures = films.save_film(rollouts, trajectory, out, fps, task=task, tell=tell, **look)
        if not quiet:
            output.say(f"{out}: {pictures} pictures, {pictures / fps:.1f} s", err=True)


_add_pictures(stablebptt)


def _with_controller(file: Path) -> Any:
    """The run of a file that says what its controller is."""
    from stablebptt.tasks import runs
    from stablebptt.tasks.custom import Described

    run = runs.load(file)
    if isinstance(run.problem, Described):
        instead = "'stablebptt MODULE:TASK export' or 'stablebptt custom export MODULE:FUNCTION'"
        raise click.UsageError(f"{file} is a run of your own system; use {instead}")
    return run


_add_export(stablebptt, [], _with_controller)


@command(stablebptt, "inspect")
@click.argument("file", type=RUN)
@click.option("--datasets", is_flag=True, help="Every array: type, axes, unit, meaning.")
@click.option("--trajectory", type=int, metavar="K", help="The numbers of trajectory K, counted from 0, in a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Numbers for spreadsheets: the history, or the trajectory.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@QUIET
def inspect(file: Path, *, datasets: bool, trajectory: int | None, as_csv: bool, as_json: bool, quiet: bool) -> None:
    """Say what is in a file."""
    from stablebptt.data import summary

    if as_csv and (as_json or datasets):
        raise click.UsageError("--csv prints numbers only; leave out --json and --datasets")
    if as_csv:
        output.say(summary.csv_text(file, trajectory))
    elif trajectory is not None and not as_json:
        output.say(summary.trajectory_text(file, trajectory))
    else:
        found = summary.summarize(file, trajectory)
        output.say(json.dumps(found) if as_json else (summary.datasets_text if datasets else summary.text)(found))


@command(stablebptt, "sweep")
@options(SWEEP)
def sweep(
    plan: Path | None, out: Path | None, paper: str | None, *, seeds: str | None, epochs: int | None, jobs: int | None,
    resume: bool, retry_failed: bool, dry_run: bool, task_index: int | None, dask: str | None, gather: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Train all runs of a plan, each into a file of its own.

    Exit code 0 if all runs are complete, 3 if some diverged, 1 if some failed.
    """
    from stablebptt.tasks import arguments, sweeps

    if (plan is None) == (paper is None):
        raise click.UsageError("give either a plan or --paper")
    if gather and dask is None:
        raise click.UsageError("--gather goes with --dask")
    if out is None and not dry_run:
        raise click.UsageError("Missing option '--out', the folder for the run files; only --dry-run goes without")
    if out is None and resume and not quiet:
        output.say("without --out no folder is looked into, and all runs count", err=True)
    chosen: Any = int(seeds) if seeds is not None and seeds.isdecimal() else seeds
    runs = sweeps.read_plan(plan, chosen, epochs) if plan is not None else sweeps.paper_plan(str(paper), chosen, epochs)
    if jobs is not None:
        arguments.whole("jobs", jobs, 1)
    if task_index is not None:
        arguments.index("task index", task_index, len(runs))
    if dry_run:
        with output.compiling(quiet=quiet):
            left = sweeps.estimate(runs, out, resume=resume, retry_failed=retry_failed)
        output.dry_run(left, jobs or sweeps.cores(), as_json=as_json)
        return
    assert out is not None
    if task_index is not None:
        with output.compiling(quiet=quiet):
            outcomes = [sweeps.run_one(runs[task_index], out, retry_failed=retry_failed)]
        show(output.event(outcomes[0]), as_json=as_json)
    else:
        cluster = nullcontext() if dask is None else sweeps.dask_executor(dask)
        with cluster as executor, output.sweep_progress(quiet=quiet, as_json=as_json) as report:
            outcomes = sweeps.sweep(
                runs, out, jobs=jobs, executor=executor, resume=resume, retry_failed=retry_failed, gather=gather, report=report
            )
        output.sweep_table(outcomes, as_json=as_json)
    output.sweep_verdict(outcomes)


@command(stablebptt, "report")
@click.argument("folders", type=FILE, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--keep", type=FILE, metavar="RESULTS", help="Folder of small files to merge the results into, without weights.")
@click.option("--json", "as_json", is_flag=True, help="The counts as a JSON object per folder.")
@QUIET
def report(folders: tuple[Path, ...], *, keep: Path | None, as_json: bool, quiet: bool) -> None:
    """Collect the runs of a sweep in FOLDER/report: a table, a page (Markdown and HTML) and the published figures with bands."""
    from stablebptt.tasks import reports

    for folder in folders:
        with output.counter("{} of {} files read", quiet=quiet, as_json=as_json) as tell:
            found = reports.write(folder, tell, keep)
        show(found, as_json=as_json)


@stablebptt.group("landscape", cls=Group)
def landscape() -> None:
    """Two pictures that explain the method."""


@command(landscape, "fields")
@options(PICTURE)
@click.option("--resolution", type=int, default=121, help="Points along each axis.")
def fields(out: Path, force: bool, quiet: bool, resolution: int) -> None:
    """Loss and gradient fields of a controller with two parameters: R explodes and vanishes, M is balanced and rotates."""
    from stablebptt.tasks.pictures import landscape as pictures

    with output.counter("{} of {} rows", quiet=quiet) as tell:
        _picture(out, lambda: pictures.draw_fields(pictures.fields(resolution, tell)), force=force)


@command(landscape, "rotation")
@options(PICTURE)
@click.option("--json", "as_json", is_flag=True, help="The last losses as a JSON object.")
def rotation(out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Adam along a field without rotation, with rotation, and along their combination by sign."""
    from stablebptt.tasks.pictures import landscape as pictures

    with output.compiling(quiet=quiet):
        paths = pictures.rotation()
    _picture(out, lambda: pictures.draw_rotation(paths), force=force)
    show({name: float(losses[-1]) for name, losses in pictures.rotation_losses(paths).items()}, as_json=as_json)


@command(stablebptt, "info")
@click.option("--versions", "only_versions", is_flag=True, help="Versions only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@QUIET
def info(only_versions: bool, as_json: bool, quiet: bool) -> None:
    """Versions, processor, GPU and cache folder."""
    from stablebptt.data.run_file import versions

    if only_versions:
        show(versions(), as_json=as_json)
        return
    from llvmlite import binding

    from stablebptt.kernels.core.cache import usable_folder
    from stablebptt.kernels.core.simd import VECTOR_BYTES

    facts = versions() | {
        "processor": binding.get_host_cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "vector_bits": 8 * VECTOR_BYTES,
        "gpu": _gpu(),
        "cache_folder": str(usable_folder() or "none"),
    }
    show(facts, as_json=as_json)


def _gpu() -> str:
    """The CUDA device that --backend cuda would use, or what is missing."""
    from stablebptt.tasks import problem
    from stablebptt.tasks.errors import BackendError

    try:
        problem("cartpole", steps=1, hidden=(1,), backend="cuda")
    except BackendError as error:
        return f"none: {error}"
    from stablebptt.tasks.cuda import device_name

    return device_name()


def _explain(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for an error."""
    if isinstance(error, click.UsageError):
        clear = isinstance(error.__cause__, ArgumentError)  # it says itself what is allowed
        where = "" if clear or error.ctx is None else f" (see '{error.ctx.command_path} --help')"
        return error.format_message().rstrip(".") + where, WRONG_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "; ".join(["interrupted", *_notes(error)]), INTERRUPTED
    return _explain_failure(error)


def _explain_failure(error: BaseException) -> tuple[str, int]:
    """The same for an error of the library's, or of the user's own code, with its place there."""
    from stablebptt.data.errors import FileFormatError
    from stablebptt.tasks.errors import BackendError, DivergedError, OwnCodeError
    from stablebptt.tasks.places import behind

    if isinstance(error, DivergedError):
        return "; ".join([str(error), *_notes(error)]), DIVERGED
    if isinstance(error, FileFormatError):
        return str(error), BAD_FILE
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason, NO_ACCESS
    if isinstance(error, BackendError | OwnCodeError):
        return str(error), 1
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}", 1
    place = behind(error)
    if isinstance(error, ValueError):
        return f"{error}{place}", WRONG_USAGE
    if isinstance(error, ModuleNotFoundError) and not place:
        return f"the package {error.name} is not installed; install it: pip install {error.name}", 1
    return f"{type(error).__name__}: {error}{place}", 1


def _notes(error: BaseException) -> list[str]:
    """What is saved, and how to go on."""
    # click makes an Abort of an interrupt; 8.1.0 does not say of which
    raised = error.__cause__ or error.__context__ if isinstance(error, click.Abort) else error
    return list(getattr(raised, "__notes__", ()))


def _show_traceback(error: BaseException) -> None:
    """The whole traceback, with what errors in the user's terms hide: the compiler's own."""
    hidden: BaseException | None = error
    while hidden is not None:
        hidden.__suppress_context__ = hidden.__cause__ is not None
        hidden = hidden.__cause__ or hidden.__context__
    traceback.print_exception(error)


def _as_options(message: str) -> str:
    """A message of the library's in the words of the command line: --resume where it says resume=True."""
    return re.sub(r"\b(resume|force)=True\b", r"--\1", message)


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _not_lost(otherwise: Callable[[Any], None], told: Any) -> None:
    """What Python would only print, as it met the clean-up of an object: an interrupt comes again, a little later."""
    if issubclass(told.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        otherwise(told)


def _warning_line(message: Any, *unused: Any, **more: Any) -> str:
    return f"stablebptt: warning: {' '.join(str(message).split())}\n"


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    warnings.formatwarning = _warning_line
    given = {"debug": "--debug" in (sys.argv[1:] if arguments is None else arguments)}
    signal.signal(signal.SIGTERM, _terminated)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_not_lost, hook)
    try:
        code = stablebptt.main(arguments, prog_name="stablebptt", standalone_mode=False, obj=given)
    except (Exception, KeyboardInterrupt) as error:
        if given["debug"]:
            _show_traceback(error)
        message, code = _explain(error)
        output.say(f"stablebptt: {' '.join(_as_options(message).split())}", err=True)
    finally:
        sys.unraisablehook = hook
    if code:
        sys.exit(code)
