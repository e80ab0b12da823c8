"""The content of a file in words and numbers."""

import csv
import io
import itertools
import json
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import run_file
from stablebptt.data.columns import cells

WIDTH, INDENT = 79, 14  # of the text, and of what stands behind the names of its entries
MOST_LISTED = 16  # columns of a table, or entries of a long list
RANDOM_OR_SEEN = ("vary", "disturb", "observe")  # options with settings of their own
FROM_RUN = ("seed", "run_file", "weights", "weights_epoch")  # root attributes of a file of rollouts


def summarize(path: str | Path, trajectory: int | None = None) -> dict[str, Any]:
    """Everything `stablebptt inspect` says about a file, ready for JSON, with the numbers of one trajectory on request.

    Raises
    ------
    FileFormatError
        If the file is damaged, hostile or foreign.
    ValueError
        If the file has no such trajectory.
    """
    attributes, groups = run_file.read_any(path)
    config = {} if attributes["format"] in run_file.TABLES else run_file.config_of(attributes, path)
    summary: dict[str, Any] = {
        "file": str(path),
        "format": attributes["format"],
        "format_version": attributes.get("format_version"),
        "created": attributes.get("created"),
        "versions": _parsed(attributes.get("versions"), dict),
        "git_commit": attributes.get("git_commit"),
        "status": attributes.get("status"),
        "config": config,
    }
    known = {*summary, *run_file.ABOUT, *FROM_RUN}
    if attributes["format"] == run_file.PATHS_FORMAT:
        summary |= {name: attributes.get(name) for name in FROM_RUN}
    summary["unknown_attributes"] = sorted(set(attributes) - known)
    if attributes.get("format_version") not in run_file.READABLE:
        summary["note"] = f"this program knows version {run_file.FORMAT_VERSION}; what it cannot explain is only listed"
    if "history" in groups:
        history = {name: variable.values for name, variable in groups["history"].items()}
        history.setdefault("evaluated", np.ones(len(history.get("epoch", ())), int))  # older files lack it
        summary["losses"] = _losses(history)
        summary["test_loss"] = history.get("test_loss", np.zeros(0)).tolist()
        summary["evaluated"] = history["evaluated"].tolist()
    if trajectory is not None:
        summary["trajectory"] = _trajectory(path, trajectory)
    summary["datasets"] = {
        f"/{group}/{name}": {
            "shape": list(variable.values.shape),
            "dtype": str(variable.values.dtype),
            "dims": list(variable.dims),
            "units": variable.units,
            "long_name": variable.long_name,
        }
        for group, content in groups.items()
        for name, variable in content.items()
    }
    return _finite(summary)


def text(summary: dict[str, Any]) -> str:
    """A summary as lines for people: one screen of 80 x 24."""
    kind = f": {summary['format']}, version {summary['format_version']}"
    name, room = summary["file"], WIDTH - len(kind)
    lines = [(name if len(name) <= room else f"..{name[2 - room :]}") + kind]
    if "note" in summary:
        lines += _entry("note", summary["note"])
    if unknown := summary["unknown_attributes"]:
        lines += _entry("unknown", f"attribute{'s' * (len(unknown) > 1)} {', '.join(unknown)}", 1)
    lines += _settings(summary["config"], summary["status"]) if summary["config"] else []
    lines += _paths(summary)
    lines += _loss_lines(summary) if "losses" in summary else []
    lines += _tables(summary["datasets"])
    lines += _entry("origin", _origin(summary))
    trajectory = ", --trajectory K" if "/trajectories/states" in summary["datasets"] else ""
    return "\n".join([*lines, *_entry("more", f"--datasets{trajectory}, --csv (for spreadsheets), --json")])


def datasets_text(summary: dict[str, Any]) -> str:
    """A line for every dataset of a file: type, axes, unit and meaning."""
    datasets = summary["datasets"]
    width = max((len(name) for name in datasets), default=0)
    lines = []
    for name, facts in datasets.items():
        shape = ", ".join(f"{dim} {length}" for dim, length in zip(facts["dims"], facts["shape"]))
        lines.append(f"{name:<{width}}  {facts['dtype']} ({shape}) [{facts['units']}] {facts['long_name']}")
    return "\n".join(lines)


def _entry(name: str, words: str, most: int = 2) -> list[str]:
    """An entry of a summary, broken into at most so many lines."""
    first = f"  {name:<{INDENT - 3}} "
    options: dict[str, Any] = {"break_on_hyphens": False, "max_lines": most, "placeholder": " .."}
    return textwrap.wrap(words, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT, **options) or [first]


def _settings(config: dict[str, Any], status: Any) -> list[str]:
    """Status, task with its options, training."""
    options = config.get("options", {})
    plain = {key: value for key, value in options.items() if not isinstance(value, dict)} | options.get("arguments", {})
    settings = {key: value for key, value in config.items() if key not in ("task", "options", "optimizer")}
    lines = _entry("status", str(status))
    lines += _entry("task", f"{config.get('task')}: {_words(plain)}", 3)
    if more := [f"{name} ({_words(options[name])})" for name in RANDOM_OR_SEEN if options.get(name)]:
        lines += _entry("with", ", ".join(more))
    rule = {"optimizer" if key == "name" else key: value for key, value in config.get("optimizer", {}).items()}
    return lines + _entry("training", _words({**settings, **rule}), 4)


def _paths(summary: dict[str, Any]) -> list[str]:
    """Of a file of rollouts: whose they are, and from where."""
    if summary["format"] != run_file.PATHS_FORMAT:
        return []
    count = summary["datasets"].get("/trajectories/loss", {}).get("shape", ["?"])[-1]
    lines = _entry("rollouts", f"{count}, from states drawn with seed {summary['seed']}")
    if summary.get("run_file"):
        weights = f"the {summary['weights']} ones (epoch {summary['weights_epoch']}) of {summary['run_file']}"
        lines += _entry("weights", weights)
    return lines


def _loss_lines(summary: dict[str, Any]) -> list[str]:
    losses, planned = summary["losses"], summary["config"].get("epochs")
    if not losses["epochs"]:
        return _entry("epochs", f"0 of {planned}")
    done = _entry("epochs", f"{losses['epochs']} of {planned} in {_number(losses['seconds'], '.1f')} s")
    if not losses["last_epoch"]:
        return [*done, *_entry("losses", "none computed yet")]
    found = f"lowest {_number(losses['best_test_loss'], '.6g')} (epoch {losses['best_epoch']})"
    lowest = found if losses["best_epoch"] else "none of them finite"
    then = f" (epoch {losses['last_epoch']})" if losses["last_epoch"] < losses["epochs"] else ""
    return [
        *done,
        *_entry("test loss", f"last {_number(losses['last_test_loss'], '.6g')}{then}, {lowest}"),
        *_entry("train loss", f"last {_number(losses['last_train_loss'], '.6g')}{then}"),
        *text_plot(through(summary["test_loss"], summary["evaluated"]), 60, 5),
    ]


def _tables(datasets: dict[str, Any]) -> list[str]:
    """The columns of a table of runs."""
    columns = {name: facts["long_name"] for name, facts in datasets.items() if name.startswith("/runs/") and not _is_index(name)}
    more = len(columns) - MOST_LISTED
    lines = [line for name, words in list(columns.items())[:MOST_LISTED] for line in _entry(name, words, 1)]
    return lines + (_entry("..", f"and {more} more columns") if more > 0 else [])


def _is_index(name: str) -> bool:
    """Whether a column of a table only counts places."""
    return name.rpartition("/")[2] == "run" or name.endswith("_letter")


def _origin(summary: dict[str, Any]) -> str:
    """When and by which programs a file was made."""
    versions = ", ".join(f"{key} {value}" for key, value in summary["versions"].items())
    commit = f"git commit {summary['git_commit'][:12]}" if summary["git_commit"] else ""
    return "; ".join(part for part in (str(summary["created"]), versions, commit) if part)


def _words(facts: Any) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in facts.items()) if isinstance(facts, dict) else str(facts)


def through(values: list[float | None], evaluated: list[int]) -> list[float]:
    """A curve over the epochs, with straight lines from each evaluated one to the next; NaN outside, and beside a NaN."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    known = np.flatnonzero(evaluated)
    if not known.size:
        return [math.nan] * len(numbers)
    return np.interp(np.arange(len(numbers)), known, numbers[known], left=math.nan, right=math.nan).tolist()


def text_plot(values: list[float], width: int = 60, height: int = 8) -> list[str]:
    """A curve over 1, 2, .. n as lines of text; logarithmic if it is positive and spans more than half a decade."""
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    bins = np.array_split(known, max(1, min(width, len(known))))
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in bins])
    seen = means[np.isfinite(means)]
    if not seen.size:
        return []
    log = bool(seen.min() > 0 and seen.max() > 3 * seen.min())
    heights = np.log10(means) if log else means
    low, high = np.nanmin(heights), np.nanmax(heights)
    levels = np.full(len(means), height - 1.0) if high == low else (heights - low) / (high - low) * (height - 1)
    labels = _labels([low + (high - low) * level / (height - 1) for level in (0, height // 2, height - 1)], log=log)
    named = dict(zip((0, height // 2, height - 1), labels))
    lines = []
    for level in range(height - 1, -1, -1):
        marks = "".join("*" if np.isfinite(x) and round(float(x)) == level else " " for x in levels)
        lines.append(f"{named.get(level, ''):>10} |{marks.rstrip()}")
        if high == low:
            break
    last, caption = str(len(values)), f"epoch (test loss{', logarithmic' if log else ''})"
    lines.append(f"{'+':>12}{'-' * len(means)}")
    if len(means) > len(caption) + len(last) + 4:
        lines.append(f"{'':12}1{caption:^{len(means) - len(last) - 1}}{last}")
    else:
        lines.append(f"{'':12}1{last:>{max(len(means) - 1, len(last) + 1)}}  {caption}")
    return lines


def _labels(heights: list[float], *, log: bool) -> list[str]:
    """Numbers of an axis, with as few digits as tell them apart."""
    values = [10**height if log else height for height in heights]
    digits = next((n for n in range(3, 7) if len({f"{value:.{n}g}" for value in values}) == len(values)), 6)
    return [f"{value:.{digits}g}" for value in values]


def _trajectory(path: str | Path, number: int) -> dict[str, Any]:
    """The numbers of one trajectory for every controller in the file."""
    _, phases, arrays, _ = _trajectories(path, number)
    found: dict[str, Any] = {"number": number, "time": arrays["time"].tolist(), "controllers": {}}
    for phase, states, controls, loss in zip(phases, arrays["states"], arrays["controls"], arrays["loss"]):
        rollout = {"states": states[number].tolist(), "controls": controls[number].tolist()}
        found["controllers"][phase] = {"loss": float(loss[number]), **rollout}
    return found


def _trajectories(path: str | Path, number: int) -> run_file.Trajectories:
    """The rollouts in a file; a ValueError if it has none of this number."""
    found = run_file.load_trajectories(path)
    count = found.arrays["states"].shape[1]
    if not 0 <= number < count:
        raise ValueError(f"trajectory is {number}; {path} has {count}, counted from 0")
    return found


def _columns(found: run_file.Trajectories, number: int) -> tuple[list[str], list[list[Any]]]:
    """Names of columns; a row for every controller and time: the controller, the time, a state, and the control from then on."""
    names = [name for what in ("states", "controls") for name in _column_names(found.axes[what])]
    rows: list[list[Any]] = []
    for phase, states, controls in zip(found.phases, found.arrays["states"], found.arrays["controls"]):
        last = np.full(controls.shape[2:], np.nan)  # no control acts from the last time on
        for time, state, control in zip(found.arrays["time"], states[number], [*controls[number], last]):
            rows.append([phase, time, *state.ravel(), *control.ravel()])
    return ["controller", "time", *names], rows


def trajectory_text(path: str | Path, number: int) -> str:
    """A trajectory as a table for people; a control acts from its time on."""
    found = _trajectories(path, number)
    names, rows = _columns(found, number)
    cells = [[row[0], *("" if np.isnan(value) else f"{value:.6g}" for value in row[1:])] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in (names, *cells)]
    losses = ", ".join(f"{phase} {loss[number]:.6g}" for phase, loss in zip(found.phases, found.arrays["loss"]))
    return "\n".join([f"trajectory {number} of {path}; loss {losses}", *lines])


def csv_text(path: str | Path, number: int | None = None) -> str:
    """Numbers for a spreadsheet, with a row of names: the history of a run, the columns of a table, or a trajectory.

    Raises
    ------
    ValueError
        If the file has no history, and no trajectory is asked for.
    """
    if number is None:
        groups = run_file.read_any(path)[1]
        if not (group := groups.get("history") or groups.get("runs")):
            raise ValueError(f"{path} has no history; give --trajectory K")
        columns = {name: cells(variable) for name, variable in group.items() if not _is_index(name)}
        names, rows = list(columns), [list(row) for row in zip(*columns.values())]
    else:
        names, rows = _columns(_trajectories(path, number), number)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *([_plain(cell) for cell in row] for row in rows)])
    return text.getvalue().rstrip("\n")


def _column_names(axes: list[Any]) -> Iterator[str]:
    """Names of the numbers of a state or control: "driver 1 position x", "force"."""
    words = []
    for scale, places in axes:
        plain = all(isinstance(place, str) for place in places)
        repeated = len(set(places)) < len(places)
        if len(places) == 1 and not plain:
            words.append([scale.dims[0]])
        elif plain:
            words.append([f"{place} {places[:k].count(place)}" if repeated else place for k, place in enumerate(places)])
        else:
            words.append([f"{scale.dims[0]} {place:g}" for place in places])
    return map(" ".join, itertools.product(*words))


def _plain(cell: Any) -> Any:
    """A number with all the digits that its type has, a word as it is."""
    return cell.item() if isinstance(cell, np.float64) else str(cell) if isinstance(cell, np.floating) else cell


def _number(value: float | None, form: str = ".7g") -> str:
    return "nan" if value is None else format(value, form)


def _losses(history: dict[str, np.ndarray]) -> dict[str, Any]:
    epochs = len(history.get("epoch", ()))
    needed = ("test_loss", "train_loss", "seconds", "evaluated")
    if not epochs or any(np.shape(history.get(name, ())) != (epochs,) for name in needed):
        return {"epochs": 0}
    (last_epoch, last_test), (epoch, lowest) = run_file.last(history), run_file.best(history)
    return {
        "epochs": epochs,
        "seconds": float(history["seconds"].sum()),
        "last_epoch": last_epoch,
        "last_test_loss": last_test,
        "best_test_loss": lowest,
        "best_epoch": epoch,
        "last_train_loss": run_file.last(history, "train_loss")[1],
    }


def _parsed(words: Any, kind: type) -> Any:
    """What a JSON text holds; an empty `kind` if it is damaged or of another kind."""
    try:
        found = json.loads(words)
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, kind) else kind()


def _finite(value: Any) -> Any:
    """The same value without NaN and Inf, which JSON does not support."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _word(value: Any) -> str:
    """A value; sizes as "100 x 100", arrays by shape and hash."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{_word(value.get('shape'))} numbers ({value['sha256']})"
    sizes = isinstance(value, list) and 1 <= len(value) < MOST_LISTED and all(isinstance(item, int) for item in value)
    return " x ".join(map(str, value)) if sizes else str(value)
