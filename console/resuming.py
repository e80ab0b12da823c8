"""What `train --resume` takes from a run file: every option that is set nowhere else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from stablebptt.tasks.settings import OPTIONS, Settings, settings_of
from stablebptt.tasks.task import CUSTOM


def completed(given: dict[str, Any], task: str) -> dict[str, Any]:
    """The options of a `train` command, completed from the file that it resumes, if there is one of this task."""
    file = _file(given) if given["resume"] and not given["force"] else None
    if file is None:
        return given
    config, settings = _read(file)
    if config["task"] != task:  # what is wrong with the file is said where it is resumed
        return given
    ctx = click.get_current_context()
    free = {name for name in given if ctx.get_parameter_source(name) is ParameterSource.DEFAULT}
    kept = _options(config) | {name: getattr(settings, name) for name in OPTIONS}
    found = {name: value for name, value in kept.items() if name in free}
    if "arguments" in given and "arguments" not in free:  # some of the function's, by name
        found["arguments"] = {**kept["arguments"], **given["arguments"]}
    rule = config["optimizer"]
    if "optimizer" in free or given["optimizer"] == rule["name"]:
        found["optimizer"] = rule
    return {**given, **found}


def _file(given: dict[str, Any]) -> Path | None:
    """The file to resume; of many seeds, one of them."""
    out: Path = given["out"]
    files = [out] if given["seeds"] is None else sorted(out.glob("seed_*.h5"))
    return next((file for file in files if file.is_file()), None)


def _read(file: Path) -> tuple[dict[str, Any], Settings]:
    """The configuration in a run file, and its settings, if they make sense."""
    from stablebptt.data import run_file
    from stablebptt.tasks.runs import problem_of

    config = run_file.load(file).config
    problem_of(config, file)
    try:
        return config, settings_of(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise run_file.FileFormatError(f"{file}: the configuration makes no training ({error})") from None


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Options of a task, and the backend, that a configuration tells, by name."""
    options, arguments = config["options"], config["options"].get("arguments", {})
    own = {**arguments, "arguments": arguments} if config["task"] == CUSTOM and isinstance(arguments, Mapping) else options
    return {**own, "backend": config.get("backend", "cpu")}
