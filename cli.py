"""The command line: one group per task, the same verbs everywhere.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 done, 1 other error, 2 wrong usage, 3 diverged, 4 damaged
or foreign file, 5 cannot read or write, 130 interrupted.
"""

import ast
import json
import math
import os
import re
import signal
import sys
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from stablebptt.version import __version__

PREFIX = "STABLEBPTT"
WRONG_USAGE, DIVERGED, BAD_FILE, NO_ACCESS, INTERRUPTED = 2, 3, 4, 5, 130


class Place(click.Path):
    """A file or folder; a ~ at its beginning is the home folder, also where no shell reads it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from stablebptt.data.atomic import expanded

        try:
            return expanded(str(super().convert(value, param, ctx)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


FILE = Place(path_type=Path)


class Numbers(click.ParamType):
    """Numbers with commas between them, such as 100,100."""

    def __init__(self, kind: type, example: str) -> None:
        self.kind, self.example, self.name = kind, example, "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple | list):
            return tuple(value)
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as {self.example}", param, ctx)


def _names(command: click.Command) -> dict[str, tuple[click.Parameter, bool]]:
    """What can be set, by the name it has on the command line; False stands with the other name of a flag (fixed_order)."""
    found: dict[str, tuple[click.Parameter, bool]] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            found[str(parameter.name)] = parameter, True
        else:
            found |= {_key(name): (parameter, True) for name in parameter.opts}
            found |= {_key(name): (parameter, False) for name in parameter.secondary_opts}
    return found


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _several(parameter: click.Parameter) -> bool:
    """Whether a parameter takes more than one value."""
    return parameter.nargs != 1 or bool(getattr(parameter, "multiple", False))


def _read_settings(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take defaults from the environment, and below it from a TOML file whose tables are named like the commands."""
    words = ctx.command_path.split()[1:]
    content = {} if path is None else _read_config(path)
    _check_tables(ctx.find_root().command, content, path)
    for word in words:
        content = content.get(word, {})
    variables = {}
    for name, (parameter, _) in _names(ctx.command).items():
        text = os.environ.get("_".join([PREFIX, *words, name]).upper())
        if text and name != "config":
            variables[name] = parameter.type.split_envvar_value(text) if _several(parameter) else text
    ctx.default_map = _defaults(ctx, path, content) | _defaults(ctx, "the environment", variables)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is not a TOML file: {error}") from None


def _check_tables(command: click.Command, content: dict[str, Any], path: Path | None, above: tuple[str, ...] = ()) -> None:
    """Refuse every table and key of a config file that belongs to no command or option, whatever command runs."""
    if not isinstance(command, click.Group):
        known = set(_names(command)) - {"config"}
        unknown = next((name for name in content if _key(name) not in known), None)
        if unknown is not None:
            raise click.UsageError(f"{path}: {' '.join(above)} has no option {unknown!r}; choose from {', '.join(sorted(known))}")
        return
    for name, value in content.items():
        table = ".".join((*above, name))
        if name not in command.commands:
            what, allowed = f"[{table}]" if isinstance(value, dict) else repr(table), ", ".join(command.commands)
            raise click.UsageError(f"{path}: {what} belongs to no command; tables are named like the commands: {allowed}")
        if not isinstance(value, dict):
            raise click.UsageError(f"{path}: [{table}] must be a table")
        _check_tables(command.commands[name], value, path, (*above, name))


def _defaults(ctx: click.Context, place: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What was given by name, as values that click takes for typed ones."""
    names, found = _names(ctx.command), dict[str, Any]()
    for name, value in given.items():
        parameter, straight = names[_key(name)]
        if parameter.name in found:
            raise click.UsageError(f"{place}: {name} is given twice, or its opposite is given, too")
        found[str(parameter.name)] = _as_typed(f"{place}: {name}", parameter, value)
        if not straight:
            found[str(parameter.name)] = not click.BOOL.convert(str(value), parameter, ctx)
    return found


def _as_typed(name: str, parameter: click.Parameter, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(parameter.type, Setting):
        return list(value.items())
    if isinstance(value, list) and (_several(parameter) or isinstance(parameter.type, Numbers)):
        return value
    if isinstance(value, dict | list):
        raise click.UsageError(f"{name} is {value!r}; it must be one value")
    return [str(value)] if _several(parameter) else str(value)


def _note_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(dict)["debug"] = value


def command(group: click.Group, name: str) -> Callable[[Callable], click.Command]:
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
            callback=_read_settings,
            is_eager=True,
            expose_value=False,
            envvar="_".join(words).upper(),
            help="TOML file with defaults, in tables named like the commands ([cartpole.train]).",
        )(function)
        return group.command(name, context_settings={"show_default": True})(function)

    return decorate


@contextmanager
def _usage() -> Iterator[None]:
    """What the library says of bad arguments is wrong usage here."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stablebptt")
def stablebptt() -> None:
    """Train neural controllers through physics simulators with stabilised backpropagation through time.

    Every option can also be set in the environment as STABLEBPTT_<COMMAND>_<OPTION> (for instance
    STABLEBPTT_CARTPOLE_TRAIN_POLES) and in a TOML file given with --config; the command line wins over the environment,
    the environment over the file.
    """


Option = Callable[[Callable], Callable]
COMMON: list[Option] = [
    click.option("--steps", type=int, help="Time steps T."),
    click.option("--loss", type=click.Choice(["final", "continuous"]), help="Loss of the last state, or of all."),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Precision."),
    click.option("--output-init", type=click.Choice(["glorot", "zero"]), help="Kernel of the last layer at first."),
]
PROBLEMS: dict[str, list[Option]] = {
    "cartpole": [
        click.option("--poles", type=int, help="Poles on the cart."),
        click.option("--duration", type=float, help="Total time [s]."),
        click.option("--hidden", type=Numbers(int, "100,100"), help="Sizes of the hidden layers."),
    ],
    "guidance": [
        click.option("--drivers", type=int, help="Drivers."),
        click.option("--evaders", type=int, help="Evaders."),
        click.option("--regularization", type=float, help="Weight rho of the mean squared control."),
        click.option("--target", type=Numbers(float, "0,0"), help="Where the evaders are to go: x,y."),
        click.option("--duration", type=float, help="Total time."),
        click.option("--hidden", type=Numbers(int, "100,100"), help="Sizes of the hidden layers."),
    ],
    "quantum": [
        click.option("--target", type=int, help="Eigenstate to reach, counted from 1."),
        click.option("--points", type=int, help="Grid points Nx inside the box."),
        click.option("--dt", type=float, help="Time step."),
        click.option("--weights", type=Numbers(float, "1,1"), help="Weights of eigenstates 1 and 2 in the initial states."),
        click.option("--width", type=int, help="Features of the convolutions."),
    ],
}
TRAINING: list[Option] = [
    click.option("--variant", default="C", help="Gradient: R, M, S, N or C."),
    click.option("--epochs", type=int, default=1000, help="Passes over the training states."),
    click.option("--seed", type=int, default=0, help="Decides data, weights and order."),
    click.option("--seeds", help="Many trainings together, such as 0:132; --out is then a folder."),
    click.option("--backend", default="cpu", help="cpu, or cuda: on a CUDA device."),
    click.option("--clip", default="none", help="Clip the gradient: none, value or norm."),
    click.option("--clip-at", type=float, default=1.0, help="Bound of the clipping."),
    click.option("--optimizer", default="adam", help="adam, sgd, adagrad, adadelta or rmsprop."),
    click.option("--lr", type=float, help="Learning rate.  [default: the optimizer's]"),
    click.option("--momentum", type=float, help="Momentum (sgd only)."),
    click.option("--batch-size", type=int, default=8, help="States per update."),
    click.option("--train-count", type=int, default=256, help="Training states."),
    click.option("--test-count", type=int, default=256, help="Test states."),
    click.option("--on-divergence", default="stop", help="stop, or skip: leave out updates that are not finite."),
    click.option("--shuffle/--fixed-order", default=False, help="Order of the training states in each epoch."),
]


FILES: list[Option] = [
    click.option("--out", type=FILE, required=True, help="Run file to write."),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run file, if there is one."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--checkpoint-seconds", type=float, default=30.0, help="Write the file at least this often [s]."),
    click.option("--quiet", is_flag=True, help="No progress."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per epoch on stdout."),
]
ROLLOUTS: list[Option] = [
    click.argument("run_file", type=FILE, metavar="RUN.h5"),
    click.option("--count", type=int, default=16, help="Initial states to draw."),
    click.option("--seed", type=int, default=1, help="Decides the initial states."),
    click.option("--out", type=FILE, required=True, help="File to write."),
    click.option("--backend", default="cpu", help="cpu, or cuda: on a CUDA device."),
    click.option("--best", is_flag=True, help="The weights of the lowest test loss, not the last ones."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--json", "as_json", is_flag=True, help="A JSON object on stdout."),
    click.option("--quiet", is_flag=True, help="No messages."),
]
CHECKS: list[Option] = [
    click.option("--seed", type=int, default=0, help="Decides where the derivatives are taken."),
    click.option("--step", type=float, help="Step of the differences.  [default: the best of many]"),
    click.option("--tolerance", type=float, default=1e-7, help="Relative error that is none."),
    click.option("--states", type=FILE, help="States to take derivatives at: an array (.npy), or a run file."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per line."),
    click.option("--quiet", is_flag=True, help="No messages."),
]


def _options(options: list[Option]) -> Option:
    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _problem(task: str, options: dict[str, Any]) -> Any:
    from stablebptt.tasks import problem

    with _usage():
        return problem(task, **{name: value for name, value in options.items() if value is not None})


def _problem_names(task: str) -> set[str]:
    probe: Any = _options(PROBLEMS[task] + COMMON)(lambda: None)
    return {option.name for option in probe.__click_params__}


def _add_task(task: str) -> None:
    names = _problem_names(task)

    @stablebptt.group(task)
    def group() -> None:
        pass

    group.help = f"Train and try controllers for {task}; what is not given is as published."

    @command(group, "train")
    @_options(PROBLEMS[task] + COMMON + TRAINING + FILES)
    def train(**options: Any) -> None:
        """Train a controller and write a run file."""
        given = {name: options.pop(name) for name in names}
        _train(_problem(task, given), **options)

    @command(group, "simulate")
    @_options(ROLLOUTS)
    def simulate(**options: Any) -> None:
        """Roll the trained controller of a run file out from new initial states."""
        _simulate(task, **options)

    @command(group, "check")
    @_options(PROBLEMS[task] + COMMON + CHECKS)
    def check(seed: int, step: Any, tolerance: float, states: Any, as_json: bool, quiet: bool, **given: Any) -> None:
        """Test the adjoints against finite differences, in float64."""
        how = {"seed": seed, "step": step, "tolerance": tolerance, "states": states}
        _check(_problem(task, given | {"dtype": "float64"}), as_json, how)


def _train(
    problem: Any,
    out: Path,
    resume: bool,
    force: bool,
    checkpoint_seconds: float,
    quiet: bool,
    as_json: bool,
    optimizer: str,
    seeds: str | None,
    backend: str,
    **settings: Any,
) -> None:
    from stablebptt.tasks import checks, on_backend, optimizers, training, variants

    rates = {"learning_rate": settings.pop("lr"), "momentum": settings.pop("momentum")}
    rates = {name: value for name, value in rates.items() if value is not None}
    with _usage():
        rule = optimizers.from_description({"name": optimizer, **rates})
        chosen = training.Settings(**settings, optimizer=rule)
        variants.gates(chosen.variant, problem.steps)
        checks.real("checkpoint_seconds", checkpoint_seconds, least=0)
        problem = on_backend(problem, backend)
        numbers = None if seeds is None else checks.span("seeds", seeds)
        if seeds is not None and numbers is None:
            raise ValueError(f"seeds are {seeds!r}; give a range such as 0:132")
    given: dict[str, Any] = {"resume": resume, "force": force, "checkpoint_seconds": checkpoint_seconds}
    if numbers is not None:
        _train_seeds(problem, numbers, out, quiet, as_json, {**settings, **given, "optimizer": rule})
        return
    begin = time.monotonic()
    with _progress(chosen.epochs, quiet, as_json) as report:
        run = training.train(problem, **settings, **given, optimizer=rule, out=out, report=report)
    _print({"file": str(out), **_learned(run), "seconds": round(time.monotonic() - begin, 3)}, as_json)


def _learned(run: Any) -> dict[str, Any]:
    """What a training came to."""
    from stablebptt.data.run_file import best

    losses, (epoch, lowest) = run.history["test_loss"], best(run.history)
    return {"epochs": len(losses), "test_loss": float(losses[-1]), "best_test_loss": lowest, "best_epoch": epoch}


def _train_seeds(problem: Any, seeds: list[int], out: Path, quiet: bool, as_json: bool, given: dict[str, Any]) -> None:
    """Train many seeds together, with the progress of the last of them."""
    from stablebptt.tasks.errors import DivergedError
    from stablebptt.tasks.seeds import train_seeds

    del given["seed"]
    epochs = dict.fromkeys(seeds, 0)
    with _progress(given["epochs"], quiet, False) as show:

        def report(seed: int, progress: Any) -> None:
            epochs[seed] = progress.epoch
            if seed == seeds[-1]:
                show(progress)
            if as_json:
                _print({"seed": seed} | _epoch_record(progress), True)

        results = train_seeds(problem, seeds, out=out, report=report, **given)
    for seed, result in zip(seeds, results):
        diverged = isinstance(result, DivergedError)
        record = {"epochs": epochs[seed], "status": str(result)} if diverged else {**_learned(result), "status": "complete"}
        if as_json:
            _print({"seed": seed, "file": str(out / f"seed_{seed}.h5")} | record, True)
        else:
            click.echo(f"seed {seed:>4}  " + "  ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in record.items()))
    lost = [seed for seed, result in zip(seeds, results) if isinstance(result, DivergedError)]
    if lost:
        raise DivergedError(f"{len(lost)} of {len(seeds)} trainings diverged: seeds {', '.join(map(str, lost))}")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _epoch_record(progress: Any) -> dict[str, Any]:
    from stablebptt.tasks.runs import HISTORY

    return dict(zip(HISTORY, progress.history[-1]))


@contextmanager
def _progress(epochs: int, quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report epochs to: a bar on a terminal, now and then a line elsewhere."""
    from stablebptt.tasks.runs import HISTORY

    if quiet and not as_json:
        yield lambda progress: None
        return
    bar = sys.stderr.isatty() and not quiet
    shown = 0.0

    def line(progress: Any) -> None:
        nonlocal shown
        row = _epoch_record(progress)
        if as_json:
            _print(row, True)
        ended, now = progress.epoch == epochs, time.monotonic()
        if quiet or (now - shown < (0.1 if bar else 10.0) and not ended):
            return
        shown = now
        text = f"epoch {progress.epoch}/{epochs}  test loss {row['test_loss']:.5g}"
        recent = [entry[HISTORY.index("seconds")] for entry in progress.history[1:][-50:]]
        if recent:  # the first epoch may have compiled
            text += f"  {_duration(sum(recent) / len(recent) * (epochs - progress.epoch))} left"
        if bar:
            filled = progress.epoch * 30 // epochs
            click.echo(f"\r[{'#' * filled}{'-' * (30 - filled)}] {text}\x1b[K", nl=ended, err=True)
        else:
            click.echo(text, err=True)

    try:
        yield line
    finally:
        if bar and shown:
            click.echo("", err=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _print(data: dict[str, Any], as_json: bool) -> None:
    """A record on stdout: as JSON, or one "key: value" per line."""
    if as_json:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
        click.echo(json.dumps(clean))
        return
    for key, value in data.items():
        click.echo(f"{key.replace('_', ' ')}: {_short(value)}")


def _simulate(
    task: str,
    run_file: Path,
    count: int,
    seed: int,
    out: Path,
    best: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    backend: str,
    problem: Any = None,
) -> None:
    from stablebptt.data import run_file as files
    from stablebptt.tasks import on_backend
    from stablebptt.tasks.runs import load, trajectories

    with _usage():
        run = load(run_file, problem)
    if run.problem.task != task:
        raise click.UsageError(f"{run_file} is a run of {run.problem.task}; use 'stablebptt {run.problem.task} simulate'")
    _free(out, force)
    with _usage():
        x0 = run.problem.sample(count, seed)
        computed = on_backend(run.problem, backend)
    paths = trajectories(computed, [run.best_theta if best else run.theta], x0)
    files.save_paths(out, run, paths, seed)
    loss = paths["loss"][0]
    _print({"file": str(out), "count": count, "mean_loss": float(loss.mean()), "worst_loss": float(loss.max())}, as_json)


def _check(problem: Any, as_json: bool, how: dict[str, Any]) -> None:
    from stablebptt.tasks import check

    with _usage():
        found = check.check(problem, **how)
    _findings(found, as_json)


def _findings(found: list[Any], as_json: bool) -> None:
    """A table of findings, and an error if one is wrong."""
    if not as_json:
        click.echo(f"{'function':<26}{'argument':<12}{'step':>8}{'sure to':>9}{'error':>10}")
    for finding in found:
        if as_json:
            record = {"function": finding.rule, "argument": finding.argument, "error": finding.error, "step": finding.step}
            record |= {"certainty": finding.certainty, "verdict": finding.verdict, "note": finding.note}
            _print(record | {"passed": finding.passed}, True)
        else:
            numbers = f"{finding.step:>8.0e}{finding.certainty:>9.0e}{finding.error:>10.1e}"
            click.echo(f"{finding.rule:<26}{finding.argument:<12}{numbers}  {finding.verdict}")
    for verdict, words in (("WRONG", "these derivatives disagree"), ("unsure", "no differences are good enough to judge")):
        named = [f"{f.rule} ({f.argument}{': ' * bool(f.note)}{f.note})" for f in found if f.verdict == verdict]
        if named:
            hint = "; try other --states or another --step" if verdict == "unsure" else ""
            raise click.ClickException(f"{words}: {', '.join(named)}{hint}")


for _task in PROBLEMS:
    _add_task(_task)


class Setting(click.ParamType):
    """An argument such as poles=3; the value is written as in Python (or true, false), or is a word."""

    name = "name=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        typed = not isinstance(value, tuple)  # else it is an entry of a table [custom.train.set]
        name, sign, text = str(value).partition("=") if typed else (value[0], "=", value[1])
        if not sign or not name.isidentifier():
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        try:
            return name, _value(text.strip()) if typed else _plain(text)
        except ValueError as error:
            self.fail(f"{name}={text}: {error}", param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Several arguments in one text: each begins after a space, with its name."""
        return re.split(r"\s+(?=[^\W\d]\w*=)", rv.strip())


def _value(text: str) -> Any:
    """What a text says in Python's spelling: a number, word, truth value, None or a list; raises a ValueError if it is none."""
    if text in ("true", "false"):
        return text == "true"
    if text in ("nan", "inf"):
        return _plain(float(text))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd spellings, about a file that does not exist
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not re.match(r"[^\W\d]|~?\.{,2}[/\\]", text):
            raise ValueError("give a number, a list, a word, 'text in quotes', True, False or None") from None
        value = text
    return _plain(value)


def _plain(value: Any) -> Any:
    """A value as a run file keeps it: tuples become lists."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"a run file cannot keep {type(value).__name__}")
    return value


def _once(ctx: click.Context, param: click.Parameter, settings: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Arguments by name; none may be given twice."""
    found: dict[str, Any] = {}
    for name, value in settings:
        if name in found:
            raise click.BadParameter(f"{name} is given twice", ctx, param)
        found[name] = value
    return found


OWN: list[Option] = [
    click.argument("source", metavar="MODULE:FUNCTION"),
    click.option(
        "--set",
        "arguments",
        type=Setting(),
        multiple=True,
        callback=_once,
        help="Argument name=value of the function, written as in Python; repeatable.",
    ),
]


def _own(source: str, arguments: dict[str, Any]) -> Any:
    """The problem that a function of the user's makes."""
    from stablebptt.tasks.custom import from_source

    with _usage():
        return from_source(source, **arguments)


@stablebptt.group("custom")
def custom() -> None:
    """Train and try controllers for a system of your own; MODULE:FUNCTION makes the problem."""


@command(custom, "train")
@_options(OWN + TRAINING + FILES)
def custom_train(source: str, arguments: Any, **options: Any) -> None:
    """Train a controller and write a run file."""
    _train(_own(source, arguments), **options)


@command(custom, "simulate")
@_options(OWN + ROLLOUTS)
def custom_simulate(source: str, arguments: Any, **options: Any) -> None:
    """Roll the trained controller of a run file out from new initial states."""
    _simulate("custom", problem=_own(source, arguments), **options)


@command(custom, "check")
@_options([*OWN, *CHECKS])
def custom_check(source: str, arguments: Any, as_json: bool, quiet: bool, **how: Any) -> None:
    """Test the adjoints against finite differences, in float64."""
    from stablebptt.tasks.custom import in_float64

    _check(in_float64(_own(source, arguments)), as_json, how)


@command(stablebptt, "check")
@click.argument("source", metavar="MODULE:NAME")
@_options(CHECKS)
def check(source: str, as_json: bool, quiet: bool, **how: Any) -> None:
    """Test a system of your own against finite differences: a class, or a function that makes a problem."""
    from stablebptt.kernels.generics import System
    from stablebptt.tasks import check as checking
    from stablebptt.tasks.custom import find, in_float64

    with _usage():
        found = find(source)
        if isinstance(found, type) and issubclass(found, System):
            found = found()
        results = checking.check_system(found, **how) if isinstance(found, System) else None
    if results is None:
        _check(in_float64(_own(source, {})), as_json, how)
    else:
        _findings(results, as_json)


def _picture(out: Path, force: bool, draw: Callable[[], Any]) -> None:
    """Draw and write a picture, if its place is free."""
    from stablebptt.tasks import figures

    _free(out, force)
    with _usage():
        figures.save(draw, out)


def _free(out: Path, force: bool) -> None:
    """Find out before the work that a file cannot be written."""
    from stablebptt.data.atomic import check_folder

    check_folder(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another name, or replace it with --force")


PICTURE: list[Option] = [
    click.option("--out", type=FILE, required=True, help="Picture to write: .png, .pdf or .svg."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--quiet", is_flag=True, help="No messages."),
]


@command(stablebptt, "inspect")
@click.argument("file", type=FILE)
@click.option("--trajectory", type=int, metavar="K", help="Show the numbers of trajectory K, counted from 0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quiet", is_flag=True, help="No messages.")
def inspect(file: Path, trajectory: int | None, as_json: bool, quiet: bool) -> None:
    """Say what is in a file."""
    from stablebptt.data import summary

    found = summary.summarize(file, trajectory)
    click.echo(json.dumps(found) if as_json else summary.text(found))


@command(stablebptt, "plot")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE.h5...")
@_options(PICTURE)
@click.option(
    "--curve",
    "curves",
    type=click.Choice(["test", "train", "update", "cosine"]),
    multiple=True,
    default=("test", "update", "cosine"),
    help="Learning curve to draw; may be repeated.",
)
@click.option("--smooth", type=int, default=1, metavar="N", help="Running mean over N epochs.")
@click.option("--trajectory", type=int, metavar="K", help="Draw trajectory K of one file, counted from 0, not learning curves.")
def plot(
    files: tuple[Path, ...], out: Path, force: bool, quiet: bool, curves: tuple[str, ...], smooth: int, trajectory: int | None
) -> None:
    """Draw the learning curves of run files, or the trajectories of a file.

    Runs that differ in nothing but the seed share a line, their mean, and a band from the lowest to the highest. Of a file that
    'simulate' wrote, the trajectories are drawn.
    """
    from stablebptt.data import run_file
    from stablebptt.tasks import figures, rollout_figures
    from stablebptt.tasks.rollouts import load_rollouts
    from stablebptt.tasks.runs import load

    if trajectory is None and len(files) == 1 and run_file.kind(files[0]) == run_file.PATHS_FORMAT:
        trajectory = 0
    if trajectory is not None:
        if len(files) > 1:
            raise click.UsageError("--trajectory draws the trajectories of one file; give one file")
        rollouts, number = load_rollouts(files[0]), trajectory
        _picture(out, force, lambda: rollout_figures.draw(rollouts, number))
        return
    runs = [load(file) for file in files]
    _picture(out, force, lambda: figures.learning_curves(runs, curves, smooth))


@command(stablebptt, "animate")
@click.argument("file", type=FILE, metavar="FILE.h5")
@click.option("--out", type=FILE, required=True, help="Film to write: .gif, or .mp4 if ffmpeg is installed.")
@click.option("--trajectory", type=int, default=0, metavar="K", help="Initial state to show, counted from 0.")
@click.option("--fps", type=int, default=25, help="Pictures per second.")
@click.option("--every", type=int, default=1, metavar="N", help="Show every N-th time step.")
@click.option("--dpi", type=int, default=80, help="Points per inch; a panel has 3.6 inches.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--quiet", is_flag=True, help="No messages.")
def animate(file: Path, out: Path, trajectory: int, fps: int, every: int, dpi: int, force: bool, quiet: bool) -> None:
    """Make a film of a trajectory, untrained beside trained."""
    from stablebptt.tasks import films
    from stablebptt.tasks.rollouts import load_rollouts

    rollouts = load_rollouts(file)
    _free(out, force)
    with _usage():
        pictures = films.save_film(rollouts, trajectory, out, fps, every, dpi)
    if not quiet:
        click.echo(f"{out}: {pictures} pictures, {pictures / fps:.1f} s", err=True)


@command(stablebptt, "sweep")
@click.argument("plan", type=FILE, required=False, metavar="[PLAN.toml]")
@click.option("--out", type=FILE, required=True, help="Folder for the run files.")
@click.option("--paper", help="The published runs instead of a plan: cartpole, guidance, quantum or all.")
@click.option("--seeds", help="Seeds instead of the plan's: one, or a range such as 0:10.")
@click.option("--epochs", type=int, help="Epochs instead of the plan's.")
@click.option("--jobs", type=int, help="Processes on this machine.  [default: all cores]")
@click.option("--resume", is_flag=True, help="Go on with a folder that holds runs of this plan.")
@click.option("--retry-failed", is_flag=True, help="Try runs again that diverged or failed before.")
@click.option("--dry-run", is_flag=True, help="List the runs and an estimate of their time.")
@click.option("--task-index", type=int, metavar="K", help="Only run K, counted from 0, in this process (for job arrays).")
@click.option("--dask", metavar="ADDRESS", help="Send the runs to a Dask cluster: scheduler address or scheduler file.")
@click.option("--gather", is_flag=True, help="With --dask: workers send the files back (no shared folder).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def sweep(
    plan: Path | None, out: Path, paper: str | None, seeds: str | None, epochs: int | None, jobs: int | None, resume: bool,
    retry_failed: bool, dry_run: bool, task_index: int | None, dask: str | None, gather: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train all runs of a plan, each into a file of its own.

    Exit code 0 if all runs are complete, 3 if some diverged, 1 if some failed.
    """
    from stablebptt.tasks import checks, sweeps

    if (plan is None) == (paper is None):
        raise click.UsageError("give either a plan or --paper")
    if gather and dask is None:
        raise click.UsageError("--gather goes with --dask")
    with _usage():
        chosen: Any = int(seeds) if seeds is not None and seeds.isdecimal() else seeds
        runs = sweeps.read_plan(plan, chosen, epochs) if plan is not None else sweeps.paper_plan(str(paper), chosen, epochs)
        if jobs is not None:
            checks.whole("jobs", jobs, 1)
        if task_index is not None:
            checks.index("task index", task_index, len(runs))
    if dry_run:
        _dry_run(sweeps.estimate(runs), jobs or sweeps.cores(), as_json)
        return
    if task_index is not None:
        outcomes = [sweeps.run_one(runs[task_index], out, retry_failed)]
        _print(_event(outcomes[0]), as_json)
    else:
        cluster = nullcontext() if dask is None else sweeps.dask_executor(dask)
        with cluster as executor, _sweep_progress(quiet, as_json) as report:
            outcomes = sweeps.sweep(
                runs, out, jobs=jobs, executor=executor, resume=resume, retry_failed=retry_failed, gather=gather, report=report
            )
        _sweep_table(outcomes, as_json)
    _sweep_verdict(outcomes)


def _dry_run(seconds: dict[str, float], jobs: int, as_json: bool) -> None:
    for name, estimate in seconds.items():
        _print({"run": name, "seconds": estimate}, True) if as_json else click.echo(f"{name:<70} {_duration(estimate)}")
    total = sum(seconds.values())
    summary = {"runs": len(seconds), "core_seconds": total, "jobs": jobs, "seconds": total / min(jobs, max(len(seconds), 1))}
    if as_json:
        _print(summary, True)
    else:
        click.echo(f"{len(seconds)} runs, about {_duration(total)} on one core, {_duration(summary['seconds'])} with {jobs} jobs")


def _event(outcome: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {"event": "ended", **{name: value for name, value in asdict(outcome).items() if value != ""}}


@contextmanager
def _sweep_progress(quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report a sweep to: a line on a terminal, now and then one elsewhere."""
    live = sys.stderr.isatty() and not quiet
    shown = -math.inf

    def line(progress: Any) -> None:
        nonlocal shown
        done, bad = progress.count("complete"), progress.count("failed", "diverged")
        facts = {"done": done, "running": progress.running, "failed": bad, "total": progress.total}
        if as_json and progress.ended is not None:
            _print(_event(progress.ended) | facts | {"seconds_left": progress.seconds_left}, True)
        now = time.monotonic()
        if quiet or (now - shown < (0.2 if live else 10.0) and done + bad < progress.total):
            return
        shown = now
        left = f", {_duration(progress.seconds_left)} left" if math.isfinite(progress.seconds_left) else ""
        text = f"{done} of {progress.total} runs done, {progress.running} running, {bad} failed or diverged{left}"
        click.echo(f"\r{text}\x1b[K" if live else text, nl=not live, err=True)

    try:
        yield line
    finally:
        if live and shown > 0:
            click.echo("", err=True)


def _sweep_table(outcomes: list[Any], as_json: bool) -> None:
    if as_json:
        statuses = sorted({outcome.status for outcome in outcomes})
        _print({"event": "finished"} | {s: sum(o.status == s for o in outcomes) for s in statuses}, True)
        return
    width = max(len(outcome.name) for outcome in outcomes)
    click.echo(f"{'run':<{width}}  {'status':<11} {'epochs':>6} {'test loss':>10} {'best':>10} {'seconds':>8}")
    for o in outcomes:
        numbers = f"{o.epochs:>6} {o.test_loss:>10.4g} {o.best_test_loss:>10.4g} {o.seconds:>8.1f}"
        click.echo(f"{o.name:<{width}}  {o.status:<11} {numbers}  {o.message}".rstrip())


def _sweep_verdict(outcomes: list[Any]) -> None:
    from stablebptt.tasks.errors import DivergedError

    counts = {status: sum(o.status == status for o in outcomes) for status in ("failed", "busy", "interrupted", "diverged")}
    if counts["failed"] or counts["busy"]:
        first = next(o for o in outcomes if o.status in ("failed", "busy"))
        others = counts["failed"] + counts["busy"]
        raise click.ClickException(f"{others} of {len(outcomes)} runs failed; the first: {first.name}: {first.message}")
    if counts["interrupted"]:
        raise KeyboardInterrupt
    if counts["diverged"]:
        raise DivergedError(f"{counts['diverged']} of {len(outcomes)} runs diverged")


@command(stablebptt, "report")
@click.argument("folder", type=FILE, metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="The counts as a JSON object.")
@click.option("--quiet", is_flag=True, help="No messages.")
def report(folder: Path, as_json: bool, quiet: bool) -> None:
    """Collect the runs of a sweep in FOLDER/report: a table, a page (Markdown and HTML) and the published figures with bands."""
    from stablebptt.tasks import reports

    _print(reports.write(folder), as_json)


@stablebptt.group("landscape")
def landscape() -> None:
    """Two pictures that explain the method."""


@command(landscape, "fields")
@_options(PICTURE)
@click.option("--resolution", type=int, default=121, help="Points along each axis.")
def fields(out: Path, force: bool, quiet: bool, resolution: int) -> None:
    """Loss and gradient fields of a controller with two parameters: R explodes and vanishes, M is balanced and rotates."""
    from stablebptt.tasks import landscape as pictures

    _picture(out, force, lambda: pictures.draw_fields(pictures.fields(resolution)))


@command(landscape, "rotation")
@_options(PICTURE)
@click.option("--json", "as_json", is_flag=True, help="The last losses as a JSON object.")
def rotation(out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Adam along a field without rotation, with rotation, and along their combination by sign."""
    from stablebptt.tasks import landscape as pictures

    paths = pictures.rotation()
    _picture(out, force, lambda: pictures.draw_rotation(paths))
    _print({name: float(losses[-1]) for name, losses in pictures.rotation_losses(paths).items()}, as_json)


@command(stablebptt, "info")
@click.option("--versions", "only_versions", is_flag=True, help="Versions only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quiet", is_flag=True, help="No messages.")
def info(only_versions: bool, as_json: bool, quiet: bool) -> None:
    """Versions, processor, GPU and cache folder."""
    from stablebptt.data.run_file import versions

    if only_versions:
        _print(versions(), as_json)
        return
    from llvmlite import binding

    from stablebptt.kernels.cache import usable_folder
    from stablebptt.kernels.simd import VECTOR_BYTES

    facts = versions() | {
        "processor": binding.get_host_cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "vector_bits": 8 * VECTOR_BYTES,
        "gpu": _gpu(),
        "cache_folder": str(usable_folder() or "none"),
    }
    _print(facts, as_json)


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
    from stablebptt.data.storage import FileFormatError
    from stablebptt.tasks.errors import BackendError, DivergedError, OwnCodeError

    if isinstance(error, click.UsageError):
        where = f"; see '{error.ctx.command_path} --help'" if error.ctx is not None else ""
        return error.format_message() + where, WRONG_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, DivergedError):
        return str(error), DIVERGED
    if isinstance(error, FileFormatError):
        return str(error), BAD_FILE
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason, NO_ACCESS
    if isinstance(error, BackendError | OwnCodeError):
        return str(error), 1
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}", 1
    if isinstance(error, ValueError):
        return str(error), WRONG_USAGE
    return f"{type(error).__name__}: {error}", 1


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _warning_line(message: Any, *unused: Any, **more: Any) -> str:
    return f"stablebptt: warning: {' '.join(str(message).split())}\n"


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    warnings.formatwarning = _warning_line
    given = {"debug": "--debug" in (sys.argv[1:] if arguments is None else arguments)}
    signal.signal(signal.SIGTERM, _terminated)
    try:
        stablebptt.main(arguments, prog_name="stablebptt", standalone_mode=False, obj=given)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_ACCESS)
    except (Exception, KeyboardInterrupt) as error:
        if given["debug"]:
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(f"stablebptt: {' '.join(message.split())}", err=True)
        sys.exit(code)
