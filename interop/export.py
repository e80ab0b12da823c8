"""Policies for use elsewhere: a table of formats by the ending of a file's name, each written by a module of its own.

NumPy is all that .npz and .c need; the others need the extra that the table names.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stablebptt.data import atomic
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.policies import STAGES, Policy


def _npz(policy: Policy, file: Path, name: str) -> None:
    policy.save(file, force=True)


def _c(policy: Policy, file: Path, name: str) -> None:
    from stablebptt.interop import c_source

    file.write_text(c_source.source(policy, name), encoding="ascii")


def _onnx(policy: Policy, file: Path, name: str) -> None:
    from stablebptt.interop import onnx

    file.write_bytes(onnx.model(policy).SerializeToString())


def _torch(policy: Policy, file: Path, name: str) -> None:
    from stablebptt.interop import torch_module

    torch_module.save(policy, file)


class Target(NamedTuple):
    """A format: the function (policy, file to write, name it will have) that writes it, and the extra that it needs."""

    write: Callable[[Policy, Path, str], None]
    extra: str = ""  # also the name of its package


TARGETS = {
    ".npz": Target(_npz),
    ".c": Target(_c),
    ".onnx": Target(_onnx, "onnx"),
    ".pt": Target(_torch, "torch"),
    ".pt2": Target(_torch, "torch"),
}


def export(policy: Policy, path: str | Path, *, force: bool = False) -> None:
    """Write a policy, such as ``run.best_policy``, for use elsewhere. The ending of the name decides the format.

    Parameters
    ----------
    policy : Policy
    path : the file: .npz (NumPy), .c (C99), .onnx (ONNX), .pt or .pt2 (PyTorch); docs/training.md says what is in it
    force : replace an existing file

    Raises
    ------
    ValueError, TypeError
        If the ending is not known, a package is missing, or the policy cannot be written in this format.
    OSError
        If the file cannot be written, or exists and is not to be replaced.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,))
    >>> run = sb.train(problem, epochs=2, train_count=8, test_count=8, out="run.h5")
    >>> sb.export(run.best_policy, "policy.c")
    >>> "policy" in open("policy.c").read()
    True
    """
    _check_policy(policy)
    file = atomic.expanded(path)
    target = _target(file)
    atomic.check_folder(file)
    if file.exists() and not force:
        raise FileExistsError(f"{path} exists; choose another name, or replace it with force=True")
    if policy.signals is not None and target.write is not _npz:
        raise ArgumentError("the policy sees the time or a reference; only .npz can hold that")
    with atomic.replacing(file) as beside:
        target.write(policy, beside, file.stem)


def _target(file: Path) -> Target:
    """The format of a file that is to be written, if all it needs is there."""
    target = TARGETS.get(file.suffix.lower())
    if target is None:
        raise ArgumentError(f"{file.name} ends in {file.suffix or 'nothing'!r}; a policy is written as {', '.join(TARGETS)}")
    if target.extra and importlib.util.find_spec(target.extra) is None:
        raise ArgumentError(f"{file.name} needs the package {target.extra}: pip install 'stablebptt[{target.extra}]'")
    return target


def _check_policy(policy: Policy) -> None:
    """Raise an error for what no other language can be told."""
    if not isinstance(policy, Policy):
        kind = type(policy).__name__
        raise ArgumentError(f"a policy is exported, such as run.policy or run.best_policy; this is of type {kind}")
    for stage in policy.stages:
        if type(stage) not in STAGES.values():
            raise ArgumentError(f"the stage {type(stage).__name__} is your own; export knows {', '.join(STAGES)}")
    if policy.dtype not in (np.float32, np.float64):
        raise ArgumentError(f"the policy is in {policy.dtype}; export knows float32 and float64")
