"""Real processes that are killed, run out of room or meet each other: nothing is lost, everything is said."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import stablebptt as sb

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits are those of POSIX")
TRAIN = [sys.executable, "-m", "stablebptt", "cartpole", "train", "--steps", "10", "--hidden", "8", "--train-count", "32"]
TRAIN += ["--test-count", "8", "--shuffle", "--clip", "norm", "--out", "run.h5"]


def start(folder, *options, before=(), **more):
    command = [*before, *TRAIN, *map(str, options)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finish(folder, *options, **more):
    process = start(folder, *options, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def assert_same_result(first, second):
    a, b = sb.load(first), sb.load(second)
    assert a.config == b.config and a.status == b.status == "complete"
    assert np.array_equal(a.theta, b.theta) and np.array_equal(a.best_theta, b.best_theta)
    for name, values in a.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(values, b.history[name])
    for name, values in a.trajectories.items():
        assert np.array_equal(values, b.trajectories[name]), name


def kill_again_and_again(folder, kills, epochs, longest):
    """Kill a training `kills` times, resume it each time, and compare its end with a training that was left alone."""
    options = ["--epochs", epochs, "--checkpoint-seconds", 0, "--json", "--quiet"]
    (folder / "whole").mkdir()
    assert finish(folder / "whole", *options)[0] == 0
    random, saved, done = np.random.default_rng(5), 0, 0
    while done < kills:
        process = start(folder, *options, "--resume")
        time.sleep(random.uniform(0.3, longest))
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        if process.returncode == 0:  # it was faster
            assert_same_result(folder / "whole" / "run.h5", folder / "run.h5")
            (folder / "run.h5").unlink()
            saved = 0
            continue
        assert process.returncode == -signal.SIGKILL, err
        done += 1
        reported = saved + out.count('"event": "epoch"')
        if (folder / "run.h5").exists():
            run = sb.load(folder / "run.h5")
            saved = len(run.history["epoch"])
            assert run.status in ("running", "complete")  # or killed on its way out
        assert saved >= reported - 1, "more than one checkpoint interval was lost"
    code, _, err = finish(folder, *options, "--resume")
    assert code == 0, err
    assert_same_result(folder / "whole" / "run.h5", folder / "run.h5")
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["run.h5"]


def test_three_kills(tmp_path):
    kill_again_and_again(tmp_path, 3, 30, 1.2)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    kill_again_and_again(tmp_path, 50, 500, 1.4)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
@pytest.mark.parametrize(
    "cold",
    [pytest.param(False, id="compiled before"), pytest.param(True, id="cache cannot be written either", marks=pytest.mark.slow)],
)
def test_no_room_for_the_file(tmp_path, cold):
    code, _, err = finish(tmp_path, "--epochs", 2, "--quiet")
    assert code == 0, err
    before = (tmp_path / "run.h5").read_bytes()
    environment = dict(os.environ) | ({"STABLEBPTT_CACHE_DIR": str(tmp_path / "cache")} if cold else {})
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *TRAIN, "--epochs", "4", "--quiet", "--resume"]
    result = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    lines = result.stderr.splitlines()
    assert result.returncode == 5 and lines[-1] == "stablebptt: File too large: run.h5", result.stderr
    assert "Traceback" not in result.stderr and len(lines) == 1, result.stderr  # quiet: without a word on the cache
    assert (tmp_path / "run.h5").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"run.h5"}


@pytest.mark.slow
def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    process = start(folder, "--epochs", 10**6, "--checkpoint-seconds", 0, "--json")
    process.stdout.readline()
    shutil.rmtree(folder)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "Traceback" not in err and "run.h5" in err.splitlines()[-1] and "No such file" in err.splitlines()[-1]


ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
MORTAL = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if ROOT else []  # root may write anywhere


@pytest.mark.slow
@pytest.mark.skipif(ROOT and shutil.which("setpriv") is None, reason="root may write anywhere, and setpriv is not here")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        code, _, err = finish(tmp_path, "--epochs", 1, "--quiet", before=MORTAL)
        assert code == 5 and err == "stablebptt: no permission to write in the folder .\n", err
        tmp_path.chmod(0o700)
        process = start(tmp_path, "--epochs", 10**6, "--checkpoint-seconds", 0, "--json", "--quiet", before=MORTAL)
        process.stdout.readline()
        process.stdout.readline()
        tmp_path.chmod(0o500)  # taken away while it runs
        _, err = process.communicate(timeout=60)
        assert process.returncode == 5 and err == "stablebptt: Permission denied: run.h5\n", err
        assert sb.load(tmp_path / "run.h5").status == "running"
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="with HDF5's locks", marks=pytest.mark.slow),
        pytest.param({"HDF5_USE_FILE_LOCKING": "FALSE"}, id="without HDF5's locks", marks=pytest.mark.slow),
    ],
)
def test_two_processes_on_one_file(tmp_path, environment):
    environment = {**os.environ, **environment}
    first = start(tmp_path, "--epochs", 10**6, "--checkpoint-seconds", 0, "--json", env=environment)
    first.stdout.readline()
    for more in ("--resume", "--force"):
        code, _, err = finish(tmp_path, "--epochs", 10**6, "--quiet", more, env=environment)
        assert code == 5 and err.count("\n") == 1 and f"process {first.pid} on host" in err, err
    first.send_signal(signal.SIGKILL)
    first.communicate()
    epochs = len(sb.load(tmp_path / "run.h5").history["epoch"])
    code, _, err = finish(tmp_path, "--epochs", 10**6, "--quiet", "--resume", "--poles", 2)
    assert code == 2 and "cannot be resumed" in err  # the stale lock did not matter
    assert len(sb.load(tmp_path / "run.h5").history["epoch"]) == epochs
