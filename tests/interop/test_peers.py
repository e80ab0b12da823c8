"""The peers of the benchmark compute the same update: a benchmark of something else would say nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = {
    "cartpole": {"poles": 2, "hidden": (7, 5)},
    "guidance": {"drivers": 2, "evaders": 3, "hidden": (6, 5), "regularization": 0.3},
    "quantum": {"points": 10, "width": 4, "target": 2},
}
BATCH, STEPS = 3, 6


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield __import__("peers")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(params=OPTIONS)
def case(request, peers):
    return peers.make_case(request.param, {"steps": STEPS, **OPTIONS[request.param]}, BATCH)


def assert_same(peers, case, jobs):
    _, ours = peers.our_programs(case)
    for quantity, job in jobs.items():
        assert not peers.differences(quantity, peers.peer_found(job()), ours[quantity])


@pytest.fixture
def jax_peer(peers):
    pytest.importorskip("jax", reason="jax is not installed (extra: jax)")
    return __import__("peer_jax")


@pytest.fixture
def torch_peer(peers):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other where the cores are busy
    yield __import__("peer_torch")
    torch.set_num_threads(threads)


def test_jax_first(peers, jax_peer, case):
    assert_same(peers, case, jax_peer.programs("first", case))


@pytest.mark.parametrize("choice", [(False, False), (True, False), (True, True)])
def test_jax_tuned_in_every_form(peers, jax_peer, case, choice, monkeypatch):
    monkeypatch.setitem(jax_peer.CHOICES, case.task, [choice])
    assert_same(peers, case, jax_peer.programs("tuned", case))


@pytest.mark.parametrize("form, large", [("eager", BATCH + 1), ("compiled", 1)])  # each with another solver
def test_torch(peers, torch_peer, case, form, large, monkeypatch):
    """The parts that are compiled compute the same as they are; compiling them takes minutes."""
    monkeypatch.setattr(torch_peer, "compiled", lambda function: function)
    monkeypatch.setattr(torch_peer, "LARGE", large)
    monkeypatch.setitem(torch_peer.UNROLL, case.task, 3)
    assert_same(peers, case, torch_peer.programs(form, case))


def test_another_update_is_told(peers):
    case = peers.make_case("cartpole", {"steps": STEPS, **OPTIONS["cartpole"]}, BATCH)
    _, ours = peers.our_programs(case)
    for quantity in ("R", "C"):
        loss, gradient = ours[quantity].loss, ours[quantity].gradient
        other = gradient.copy()
        other[np.argmax(np.abs(gradient))] *= 1.001
        assert not peers.differences(quantity, peers.Found(loss, gradient), ours[quantity])
        assert "1 of" in peers.differences(quantity, peers.Found(loss, other), ours[quantity])
        assert "its loss" in peers.differences(quantity, peers.Found(loss * 1.001, gradient), ours[quantity])
        assert "its loss" in peers.differences(quantity, peers.Found(float("nan"), gradient), ours[quantity])
    assert peers.differences("C", peers.Found(loss, ours["C"].regular), ours["C"])
