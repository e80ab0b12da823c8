"""Compiled kernels on disk: one checked file per function and signature, in a private folder of the user.

Numba's own cache stores its files beside the sources, misses edits in other files and fails on a damaged file. Here the name of
the folder carries the version and a hash of the package's sources, and each file carries a checksum. A file that cannot be read
is compiled again. A folder that cannot be written causes one warning. The files are pickles, so a folder is refused unless it
belongs to the user alone.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import stat
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import compiler, config, serialize
from numba.core.caching import _Cache

from stablebptt.kernels.core import fingerprints
from stablebptt.kernels.core.simd import VECTOR_BYTES
from stablebptt.version import __version__

DIGEST_BYTES = 32
ROOT = Path(__file__).parents[2]
# Variables that change the machine code of the same source.
NUMBA_SETTINGS = (
    "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML",
    "EXTEND_VARIABLE_LIFETIMES", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS",
)  # fmt: skip


@functools.cache
def source_hash() -> str:
    """Hash of all sources in the rooms that decide what a kernel compiles to (12 hex digits)."""
    digest = hashlib.sha256()
    for path in sorted(path for room in fingerprints.ROOMS for path in (ROOT / room).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def environment() -> str:
    """What decides the machine code besides the sources: versions, settings, the width of vectors."""
    settings = [f"{name}={getattr(config, name, None)}" for name in NUMBA_SETTINGS]
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version_info[:3])
    return repr((versions, settings, VECTOR_BYTES))


def cache_root() -> Path:
    """The folder ``STABLEBPTT_CACHE_DIR``, or this system's folder for caches; a RuntimeError if there is no home folder."""
    if given := os.environ.get("STABLEBPTT_CACHE_DIR"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "stablebptt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stablebptt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stablebptt"


def cache_folder() -> Path:
    """The folder of this version and these sources."""
    return cache_root() / f"{__version__}-{source_hash()}"


def _private(folder: Path) -> bool:
    """Whether only this user can write files (pickles!) to `folder`."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


@functools.cache
def usable_folder() -> Path | None:
    """The cache folder, created if missing; None (after one warning) if it cannot be used."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(folder):
            raise PermissionError("others can write to it, or it is another user's")
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"compiled kernels are not kept: the cache folder cannot be used ({error}); "
            "set STABLEBPTT_CACHE_DIR to a folder of your own",
            stacklevel=2,
        )
        return None
    return folder


class KernelCache(_Cache):
    """The cache of one function, with the interface of Numba's dispatcher."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str:
        """The folder of the files."""
        return str(cache_folder())

    def enable(self) -> None:
        """Read and write files from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Neither read nor write files from now on."""
        self._enabled = False

    def flush(self) -> None:
        """Do nothing: memory holds no entries."""

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        decides = (fingerprints.of_function(self._function).text, str(signature))
        folder = usable_folder() if self._enabled and not any(fingerprints.UNKEPT in part for part in decides) else None
        if folder is None:
            return None
        key = repr((*decides, codegen.magic_tuple(), environment()))
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.bin"

    def lacks(self, dispatcher: Any, signature: Any) -> bool:
        """Whether a file for this signature could be kept, but is not there, nor is the code in memory."""
        if signature in dispatcher.overloads:
            return False
        path = self._path(signature, dispatcher.targetctx.codegen())
        return path is not None and not path.exists()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function of this signature; None if there is no intact file."""
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        try:
            return compiler.CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception:  # a file of another Numba build, or of a class that no longer exists: compile again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store a compiled function, completely or not at all."""
        path = self._path(sig, data.codegen)
        if path is None or data.library.has_dynamic_globals:
            return
        payload = serialize.dumps(data._reduce())
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(file.name, path)
        except OSError as error:
            with contextlib.suppress(OSError, NameError):
                os.unlink(file.name)
            _warn_once(f"compiled kernels could not be kept: {error}")
