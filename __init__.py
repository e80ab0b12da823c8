"""Stabilised backpropagation through time: neural controllers trained through physics simulators."""

from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import optimizers, problem
from stablebptt.tasks.errors import DivergedError
from stablebptt.tasks.optimizers import clip
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.sweeps import sweep
from stablebptt.tasks.training import Run, load, train
from stablebptt.version import __version__

__all__ = [
    "DivergedError",
    "FileFormatError",
    "Problem",
    "Run",
    "__version__",
    "clip",
    "load",
    "optimizers",
    "problem",
    "sweep",
    "train",
]
