"""What `train --resume` takes from a run file: every option that is set nowhere else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.settings import OPTIONS, Settings, join_source, settings_of, sources, words_of_rule
from stablebptt.tasks.task import CUSTOM


class _Known(NamedTuple):
    """What a file says: its configuration, the settings in it, rule and weight decay as `rule_in_words` takes them."""

    config: dict[str, Any]
    settings: Settings
    rule: dict[str, Any]
    decay: float | None


def completed(given: dict[str, Any], task: str) -> dict[str, Any]:
    """The options of a `train` command, completed from the file that it resumes, if there is one of this task."""
    file = _file(given) if given["resume"] and not given["force"] else None
    if file is None:
        return given
    known = _read(file)
    config = known.config
    if config["task"] != task:  # what is wrong with the file is said where it is resumed
        return given
    ctx = click.get_current_context()
    free = {name for name in given if ctx.get_parameter_source(name) is ParameterSource.DEFAULT}
    if "variant" in free and (own := join_source(config["variant"])) is not None:
        raise ArgumentError(f"the join in {given['out']} is one of your own; name it, too: --variant {own}")
    kept = _options(config) | {name: getattr(known.settings, name) for name in OPTIONS}
    found = {name: value for name, value in kept.items() if name in free}
    if "arguments" in given and "arguments" not in free:  # some of the function's, by name
        found["arguments"] = {**kept["arguments"], **given["arguments"]}
    return {**given, **found, **_rule(known, given, free)}


def _rule(known: _Known, given: dict[str, Any], free: set[str]) -> dict[str, Any]:
    """The options of the optimizer, completed from a file. It does not decide which code is imported."""
    found: dict[str, Any] = {}
    own = next(sources(known.rule), None)
    if "optimizer" in free and own is not None:
        raise ArgumentError(f"the optimizer in {given['out']} is one of your own; name it, too: --optimizer {own}")
    if "optimizer" in free or given["optimizer"] == known.rule.get("source", known.rule["name"]):
        found["optimizer"] = known.rule
    if "weight_decay" in free:
        found["weight_decay"] = known.decay
    return found


def _file(given: dict[str, Any]) -> Path | None:
    """The file to resume; of many seeds, one of them."""
    out: Path = given["out"]
    files = [out] if given["seeds"] is None else sorted(out.glob("seed_*.h5"))
    return next((file for file in files if file.is_file()), None)


def _read(file: Path) -> _Known:
    """What a run file says, if it makes sense."""
    from stablebptt.data import run_file
    from stablebptt.tasks.runs import problem_of

    config = run_file.load(file).config
    problem_of(config, file)
    try:
        rule, decay = words_of_rule(config["optimizer"])
        own = {"optimizer": Settings().describe()["optimizer"]} if any(sources(rule)) else {}  # not imported
        return _Known(config, settings_of(config | own), rule | {"name": str(rule["name"])}, decay)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise run_file.FileFormatError(f"{file}: the configuration makes no training ({error})") from None


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Options of a task, and the backend, that a configuration tells, by name."""
    options, arguments = config["options"], config["options"].get("arguments", {})
    own = {**arguments, "arguments": arguments} if config["task"] == CUSTOM and isinstance(arguments, Mapping) else options
    return {**own, "backend": config.get("backend", "cpu")}
