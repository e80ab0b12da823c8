"""What is in a file, in words and numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.data import run_file


def summarize(path: str | Path) -> dict[str, Any]:
    """Everything `stablebptt inspect` says of a file, fit for JSON.

    Raises
    ------
    FileFormatError
        If the file is damaged, hostile or not ours.
    """
    attributes, groups = run_file.read_any(path)
    config = run_file.config_of(attributes, path)
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
        summary["losses"] = _losses({name: variable.values for name, variable in groups["history"].items()})
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
    """A summary as lines for people."""
    config = summary["config"]
    options = ", ".join(f"{key} {_word(value)}" for key, value in config.get("options", {}).items())
    settings = {key: value for key, value in config.items() if key not in ("task", "options", "optimizer")}
    optimizer = config.get("optimizer", {})
    lines = [
        f"{summary['file']}: {summary['format']}, version {summary['format_version']}",
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
            lines += [
                f"  epochs      {losses['epochs']} in {losses['seconds']:.1f} s",
                f"  test loss   last {losses['last_test_loss']:.6g}, lowest {losses['best_test_loss']:.6g} "
                f"(epoch {losses['best_epoch']})",
                f"  train loss  last {losses['last_train_loss']:.6g}",
            ]
        else:
            lines.append("  epochs      0")
    lines.append("  datasets")
    width = max((len(name) for name in summary["datasets"]), default=0)
    for name, facts in summary["datasets"].items():
        shape = ", ".join(f"{dim} {length}" for dim, length in zip(facts["dims"], facts["shape"]))
        lines.append(f"    {name:<{width}}  {facts['dtype']} ({shape}) [{facts['units']}] {facts['long_name']}")
    return "\n".join(lines)


def _losses(history: dict[str, np.ndarray]) -> dict[str, Any]:
    epochs = len(history.get("epoch", ()))
    if not epochs or "test_loss" not in history:
        return {"epochs": epochs}
    best = int(np.argmin(history["test_loss"]))
    return {
        "epochs": epochs,
        "seconds": float(history["seconds"].sum()),
        "last_test_loss": float(history["test_loss"][-1]),
        "best_test_loss": float(history["test_loss"][best]),
        "best_epoch": int(history["epoch"][best]),
        "last_train_loss": float(history["train_loss"][-1]),
    }


def _table(words: Any) -> dict[str, Any]:
    try:
        table = json.loads(words)
        return table if isinstance(table, dict) else {}
    except (TypeError, ValueError):
        return {}


def _finite(value: Any) -> Any:
    """The same without NaN and Inf, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _word(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) and len(str(value)) < 60 else str(value)
