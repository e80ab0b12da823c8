"""Run files: configuration, history and parameters of a run in one self-describing HDF5 file.

The layout is part of the public interface; docs/files.md describes it. `storage` writes and checks the file.
"""

import contextlib
import json
import math
import platform
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stablebptt.data import storage
from stablebptt.data.storage import FileFormatError, Group, Variable
from stablebptt.version import __version__

__all__ = [
    "COUNTS", "EVERY_EPOCH", "HISTORY", "LOSSES", "Content", "FileFormatError", "best", "evaluated", "kind", "last", "load",
    "load_if_run", "load_trajectories", "read_any", "save", "save_paths",
]  # fmt: skip

RUN_FORMAT, PATHS_FORMAT, TABLE_FORMAT = "stablebptt-run", "stablebptt-paths", "stablebptt-table"
RESULTS_FORMAT = "stablebptt-results"
TABLES = (TABLE_FORMAT, RESULTS_FORMAT)  # files about many runs
FORMAT_VERSION = 2
READABLE = (1, 2)
ABOUT = ("Conventions", "title", "history", "source")  # root attributes of the CF conventions
LONGEST_TITLE = 200
CONVENTIONS = "CF-1.8"  # the first that knows groups
HISTORY = {
    "epoch": "epochs done, counted from 1",
    "loss": "mean of the mini-batch losses during the epoch",
    "train_loss": "loss on all training states after the epoch, with the regulariser",
    "test_loss": "loss on all test states after the epoch, with the regulariser",
    "train_physics_loss": "loss on all training states after the epoch, without the regulariser",
    "test_physics_loss": "loss on all test states after the epoch, without the regulariser",
    "gradient_norm2": "mean squared 2-norm of the updates' gradients, combined and clipped",
    "cosine": "mean cosine of the angle between M and R (C and other joins; NaN for the rest)",
    "skipped": "updates left out because they were not finite (only with on_divergence skip)",
    "evaluated": "1 if the losses on all states were computed after the epoch, 0 if not (they are NaN then)",
    "seconds": "wall time of the epoch",
}
LOSSES = ("train_loss", "test_loss", "train_physics_loss", "test_physics_loss")  # those of an evaluation
EVERY_EPOCH = {"evaluate_every": 1}  # what older files did, and did not say
COUNTS = ("epoch", "skipped", "evaluated")  # whole numbers
# A unit as UDUNITS reads it: 1, m, kg m/s^2, m s-1, rad.
UNIT = re.compile(r"(1|[A-Za-zµΩ°%]+(\^?-?\d)?)(( |/|\.|\*| / | \* )[A-Za-zµΩ°%]+(\^?-?\d)?)*")
TAKEN = ("time", "control_time", "phase", "sample", "states", "controls", "loss")  # names already used in /trajectories
LAYER_AXES = {
    ("dense", "kernel"): ("input", "output"),
    ("dense", "bias"): ("output",),
    ("conv", "kernel"): ("tap", "channel", "feature"),
    ("conv", "bias"): ("feature",),
}


@dataclass(frozen=True)
class Content:
    """Content of a run file, in plain arrays and words.

    Attributes
    ----------
    config, attributes : configuration of the run; attributes of the root
    history : arrays (epochs,), see `HISTORY`
    theta, best_theta (n_parameters,) : parameters after the last epoch, and those of the lowest test loss
    trajectories : time (T+1,) [s], states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n), scales
    checkpoint : arrays for resuming
    status : "running", "complete", "stopped: ...", "interrupted" or "diverged: ..."
    layers : parameters after the last epoch, by name
    start : arrays that the run began with, where its seed did not decide
    """

    config: dict[str, Any]
    attributes: dict[str, Any]
    history: dict[str, np.ndarray]
    theta: np.ndarray
    best_theta: np.ndarray
    trajectories: dict[str, np.ndarray]
    checkpoint: dict[str, np.ndarray]
    status: str
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    start: dict[str, np.ndarray] = field(default_factory=dict)
    path: str = ""


def evaluated(history: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether each epoch was evaluated (epochs,). A NaN among `LOSSES` was computed where this is True."""
    return history["evaluated"] != 0


def last(history: Mapping[str, np.ndarray], name: str = "test_loss") -> tuple[int, float]:
    """Epoch and value of the last computed one of `LOSSES`, finite or not; (0, NaN) if there is none."""
    known = np.flatnonzero(evaluated(history))
    return (int(history["epoch"][known[-1]]), float(history[name][known[-1]])) if known.size else (0, math.nan)


def best(history: Mapping[str, np.ndarray]) -> tuple[int, float]:
    """Epoch and value of the lowest finite test loss, as stored in the checkpoint; (0, NaN) if there is none."""
    losses = history["test_loss"]
    if not np.isfinite(losses).any():
        return 0, math.nan
    place = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
    return int(history["epoch"][place]), float(losses[place])


def save(path: str | Path, run: Any, progress: Any, *, rehearsal: bool = False) -> None:
    """Write a run (`tasks.runs.Run`) and its state for resuming (`tasks.runs.Progress`), as a whole.

    A `rehearsal` omits only the last step: errors appear, and an old file stays.
    """
    groups: dict[str, Group] = {"history": _history(run.history)}
    groups |= _layers("controller", run.problem, run.theta)
    groups |= _layers("best", run.problem, run.best_theta)
    groups["trajectories"] = _trajectories(run.problem, run.trajectories, ("before training", "after training"))
    groups["checkpoint"] = _checkpoint(run, progress)
    groups |= _start(progress.start.given())
    content = storage.encode(_attributes(RUN_FORMAT, run), groups)
    storage.write(path, content, rehearsal=rehearsal)


def save_paths(
    path: str | Path, run: Any, trajectories: Mapping[str, np.ndarray], seed: int, *, best_weights: bool = False,
    origin: str | Path = "",
) -> None:  # fmt: skip
    """Write rollouts of a trained controller (one phase), with the configuration of its run.

    `best_weights`: whether it has the weights of the lowest test loss, not the last ones; `origin`: the file of the run.
    """
    groups: dict[str, Group] = {"trajectories": _trajectories(run.problem, trajectories, ("trained",))}
    attributes = _attributes(PATHS_FORMAT, run) | {"seed": seed}
    if origin:
        epoch = best(run.history)[0] if best_weights else len(run.history["epoch"])
        attributes |= {"run_file": Path(origin).name, "weights": "best" if best_weights else "last", "weights_epoch": epoch}
        used = f"rollouts of the {attributes['weights']} weights (epoch {epoch}) of {attributes['run_file']}"
        attributes["history"] += f": {used}"
    storage.write(path, storage.encode(attributes, groups))


def read_any(path: str | Path) -> tuple[dict[str, Any], dict[str, Group]]:
    """Attributes and groups of any file of this package, of this or a later version."""
    return storage.read(path, (RUN_FORMAT, PATHS_FORMAT, *TABLES))


def load(path: str | Path) -> Content:
    """Read a run file back.

    Raises
    ------
    FileFormatError
        If the file is damaged, foreign, of a later version, or incomplete.
    """
    attributes, groups = storage.read(path, (RUN_FORMAT,))
    return _content(attributes, groups, path)


def load_if_run(path: str | Path) -> Content | None:
    """`load`; None if the file is another one of this package."""
    attributes, groups = read_any(path)
    return _content(attributes, groups, path) if attributes["format"] == RUN_FORMAT else None


def _content(attributes: dict[str, Any], groups: dict[str, Group], path: str | Path) -> Content:
    if (version := attributes.get("format_version")) not in READABLE:
        raise FileFormatError(f"{path} is a run file of version {version}; this program reads version {FORMAT_VERSION}")
    try:
        columns = groups["history"]
        for name, value in (("skipped", 0), ("evaluated", 1)):  # older files lack these columns
            same = np.full_like(columns["epoch"].values, value)
            columns.setdefault(name, Variable(same, ("epoch",), "1", HISTORY[name]))
        history = {name: columns[name].values for name in HISTORY}
        if {values.shape for values in history.values()} != {(history["epoch"].size,)}:
            raise FileFormatError(f"{path}: the columns of the history are not of one length")
        checkpoint = {name: variable.values for name, variable in groups["checkpoint"].items()}
        for name in ("epoch", "best_loss", "best_epoch"):
            if not checkpoint[name].size:
                raise KeyError(name)
        return Content(
            config={**EVERY_EPOCH, **config_of(attributes, path)},
            attributes=attributes,
            history=history,
            theta=checkpoint["theta"],
            best_theta=checkpoint["best_theta"],
            trajectories={name: variable.values for name, variable in groups["trajectories"].items()},
            checkpoint=checkpoint,
            status=str(attributes["status"]),
            layers=dict(_layers_in(groups, "controller")),
            start={name: variable.values for name, variable in groups.get("start", {}).items() if variable.dims != (name,)},
            path=str(path),
        )
    except KeyError as error:
        raise FileFormatError(f"{path} lacks {error}") from None


def kind(path: str | Path) -> str:
    """Format of a file: `RUN_FORMAT`, `PATHS_FORMAT` or one of `TABLES`."""
    return str(read_any(path)[0]["format"])


class Trajectories(NamedTuple):
    """The rollouts in a file.

    Attributes
    ----------
    config : configuration of the run
    phases : names of the controllers
    arrays : time (T+1,) [s], states (phases, n, T+1, *state), controls (phases, n, T, *control), loss (phases, n)
    axes : for every axis of states and controls its scale, and a word or number for every index
    """

    config: dict[str, Any]
    phases: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    axes: dict[str, list[tuple[Variable, tuple[Any, ...]]]]


def load_trajectories(path: str | Path) -> Trajectories:
    """The rollouts in a run file or a file of paths."""
    attributes, groups = read_any(path)
    try:
        group = groups["trajectories"]
        arrays = {name: group[name].values for name in ("time", "states", "controls", "loss")}
        words = str(group["phase"].attributes["flag_meanings"]).split()
    except KeyError as error:
        raise FileFormatError(f"{path} lacks {error}, so it shows no rollouts") from None
    if arrays["states"].ndim < 3 or len(words) != arrays["states"].shape[0]:
        raise FileFormatError(f"{path}: the rollouts do not belong together")
    phases = tuple(word.replace("_", " ") for word in words)
    axes = {name: _axes(group, name) for name in ("states", "controls")}
    return Trajectories(config_of(attributes, path), phases, arrays, axes)


def _axes(group: Group, name: str) -> list[tuple[Variable, tuple[Any, ...]]]:
    """Scales of the axes after (phase, sample, time), with their words or numbers."""
    given = zip(group[name].dims[3:], group[name].values.shape[3:])
    scales = [group.get(dim, Variable(np.arange(length), (dim,), "1", dim)) for dim, length in given]
    return [(scale, _places(scale)) for scale in scales]


def _places(scale: Variable) -> tuple[Any, ...]:
    """The words that `_words` wrote (older files have flag_meanings only), or numbers."""
    words: Any = [word.replace("_", " ") for word in str(scale.attributes.get("flag_meanings", "")).split()]
    with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
        words = json.loads(scale.attributes["names"])
    known = isinstance(words, list) and len(words) == len(scale.values) and all(isinstance(word, str) for word in words)
    return tuple(words) if known else tuple(scale.values.tolist())


def config_of(attributes: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """The configuration in a file's attributes."""
    try:
        config = json.loads(attributes["config"])
        if not isinstance(config, dict):
            raise ValueError("not a table")
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} has no readable configuration ({error})") from None
    return config


def versions() -> dict[str, str]:
    """Versions of the programs that compute a file."""
    found = {"stablebptt": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in ("numba", "numpy", "h5py")}


def commit() -> str:
    """Git commit of the package's sources; empty if they are not in a checkout."""
    try:
        place = _git_folder(Path(__file__).parent.parent / ".git")
        head = (place / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        found = head if name == head else _commit_of(name, place)
    except (OSError, ValueError):
        return ""
    return found if re.fullmatch("[0-9a-f]+", found) else ""


def _git_folder(place: Path) -> Path:
    """The folder that holds a checkout's HEAD: `.git`, or where the file `.git` of a linked worktree or a submodule points."""
    if place.is_dir():
        return place
    return place.parent / place.read_text().strip().removeprefix("gitdir: ")


def _commit_of(name: str, place: Path) -> str:
    """The commit of a branch, from its own file or from the packed references, which worktrees share."""
    shared = place / (place / "commondir").read_text().strip() if (place / "commondir").exists() else place
    for folder in (place, shared):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    lines = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
    return next((words[0] for words in lines if words[1:] == [name]), "")


def _attributes(kind: str, run: Any) -> dict[str, Any]:
    """Root attributes of a file about a run."""
    attributes = _origin(kind, run.problem.title)
    attributes |= {"versions": json.dumps(versions()), "config": json.dumps(run.config), "status": run.status}
    return attributes | ({"git_commit": found} if (found := commit()) else {})


def table_attributes(title: str, kind: str = TABLE_FORMAT) -> dict[str, str | int | float]:
    """Root attributes of a table of runs."""
    return _origin(kind, title)


def _origin(kind: str, title: str) -> dict[str, str | int | float]:
    """What every file says of itself, as the CF conventions ask for."""
    created, program = datetime.now(UTC).isoformat(timespec="seconds"), f"stablebptt {__version__}"
    return {
        "format": kind,
        "format_version": FORMAT_VERSION,
        "created": created,
        "Conventions": CONVENTIONS,
        "title": " ".join(title.split())[:LONGEST_TITLE] or "no title",
        "history": f"{created}: written by {program}",
        "source": f"{program}, training through a simulator by backpropagation through time",
    }


def _history(history: Mapping[str, np.ndarray]) -> Group:
    group = {}
    for name, meaning in HISTORY.items():
        values = history[name].astype(np.int64) if name in COUNTS else history[name]
        group[name] = Variable(values, ("epoch",), "s" if name == "seconds" else "1", meaning)
    return group


def _layers(place: str, problem: Any, theta: np.ndarray) -> dict[str, Group]:
    """Every parameter of a controller as a dataset. The words of its name before the last one are groups."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, values in problem.layers(theta).items():
        layer, _, part = f"{place}/{name}".rpartition("/")
        parts.setdefault(layer, {})[part] = np.atleast_1d(values)
    return {layer: _layer(layer, arrays, set(parts)) for layer, arrays in parts.items()}


def _layer(layer: str, arrays: Mapping[str, np.ndarray], layers: Collection[str]) -> Group:
    """The parameters of one layer. Axes have known names in our layers, otherwise the parameter's name and a number."""
    taken = {*arrays, *(inner[len(layer) + 1 :].partition("/")[0] for inner in layers if inner.startswith(f"{layer}/"))}
    kind = layer.rpartition("/")[2].partition("_")[0]
    dims = {part: LAYER_AXES.get((kind, part), ()) for part in arrays}
    lengths = {(dim, n) for part, values in arrays.items() for dim, n in zip(dims[part], values.shape)}
    unnamed = any(len(dims[part]) != values.ndim for part, values in arrays.items())
    if unnamed or len(lengths) > len(dict(lengths)) or taken & set(dict(lengths)):
        dims = {part: _axis_names(part, values.ndim, taken) for part, values in arrays.items()}
    where = layer.partition("/")[2]
    words = {part: f"{part} of layer {where}" if where else part for part in arrays}
    return {part: Variable(values, dims[part], "1", words[part]) for part, values in arrays.items()}


def _axis_names(part: str, count: int, taken: set[str]) -> tuple[str, ...]:
    """Names of a parameter's axes that no neighbour uses; they are added to `taken`."""
    names = []
    for axis in range(count):
        name = f"{part}_{axis}"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _layers_in(groups: Mapping[str, Group], place: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of the parameters that `_layers` wrote."""
    for path, group in groups.items():
        if path == place or path.startswith(f"{place}/"):
            for part, variable in group.items():
                if variable.dims != (part,):  # otherwise it is the scale of an axis
                    yield f"{path}/{part}".removeprefix(f"{place}/"), variable.values


def _trajectories(problem: Any, given: Mapping[str, np.ndarray], phases: tuple[str, ...]) -> Group:
    state_dims, control_dims = (tuple(a.name for a in axes) for axes in (problem.state_axes, problem.control_axes))
    count = given["states"].shape[1]
    seen: dict[str, Any] = {}
    group: Group = {
        "time": Variable(given["time"], ("time",), "s", "time"),
        "control_time": Variable(
            given["time"][:-1], ("control_time",), "s", "time at which a control begins to act"
        ),
        "phase": _words("phase", "controller", phases),
        "sample": Variable(np.arange(count), ("sample",), "1", "initial state"),
    }
    for axis in (*problem.state_axes, *problem.control_axes):
        if axis.name in TAKEN or seen.setdefault(axis.name, axis) != axis or not storage.is_name(axis.name):
            raise ValueError(f"an axis is called {axis.name!r}, as something else beside it or as no file can have it; rename it")
        if all(isinstance(place, str) for place in axis.places):
            group[axis.name] = _words(axis.name, axis.long_name, axis.places)
        else:
            group[axis.name] = _measured(np.array(axis.places), (axis.name,), axis.units, axis.long_name)
    group["states"] = _measured(given["states"], ("phase", "sample", "time", *state_dims), problem.state_units, "states")
    control_dims = ("phase", "sample", "control_time", *control_dims)
    group["controls"] = _measured(given["controls"], control_dims, problem.control_units, "controls")
    group["loss"] = Variable(given["loss"], ("phase", "sample"), "1", "loss of each rollout, with the regulariser")
    return group


def _measured(values: np.ndarray, dims: tuple[str, ...], units: str, long_name: str) -> Variable:
    """An array in one unit that programs can read; or in several, which `component_units` tells to people."""
    if UNIT.fullmatch(units):
        return Variable(values, dims, units, long_name)
    attributes = {"component_units": units} if units.strip() else {}
    return Variable(values, dims, "1", long_name, attributes)


def _words(name: str, long_name: str, words: Iterable[str]) -> Variable:
    """An axis whose places are words: numbers with an attribute that explains them."""
    meanings = list(words)
    return Variable(np.arange(len(meanings), dtype=np.int32), (name,), "1", long_name, flags(meanings))


def flags(words: Iterable[str]) -> dict[str, Any]:
    """Attributes that explain the numbers 0, 1, .. (int32), as in the CF conventions; `names` are the words as given."""
    given = list(words)
    meanings = ["_".join(word.split()) for word in given]
    values, names = np.arange(len(given), dtype=np.int32), json.dumps(given, ensure_ascii=False)
    return {"flag_values": values, "flag_meanings": " ".join(meanings), "names": names}


def _start(given: Mapping[str, np.ndarray]) -> dict[str, Group]:
    """What a run began with, where its seed did not decide."""
    group: Group = {}
    for name, values in given.items():
        if name == "theta":
            group[name] = Variable(values, ("parameter",), "1", "parameters before the first epoch")
        else:
            dims = (name.removesuffix("s"), *(f"state_{axis}" for axis in range(values.ndim - 1)))
            group[name] = Variable(values, dims, "1", f"initial states to {name.partition('_')[0]} on")
    return {"start": group} if group else {}


def _checkpoint(run: Any, progress: Any) -> Group:
    def one(value: float, name: str, meaning: str) -> Variable:
        return Variable(np.array([value]), (name,), "1", meaning)

    group = {
        "epoch": one(progress.epoch, "epoch", "epochs done"),
        "theta": Variable(progress.theta, ("parameter",), "1", "parameters after the last epoch"),
        "best_theta": Variable(progress.best_theta, ("parameter",), "1", "parameters of the lowest test loss"),
        "best_loss": one(progress.best_loss, "best_loss", "lowest test loss"),
        "best_epoch": one(progress.best_epoch, "best_epoch", "epoch of the lowest test loss"),
        "random_state": Variable(
            np.array([run.config["seed"], progress.epoch + 1]),
            ("random_state",),
            "1",
            "seed, and the next epoch: every random stream is opened anew from these two",
        ),
    }
    taken = {*group, *(f"optimizer_{name}" for name in progress.optimizer)}
    for name, values in progress.optimizer.items():
        values, place = np.atleast_1d(values), f"optimizer_{name}"
        own = (place,) if values.ndim == 1 else _axis_names(place, values.ndim, taken)
        dims = ("parameter",) if values.shape == progress.theta.shape else own
        group[place] = Variable(values, dims, "1", f"state of the optimizer: {name}")
    return group
