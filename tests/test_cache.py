"""Compiled kernels on disk: warm starts, damage, folders that cannot be used."""

import json
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="homes are those of Linux")
def test_without_a_home_folder_and_with_a_foreign_user_id(monkeypatch, capsys, recwarn):
    from stablebptt import cli

    for name in ("HOME", "STABLEBPTT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_242_424)  # nobody's
    cache.usable_folder.cache_clear()
    try:
        for _ in range(2):
            cli.stablebptt.main(["info", "--json"], standalone_mode=False)
            assert json.loads(capsys.readouterr().out)["cache_folder"] == "none"
        warned = [str(w.message) for w in recwarn.list if "compiled kernels are not kept" in str(w.message)]
        assert len(warned) == 1 and "STABLEBPTT_CACHE_DIR" in warned[0]
    finally:
        cache.usable_folder.cache_clear()


def test_a_tilde_in_the_name_of_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("STABLEBPTT_CACHE_DIR", "~/kernels")
    assert cache.cache_root() == tmp_path / "kernels"


def test_kernels_say_that_they_need_the_compiler(tmp_path):
    script = """
import numpy as np
import stablebptt as sb
from stablebptt.kernels.generics import step

problem = sb.problem("cartpole", steps=4, hidden=(4,))
after = np.zeros(4)
step(problem.system, np.ones(4), np.ones(1), after)  # plain Python
assert after.any()
try:
    problem.loss(problem.init(), problem.sample(2))
except RuntimeError as error:
    print(error)
from stablebptt.cli import main

main("cartpole train --steps 4 --hidden 4 --epochs 1 --out run.h5".split())
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    line = "the kernels need Numba's compiler, which NUMBA_DISABLE_JIT switches off; unset that variable\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, line, f"stablebptt: RuntimeError: {line}")
    assert not list(tmp_path.iterdir())


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
