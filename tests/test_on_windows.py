"""What only POSIX has, missing: the branches for Windows, walked through here. What runs only there is faked."""

import ctypes
import errno
import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

import stablebptt as sb
from stablebptt.data import atomic
from stablebptt.kernels.core import cache, threads
from stablebptt.tasks import arguments, seeds
from stablebptt.tasks.sweeps import workers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="here it is faked")


class Msvcrt:
    """Windows' lock of a byte, by the lock that is here. A byte that is locked could not be read there."""

    LK_NBLCK = 2

    def locking(self, handle, mode, count):
        assert mode == self.LK_NBLCK and count == 1 and os.lseek(handle, 0, os.SEEK_CUR) > os.fstat(handle).st_size
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(errno.EACCES, "Permission denied") from None


@pytest.fixture
def windows(monkeypatch):
    """Files as on Windows: no fcntl, no file removed that is open."""
    opened, unlink, close = set(), os.unlink, os.close
    real = os.open

    def noted(path, *rest, **more):
        handle = real(path, *rest, **more)
        opened.add((handle, str(path)))
        return handle

    def closed(handle):
        opened.difference_update({each for each in opened if each[0] == handle})
        close(handle)

    def removed(path, **more):
        if any(name == str(path) for _, name in opened):
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        unlink(path, **more)

    monkeypatch.setattr(atomic, "fcntl", None)
    monkeypatch.setattr(atomic, "msvcrt", Msvcrt())
    monkeypatch.setattr(atomic, "WINDOWS", True)
    for name, function in (("open", noted), ("close", closed), ("unlink", removed)):
        monkeypatch.setattr(os, name, function)


def test_one_writes_and_the_next_one_may(windows, tmp_path):
    path = tmp_path / "run.h5"
    for _ in range(2):
        with atomic.locked(path), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"), atomic.locked(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_left_blocks_nobody(windows, tmp_path):
    lock = tmp_path / ".run.h5.lock"
    lock.write_text('{"process": 1, "host": "elsewhere", "since": "long ago"}')
    with atomic.locked(tmp_path / "run.h5"):
        assert str(os.getpid()) in lock.read_text()


def test_an_owner_is_never_asked_by_a_signal(windows, monkeypatch):
    """On Windows os.kill(process, 0) would end the process."""
    monkeypatch.setattr(os, "kill", lambda *unused: pytest.fail("killed"))
    assert not atomic.Owner(os.getpid(), atomic.socket.gethostname(), "now").is_dead()


def test_a_run_is_written_and_resumed(windows, tmp_path):
    problem = sb.problem("cartpole", poles=2, steps=6, hidden=(5,))
    sizes = {"train_count": 8, "test_count": 8, "out": tmp_path / "run.h5"}
    sb.train(problem, epochs=1, **sizes)
    assert sb.train(problem, epochs=2, resume=True, **sizes).status == "complete"
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]


def test_what_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    arguments.memory("everything", 1e30)  # unknown, so not refused
    monkeypatch.setitem(sys.modules, "resource", None)
    seeds._allow_files(10**9)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert workers.cores() == os.cpu_count()


def test_the_folder_of_compiled_code(monkeypatch, tmp_path):
    monkeypatch.delenv("STABLEBPTT_CACHE_DIR", raising=False)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache.cache_root() == tmp_path / "stablebptt"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_root() == Path.home() / "Library" / "Caches" / "stablebptt"
    monkeypatch.delattr(os, "getuid")
    assert cache._private(tmp_path)


def test_workers_begin_without_masks_of_signals(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask")
    with workers._deaf():
        pass


def test_threads_yield_and_stay_where_they_are(monkeypatch):
    class Kernel32:
        SwitchToThread = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)

    monkeypatch.setattr(ctypes, "WinDLL", lambda name: {"kernel32": Kernel32}[name], raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert threads._yield_address() == ctypes.cast(Kernel32.SwitchToThread, ctypes.c_void_p).value
    monkeypatch.delattr(os, "sched_setaffinity")
    threads.Crew()._move(1)
