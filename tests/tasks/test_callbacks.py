"""Callbacks: they stop runs and write logs, several at once; what the user's raise arrives as itself."""

import csv
import json
import struct
import time

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.data import summary
from stablebptt.tasks import callbacks, families, sweeps
from stablebptt.tasks.runs import HISTORY, Progress

SIZES = {"train_count": 16, "test_count": 8, "batch_size": 8}
WORDS = "--steps 4 --hidden 4 --train-count 16 --test-count 8 --variant R".split()


def small():
    return sb.problem("cartpole", steps=4, hidden=(4,))


def train(epochs=6, report=None, **settings):
    return sb.train(small(), "R", epochs, report=report, **{**SIZES, **settings})


def at(epoch, answer):
    return lambda progress: answer if progress.epoch == epoch else None


def progress(losses, seconds=1.0, best_epoch=None):
    """A progress with these test losses; NaN stands for an epoch that was not evaluated."""
    known = [{"epoch": k + 1, "test_loss": x, "evaluated": not np.isnan(x), "seconds": seconds} for k, x in enumerate(losses)]
    rows = [tuple(row.get(name, 0.0) for name in HISTORY) for row in known]
    best = int(np.nanargmin(losses)) + 1 if best_epoch is None else best_epoch
    return Progress(len(losses), np.zeros(1), {}, np.zeros(1), np.nanmin(losses), best, tuple(rows))


def test_a_run_that_is_stopped_is_complete(tmp_path):
    run = train(report=at(2, sb.Stop("enough\n of it")), out=tmp_path / "run.h5")
    again, two = sb.load(tmp_path / "run.h5"), train(2)
    assert run.status == again.status == "stopped: enough of it" and len(run.history["epoch"]) == 2
    assert np.array_equal(run.theta, two.theta) and np.array_equal(again.best_theta, two.best_theta)
    resumed = train(resume=True, out=tmp_path / "run.h5")
    assert resumed.status == "complete" and np.array_equal(resumed.theta, train().theta)
    assert train(2, report=at(2, sb.Stop("at the end"))).status == "complete"
    with pytest.raises(ValueError, match="reason of a stop is empty"):
        sb.Stop(" ")
    with pytest.raises(TypeError, match="it must be a word"):
        sb.Stop(3)


def test_a_stopped_run_that_is_resumed_stays_stopped(tmp_path):
    """Without another epoch, as long as what its history decides says so."""
    file, target = tmp_path / "run.h5", callbacks.TargetLoss(1e9)
    first = train(report=target, out=file)
    for report in (target, [print, target], [callbacks.Patience(1), target]):
        again = train(report=report, out=file, resume=True)
        assert again.status == first.status and len(again.history["epoch"]) == len(first.history["epoch"]) == 1
    assert train(report=callbacks.TargetLoss(0), out=file, resume=True).status == "complete"
    assert len(sb.load(file).history["epoch"]) == 6


def test_several_at_once():
    """All are called, also after one that stops; the first stop counts."""
    seen = []
    run = train(report=[at(3, sb.Stop("one")), at(3, sb.Stop("two")), lambda progress: seen.append(progress.epoch)])
    assert run.status == "stopped: one" and seen == [1, 2, 3]
    assert train(1, report=[]).status == "complete"
    for wrong in ("loss", 3, [print, 3]):
        with pytest.raises(TypeError, match=r"report is .*; give a function of the progress, or a list of them"):
            train(report=wrong)


def test_a_bar_hands_the_stop_on(capsys):
    assert train(report=at(2, sb.Stop("enough")), progress=True).status == "stopped: enough"


@pytest.mark.parametrize("epoch", [1, 3, 6])
def test_an_exception_of_the_users_arrives_as_itself(tmp_path, epoch):
    class Mine(Exception):
        pass

    def fail(progress):
        if progress.epoch == epoch:
            raise Mine("my words")

    with pytest.raises(Mine, match=r"^my words$") as caught:
        train(report=[fail], out=tmp_path / "run.h5")
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    run = sb.load(tmp_path / "run.h5")
    assert len(run.history["epoch"]) == epoch and np.array_equal(run.theta, train(epoch).theta)
    assert run.status == ("interrupted" if epoch < 6 else "complete")
    assert np.array_equal(train(out=tmp_path / "run.h5", resume=True).theta, train().theta)


def test_seeds_stop_alone(tmp_path):
    def report(seed, progress):
        return sb.Stop("its turn") if (seed, progress.epoch) == (1, 2) else None

    runs = sb.train_seeds(small(), [0, 1, 2], "R", 4, tmp_path / "runs", report=[report], **SIZES)
    assert [run.status for run in runs] == ["complete", "stopped: its turn", "complete"]
    assert np.array_equal(runs[1].theta, train(2, seed=1).theta) and np.array_equal(runs[2].theta, train(4, seed=2).theta)


# --- those that are there ---------------------------------------------------------------------------------------------


def test_target_loss():
    nan = np.nan
    stop = callbacks.TargetLoss(0.5)
    assert stop(progress([1.0, 0.51])) is None and stop(progress([0.4, nan])) is None
    assert stop(progress([1.0, 0.5])) == sb.Stop("test loss 0.5 is at most 0.5")
    assert train(report=callbacks.TargetLoss(1e9)).status.startswith("stopped: test loss ")


def test_patience():
    stop = callbacks.Patience(2)
    assert stop(progress([3.0, 2.0, 2.5])) is None and stop(progress([3.0, 2.0, 2.5, np.nan])) is None
    assert stop(progress([3.0, 2.0, 2.5, 2.5])) == sb.Stop("the lowest test loss is that of epoch 2, 2 epochs ago")
    assert stop(progress([np.inf, np.inf], best_epoch=0)) == sb.Stop("no test loss was finite")
    with pytest.raises(ValueError, match="patience is 0; it must be at least 1"):
        callbacks.Patience(0)


def test_wall_time(monkeypatch):
    """The run ends before its time does."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = callbacks.WallTime(1)
    now[0] += 3590
    assert stop(progress([1.0], seconds=8)) is None
    assert stop(progress([1.0], seconds=9)) == sb.Stop("another epoch might not fit into 1 hours")
    with pytest.raises(ValueError, match="hours is 0"):
        callbacks.WallTime(0)


def test_a_log_is_the_history_of_the_file(tmp_path):
    log = tmp_path / "curves.csv"
    log.touch()
    with pytest.raises(KeyboardInterrupt):
        train(report=[callbacks.CsvLog(log), stop_at_two], out=tmp_path / "run.h5", evaluate_every=2)
    assert len(log.read_text().splitlines()) == 3
    train(report=callbacks.CsvLog(log), out=tmp_path / "run.h5", evaluate_every=2, resume=True)
    assert log.read_text() == summary.csv_text(tmp_path / "run.h5") + "\n"
    rows = list(csv.DictReader(log.open()))
    assert [row["evaluated"] for row in rows] == ["0", "1"] * 3 and rows[0]["test_loss"] == "nan"
    assert float(rows[5]["test_loss"]) == sb.load(tmp_path / "run.h5").history["test_loss"][5]


def stop_at_two(progress):
    if progress.epoch == 2:
        raise KeyboardInterrupt


def test_other_files_are_not_replaced_by_a_log(tmp_path):
    for content in (b"my,own,numbers\n1,2,3\n", b"\n", b"\xff" * 10_000):
        (tmp_path / "own.csv").write_bytes(content)
        with pytest.raises(FileExistsError, match="is no log of a run; choose another name"):
            callbacks.CsvLog(tmp_path / "own.csv")
        assert (tmp_path / "own.csv").read_bytes() == content
    with pytest.raises(FileNotFoundError, match="does not exist"):
        callbacks.CsvLog(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(IsADirectoryError):
        callbacks.CsvLog(tmp_path)


def events(folder):
    """What TensorBoard would read: (epoch, name, value) in the order of the files; and what was taken back."""
    from tensorboardX.proto.event_pb2 import Event

    found, purged = [], []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                purged.append(event.step)
                found = [one for one in found if one[0] < event.step]
    return found, purged


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra: test)")
    with pytest.raises(KeyboardInterrupt):
        train(report=[callbacks.TensorBoard(tmp_path / "board"), stop_at_two], out=tmp_path / "run.h5")
    train(report=callbacks.TensorBoard(tmp_path / "board"), out=tmp_path / "run.h5", resume=True)
    history = sb.load(tmp_path / "run.h5").history
    found, purged = events(tmp_path / "board")
    for name in ("loss", "test_loss", "gradient_norm2", "seconds"):
        told = {step: value for step, tag, value in found if tag == name}
        assert list(told) == [1, 2, 3, 4, 5, 6] and np.allclose(list(told.values()), history[name], rtol=1e-6)
    assert purged == [1, 3] and "cosine" not in {tag for _, tag, _ in found}  # NaN: the variant is R


def test_tensorboard_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'stablebptt\[tensorboard\]'"):
        callbacks.TensorBoard(tmp_path)


# --- the new status elsewhere -----------------------------------------------------------------------------------------


def test_a_stopped_run_counts_as_complete(tmp_path, run):
    train(report=at(3, sb.Stop("enough")), out=tmp_path / "a.h5")
    train(out=tmp_path / "b.h5", seed=1)
    stopped = sb.load(tmp_path / "a.h5")
    assert families.outcome(stopped) == "stopped" and families.trouble([stopped]) == []
    outcome = sweeps.outcome_of(tmp_path / "a.h5")
    assert (outcome.status, outcome.epochs, outcome.message) == ("complete", 3, "stopped: enough")
    result = run("report", tmp_path, "--json")
    told = json.loads(result.out)
    assert result.code == 0 and (told["unfinished"], told["diverged"]) == (0, 0)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "1 complete, 1 stopped, 0 diverged, 0 unfinished" in page and "Diverged or unfinished" not in page
    assert "status stopped: enough" in " ".join(run("inspect", tmp_path / "a.h5").out.split())
    assert run("plot", tmp_path / "a.h5", tmp_path / "b.h5", "--out", tmp_path / "c.png").code == 0


@pytest.mark.slow
def test_callbacks_on_the_command_line(run, tmp_path):
    words = [*WORDS, "--epochs", 50, "--out", "run.h5"]
    result = run("cartpole", "train", *words, "--stop-at", 1e9, "--log", "curves.csv")
    assert result.code == 0 and "status: stopped: test loss" in result.out, result.err
    assert (tmp_path / "curves.csv").read_text() == run("inspect", "run.h5", "--csv").out
    result = run("cartpole", "train", *words, "--resume", "--patience", 1, "--hours", 9, "--lr", 1e-30, "--json", "--force")
    assert result.code == 2
    result = run("cartpole", "train", *words, "--force", "--patience", 1, "--hours", 9, "--lr", 1e-30, "--json")
    assert json.loads(result.out.splitlines()[-1])["status"].startswith("stopped: the lowest test loss"), result.err
    result = run("cartpole", "train", *words, "--force", "--hours", 1e-9)
    assert "stopped: another epoch might not fit" in result.out
    seeds = run("cartpole", "train", *WORDS, "--epochs", 4, "--seeds", "0:2", "--stop-at", 1e9, "--log", "c.csv", "--out", "runs")
    assert seeds.code == 0 and seeds.out.count("stopped: test loss") == 2, seeds.err
    assert all((tmp_path / f"c_seed_{seed}.csv").read_text().count("\n") == 2 for seed in (0, 1))
    again = run("cartpole", "train", *WORDS, "--epochs", 4, "--seeds", "0:2", "--stop-at", 1e9, "--out", "runs", "--resume")
    assert again.code == 0 and again.out.count("stopped: test loss") == 2, again.err
    assert all(len(sb.load(tmp_path / "runs" / f"seed_{seed}.h5").history["epoch"]) == 1 for seed in (0, 1))
    wrong = {"--patience 0": "patience is 0", "--hours -1": "hours is -1", "--stop-at nan": "target loss is nan"}
    for option, message in wrong.items():
        result = run("cartpole", "train", *WORDS, *option.split(), "--out", "other.h5")
        assert result.code == 2 and message in result.err and not (tmp_path / "other.h5").exists()


def test_no_logger_is_imported_unasked():
    import subprocess
    import sys

    code = "import sys, stablebptt as sb; sb.train; sb.callbacks; print([m for m in sys.modules if 'tensorboard' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
