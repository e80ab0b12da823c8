"""Stabilised backpropagation through time: neural controllers trained through physics simulators."""

from stablebptt.adjoint.c_interface import c_header, cfunc_address
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import optimizers, problem
from stablebptt.tasks.errors import BackendError, DivergedError
from stablebptt.tasks.minimize import minimize_fun
from stablebptt.tasks.optimizers import clip
from stablebptt.tasks.problems import Axis, Problem
from stablebptt.tasks.seeds import train_seeds
from stablebptt.tasks.sweeps import sweep
from stablebptt.tasks.training import Run, load, train
from stablebptt.version import __version__

__all__ = [
    "Axis",
    "BackendError",
    "DivergedError",
    "FileFormatError",
    "Problem",
    "Run",
    "__version__",
    "c_header",
    "cfunc_address",
    "clip",
    "load",
    "minimize_fun",
    "optimizers",
    "problem",
    "sweep",
    "train",
    "train_seeds",
]
