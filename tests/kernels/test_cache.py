"""Compiled kernels on disk: warm starts, damage, folders that cannot be used."""

import json
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from stablebptt.kernels.core import cache
from stablebptt.kernels.core.dispatch import kernel
from stablebptt.kernels.dense import tanh

PACKAGE = Path(cache.__file__).parents[2]
SCRIPT = """
import numpy as np
from stablebptt.kernels.dense import tanh
from stablebptt.kernels.core.dispatch import kernel

@kernel
def half(x):
    return tanh(x) / 2

assert abs(half(1.0) - np.tanh(1.0) / 2) < 1e-15
print(sum(half._cache_hits.values()), sum(half._cache_misses.values()))
"""


def half(x):
    return tanh(x) / 2


def run(script, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def use(monkeypatch):
    """Call a kernel that was never called before, with a cache folder; what was found and what was not, and the warnings."""

    def call(folder):
        monkeypatch.setenv("STABLEBPTT_CACHE_DIR", str(folder))
        cache.usable_folder.cache_clear()
        fresh = kernel(half)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert abs(fresh(1.0) - np.tanh(1.0) / 2) < 1e-15
        return sum(fresh._cache_hits.values()), sum(fresh._cache_misses.values()), [str(w.message) for w in caught]

    yield call
    cache.usable_folder.cache_clear()


def files(folder):
    return list(folder.rglob("*.bin"))


def test_a_second_process_finds_the_code(tmp_path):
    assert run(SCRIPT, STABLEBPTT_CACHE_DIR=str(tmp_path)).stdout == "0 1\n"
    assert len(files(tmp_path)) == 1
    second = run(SCRIPT, STABLEBPTT_CACHE_DIR=str(tmp_path))
    assert second.stdout == "1 0\n" and second.stderr == ""


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "random"])
def test_a_damaged_file_is_compiled_again(tmp_path, use, damage):
    assert use(tmp_path) == (0, 1, [])
    (path,) = files(tmp_path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"empty": b"", "truncated": content[:-7], "flipped": bytes(flipped), "random": os.urandom(999)}[damage])
    assert use(tmp_path) == (0, 1, [])
    assert use(tmp_path) == (1, 0, [])


def test_an_unusable_folder_costs_one_warning(tmp_path, use):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    found, compiled, told = use(blocked)
    assert (found, compiled) == (0, 1)
    assert len(told) == 1 and "compiled kernels are not kept" in told[0] and "STABLEBPTT_CACHE_DIR" in told[0]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are those of POSIX")
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, use):
    use(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    found, compiled, told = use(tmp_path)
    assert (found, compiled) == (0, 1) and len(told) == 1 and "others can write" in told[0]


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


@pytest.mark.parametrize(
    ("platform", "environment", "root"),
    [
        ("linux", {"STABLEBPTT_CACHE_DIR": "/given", "XDG_CACHE_HOME": "/xdg"}, "/given"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/stablebptt"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/stablebptt"),
        ("darwin", {"HOME": "/Users/me", "XDG_CACHE_HOME": "/xdg"}, "/Users/me/Library/Caches/stablebptt"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/stablebptt"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths are those of POSIX")
def test_where_the_folder_is(monkeypatch, platform, environment, root):
    for name in ("STABLEBPTT_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert cache.cache_root() == Path(root) and cache.cache_folder().parent == Path(root)


def test_every_source_of_kernels_is_in_the_name_of_the_folder(tmp_path):
    """Edit a copy of the package: each edit leads to a folder of its own."""
    names = shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "golden", "__pycache__")
    copy = shutil.copytree(PACKAGE, tmp_path / "stablebptt", ignore=names)
    script = f"""
import pathlib
from stablebptt.kernels.core import cache
for edited in (None, "kernels/quantum.py", "kernels/core/simd.py", "adjoint/quantum.py"):
    if edited:
        place = pathlib.Path({str(copy)!r}) / edited
        place.write_text(place.read_text() + "EDITED = 1\\n")
    cache.source_hash.cache_clear()
    print(cache.cache_folder().name)
"""
    names = run(script, PYTHONPATH=str(tmp_path)).stdout.split()
    assert len(set(names)) == 4 and all(name.startswith(f"{cache.__version__}-") for name in names), names


def test_linear_algebra_is_imported_by_those_who_use_it():
    """A process that only loads kernels begins without it; a function of one's own may use it."""
    script = """
import sys
import numpy as np
from numba import njit
from stablebptt.kernels.core.dispatch import kernel

@kernel
def double(x):
    x *= 2

@njit
def squared(a):
    return np.dot(a, a)

a = np.ones((2, 2))
double(a)
print("scipy.linalg" in sys.modules, squared(a).tolist(), "scipy.linalg" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False [[8.0, 8.0], [8.0, 8.0]] True\n", done.stderr
