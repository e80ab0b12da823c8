"""Types of options, and where else than on the command line they are set: in the environment and in a TOML file."""

import ast
import glob
import math
import os
import re
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

PREFIX = "STABLEBPTT"


class Place(click.Path):
    """A file or folder; a ~ at its beginning is the home folder, also where no shell reads it.

    Completion offers files that end in `suffix`, and where there are none, what the shell offers.
    """

    def __init__(self, suffix: str | None = None) -> None:
        super().__init__(path_type=Path, readable=False)  # who reads it says that it may not be read, with exit code 5
        self.suffix = suffix

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = sorted(glob.glob(f"{glob.escape(incomplete)}*{self.suffix}")) if self.suffix else []
        return [CompletionItem(name) for name in found] or super().shell_complete(ctx, param, incomplete)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from stablebptt.data.atomic import expanded

        try:
            return expanded(str(super().convert(value, param, ctx)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


FILE, RUN, PLAN = Place(), Place(".h5"), Place(".toml")


class Word(click.Choice):
    """One of a few words, for help and completion. The library checks it, in the words that plans and Python get, too."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


class Numbers(click.ParamType):
    """Numbers with commas between them, such as 100,100."""

    def __init__(self, kind: type, example: str) -> None:
        self.kind, self.example, self.name = kind, example, "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple | list):
            return tuple(value)
        if not str(value).strip():
            return ()
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as {self.example}", param, ctx)


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


def once(ctx: click.Context, param: click.Parameter, settings: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Arguments by name; none may be given twice."""
    found: dict[str, Any] = {}
    for name, value in settings:
        if name in found:
            raise click.BadParameter(f"{name} is given twice", ctx, param)
        found[name] = value
    return found


def _names(command: click.Command) -> dict[str, tuple[click.Parameter, bool]]:
    """What can be set, by the name it has on the command line; False stands with the other name of a flag (fixed_order)."""
    found: dict[str, tuple[click.Parameter, bool]] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            found[str(parameter.name)] = parameter, True
        else:
            found |= {_key(name): (parameter, True) for name in parameter.opts if name.startswith("--")}
            found |= {_key(name): (parameter, False) for name in parameter.secondary_opts}
    return found


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _several(parameter: click.Parameter) -> bool:
    """Whether a parameter takes more than one value."""
    return parameter.nargs != 1 or bool(getattr(parameter, "multiple", False))


def read_settings(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take defaults from the environment, and below it from a TOML file whose tables are named like the commands."""
    words, root = _words(ctx), ctx.find_root().command
    content = {} if path is None else _read_config(path)
    _check_tables({**getattr(root, "commands", {}), **_task_of(ctx)}, content, path)
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


def _words(ctx: click.Context) -> list[str]:
    """Names of the commands that lead here; of a task of the user's that of its record, wherever its module lies."""
    return [] if ctx.parent is None else [*_words(ctx.parent), str(ctx.command.name)]


def _task_of(ctx: click.Context) -> dict[str, click.Command]:
    """The group that a command belongs to, which the root does not know if it is a task of the user's."""
    while ctx.parent is not None and ctx.parent.parent is not None:
        ctx = ctx.parent
    return {str(ctx.command.name): ctx.command}


def _check_tables(
    commands: Mapping[str, click.Command], content: dict[str, Any], path: Path | None, above: tuple[str, ...] = ()
) -> None:
    """Refuse every table and key of a config file that belongs to no command or option, whatever command runs."""
    for name, value in content.items():
        table = ".".join((*above, name))
        if name not in commands:
            what, allowed = f"[{table}]" if isinstance(value, dict) else repr(table), ", ".join(commands)
            raise click.UsageError(f"{path}: {what} belongs to no command; tables are named like the commands: {allowed}")
        if not isinstance(value, dict):
            raise click.UsageError(f"{path}: [{table}] must be a table")
        command = commands[name]
        if isinstance(command, click.Group):
            _check_tables(command.commands, value, path, (*above, name))
        else:
            _check_options(command, value, f"{path}: {' '.join((*above, name))}")


def _check_options(command: click.Command, content: dict[str, Any], where: str) -> None:
    known = set(_names(command)) - {"config"}
    unknown = next((name for name in content if _key(name) not in known), None)
    if unknown is not None:
        raise click.UsageError(f"{where} has no option {unknown!r}; choose from {', '.join(sorted(known))}")


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
