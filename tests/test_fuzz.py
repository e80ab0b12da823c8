"""Whatever is given to a command or written into its config file: a valid run, or one line that says what is wrong."""

import json
import signal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import stablebptt as sb
from stablebptt import cli
from stablebptt.tasks import TASKS


def text(value):
    """A value as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


# What is enough for a training of a few milliseconds; a drawn option replaces it.
SMALL = {"steps": "4", "epochs": "2", "train-count": "12", "test-count": "5"}
SMALL_OF = {name: {option: text(value) for option, value in task.small.items()} for name, task in TASKS.items()}
BEYOND = [-(10**30), -1, 0, 10**12, 10**30]
ODD = st.one_of(
    st.text(max_size=6),
    st.sampled_from([str(n) for n in BEYOND]),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "1e-320", "", " ", "--out", "1,2,3", "0x10", "1_0", "٣", "True"]),
)


def whole(least, most):
    return st.integers(least, most).map(str) | ODD


def real(least, most):
    return st.floats(least, most).map(str) | ODD


def word(*words):
    return st.sampled_from(words) | ODD


HIDDEN = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(lambda sizes: ",".join(map(str, sizes))) | ODD
POINT = st.tuples(st.floats(-3, 3), st.floats(-3, 3)).map(lambda p: f"{p[0]},{p[1]}") | ODD
COMMON = {
    "variant": word(*"RMSNC"),
    "epochs": whole(1, 3),
    "seed": whole(0, 2**70),
    "clip": word("none", "value", "norm"),
    "clip-at": real(1e-3, 1e3),
    "optimizer": word("adam", "sgd", "adagrad", "adadelta", "rmsprop"),
    "lr": real(1e-6, 1e6),
    "momentum": real(0, 1),
    "batch-size": whole(1, 20),
    "train-count": whole(1, 20),
    "test-count": whole(1, 9),
    "evaluate-every": whole(1, 4),
    "on-divergence": word("stop", "skip"),
    "checkpoint-seconds": real(0, 100),
}


def drawn(option):
    """Values of an option of a task: some that are allowed, and odd ones."""
    if option.kind in ("size", "whole"):
        least = int(option.least or 1)
        return whole(least, least + 4)
    if option.kind == "real":
        return real(1e-3, 50) if option.least is None else real(option.least, option.least + 10)
    lists = {"sizes": HIDDEN, "point": POINT}
    return lists[option.kind] if option.kind in lists else word(*option.choices)


OPTIONS = {name: {o.name.replace("_", "-"): drawn(o) for o in task.options} for name, task in TASKS.items()}
CHOICES = {task: st.fixed_dictionaries({}, optional={**COMMON, **more}) for task, more in OPTIONS.items()}
# A config file may hold any type of value.
TOML = st.one_of(
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=True),
    st.booleans(),
    st.text(max_size=6),
    st.lists(st.integers(-2, 9) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2),
)
CONFIGS = {
    task: st.dictionaries(st.sampled_from([*COMMON, *more, "nonsense", "out"]), TOML, max_size=3)
    for task, more in OPTIONS.items()
}
# The smallest task goes the ways of the others.
FUZZED = [pytest.param(name, marks=pytest.mark.slow) if name == "pendulum" else name for name in OPTIONS]
FEW_OR_MANY = pytest.mark.parametrize("examples", [20, pytest.param(150, marks=pytest.mark.slow)])


def fuzzed(examples):
    """Settings of hypothesis: the same examples every time."""
    quiet = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=quiet, database=None)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a training; it must end well, or say in one line why not, and leave no file behind."""
    monkeypatch.chdir(tmp_path)

    def run(task, options, *more):
        for path in tmp_path.glob("*.h5"):
            path.unlink()
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        code, previous = 0, signal.getsignal(signal.SIGTERM)
        try:
            cli.main([task, "train", *words, *more, "--out", "run.h5", "--quiet"])
        except SystemExit as leave:
            code = leave.code or 0
        finally:
            signal.signal(signal.SIGTERM, previous)
        err = capsys.readouterr().err
        if code == 0:
            assert err == "" and sb.load("run.h5").status == "complete"
        else:
            assert err.count("\n") == 1 and err.startswith("stablebptt: ") and "Traceback" not in err, err
            if code == 3:  # wild settings may diverge: that is a valid run that ended badly, and its file says so
                assert "diverged in epoch" in err and sb.load("run.h5").status.startswith("diverged")
            else:
                assert code == 2 and not (tmp_path / "run.h5").exists(), (code, err)
        return code

    return run


@pytest.mark.slow
@FEW_OR_MANY
@pytest.mark.parametrize("task", FUZZED)
def test_options(task, call, examples):
    codes = set()

    @fuzzed(examples)
    @given(CHOICES[task])
    @example({})
    @example({"seed": str(2**63 - 1)})
    @example({"lr": "1e300", "optimizer": "sgd"})
    def fuzz(options):
        codes.add(call(task, {**SMALL, **SMALL_OF[task], **options}))

    fuzz()
    assert {0, 2} <= codes


@FEW_OR_MANY
@pytest.mark.parametrize("task", FUZZED)
def test_config_files(task, call, tmp_path, examples):
    codes = set()

    @fuzzed(examples)
    @given(CONFIGS[task])
    @example({})
    @example({"epochs": 1.5})
    @example({"batch-size": True})
    def fuzz(content):
        content = {**SMALL, **SMALL_OF[task], **content}
        lines = [f"{name} = {toml(value)}" for name, value in content.items()]
        (tmp_path / "some.toml").write_text(f"[{task}.train]\n" + "\n".join(lines), encoding="utf-8")
        codes.add(call(task, {}, "--config", "some.toml"))

    fuzz()
    assert {0, 2} <= codes


def test_numbers_in_config_files_are_not_bent(call, tmp_path):
    for name, value in (("epochs", 1.5), ("batch-size", True), ("hidden", [2.5]), ("steps", "four"), ("poles", [1])):
        lines = [f"{key} = {toml(item)}" for key, item in {**SMALL, "hidden": [5], name: value}.items()]
        (tmp_path / "some.toml").write_text("[cartpole.train]\n" + "\n".join(lines), encoding="utf-8")
        assert call("cartpole", {}, "--config", "some.toml") == 2, name


def toml(value):
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
    return repr(value)
