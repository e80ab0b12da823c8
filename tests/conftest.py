"""What the tests share."""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent.parent
GOLDEN_FOLDERS = (HERE.parent / "shared" / "golden", HERE / "data" / "golden")


def golden_file(task: str) -> Path | None:
    """The fullest set of golden numbers at hand."""
    return next((f / f"{task}.h5" for f in GOLDEN_FOLDERS if (f / f"{task}.h5").exists()), None)


def golden_cases(task: str) -> list[str]:
    path = golden_file(task)
    if path is None:
        return []
    with h5py.File(path) as file:
        return list(file)


def pytest_configure(config: pytest.Config) -> None:
    """One folder of compiled kernels for a session; the PTX machine takes the place of the driver (see test_cuda.py)."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in the background; processes that tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "STABLEBPTT_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="stablebptt-tests-")  # workers and other processes inherit it
        os.environ["STABLEBPTT_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if "PYTEST_XDIST_WORKER" in os.environ:
        compile_once(Path(os.environ["STABLEBPTT_CACHE_DIR"]))
    if os.environ.get("STABLEBPTT_TEST_EMULATED"):
        sys.path.insert(0, str(HERE / "tests"))
        import ptx_machine

        ptx_machine.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is `thinned`, every k-th case is in the README's run, and the others are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if (thinned := item.get_closest_marker("thinned")) and seen[name] % thinned.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


def compile_once(folder: Path) -> None:
    """Workers that want the same kernel wait for the first of them, and find it on disk."""
    try:
        import fcntl
    except ImportError:  # no POSIX: they compile it all
        return
    from numba.core.dispatcher import Dispatcher

    from stablebptt.kernels.core.cache import KernelCache

    compile_alone = Dispatcher.compile
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)

    def compile_in_turn(self, signature):
        if not isinstance(self._cache, KernelCache):
            return compile_alone(self, signature)
        name = f"{self.py_func.__module__}.{self.py_func.__qualname__} {signature}"
        with open(locks / hashlib.sha256(name.encode()).hexdigest(), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return compile_alone(self, signature)

    Dispatcher.compile = compile_in_turn


class Golden:
    """One case: its problem's keywords, arrays by path, attributes."""

    def __init__(self, task: str, case: str) -> None:
        path = golden_file(task)
        assert path is not None
        with h5py.File(path) as file:
            group = file[case]
            self.options = json.loads(group.attrs["problem"])
            self.attributes = {key: float(group.attrs[key]) for key in ("loss", "physics_loss")}
            self.arrays, self.float32_error = {}, {}

            def visit(name: str, item: h5py.Dataset) -> None:
                if isinstance(item, h5py.Dataset):
                    self.arrays[name] = item[()]
                    if "float32_error" in item.attrs:
                        self.float32_error[name] = float(item.attrs["float32_error"])

            group.visititems(visit)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `golden_case` runs for every case of its module's TASK."""
    if "golden_case" in metafunc.fixturenames:
        task = metafunc.module.TASK
        cases = golden_cases(task)
        missing = pytest.param("none", marks=pytest.mark.skip(reason="no golden numbers: data/golden is not here"))
        metafunc.parametrize("golden_case", cases or [missing])


@pytest.fixture
def golden(request: pytest.FixtureRequest, golden_case: str) -> Golden:
    return Golden(request.module.TASK, golden_case)


class Result(NamedTuple):
    """What a command left: its exit code, data and messages."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in a folder of its own."""
    import commands

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return Result(commands.call(*arguments), *capsys.readouterr())

    return call


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every engine; see devices.py for where the device is."""
    import devices

    if request.param == "cuda" and not devices.DEVICE:
        pytest.skip("no CUDA device; the simulator runs these tests in a process of its own")
    return str(request.param)


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test forgets the modules that it wrote: the next one may write others of the same names."""
    before, path = set(sys.modules), list(sys.path)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(written):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """The simulator waits actively: its threads must give way soon."""
    from numba import config

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5 if config.ENABLE_CUDASIM else before)
    yield
    sys.setswitchinterval(before)
