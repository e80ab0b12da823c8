"""What starts without Numba, and the names of a package that is imported only when they are asked for."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.data import run_file
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks import TASKS, registry, reports

LIGHT = """
import json, sys
import stablebptt
from stablebptt import cli

heavy = {}
for words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
        code = 0
    except SystemExit as leave:
        code = leave.code or 0
    loaded = [name for name in ("numba", "llvmlite", "scipy.stats", "matplotlib") if name in sys.modules]
    print(json.dumps([words[0], code, loaded]), file=sys.stderr)
print(json.dumps(dir(stablebptt)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    problem = sb.problem("cartpole", steps=4, hidden=(4,))
    for seed in range(2):
        sb.train(problem, epochs=1, seed=seed, out=folder / f"{seed}.h5", train_count=8, test_count=8)
    return folder


@pytest.fixture(scope="module")
def started(folder):
    """Exit codes and heavy modules after every command, in one fresh process; and what `dir` shows before any name is used."""
    file = str(folder / "0.h5")
    commands = [["--help"], ["--version"], ["cartpole", "train", "--help"], ["inspect", file], ["inspect", file, "--json"]]
    commands += [["info", "--versions"], ["inspect", str(folder / "absent.h5")], ["report", str(folder)]]
    done = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(commands)], capture_output=True, text=True, check=True)
    *records, names = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(records) == len(commands)
    return records, names


def test_commands_without_kernels_start_without_numba(started):
    records, _ = started
    assert [code for _, code, _ in records] == [0] * 6 + [5, 0]
    assert [loaded for _, _, loaded in records] == [[]] * 7 + [["matplotlib"]]


def test_all_names_are_shown_before_they_are_there(started):
    shown = {name for name in started[1] if not name.startswith("__")}
    assert shown == {*sb.__all__, "adjoint", "data", "kernels", "tasks"} - {"__version__"}


def test_all_public_names_are_there():
    assert {name for names in sb._HOMES.values() for name in names} == {*sb.__all__} - {"__version__"}
    for package in (sb, sb.tasks):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert getattr(package, name) is not None
    assert sb.Problem is sb.tasks.problems.Problem and sb.optimizers is sb.tasks.optimizers
    assert sb.tasks.problem is sb.problem and sb.tasks.on_backend(sb.problem("cartpole"), "cpu").task == "cartpole"
    assert sb.kernels.quantum and sb.adjoint.network and sb.data.run_file


@pytest.mark.parametrize("package", ["stablebptt", "stablebptt.tasks"])
def test_a_name_that_is_not_there(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"^module '{package}' has no attribute 'absent'$"):
        _ = module.absent
    with pytest.raises(ImportError, match="cannot import name 'absent'"):
        exec(f"from {package} import absent")


@pytest.mark.thinned(4)
@pytest.mark.parametrize("statement", [
    "from stablebptt import train, Problem, optimizers",
    "import stablebptt.tasks; stablebptt.tasks.problems.Problem; stablebptt.tasks.TASKS['quantum']",
    "from stablebptt.tasks import problem, training; training.train",
    "import stablebptt as sb; sb.tasks.seeds, sb.kernels.cartpole, sb.adjoint.cartpole, sb.data.run_file",
])  # fmt: skip
def test_names_in_a_fresh_process(statement):
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_versions_alone(run):
    """The same as the first lines of `info`."""
    versions = json.loads(run("info", "--versions", "--json").out)
    assert versions.items() < json.loads(run("info", "--json").out).items()
    assert set(versions) == {"stablebptt", "python", "numba", "numpy", "h5py"}
    assert run("info", "--versions").out == "".join(f"{name}: {version}\n" for name, version in versions.items())


@pytest.mark.parametrize("task, options", [
    ("cartpole", {}), ("cartpole", {"poles": 3}), ("guidance", {"drivers": 3, "regularization": 1e-3}),
    ("quantum", {"target": 2}), ("quantum", {"loss": "final", "steps": 5}),
])  # fmt: skip
def test_reports_know_what_problems_know(task, options):
    """Of a configuration alone: the title, and how many losses are summed."""
    problem = sb.problem(task, **options)
    run = sb.Run({"task": task, "options": problem.options}, {}, np.zeros(1), np.zeros(1), problem, {}, "complete")
    assert registry.title(run.config) == problem.title
    threshold, losses = {"cartpole": (0.05, 1), "guidance": (1.0, 1), "quantum": (0.25, problem.time_weights.sum())}[task]
    assert reports.threshold(run) == pytest.approx(threshold * losses)
    assert TASKS[task](**problem.options).options == problem.options


@pytest.mark.parametrize("config", [
    {}, {"task": "absent", "options": {}}, {"task": [], "options": {}}, {"task": "cartpole", "options": {}},
    {"task": "cartpole", "options": []}, {"task": "cartpole", "options": {"poles": "x", "steps": 1, "loss": "final"}},
    {"task": "guidance", "options": {"drivers": 1, "evaders": 1, "regularization": 10**400, "steps": 1, "loss": "final"}},
    {"task": "quantum", "options": {"target": 1, "loss": "continuous", "steps": []}},
])  # fmt: skip
def test_reports_name_files_that_tell_no_task(folder, tmp_path, monkeypatch, config):
    content = run_file.load(folder / "0.h5")
    (tmp_path / "run.h5").write_bytes((folder / "0.h5").read_bytes())
    monkeypatch.setattr(run_file, "load_if_run", lambda path: type(content)(**vars(content) | {"config": config}))
    runs, problems = reports.load_runs(tmp_path)
    assert runs == [] and "the configuration makes no problem" in problems[0]
    with pytest.raises(FileFormatError, match="holds no run file"):
        reports.write(tmp_path)


@pytest.mark.parametrize("words", ["inspect absent.h5", "info --versions", "cartpole train --out x.h5"])
def test_a_package_that_is_not_there_is_named_in_one_line(words, tmp_path):
    """Whatever fails first: no second traceback comes from looking at the first error."""
    call = "import sys; sys.modules['h5py'] = None; from stablebptt import cli; cli.main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", call, *words.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "h5py" in done.stderr, done.stderr
