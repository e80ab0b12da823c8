"""Nothing stale: whatever reaches the machine code is in the fingerprint, wherever it lives."""

import ctypes
import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from stablebptt.kernels import Controller, System, implements, inline, kernel, step
from stablebptt.kernels.core import cache, fingerprints
from stablebptt.kernels.core.structs import Struct

PARAMS = """
import enum

import numpy as np
from numba import njit
from stablebptt.kernels import block, inline, Struct

STIFFNESS = 2.0
TABLE = np.arange(3000.0)
NESTED = (1, (2.0, "three"))
COUNT = 3

class Mode(enum.Enum):
    SOFT = 2.0
    HARD = 5.0
    USUAL = 2.0

MODE = Mode.SOFT

class Inner(Struct):
    strength: float

INNER = Inner(1.5)

@njit
def deep(x):
    return x * 2.0

@inline
def small(x):
    return deep(x) + STIFFNESS

@block
def large(x, power=2):
    return x ** power

@njit(error_model="numpy")
def jitted(x):
    return x / 3.0
"""
MODEL = """
import params_module
from params_module import MODE, TABLE, NESTED, INNER, STIFFNESS, Mode, jitted, large, small
from stablebptt.kernels import System, implements, step

class Model(System):
    mass: float = 1.0

@implements(step, Model)
def _step(system, x, c, x_next):
    count = NESTED[0]
    x_next[0] = small(x[0]) + large(x[0]) + jitted(x[0]) + TABLE[5] * INNER.strength
    if Mode.HARD is not MODE:
        x_next[0] += MODE.value
    for k in range(params_module.COUNT):
        x_next[0] += k * count * STIFFNESS
"""
EDITS = [
    ("params", "STIFFNESS = 2.0", "STIFFNESS = 2.5"),
    ("params", "TABLE = np.arange(3000.0)", "TABLE = np.arange(3000.0); TABLE[1500] += 1"),
    ("params", "TABLE = np.arange(3000.0)", "TABLE = np.arange(3000.0, dtype=np.float32)"),
    ("params", '"three"', '"four"'),
    ("params", "COUNT = 3", "COUNT = 3.0"),
    ("params", "SOFT = 2.0", "SOFT = 2.5"),
    ("params", "HARD = 5.0", "HARD = 6.0"),
    ("params", "USUAL = 2.0", "USUAL = 5.0"),
    ("params", "Mode.SOFT", "Mode.HARD"),
    ("params", "Inner(1.5)", "Inner(1.25)"),
    ("params", "return x * 2.0", "return x * 4.0"),
    ("params", "deep(x) + STIFFNESS", "deep(x) - STIFFNESS"),
    ("params", "power=2", "power=3"),
    ("params", "x ** power", "x ** power + 1"),
    ("params", '@njit(error_model="numpy")', "@njit"),
    ("params", "x / 3.0", "x / 3.5"),
    ("model", "k * count", "k - count"),
    ("model", "mass: float = 1.0", "mass: float = 1.0\n    size: float = 1.0"),
]
NEUTRAL = [
    ("params", "STIFFNESS = 2.0", "# a comment\nSTIFFNESS = 2.0"),
    ("params", "    return x * 2.0", '    """A docstring."""\n    return x * 2.0  # and a comment'),
    ("params", "COUNT = 3", "COUNT = 3\nUNUSED = 5"),
    ("model", "    count = NESTED[0]", '    """A docstring."""\n\n    count = NESTED[0]'),
]
_numbers = itertools.count()


def load(folder, name, text):
    path = folder / f"{name}_{next(_numbers)}.py"  # another name each time: no byte code of the last one
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def fingerprint(folder, edit=("", "", "")):
    texts = {"params": PARAMS, "model": MODEL}
    where, old, new = edit
    if where:
        assert old in texts[where]
        texts[where] = texts[where].replace(old, new)
    try:
        load(folder, "params_module", texts["params"])
        return load(folder, "model_module", texts["model"]).Model.fingerprint()
    finally:
        for name in ("params_module", "model_module"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("edit", EDITS, ids=[f"{old} to {new}" for _, old, new in EDITS])
def test_what_reaches_the_machine_code_counts(tmp_path, edit):
    assert fingerprint(tmp_path, edit) != fingerprint(tmp_path)


@pytest.mark.parametrize("edit", [("", "", ""), *NEUTRAL], ids=lambda edit: edit[2] or "nothing")
def test_what_does_not_reach_it_does_not_count(tmp_path, edit):
    assert fingerprint(tmp_path, edit) == fingerprint(tmp_path)


def test_a_module_named_like_one_of_a_library_counts_by_content(tmp_path, monkeypatch):
    model = MODEL.replace("params_module", "profile")
    found = []
    for text in (PARAMS, PARAMS.replace("COUNT = 3", "COUNT = 4")):
        monkeypatch.setitem(sys.modules, "profile", load(tmp_path, "profile", text))
        fingerprints._of_library.cache_clear()
        found.append(load(tmp_path, "model_of_profile", model).Model.fingerprint())
    fingerprints._of_library.cache_clear()
    assert found[0] != found[1]


def factory(strength, table=(1.0, 2.0)):
    values = np.array(table)

    class Local(System):
        dt: float

    @implements(step, Local)
    def _step(system, x, c, x_next):
        x_next[0] = x[0] + system.dt * strength * values[0]

    return Local


def test_classes_of_a_factory_differ_by_what_they_close_over():
    assert factory(1.0).fingerprint() == factory(1.0).fingerprint()
    assert len({factory(1.0).fingerprint(), factory(5.0).fingerprint(), factory(1.0, (2.0, 2.0)).fingerprint()}) == 3
    constants = factory(5.0).constants()
    assert constants["_step.strength"] == 5.0
    assert constants["_step.values"]["shape"] == [2]


@njit
def run(system, x, c):
    x_next = np.empty_like(x)
    step(system, x, c, x_next)
    return x_next[0]


def test_factories_do_not_share_machine_code():
    x, c = np.ones(1), np.zeros(1)
    assert [run(factory(s)(0.5), x, c) for s in (1.0, 5.0, 1.0)] == [1.5, 3.5, 1.5]


OFFSET = 3.0


@inline
def shifted(x):
    return x + OFFSET


@njit
def doubled(x):
    return 2 * x * OFFSET


class Shifting(System):
    dt: float


@implements(step, Shifting)
def _shift(system, x, c, x_next):
    x_next[0] = shifted(x[0]) + 100 * doubled(x[0]) + 1000 * OFFSET


def test_a_global_changed_in_the_same_process_counts(monkeypatch):
    system, x, c = Shifting(1.0), np.ones(1), np.zeros(1)
    assert run(system, x, c) == 4 + 100 * 6 + 1000 * 3
    before = Shifting.fingerprint()
    monkeypatch.setitem(globals(), "OFFSET", 5.0)
    assert Shifting.fingerprint(renew=True) != before
    assert run(system, x, c) == 6 + 100 * 10 + 1000 * 5
    monkeypatch.setitem(globals(), "OFFSET", 3.0)
    assert Shifting.fingerprint(renew=True) == before
    assert run(system, x, c) == 4 + 100 * 6 + 1000 * 3


def test_a_method_redefined_counts_once():
    class Again(System):
        dt: float

    def define(sign):
        @implements(step, Again)
        def _step(system, x, c, x_next):
            x_next[0] = sign * x[0]

        return Again.fingerprint()

    first, second, third = define(1.0), define(-1.0), define(1.0)
    assert first == third != second


def test_what_cannot_be_fingerprinted_is_named_and_not_kept():
    foreign = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: 2 * x)

    class Foreign(System):
        dt: float

    @implements(step, Foreign)
    def _step(system, x, c, x_next):
        x_next[0] = foreign(x[0])

    with pytest.warns(UserWarning, match=r"Foreign is compiled anew in every process: _step\.foreign \(CFunctionType\)"):
        assert Foreign.fingerprint().startswith(fingerprints.UNKEPT)

    @kernel
    def call(system, x, c, x_next):
        step(system, x, c, x_next)

    x_next = np.zeros(1)
    call(Foreign(1.0), np.ones(1), np.zeros(1), x_next)
    assert x_next[0] == 2
    (signature,) = call.overloads
    assert call._cache._path(signature, call.overloads[signature].library.codegen) is None


def test_a_kernel_outside_the_hashed_rooms_counts_with_its_constants():
    def make(number):
        @kernel
        def scaled(x):
            return x * number

        return fingerprints.of_function(scaled).text

    assert make(2.0) == make(2.0) != make(3.0)


def test_settings_and_vector_width_decide_the_file(monkeypatch):
    known = {cache.environment()}
    monkeypatch.setattr(cache, "VECTOR_BYTES", 8)
    known.add(cache.environment())
    for name in cache.NUMBA_SETTINGS:
        monkeypatch.setattr(cache.config, name, "changed", raising=False)
        known.add(cache.environment())
    assert len(known) == 2 + len(cache.NUMBA_SETTINGS)


FIELDS = (
    "width", "fields", "tape", "scratch_size", "sample_scratch", "classes", "constants", "fingerprint", "n_weights",
    "n_parameters",
)  # fmt: skip


def test_fields_begin_with_a_letter():
    for name in ("_print", "_methods", "_mine"):
        with pytest.raises(TypeError, match=f"Hidden.{name} cannot be a field; give it a name that begins with a letter"):
            type("Hidden", (System,), {"__annotations__": {name: float}, "__module__": __name__, "__qualname__": "Hidden"})


@pytest.mark.parametrize("base", [Struct, System, Controller])
@pytest.mark.parametrize("default", [False, True])
def test_fields_may_have_any_name(base, default):
    members = {"__annotations__": dict.fromkeys(FIELDS, float), "__module__": __name__}
    kind = type("AnyName", (base,), members | (dict.fromkeys(FIELDS, 7.0) if default else {}))
    thing = kind() if default else kind(*range(len(FIELDS)))
    assert kind.fields == FIELDS
    assert [getattr(thing, name) for name in FIELDS] == ([7.0] * len(FIELDS) if default else list(range(len(FIELDS))))
    assert repr(thing).startswith("AnyName(width=")
    assert njit(lambda part: part.width + part.fields)(thing) == (14 if default else 1)
    child = type("Child", (kind,), {"__annotations__": {"more": float}, "__module__": __name__, "more": 1.0})
    assert child.fields == (*FIELDS, "more")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from numba import njit
from stablebptt.kernels import System, implements, kernel, step
from edited import STIFFNESS, helped

class Model(System):
    dt: float

@implements(step, Model)
def _step(system, x, c, x_next):
    x_next[0] = STIFFNESS * x[0] + helped(x[0])

@kernel
def run(system, x, c, x_next):
    step(system, x, c, x_next)

x_next = np.zeros(1)
run(Model(1.0), np.ones(1), np.zeros(1), x_next)
print(x_next[0], sum(run._cache_hits.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stdin", "file"])
def test_an_edit_in_another_module_is_seen_by_the_next_process(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "numbers_of_mine.py").write_text("STRENGTH = 10.0\n")

    def edited(stiffness, strength):
        # Numba's own cache of the helper does not see the edit of its neighbour
        text = f"from numba import njit\nfrom numbers_of_mine import STRENGTH\nSTIFFNESS = {stiffness}\n"
        (tmp_path / "edited.py").write_text(text + "@njit(cache=True)\ndef helped(x):\n    return STRENGTH * x\n")
        (tmp_path / "numbers_of_mine.py").write_text(f"STRENGTH = {strength}\n")

    def answer():
        environment = {**os.environ, "STABLEBPTT_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        source = {"input": SCRIPT} if how == "stdin" else {}
        command = [sys.executable, "-" if how == "stdin" else str(tmp_path / "script.py"), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **source)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    edited(2.0, 10.0)
    assert answer() == ["12.0", "0"]
    assert answer() == ["12.0", "1"]
    edited(2.0, 20.0)
    assert answer() == ["22.0", "0"]
    edited(3.0, 20.0)
    assert answer() == ["23.0", "0"]
