"""What is learned and how: the systems as published, gradient variants, optimizers, training."""

from typing import Any

from stablebptt.tasks.cartpole import cartpole_problem
from stablebptt.tasks.guidance import guidance_problem
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.quantum import quantum_problem

TASKS: dict[str, Any] = {"cartpole": cartpole_problem, "guidance": guidance_problem, "quantum": quantum_problem}


def problem(task: str, **options: Any) -> Problem:
    """A problem by name, with the published set-up as default.

    Parameters
    ----------
    task : "cartpole", "guidance" or "quantum"
    **options : see the function of the task, for instance `cartpole_problem`

    Raises
    ------
    ValueError, TypeError
        With what was given and what is allowed.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    try:
        return TASKS[task](**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        allowed = ", ".join(TASKS[task].__code__.co_varnames[: TASKS[task].__code__.co_argcount])
        given = str(error).rsplit("argument ", 1)[1]
        raise TypeError(f"{task} has no option {given}; choose from {allowed}") from None
