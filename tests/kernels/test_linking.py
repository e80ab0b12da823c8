"""Functions without a wrapper are linked into the entry points, and otherwise behave as Numba's own."""

import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from stablebptt.kernels.core.dispatch import block, kernel
from stablebptt.kernels.core.linking import LinkedLibrary


@block
def root(x):
    if x < 0:
        raise ValueError("no root of", x)
    return np.sqrt(x)


@njit
def doubled(x):
    return 2 * root(x)


@kernel
def through_both(x):
    return doubled(x) + root(x)


def test_a_block_works_in_kernels_in_numbas_own_functions_and_alone():
    assert through_both(4.0) == 6.0
    assert doubled(9.0) == 6.0
    assert njit(lambda x: root(x) + 1)(4.0) == 3.0


def test_what_a_block_raises_arrives_with_its_numbers():
    with pytest.raises(ValueError, match=r"no root of.*-1\.5"):
        through_both(-1.5)


def test_only_what_python_calls_is_made_ready_to_run(monkeypatch):
    made = []

    def optimised(self, original=LinkedLibrary._optimize_final_module):
        original(self)
        made.append((self.name, self._is_entry))

    monkeypatch.setattr(LinkedLibrary, "_optimize_final_module", optimised)

    @block
    def inner(x):
        return x + 1

    @kernel
    def outer(x):
        return inner(x)

    outer._cache.disable()  # an earlier session may have kept it
    assert outer(1.0) == 2.0
    assert [(name.split(".")[-1], entry) for name, entry in made] == [("inner", False), ("outer", True)]


PROGRAM = """
import numpy as np
from numba import objmode
from stablebptt.kernels.core.dispatch import block, kernel

@block
def told(x):
    print("seen", x)
    with objmode(y="float64"):
        y = float(format(x, ".1f"))
    if y > 2:
        raise ValueError("too large:", y)
    return y

@kernel
def entry(x):
    return told(x)

print(entry(1.26))
try:
    entry(3.0)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_pythons_side_of_a_block_is_found_in_a_second_process(tmp_path):
    """Printing, exceptions with numbers and object mode need pointers that Numba writes into the loaded code."""
    (tmp_path / "program.py").write_text(PROGRAM)
    for _ in range(2):
        output = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True).stdout
        assert output.splitlines() == ["seen 1.26", "1.3", "seen 3.0", "('too large:', 3.0)"]
