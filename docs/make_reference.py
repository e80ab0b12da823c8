"""The reference pages of the site, made from the code: API, command line, options of tasks.

`sphinx-build` calls `write`; `faults` says what is missing in a docstring, and both the build and the tests refuse it.
"""

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from stablebptt import cli
from stablebptt.tasks import TASKS
from stablebptt.tasks.task import ADDITIONS

ROOMS = ("kernels", "adjoint", "tasks")


def modules() -> list[str]:
    """The public modules: the package, its rooms, and the modules of tasks that list public names in `__all__`."""
    found = ["stablebptt", *(f"stablebptt.{room}" for room in ROOMS)]
    path = importlib.import_module("stablebptt.tasks").__path__
    inner = sorted(f"stablebptt.tasks.{each.name}" for each in pkgutil.iter_modules(path))
    return found + [name for name in inner if hasattr(importlib.import_module(name), "__all__")]


def public(module: str) -> dict[str, Any]:
    """The public names of a module, with their values."""
    loaded = importlib.import_module(module)
    return {name: getattr(loaded, name) for name in loaded.__all__}


def home(module: str, name: str, value: Any) -> str:
    """The module whose page describes a name: the package itself, if it has the name, too."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    same = public("stablebptt").get(name)
    return "stablebptt" if same is value and isinstance(value, type | types.FunctionType) else module


def described() -> dict[str, str]:
    """Every public name with its module in front, and the one under which it is described."""
    return {
        f"{module}.{name}": f"{home(module, name, value)}.{name}"
        for module in modules()
        for name, value in public(module).items()
        if not isinstance(value, types.ModuleType) and not is_alias(name, value)
    }


def is_alias(name: str, value: Any) -> bool:
    """Whether a name is another one of a class, such as `adam` of `Adam`."""
    return isinstance(value, type) and value.__name__ != name


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods that a class defines itself."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and isinstance(function, types.FunctionType):
            yield name, function


def faults(module: str) -> list[str]:
    """What the docstrings of a public module lack, one line each: descriptions, parameters, examples."""
    found = [] if importlib.import_module(module).__doc__ else [f"{module} has no docstring"]
    for name, value in public(module).items():
        if module == "stablebptt" and isinstance(value, types.ModuleType) and not hasattr(value, "__all__"):
            found.append(f"{module}.{name} does not list its public names in __all__")
        if home(module, name, value) != module or not callable(value) or is_alias(name, value):
            continue
        full = f"{module}.{name}"
        found += _undocumented(full, value)
        if ">>>" not in (inspect.getdoc(value) or ""):
            found.append(f"{full} has no example")
        if isinstance(value, type):
            for own, function in methods(value):
                found += _undocumented(f"{full}.{own}", function, inherited=_inherited(value, own))
    return found


def _undocumented(full: str, value: Any, inherited: str = "") -> list[str]:
    text = value.__doc__ or inherited
    if not text or (isinstance(value, type) and text.startswith(f"{value.__name__}(")):
        return [f"{full} has no docstring"]
    names = [name for name in _parameters(value) if name not in ("self", "cls") and not name.startswith("_")]
    return [f"{full} does not describe {name}" for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)]


def _parameters(value: Any) -> list[str]:
    if isinstance(value, type) and (value.__init__ is object.__init__ or issubclass(value, Exception)):
        return []
    return list(inspect.signature(value).parameters)


def _inherited(cls: type, name: str) -> str:
    return next((text for base in cls.__mro__[1:] if (text := getattr(getattr(base, name, None), "__doc__", None))), "")


def api(module: str) -> str:
    """The page of a module."""
    lines = [f"# {module}", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
    elsewhere = []
    for name, value in public(module).items():
        where = home(module, name, value)
        if where != module:
            elsewhere.append(_link(where, name, value))
            continue
        if is_alias(name, value):
            lines += [f"## {name}", "", f"Another name of {{py:obj}}`~{module}.{value.__name__}`.", ""]
            continue
        kind = "autoclass" if isinstance(value, type) else "autofunction" if callable(value) else "autodata"
        heading = name.replace("_", r"\_")
        lines += [f"## {heading}", "", "```{eval-rst}", f".. {kind}:: {module}.{name}"]
        lines += ["   :members:"] if kind == "autoclass" else ["   :no-value:"] if kind == "autodata" else []
        lines += ["```", ""]
    lines += ["## Described elsewhere", "", *elsewhere, ""] if elsewhere else []
    return "\n".join(lines)


def _link(where: str, name: str, value: Any) -> str:
    if not isinstance(value, types.ModuleType):
        return f"- {{py:obj}}`{where}.{name}`"
    return f"- [{name}]({where}.md)" if where in modules() else f"- `{name}`: {(value.__doc__ or '').splitlines()[0]}"


def commands() -> str:
    """The page of the command line: the help of every command, as it is shown at the terminal."""
    lines = ["# Commands", "", "Made from the commands themselves. [At the terminal](../terminal.md) says what they share.", ""]
    first = next(iter(TASKS))
    for words, command in _commands(cli.stablebptt, ["stablebptt"]):
        if words[1:2] and words[1] in TASKS and words[1] != first and words[2:3] != ["train"]:
            continue  # the same for every task
        context = click.Context(command, info_name=" ".join(words), terminal_width=76, max_content_width=76)
        lines += [f"## {' '.join(words)}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def _commands(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, [*words, name])


def options() -> str:
    """The page of the options of tasks, made from their records."""
    lines = ["# Options of tasks", "", "Keywords of `stablebptt.problem`, and with `--` in front options of the commands.", ""]
    for title, text, given in [
        *((task.name, task.summary, task.options) for task in TASKS.values()),
        ("All tasks", "What every task has, too; see [what a controller sees, may do and costs](../controllers.md).", ADDITIONS),
    ]:
        lines += [f"## {title}", "", text, "", "| option | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{each.name}` | `{each.default!r}` | {_allowed(each)} | {each.help} |" for each in given] + [""]
    return "\n".join(lines)


def _allowed(option: Any) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    least = 1 if option.kind == "size" else 0 if option.kind == "whole" else None
    bounds = {"at least": least if option.least is None else option.least, "above": option.above, "at most": option.most}
    kinds = {"size": "whole number", "whole": "whole number", "real": "number", "sizes": "whole numbers", "point": "two numbers"}
    words = [kinds.get(option.kind, option.kind), *(f"{word} {value}" for word, value in bounds.items() if value is not None)]
    return " ".join(words)


def write(folder: Path) -> None:
    """Write all pages into a folder; what is up to date is left alone."""
    folder.mkdir(exist_ok=True)
    pages = {name: api(name) for name in modules()} | {"commands": commands(), "options": options()}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
