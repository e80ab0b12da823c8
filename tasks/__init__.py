"""What is learned and how: the systems as published, gradient variants, optimizers, training.

Reports, pictures and checks of arguments need no kernels. Whatever needs them is imported on first use (PEP 562).
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stablebptt.tasks.registry import BACKENDS, MAKERS, TASKS, on_backend, problem

__all__ = ["BACKENDS", "MAKERS", "TASKS", "on_backend", "problem"]

if not TYPE_CHECKING:  # otherwise every name would seem to exist

    def __getattr__(name: str) -> Any:
        """A name of the registry, or a module of this package."""
        if name in __all__:
            return getattr(importlib.import_module("stablebptt.tasks.registry"), name)
        if importlib.util.find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
