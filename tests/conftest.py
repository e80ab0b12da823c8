"""What the tests share."""

import json
import os
from pathlib import Path

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
    """The PTX machine takes the place of the driver before anything asks for it; see test_cuda.py."""
    if os.environ.get("STABLEBPTT_TEST_EMULATED"):
        import sys

        sys.path.insert(0, str(HERE / "tests"))
        import ptx_machine

        ptx_machine.install()


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


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)
