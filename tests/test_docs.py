"""The documentation: its snippets run, its links lead somewhere, its pictures are made by its own command."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from commands import call

import stablebptt as sb
from stablebptt import cli
from stablebptt.tasks import sweeps, variants

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {".onnx": "onnx", ".pt2": "torch"}  # packages that commands need for files with these endings
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "howto").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    sb.train(sb.problem("cartpole", poles=2, steps=6, hidden=(5,)), epochs=2, out=folder / "run.h5", train_count=8, test_count=8)
    return folder


@pytest.mark.parametrize("number", range(2))
def test_snippets_on_files(folder, monkeypatch, number):
    code = blocks(ROOT / "docs" / "files.md", "python")
    assert len(code) == 2
    if "xarray" in code[number]:
        pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(code[number], "docs/files.md", "exec"), names)
    run = sb.load("run.h5")
    assert names["trained"].shape == run.trajectories["states"][1, 0].shape
    assert float(names["trained"][3, 0, 0]) == run.trajectories["states"][1, 0, 3, 0, 0]


@pytest.mark.slow
def test_the_page_on_controllers_runs(capsys):
    """docs/controllers.md from top to bottom."""
    names = {}
    for code in blocks(ROOT / "docs" / "controllers.md", "python"):
        exec(compile(code, "docs/controllers.md", "exec"), names)
    assert "True True" in capsys.readouterr().out
    assert names["fitted"].x == pytest.approx([9.8, 0.7], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scipy", "numba", "c"])
def test_how_to_pages_run(name):
    (code,) = blocks(ROOT / "docs" / "howto" / f"{name}.md", "python")
    exec(compile(code, f"docs/howto/{name}.md", "exec"), {})


def test_the_page_on_joins_runs():
    """docs/joins.md from top to bottom; of its commands the variants."""
    page, names = ROOT / "docs" / "joins.md", {}
    for code in blocks(page, "python"):
        exec(compile(code, "docs/joins.md", "exec"), names)
    assert (names["found"].value == names["same"].value).all() and names["run"].config["variant"] == "imtlg"
    given = re.findall(r"--variant (\S+) --out", page.read_text(encoding="utf-8"))
    assert len(given) == 5 and [variants.describe(variant) for variant in given] == given


@pytest.mark.slow
def test_the_page_on_diagnosis_runs(capsys):
    (code,) = blocks(ROOT / "docs" / "diagnosis.md", "python")
    names = {}
    exec(compile(code, "docs/diagnosis.md", "exec"), names)
    assert names["found"].advice in capsys.readouterr().out


def test_the_snippet_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    names = {}
    exec(compile(code.replace("epochs=100", "epochs=2"), "README.md", "exec"), names)
    assert names["x0"].shape == (8, 3, 2) and names["run"].status == "complete"


@pytest.mark.slow
def test_the_page_on_training_runs(tmp_path, monkeypatch, capsys):
    """docs/training.md from top to bottom, its commands among the Python."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    names = {}
    for language, text in re.findall(r"```(python|console|toml)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(compile(text, "docs/training.md", "exec"), names)
        elif language == "toml":
            Path("plan.toml").write_text(text)
            assert len(sweeps.read_plan("plan.toml")) == 4
        else:
            for line in text.splitlines():
                words = line.split()
                if importlib.util.find_spec(EXTRAS.get(Path(words[-1]).suffix, "stablebptt")) is None:
                    continue
                assert words[0] == "stablebptt" and call(*words[1:], "--quiet") == 0, (line, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "cosine:0.01:0.0001:12" in out and "stopped: two epochs are enough" in out and "(48, 1)" in out
    assert names["run"].config["train_count"] == 32 and len(sb.load("from_states.h5").history["epoch"]) == 3
    assert (names["again"](names["states"]) == names["policy"](names["states"])).all()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    for file in re.findall(r"\btest_\w+\.py\b", text):
        assert list((ROOT / "tests").rglob(file)), f"{page.name}: {file}"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    bare = re.findall(r"`(test_\w+)`", text) if page.name == "reliability.md" else []
    for name in re.findall(r"\btest_\w+\.py::(\w+)", text) + bare:
        assert f"def {name}(" in tests, f"{page.name}: {name}"


def test_the_curriculum_over_the_horizon(monkeypatch):
    """Each run begins where the last one ended, and the time step stays."""
    module, begun = module_of(ROOT / "docs" / "examples" / "horizon_curriculum.py"), []
    monkeypatch.setattr(module, "SIZES", {"train_count": 8, "test_count": 8})
    train = sb.train

    def noted(problem, **settings):
        begun.append((problem.steps, problem.dt, settings["epochs"], settings["start"]))
        run = train(problem, **settings)
        begun.append(run)
        return run

    monkeypatch.setattr(module.sb, "train", noted)
    run = module.curriculum(3)
    assert [entry[:3] for entry in begun[::2]] == [(25, 0.01, 4), (50, 0.01, 2), (100, 0.01, 1)]
    assert begun[0][3] is None and begun[2][3] is begun[1] and begun[4][3] is begun[3] and run is begun[5]


def module_of(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def pictures():
    return module_of(ROOT / "docs" / "make_pictures.py")


def reproduction_pictures(monkeypatch):
    """Names of the figures that the results of the reproduction allow."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "reproduction")
    judgement, drawing = map(importlib.import_module, ("judgement", "drawing"))
    return drawing.pictures(judgement.read(ROOT / "docs" / "reproduction" / "results"))


def test_every_picture_is_made_by_the_command(monkeypatch, tmp_path):
    made, module = set(), pictures()
    monkeypatch.setattr(module, "main", lambda words: made.add(Path(words[words.index("--out") + 1]).name))
    monkeypatch.setattr(module, "film", lambda name, folder: made.add(f"{name.replace('_', '-')}.gif"))
    for drawn in ("regulator", "arena", "joins"):
        monkeypatch.setattr(module, drawn, lambda picture: made.add(picture.name))
    monkeypatch.setattr(module, "reproduction", lambda: made.update(reproduction_pictures(monkeypatch)))
    module.draw(tmp_path)
    shown = {Path(link).name for page in PAGES for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))}
    kept = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert shown <= made and kept == made


def test_commands_of_the_pages_exist():
    """Every command in the pages exists, and so do its options."""
    groups = "|".join(cli.stablebptt.commands)
    for page in PAGES:
        lines = re.findall(rf"stablebptt ((?:{groups}) [^\n`]*)", page.read_text(encoding="utf-8"))
        assert lines or page.name != "README.md"
        for line in lines:
            words = re.split(r"[#()]", line)[0].split()
            command = cli.stablebptt
            while hasattr(command, "commands"):
                assert words[0] in command.commands, f"{page.name}: {line}"
                command = command.commands[words.pop(0)]
            known = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
            for word in words:
                assert not word.startswith("--") or word in known, f"{page.name}: {word} in {line}"


def test_the_citation_has_the_version():
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1] == sb.__version__
