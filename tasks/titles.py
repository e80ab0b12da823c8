"""What runs are called in pictures and reports; from their configuration alone, so that no kernel need be there."""

from typing import Any


def cartpole(poles: int, **others: Any) -> str:
    return f"cartpole, {poles} pole{'s' if poles > 1 else ''}"


def guidance(drivers: int, evaders: int, regularization: float, **others: Any) -> str:
    return f"guidance, {drivers} drivers, {evaders} evaders, rho {regularization:g}"


def quantum(target: int, **others: Any) -> str:
    return f"quantum, target {target}"


def custom(title: Any, **others: Any) -> str:
    return str(title)


TITLES: dict[str, Any] = {"cartpole": cartpole, "guidance": guidance, "quantum": quantum, "custom": custom}


def title(config: dict[str, Any]) -> str:
    """The title of the problem that a run's configuration describes; a KeyError, TypeError or ValueError if it describes none."""
    return TITLES[config["task"]](**config["options"])
