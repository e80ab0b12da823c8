"""Problems by name: the systems as published, and the backends that compute them."""

import dataclasses
import importlib.util
import inspect
from typing import Any

from numba.core import config

from stablebptt.tasks import checks
from stablebptt.tasks.cartpole import cartpole_problem
from stablebptt.tasks.custom import TASK, custom_problem
from stablebptt.tasks.errors import BackendError
from stablebptt.tasks.guidance import guidance_problem
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.quantum import quantum_problem

TASKS: dict[str, Any] = {"cartpole": cartpole_problem, "guidance": guidance_problem, "quantum": quantum_problem}
MAKERS: dict[str, Any] = {**TASKS, TASK: custom_problem}
BACKENDS = ("cpu", "cuda")


def problem(task: str = TASK, *, backend: str = "cpu", tape_bytes: int | None = None, **options: Any) -> Problem:
    """A problem by name, with the published set-up as default; or one made of a system, controller and loss of one's own.

    Parameters
    ----------
    task : "cartpole", "guidance" or "quantum"; left out if `system`, `controller` and `loss` are given
    backend : "cpu", or "cuda" for a CUDA device (with the extra ``stablebptt[cuda]``)
    tape_bytes : memory for activations; beyond, they are computed again (the same bits, slower). 256 MiB by default
    **options : see the function of the task, for instance `cartpole_problem` or `custom_problem`

    Raises
    ------
    ValueError, TypeError
        With what was given and what is allowed.
    BackendError
        If the backend is not to be had here.
    """
    if task not in MAKERS:
        raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    try:
        made = MAKERS[task](**options)
    except TypeError as error:
        if task == TASK and "required" in str(error):
            raise TypeError(f"{str(error).partition(' ')[2]}; give the name of a task, or all parts of your own") from None
        if "unexpected keyword argument" not in str(error):
            raise
        allowed = ", ".join(inspect.signature(MAKERS[task]).parameters)
        given = str(error).rsplit("argument ", 1)[1]
        raise TypeError(f"{task} has no option {given}; choose from {allowed}") from None
    if tape_bytes is not None:
        made = dataclasses.replace(made, tape_bytes=checks.whole("tape_bytes", tape_bytes, 0, 2**63))
    return on_backend(made, backend)


def on_backend(made: Problem, backend: str) -> Problem:
    """The same problem, computed elsewhere."""
    checks.choice("backend", backend, BACKENDS)
    if backend == "cpu":
        return made
    if importlib.util.find_spec("numba_cuda") is None and not vars(config)["ENABLE_CUDASIM"]:
        raise BackendError("backend 'cuda' needs the package numba-cuda: pip install 'stablebptt[cuda]'")
    return importlib.import_module("stablebptt.tasks.cuda").to_device(made)
