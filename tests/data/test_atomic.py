"""Files are replaced as a whole, by one process at a time."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from stablebptt.data import atomic
from stablebptt.data.atomic import locked, replacing

HOLD = """
import sys, pathlib
from stablebptt.data.atomic import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path, **environment):
    """A process that holds the lock of a file until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_replacing_is_all_or_nothing(tmp_path):
    path, mask = tmp_path / "a.h5", os.umask(0o027)
    with replacing(path) as beside:
        beside.write_text("new")
        assert not path.exists() and beside.parent == tmp_path and beside.suffix == ".h5"
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    os.umask(mask)
    for error in (KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(error if isinstance(error, type) else OSError), replacing(path) as beside:
            beside.write_text("half")
            raise error
        assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_its_part(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)


def test_the_second_is_told_who_is_first(tmp_path):
    path = tmp_path / "run.h5"
    process = hold(path)
    words = rf"run\.h5 is being written by process {process.pid} on host {socket.gethostname()} since"
    with pytest.raises(BlockingIOError, match=words), locked(path):
        pass
    process.communicate("")
    with locked(path):
        owner = json.loads((tmp_path / ".run.h5.lock").read_text())
        assert owner["process"] == os.getpid() and owner["host"] == socket.gethostname()
    assert list(tmp_path.iterdir()) == []


def test_threads_exclude_each_other(tmp_path):
    outcomes = []

    def second():
        try:
            with locked(tmp_path / "run.h5"):
                outcomes.append("both")
        except BlockingIOError as error:
            outcomes.append(str(error))

    with locked(tmp_path / "run.h5"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert str(os.getpid()) in outcomes[0]


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_dead_process_leaves_nothing_that_matters(tmp_path):
    path = tmp_path / "run [1].h5"
    process = hold(path)
    part, other = tmp_path / ".run [1].h5.part-abc.h5", tmp_path / ".run 1.h5.part-abc.h5"
    part.write_text("half")
    other.write_text("of another file")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.with_name(".run [1].h5.lock").exists()
    with locked(path):
        assert not part.exists() and other.exists()
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        (None, True),
        ({"process": os.getpid(), "host": socket.gethostname(), "since": "now"}, False),
        ({"process": 2**22 + 1, "host": socket.gethostname(), "since": "then"}, True),  # beyond the largest process id
        ({"process": 1, "host": "elsewhere", "since": "then"}, False),
        ({"damaged": 1}, True),
    ],
)
def test_where_the_file_system_knows_no_locks(tmp_path, monkeypatch, owner, free):
    if atomic.fcntl is not None:
        monkeypatch.setattr(atomic.fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    if owner is not None:
        (tmp_path / ".run.h5.lock").write_text(json.dumps(owner))
    if free:
        with locked(tmp_path / "run.h5"):
            pass
    else:
        with pytest.raises(BlockingIOError, match=owner["host"]), locked(tmp_path / "run.h5"):
            pass


def test_a_lock_that_vanishes_is_made_anew(tmp_path, monkeypatch):
    """The last owner may remove the lock file between opening and locking."""
    there, calls = atomic._is_there, []

    def once_gone(handle, place):
        calls.append(handle)
        if len(calls) == 1:
            os.unlink(place)
        return there(handle, place)

    monkeypatch.setattr(atomic, "_is_there", once_gone)
    with locked(tmp_path / "run.h5"):
        assert (tmp_path / ".run.h5.lock").exists()
    assert len(calls) == 2
