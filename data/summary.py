"""The content of a file in words and numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import run_file


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
    config = {} if attributes["format"] == run_file.TABLE_FORMAT else run_file.config_of(attributes, path)
    summary: dict[str, Any] = {
        "file": str(path),
        "format": attributes["format"],
        "format_version": attributes.get("format_version"),
        "created": attributes.get("created"),
        "versions": _table(attributes.get("versions")),
        "git_commit": attributes.get("git_commit"),
        "status": attributes.get("status"),
        "config": config,
    }
    known = {*summary, "versions", "config", "seed"}
    if attributes["format"] == run_file.PATHS_FORMAT:
        summary["seed"] = attributes.get("seed")
    summary["unknown_attributes"] = sorted(set(attributes) - known)
    if attributes.get("format_version") != run_file.FORMAT_VERSION:
        summary["note"] = f"this program knows version {run_file.FORMAT_VERSION}; what it cannot explain is only listed"
    if "history" in groups:
        history = {name: variable.values for name, variable in groups["history"].items()}
        summary["losses"] = _losses(history)
        summary["test_loss"] = history.get("test_loss", np.zeros(0)).tolist()
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
    """A summary as lines of text."""
    config = summary["config"]
    plain = {key: value for key, value in config.get("options", {}).items() if not isinstance(value, dict)}
    options = ", ".join(f"{key} {_word(value)}" for key, value in plain.items())
    settings = {key: value for key, value in config.items() if key not in ("task", "options", "optimizer")}
    optimizer = config.get("optimizer", {})
    lines = [f"{summary['file']}: {summary['format']}, version {summary['format_version']}"]
    if config:
        lines += [
            f"  created     {summary['created']}",
            f"  status      {summary['status']}",
            f"  task        {config.get('task')}: {options}",
            f"  training    {', '.join(f'{key} {_word(value)}' for key, value in settings.items())}",
            f"  optimizer   {', '.join(f'{key} {_word(value)}' for key, value in optimizer.items())}",
            f"  versions    {', '.join(f'{key} {value}' for key, value in summary['versions'].items())}",
        ]
    if summary["git_commit"]:
        lines.append(f"  git commit  {summary['git_commit']}")
    if "seed" in summary:
        lines.append(f"  states      drawn with seed {summary['seed']}")
    for name in summary["unknown_attributes"]:
        lines.append(f"  unknown attribute {name}")
    if "note" in summary:
        lines.append(f"  note        {summary['note']}")
    if losses := summary.get("losses"):
        if losses["epochs"]:
            found = f"lowest {_number(losses['best_test_loss'], '.6g')} (epoch {losses['best_epoch']})"
            lowest = found if losses["best_epoch"] else "none of them finite"
            lines += [
                f"  epochs      {losses['epochs']} in {_number(losses['seconds'], '.1f')} s",
                f"  test loss   last {_number(losses['last_test_loss'], '.6g')}, {lowest}",
                f"  train loss  last {_number(losses['last_train_loss'], '.6g')}",
            ]
            lines += [f"    {line}" for line in text_plot(summary["test_loss"])]
        else:
            lines.append("  epochs      0")
    lines.append("  datasets")
    width = max((len(name) for name in summary["datasets"]), default=0)
    for name, facts in summary["datasets"].items():
        shape = ", ".join(f"{dim} {length}" for dim, length in zip(facts["dims"], facts["shape"]))
        lines.append(f"    {name:<{width}}  {facts['dtype']} ({shape}) [{facts['units']}] {facts['long_name']}")
    if "trajectory" in summary:
        lines += _trajectory_lines(summary["trajectory"])
    return "\n".join(lines)


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
    lines = []
    for level in range(height - 1, -1, -1):
        height_here = low + (high - low) * level / (height - 1)
        label = f"{10**height_here if log else height_here:10.3g} |" if level in (0, height // 2, height - 1) else f"{'|':>12}"
        lines.append(label + "".join("*" if np.isfinite(x) and round(float(x)) == level else " " for x in levels).rstrip())
        if high == low:
            break
    last = str(len(values))
    lines.append(f"{'+':>12}{'-' * len(means)}")
    lines.append(f"{'':12}1{last:>{max(len(means) - 1, len(last) + 1)}}  epoch (test loss{', logarithmic' if log else ''})")
    return lines


def _trajectory(path: str | Path, number: int) -> dict[str, Any]:
    """The numbers of one trajectory for every controller in the file."""
    _, phases, arrays, _ = run_file.load_trajectories(path)
    count = arrays["states"].shape[1]
    if not 0 <= number < count:
        raise ValueError(f"trajectory is {number}; {path} has {count}, counted from 0")
    found: dict[str, Any] = {"number": number, "time": arrays["time"].tolist(), "controllers": {}}
    for phase, states, controls, loss in zip(phases, arrays["states"], arrays["controls"], arrays["loss"]):
        rollout = {"states": states[number].tolist(), "controls": controls[number].tolist()}
        found["controllers"][phase] = {"loss": float(loss[number]), **rollout}
    return found


def _trajectory_lines(trajectory: dict[str, Any]) -> list[str]:
    lines = []
    for phase, found in trajectory["controllers"].items():
        lines.append(f"  trajectory {trajectory['number']}, {phase}, loss {_number(found['loss'])}")
        lines.append("    time | states, flat | controls, flat (they act from this time on)")
        for k, time in enumerate(trajectory["time"]):
            control = found["controls"][k] if k < len(found["controls"]) else []
            parts = [np.array(part, object).ravel() for part in (time, found["states"][k], control)]
            lines.append("    " + " | ".join(" ".join(_number(value) for value in part) for part in parts))
    return lines


def _number(value: float | None, form: str = ".7g") -> str:
    return "nan" if value is None else format(value, form)


def _losses(history: dict[str, np.ndarray]) -> dict[str, Any]:
    epochs = len(history.get("epoch", ()))
    if not epochs or any(len(history.get(name, ())) != epochs for name in ("test_loss", "train_loss", "seconds")):
        return {"epochs": 0}
    epoch, lowest = run_file.best(history)
    return {
        "epochs": epochs,
        "seconds": float(history["seconds"].sum()),
        "last_test_loss": float(history["test_loss"][-1]),
        "best_test_loss": lowest,
        "best_epoch": epoch,
        "last_train_loss": float(history["train_loss"][-1]),
    }


def _table(words: Any) -> dict[str, Any]:
    try:
        table = json.loads(words)
        return table if isinstance(table, dict) else {}
    except (TypeError, ValueError):
        return {}


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
    return " x ".join(map(str, value)) if isinstance(value, list) and len(str(value)) < 60 else str(value)
