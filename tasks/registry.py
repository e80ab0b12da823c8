"""Tasks by name, found by their files, and the backends. This file needs no kernels."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stablebptt.tasks import additions
from stablebptt.tasks.errors import ArgumentError, BackendError
from stablebptt.tasks.task import ADDITIONS, CUSTOM, Task, document

if TYPE_CHECKING:
    from stablebptt.tasks.problems import Problem

BACKENDS = ("cpu", "cuda")
ROOMS = ("kernels", "adjoint", "tasks")


def _found() -> dict[str, Task]:
    """The tasks of this package. Each has a file of the same name in all three rooms; that in tasks/ holds the record `TASK`."""
    root = Path(__file__).resolve().parent.parent
    names = [{module.name for module in pkgutil.iter_modules([str(root / room)])} for room in ROOMS]
    modules = (importlib.import_module(f"stablebptt.tasks.{name}") for name in sorted(set.intersection(*names)))
    return {module.TASK.name: module.TASK for module in modules}


def _custom(**parts: Any) -> Any:
    """A problem with custom parts."""
    from stablebptt.tasks import arguments
    from stablebptt.tasks.custom import custom_problem

    parameters = inspect.signature(custom_problem).parameters
    arguments.known(CUSTOM, parts, [*(name for name in parameters if name != "added"), *additions.NAMES])
    needed = [name for name, each in parameters.items() if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if missing := [name for name in needed if name not in parts]:
        raise ArgumentError(f"missing {', '.join(missing)}; give the name of a task, or all parts of your own")
    return custom_problem(**parts)


TASKS = _found()
MAKERS: dict[str, Any] = {**TASKS, CUSTOM: _custom}


def title(config: dict[str, Any]) -> str:
    """The title of the problem in a run's configuration; a KeyError, TypeError or ValueError if it describes no problem."""
    if config["task"] == CUSTOM:
        return str(config["options"]["title"])
    named = TASKS[config["task"]].title
    return config["task"] if named is None else named(**config["options"])


def problem(task: str | Task = CUSTOM, *, backend: str = "cpu", tape_bytes: int | None = None, **options: Any) -> "Problem":
    """A problem by name, with the published set-up as default, or one with your own system, controller and loss.

    Parameters
    ----------
    task : name of a task of this package, or your own `Task`; leave it out to give `system`, `controller` and `loss`
    backend : "cpu", or "cuda" for a CUDA device (with the extra ``stablebptt[cuda]``)
    tape_bytes : memory for activations, 256 MiB by default; beyond, they are recomputed (slower, the same bit for bit)
    **options : options of the task (``stablebptt TASK train --help``), or those of `custom_problem`

    Raises
    ------
    ValueError, TypeError
        If an option is wrong; the message says what was given and what is allowed.
    BackendError
        If the backend is not available on this machine.

    Examples
    --------
    >>> sb.problem("cartpole", poles=2).state_shape
    (3, 2)
    """
    if not isinstance(task, Task) and task not in MAKERS:
        raise ArgumentError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    problem = task(**options) if isinstance(task, Task) else MAKERS[task](**options)
    if tape_bytes is not None:
        from stablebptt.tasks import arguments

        problem = dataclasses.replace(problem, tape_bytes=arguments.whole("tape_bytes", tape_bytes, 0, 2**63))
    return on_backend(problem, backend)


for _task in TASKS.values():
    document(problem, f"Options of {_task.name}", _task.options, alone=False)
document(problem, "Options of all tasks", ADDITIONS)


def on_backend(made: "Problem", backend: str) -> "Problem":
    """The problem `made` with another backend.

    Parameters
    ----------
    made : a problem
    backend : "cpu" or "cuda"

    Examples
    --------
    >>> on_backend(sb.problem("pendulum"), "cpu").backend
    'cpu'
    """
    from numba.core import config

    from stablebptt.tasks import arguments

    arguments.choice("backend", backend, BACKENDS)
    if backend == "cpu":
        return made
    if importlib.util.find_spec("numba_cuda") is None and not vars(config)["ENABLE_CUDASIM"]:
        raise BackendError("backend 'cuda' needs the package numba-cuda: pip install 'stablebptt[cuda]'")
    return importlib.import_module("stablebptt.tasks.cuda").to_device(made)
