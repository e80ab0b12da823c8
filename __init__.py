"""Stabilised backpropagation through time: neural controllers trained through physics simulators.

The first name that is asked for imports the whole package (PEP 562): what needs no kernels, such as ``stablebptt inspect``,
starts without Numba.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stablebptt.version import __version__

if TYPE_CHECKING:
    from stablebptt.adjoint.c_interface import c_header, cfunc_address
    from stablebptt.data.errors import FileFormatError
    from stablebptt.interop.export import export
    from stablebptt.kernels.quadratic import quadratic
    from stablebptt.tasks import callbacks, gates, joins, observations, optimizers, problem, schedules
    from stablebptt.tasks.callbacks import Stop
    from stablebptt.tasks.errors import BackendError, DivergedError
    from stablebptt.tasks.minimize import minimize_fun
    from stablebptt.tasks.optimizers import clip
    from stablebptt.tasks.policies import Policy
    from stablebptt.tasks.problems import Axis, Problem
    from stablebptt.tasks.runs import Run, load
    from stablebptt.tasks.seeds import train_seeds
    from stablebptt.tasks.sweeps import sweep
    from stablebptt.tasks.task import Option, Task
    from stablebptt.tasks.training import train

__all__ = [
    "Axis",
    "BackendError",
    "DivergedError",
    "FileFormatError",
    "Option",
    "Policy",
    "Problem",
    "Run",
    "Stop",
    "Task",
    "__version__",
    "c_header",
    "callbacks",
    "cfunc_address",
    "clip",
    "export",
    "gates",
    "joins",
    "load",
    "minimize_fun",
    "observations",
    "optimizers",
    "problem",
    "quadratic",
    "schedules",
    "sweep",
    "train",
    "train_seeds",
]
_HOMES = {
    "adjoint.c_interface": ("c_header", "cfunc_address"),
    "data.errors": ("FileFormatError",),
    "interop.export": ("export",),
    "kernels.quadratic": ("quadratic",),
    "tasks": ("callbacks", "gates", "joins", "observations", "optimizers", "problem", "schedules"),
    "tasks.callbacks": ("Stop",),
    "tasks.errors": ("BackendError", "DivergedError"),
    "tasks.minimize": ("minimize_fun",),
    "tasks.optimizers": ("clip",),
    "tasks.policies": ("Policy",),
    "tasks.problems": ("Axis", "Problem"),
    "tasks.seeds": ("train_seeds",),
    "tasks.sweeps": ("sweep",),
    "tasks.runs": ("Run", "load"),
    "tasks.task": ("Option", "Task"),
    "tasks.training": ("train",),
}
_ALONE = ("tasks.policies", "interop.export")  # homes that need NumPy only
_ROOMS = ("adjoint", "data", "kernels", "tasks")

if not TYPE_CHECKING:  # else every name would seem to be there

    def __getattr__(name: str) -> Any:
        """A public name or a room; with it come all others, or with a name of `_ALONE` those of its home."""
        if name not in __all__ and name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        alone = [home for home in _ALONE if name in _HOMES[home]]
        for home, names in _HOMES.items():
            if alone and home not in alone:
                continue
            module = importlib.import_module(f"{__name__}.{home}")
            globals().update({public: getattr(module, public) for public in names})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *_ROOMS})
