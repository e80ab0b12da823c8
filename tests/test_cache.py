"""Compiled kernels on disk: warm starts, damage, folders that cannot be used."""

import os
import stat
import subprocess
import sys
import warnings

import pytest

from stablebptt.kernels import cache

SCRIPT = """
import sys, warnings
warnings.simplefilter("always")
import numpy as np
from stablebptt.kernels.dense import tanh
from stablebptt.kernels.compiler import kernel

@kernel
def half(x):
    return tanh(x) / 2

assert abs(half(1.0) - np.tanh(1.0) / 2) < 1e-15
print(sum(half._cache_hits.values()), sum(half._cache_misses.values()))
"""


def run(folder, check=True):
    environment = {**os.environ, "STABLEBPTT_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    return [path for path in folder.rglob("*.bin")]


def test_a_second_process_finds_the_code(tmp_path):
    assert run(tmp_path).stdout == "0 1\n"
    assert len(files(tmp_path)) == 1
    second = run(tmp_path)
    assert second.stdout == "1 0\n" and second.stderr == ""


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "random"])
def test_a_damaged_file_is_compiled_again(tmp_path, damage):
    run(tmp_path)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"empty": b"", "truncated": content[:-7], "flipped": bytes(flipped), "random": os.urandom(999)}[damage])
    again = run(tmp_path)
    assert again.stdout == "0 1\n" and again.stderr == ""
    assert run(tmp_path).stdout == "1 0\n"


def test_an_unusable_folder_costs_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = run(blocked)
    assert done.stdout == "0 1\n"
    assert done.stderr.count("compiled kernels are not kept") == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are those of POSIX")
def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    run(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    done = run(tmp_path)
    assert done.stdout == "0 1\n" and "others can write" in done.stderr


def test_the_folder_is_named_by_version_and_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLEBPTT_CACHE_DIR", str(tmp_path))
    assert cache.cache_folder() == tmp_path / f"{cache.__version__}-{cache.source_hash()}"
    monkeypatch.delenv("STABLEBPTT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    if sys.platform.startswith("linux"):
        assert cache.cache_root() == tmp_path / "home" / "stablebptt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.source_hash()
