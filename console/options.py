"""The options of all commands, and those that a task brings."""

from collections.abc import Callable
from typing import Any

import click

from stablebptt.console.parameters import FILE, PLAN, RUN, Numbers, Setting, Word, once
from stablebptt.tasks.registry import BACKENDS, TASKS
from stablebptt.tasks.settings import CHECKPOINT_SECONDS, GATES, JOINS, OPTIMIZER, OPTIMIZERS, OPTIONS, VARIANTS, Settings
from stablebptt.tasks.task import LISTS
from stablebptt.tasks.task import Option as TaskOption

Option = Callable[[Callable], Callable]
KINDS: dict[str, Any] = {"size": int, "whole": int, "real": float, "word": str, "dtype": str, "text": str}  # of options of tasks
VARIANT = Word([*VARIANTS, *(name for name in JOINS if "=" not in name)])
KINDS |= {"sizes": Numbers(int, "100,100"), "point": Numbers(float, "0,0")}


def of_task(option: TaskOption) -> Option:
    """The option of the command line that an option of a task is."""
    words = option.name.replace("_", "-")
    if option.kind == "flag":
        return click.option(f"--{words}/--no-{words}", option.name, default=option.default, help=option.help)
    default = ",".join(f"{number:g}" for number in option.default) if option.kind in LISTS else option.default
    kind = Word(option.choices) if option.choices else VARIANT if option.name == "variant" else KINDS[option.kind]
    return click.option(f"--{words}", option.name, type=kind, default=default, help=option.help)


def _out(help: str, kind: Any = FILE) -> Option:
    return click.option("-o", "--out", type=kind, required=True, help=help)


FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress and no messages, except for errors.")
BACKEND = click.option("--backend", type=Word(BACKENDS), default="cpu", help="What computes: cuda is a CUDA device.")
THREADS = click.option("--threads", type=int, help="Of the CPU, at most. Results do not depend on them.  [default: all]")


RATE_HELP = (
    "Of the optimizer: a number, or a schedule over the run such as cosine:0.001:1e-5, linear, exponential, "
    "piecewise:0.001:500:0.0001, warmup:100:cosine:0.001.  [default: 0.001; sgd: 0.01]"
)
TRAINING: list[Option] = [
    *(of_task(option) for option in OPTIONS.values() if option.kind != "flag"),
    click.option("--shuffle/--fixed-order", default=Settings.shuffle, help=OPTIONS["shuffle"].help),
    click.option("--optimizer", type=Word(OPTIMIZERS), default=OPTIMIZER, help="Rule of the updates; or your own: MODULE:NAME."),
    click.option("--learning-rate", "--lr", "learning_rate", help=RATE_HELP),
    click.option("--momentum", type=float, help="Of sgd.  [default: 0]"),
    click.option("--weight-decay", type=float, help="Decoupled, with the rate of the optimizer (AdamW).  [default: 0]"),
    click.option("--seeds", help="Many trainings together, such as 0:132; --out is then a folder."),
    BACKEND,
    THREADS,
]
START: list[Option] = [
    click.option("--start-from", type=RUN, metavar="RUN.h5", help="Begin with the weights of this run, of the same network."),
    click.option("--best", is_flag=True, help="Its weights of the lowest test loss, not the last ones."),
    click.option("--train-states", type=FILE, help="Training states: an array (.npy), or an HDF5 file with a dataset 'states'."),
    click.option("--test-states", type=FILE, help="Test states, likewise; of a file of rollouts, where they begin."),
]
CALLBACKS: list[Option] = [
    click.option("--stop-at", type=float, metavar="LOSS", help="Stop at a test loss of at most this."),
    click.option("--patience", type=int, metavar="N", help="Stop when the lowest test loss is N epochs old."),
    click.option("--hours", type=float, help="Stop before so many hours are over; --resume goes on."),
    click.option("--log", type=FILE, help="Write the history as numbers for spreadsheets (.csv), too."),
    click.option("--tensorboard", type=FILE, metavar="FOLDER", help="Write the history for TensorBoard, too."),
]
TRAIN_NOTES = "\n".join([
    "Variants:",
    *(f"  {letter}  {meaning}" for letter, meaning in VARIANTS.items()),
    *(f"  {name:12}  {meaning}" for name, meaning in (JOINS | GATES).items()),
    "  config/layer  a join of every array of parameters on its own",
    "  MODULE:NAME   a join of your own",
    "",
    "Examples:",
    "  {command} --variant C --clip norm --out run.h5",
    "  {command} --out run.h5 --resume --epochs 2000",
    "",
])  # fmt: skip
FILES: list[Option] = [
    _out("Run file to write.", RUN),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run file, if there is one."),
    FORCE,
    click.option("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS, help="Write the file at least this often [s]."),
    QUIET,
    click.option("--json", "as_json", is_flag=True, help="One JSON object per epoch on stdout."),
]
ROLLOUTS: list[Option] = [
    click.argument("run_file", type=RUN, metavar="RUN.h5"),
    _out("File to write."),
    click.option("--count", type=int, default=16, help="Initial states to draw."),
    click.option("--seed", type=int, default=1, help="Decides the initial states."),
    BACKEND,
    THREADS,
    click.option("--best", is_flag=True, help="The weights of the lowest test loss, not the last ones."),
    FORCE,
    click.option("--json", "as_json", is_flag=True, help="A JSON object on stdout."),
    QUIET,
]
FIELDS = click.option("--set", "fields", metavar="NAME=VALUE", help="Numbers of the system, such as pole_mass=0.15,gravity=9.8.")
EVALUATION: list[Option] = [
    click.argument("run_file", type=RUN, metavar="RUN.h5"),
    click.option("--vary", "axes", multiple=True, required=True, help="NAME=LOWEST:HIGHEST:COUNT, of the system; repeatable."),
    FIELDS,
    click.option("-o", "--out", type=FILE, help="Picture to write: .png, .pdf or .svg."),
    click.option("--count", type=int, default=64, help="Initial states to draw."),
    click.option("--seed", type=int, default=1, help="Decides the initial states, and what else is random."),
    click.option("--best", is_flag=True, help="The weights of the lowest test loss, not the last ones."),
    THREADS,
    FORCE,
    click.option("--json", "as_json", is_flag=True, help="One JSON object per line."),
    QUIET,
]
CHECKS: list[Option] = [
    click.option("--seed", type=int, default=0, help="Decides where the derivatives are taken."),
    click.option("--step", type=float, help="Step of the differences.  [default: the best of many]"),
    click.option("--tolerance", type=float, default=1e-7, help="Relative error that is none."),
    click.option("--states", type=FILE, help="States to take derivatives at: an array (.npy), or a run file."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per line."),
    QUIET,
]
OWN: list[Option] = [
    click.argument("source", metavar="MODULE:FUNCTION"),
    click.option(
        "--set",
        "arguments",
        type=Setting(),
        multiple=True,
        callback=once,
        help="Argument name=value of the function, written as in Python; repeatable.",
    ),
]
PICTURE: list[Option] = [
    _out("Picture to write: .png, .pdf or .svg."),
    FORCE,
    QUIET,
]
PLOT: list[Option] = [
    click.argument("files", type=RUN, nargs=-1, required=True, metavar="FILE.h5..."),
    *PICTURE,
    click.option(
        "--curve",
        "curves",
        type=click.Choice(["test", "train", "update", "cosine"]),
        multiple=True,
        default=("test", "update", "cosine"),
        help="Learning curve to draw; may be repeated.",
    ),
    click.option("--smooth", type=int, default=1, metavar="N", help="Centred running mean over N epochs."),
    click.option("--trajectory", type=int, metavar="K", help="Draw trajectory K of one file, counted from 0, not the curves."),
]
FILM: list[Option] = [
    click.argument("file", type=RUN, metavar="FILE.h5"),
    _out("Film to write: .gif, or .mp4 if ffmpeg is installed."),
    click.option("--trajectory", type=int, default=0, metavar="K", help="Initial state to show, counted from 0."),
    click.option("--fps", type=int, default=25, help="Pictures per second."),
    click.option("--every", type=int, default=1, metavar="N", help="Show every N-th time step."),
    click.option("--dpi", type=int, default=80, help="Points per inch; a panel has 3.6 inches."),
    FORCE,
    QUIET,
]
EXPORT: list[Option] = [
    click.argument("run_file", type=RUN, metavar="RUN.h5"),
    _out("File to write: .onnx (ONNX), .c (C99), .npz (NumPy), .pt or .pt2 (PyTorch)."),
    click.option("--best", is_flag=True, help="The weights of the lowest test loss, not the last ones."),
    FORCE,
    click.option("--json", "as_json", is_flag=True, help="A JSON object on stdout."),
    QUIET,
]
PAPER = Word([*(name for name, task in TASKS.items() if task.published is not None), "all"])
SWEEP: list[Option] = [
    click.argument("plan", type=PLAN, required=False, metavar="[PLAN.toml]"),
    click.option("-o", "--out", type=FILE, help="Folder for the run files.  [required, except for a dry run]"),
    click.option("--paper", type=PAPER, help="The published runs of a task, or all, instead of a plan."),
    click.option("--seeds", help="Seeds instead of the plan's: one, or a range such as 0:10."),
    click.option("--epochs", type=int, help="Epochs instead of the plan's."),
    click.option("--jobs", type=int, help="Processes on this machine.  [default: all cores]"),
    click.option("--resume", is_flag=True, help="Go on with a folder that holds runs of this plan."),
    click.option("--retry-failed", is_flag=True, help="Try runs again that diverged or failed before."),
    click.option("--dry-run", is_flag=True, help="List the runs and an estimate of their time."),
    click.option("--task-index", type=int, metavar="K", help="Only run K, counted from 0, in this process (for job arrays)."),
    click.option("--dask", metavar="ADDRESS", help="Send the runs to a Dask cluster: scheduler address or scheduler file."),
    click.option("--gather", is_flag=True, help="With --dask: workers send the files back (no shared folder)."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per event on stdout."),
    QUIET,
]


def options(given: list[Option]) -> Option:
    """A decorator that adds options."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(given):
            function = option(function)
        return function

    return decorate


def section(title: str, given: list[Option]) -> list[Option]:
    """The same options, under a title in the help."""

    def titled(option: Option) -> Option:
        def decorate(function: Callable) -> Callable:
            function = option(function)
            getattr(function, "__click_params__")[-1].section = title  # noqa: B009
            return function

        return decorate

    return [titled(option) for option in given]


def names_of(given: list[Option]) -> list[str]:
    """Names under which options reach a command."""
    probe: Any = options(given)(lambda: None)
    return [str(parameter.name) for parameter in getattr(probe, "__click_params__", ())]
