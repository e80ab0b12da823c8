"""What needs more memory than there is is refused before anything is allocated."""

import os

import pytest

import stablebptt as sb
from stablebptt.tasks import arguments

SMALL = {"steps": 4, "hidden": (4,)}


@pytest.fixture
def little(monkeypatch):
    """A machine of 4 MB."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1024}.__getitem__, raising=False)


@pytest.mark.usefixtures("little")
def test_up_to_what_there_is():
    arguments.memory("it", 4096 * 1024)
    with pytest.raises(ValueError, match=r"^it would need 0\.00419 GB of memory; this machine has 0\.00419 GB$"):
        arguments.memory("it", 4096 * 1024 + 1)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("cartpole", {"steps": 3000}),
        ("cartpole", {"hidden": (400, 400)}),
        ("guidance", {"evaders": 1000}),
        ("quantum", {"points": 3000}),
    ],
)
def test_problems(task, options):
    with pytest.raises(ValueError, match=rf"^{task}.* would need .* GB of memory; this machine has 0\.00419 GB"):
        sb.problem(task, **{"steps": 4, **options})


@pytest.mark.usefixtures("little")
def test_states_and_batches(tmp_path):
    problem = sb.problem("cartpole", **SMALL)
    assert problem.sample(1000).shape == (1000, 2, 2)
    with pytest.raises(ValueError, match="100000 states would need"):
        problem.sample(100_000)
    with pytest.raises(ValueError, match="mini-batches of 40000 would need"):
        sb.train(problem, batch_size=40_000, train_count=40_000, out=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("little")
def test_the_command(run, tmp_path):
    told = run("cartpole", "train", "--steps", 3000, "--out", "run.h5")
    assert told.code == 2 and "would need" in told.err and told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_machines_that_do_not_say(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    arguments.memory("it", 1e30)
    monkeypatch.delattr(os, "sysconf")
    arguments.memory("it", 1e30)
