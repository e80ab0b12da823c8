"""Files replaced as a whole, by one process at a time."""

import contextlib
import errno
import glob
import importlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def _module(name: str) -> Any:
    """A module that only some systems have; None on the others."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")  # POSIX, Windows
WINDOWS = os.name == "nt"
BEYOND = 1 << 30  # the byte that is locked on Windows: a locked byte cannot be read, and the file begins with its owner
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def target(path: Path) -> Path:
    """The file to write for `path`. A symbolic link stays: the file is its target.

    Raises
    ------
    OSError
        If `path` is not a regular file but, for example, a pipe or a device: a file must not replace it.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):  # missing, or `check_folder` will report it
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file; give another name")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def expanded(path: str | Path) -> Path:
    """A user's path, with the home folder for a leading ~."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with a home folder that is not known here; give the folder's full name") from None


def check_folder(path: Path) -> None:
    """Raise an OSError with a clear message if no file can be created at `path`."""
    folder = target(path).parent
    if not folder.exists():
        raise FileNotFoundError(f"the folder {folder} does not exist; make it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in the folder {folder}")


@contextlib.contextmanager
def replacing(path: Path, *, rehearsal: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. After the `with` block the file is synced and renamed; a `rehearsal` removes it.

    On any failure the old file stays and no other file remains.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` cannot hold a file.
    """
    place = target(path)
    name = str(place.with_name(f"{_beside(place)}{secrets.token_hex(4)}{place.suffix}"))
    try:
        open(name, "xb").close()
        yield Path(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        if rehearsal:
            os.unlink(name)
        else:
            os.replace(name, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename in (None, name):  # name the file the user asked for
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(place.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Prevent other processes from writing `path`. Take over the lock of a dead process and remove its unfinished files.

    The system's lock on the file `.NAME.lock` decides. It ends with its process. The content of the file says who holds it; on
    file systems without locks, the content decides. The lock lies beside the file itself, not beside a link to it.

    Raises
    ------
    BlockingIOError
        With process and host, if another process (or thread) holds the lock.
    """
    file = target(path)
    place = file.with_name(f".{file.name}.lock")
    handle = _take(place, path)
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.truncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(owner).encode())
        for part in file.parent.glob(f"{_beside(file, pattern=True)}*"):
            with contextlib.suppress(OSError):
                part.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(place)
        os.close(handle)
        if WINDOWS:  # it removes no file that is open
            with contextlib.suppress(OSError):
                os.unlink(place)


def _take(place: Path, path: Path) -> int:
    """An open lock file that nobody else has locked."""
    target(place)
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        owner = _owner(handle)
        if not _lock(handle, owner):
            os.close(handle)
            who = owner or "another process"
            raise BlockingIOError(f"{path} is being written by {who}; wait until it ends, or choose another file")
        if _is_there(handle, place):  # otherwise the last owner has just removed it
            return handle
        os.close(handle)


def _lock(handle: int, owner: "Owner | None") -> bool:
    """Lock an open file if nobody else has."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(handle, BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOSYS, "no locks")
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return owner is None or owner.is_dead()


@dataclass(frozen=True)
class Owner:
    """The process that claims to hold a lock."""

    process: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on host {self.host} since {self.since}"

    def is_dead(self) -> bool:
        """Whether the process has certainly ended; False for processes on other hosts."""
        if self.host != socket.gethostname() or WINDOWS:
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def _owner(handle: int) -> Owner | None:
    """The owner that a lock file names; None if it names none."""
    try:
        owner = json.loads(os.read(handle, 1000))
        return Owner(int(owner["process"]), str(owner["host"]), str(owner["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_there(handle: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(place))
    except FileNotFoundError:
        return False


def _beside(path: Path, *, pattern: bool = False) -> str:
    """Prefix of the names of unfinished files."""
    return f".{glob.escape(path.name) if pattern else path.name}.part-"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, if the system can."""
    if WINDOWS:
        return
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
