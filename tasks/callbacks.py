"""What is called after every epoch: it watches, logs, and may end the run by returning `Stop`; docs/training.md.

A callback is a function of the `Progress`. Ours are immutable and take what they need from its history, so a resumed run is
judged as one that was never interrupted.
"""

import csv
import importlib.util
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stablebptt.data import atomic
from stablebptt.data.run_file import COUNTS, HISTORY
from stablebptt.tasks import arguments
from stablebptt.tasks.errors import ArgumentError

__all__ = ["CsvLog", "Patience", "Stop", "TargetLoss", "TensorBoard", "WallTime"]

STOPPED = "stopped"
EPOCHS_KEPT = 1.2  # epochs that must fit into what is left of a time: the next may take longer than the last
COLUMNS = tuple(HISTORY)


@dataclass(frozen=True)
class Stop:
    """Returned by a callback: the run ends after this epoch, complete, with the status "stopped: reason".

    Parameters
    ----------
    reason : a few words

    Examples
    --------
    >>> Stop("good enough").status
    'stopped: good enough'
    """

    reason: str

    def __post_init__(self) -> None:
        reason = " ".join(arguments.word("the reason of a stop", self.reason).split())
        if not reason:
            raise ArgumentError("the reason of a stop is empty; say in a few words why the run ends")
        object.__setattr__(self, "reason", reason)

    @property
    def status(self) -> str:
        """The status of a run that ends so."""
        return f"{STOPPED}: {self.reason}"


@dataclass(frozen=True)
class TargetLoss:
    """Stops a run whose test loss is at most `loss`.

    Parameters
    ----------
    loss : the limit

    Examples
    --------
    >>> run = sb.train(problem, report=sb.callbacks.TargetLoss(0.05))  # doctest: +SKIP
    >>> sb.callbacks.TargetLoss(0.05)
    TargetLoss(loss=0.05)
    """

    loss: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", arguments.real("the target loss", self.loss))

    def __call__(self, progress: Any) -> Stop | None:
        row = _last(progress)
        reached = row["evaluated"] and row["test_loss"] <= self.loss
        return Stop(f"test loss {row['test_loss']:.4g} is at most {self.loss:g}") if reached else None


@dataclass(frozen=True)
class Patience:
    """Stops a run whose lowest test loss is `epochs` epochs old.

    Parameters
    ----------
    epochs : without a lower test loss

    Examples
    --------
    >>> sb.callbacks.Patience(50)
    Patience(epochs=50)
    """

    epochs: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", arguments.whole("patience", self.epochs, 1))

    def __call__(self, progress: Any) -> Stop | None:
        if not _last(progress)["evaluated"] or progress.epoch - progress.best_epoch < self.epochs:
            return None
        words = f"epoch {progress.best_epoch}, {progress.epoch - progress.best_epoch} epochs ago"
        return Stop(f"the lowest test loss is that of {words}" if progress.best_epoch else "no test loss was finite")


@dataclass(frozen=True)
class WallTime:
    """Stops a run before `hours` are over, as long as another epoch might not fit in; they begin when this is made.

    Parameters
    ----------
    hours : time of the run

    Examples
    --------
    >>> sb.callbacks.WallTime(1.5).hours
    1.5
    """

    hours: float
    begun: float = field(default_factory=lambda: time.monotonic(), init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hours", arguments.real("hours", self.hours, above=0))

    def __call__(self, progress: Any) -> Stop | None:
        left = 3600 * self.hours - (time.monotonic() - self.begun)
        enough = left >= EPOCHS_KEPT * _last(progress)["seconds"]
        return None if enough else Stop(f"another epoch might not fit into {self.hours:g} hours")


@dataclass(frozen=True)
class CsvLog:
    """Writes the history as numbers for spreadsheets, a row per epoch, at once.

    An older log of this kind is replaced, any other file refused. The file of a resumed run begins with its first epoch.

    Parameters
    ----------
    path : of the file, such as "log.csv"

    Examples
    --------
    >>> sb.callbacks.CsvLog("log.csv").path.name
    'log.csv'
    """

    path: Path
    _rows: list[int] = field(default_factory=list, init=False, compare=False, repr=False)  # of the file, once it is begun

    def __post_init__(self) -> None:
        path = atomic.target(atomic.expanded(self.path))
        object.__setattr__(self, "path", path)
        atomic.check_folder(path)
        if path.exists() and path.stat().st_size and _beginning(path) != ",".join(COLUMNS):
            raise FileExistsError(f"{path} exists and is no log of a run; choose another name")

    def __call__(self, progress: Any) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._rows:
            writer.writerows([COLUMNS, *map(_cells, progress.history)])
        else:
            writer.writerow(_cells(progress.history[-1]))
        with self.path.open("a" if self._rows else "w", encoding="utf-8") as file:
            file.write(text.getvalue())
        self._rows.append(progress.epoch)


@dataclass(frozen=True)
class TensorBoard:
    """Writes the history for TensorBoard, into a folder; needs the extra ``stablebptt[tensorboard]``.

    What a run wrote that was interrupted after its last checkpoint is taken back when it is resumed.

    Parameters
    ----------
    folder : for its files

    Examples
    --------
    >>> sb.callbacks.TensorBoard("logs").folder.name  # doctest: +SKIP
    'logs'
    """

    folder: Path
    _writer: list[Any] = field(default_factory=list, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", atomic.expanded(self.folder))
        if importlib.util.find_spec("tensorboardX") is None:
            raise ArgumentError("TensorBoard needs the package tensorboardX: pip install 'stablebptt[tensorboard]'")
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is not a folder")

    def __call__(self, progress: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        known = {name: value for name, value in _last(progress).items() if name not in ("epoch", "evaluated")}
        told = [Event(summary=scalar(name, value)) for name, value in known.items() if math.isfinite(value)]
        if not self._writer:
            self._writer.append(self._begun())
            told.insert(0, Event(session_log=SessionLog(status=SessionLog.START)))  # older events of later epochs do not count
        for event in told:
            event.wall_time, event.step = time.time(), progress.epoch
            self._writer[0].write_event(event)
        self._writer[0].flush()

    def _begun(self) -> Any:
        """A new file. (`SummaryWriter` writes later, in a thread; an interrupt would lose what is in its queue.)"""
        from tensorboardX.event_file_writer import EventsWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")


def several(callbacks: Any) -> Callable[..., Stop | None] | None:
    """One callback of several, or of one; None for none. All are called; the first stop counts."""
    if callbacks is None or callable(callbacks):
        return callbacks
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str) or not all(map(callable, callbacks)):
        raise ArgumentError(f"report is {arguments.told(callbacks)}; give a function of the progress, or a list of them")

    def all_of_them(*given: Any) -> Stop | None:
        found = [callback(*given) for callback in callbacks]
        return next((answer for answer in found if isinstance(answer, Stop)), None)

    return all_of_them if callbacks else None


def of_history(callbacks: Any) -> Callable[..., Stop | None] | None:
    """One callback of those of ours that the history alone decides: they may end a run that is resumed before its next epoch."""
    given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    return several([callback for callback in given if isinstance(callback, TargetLoss | Patience)])


def _last(progress: Any) -> dict[str, float]:
    """The row of the last epoch, by the names of the history."""
    return dict(zip(COLUMNS, progress.history[-1]))


def _cells(row: Sequence[float]) -> list[Any]:
    return [int(value) if name in COUNTS else value for name, value in zip(COLUMNS, row)]


def _beginning(path: Path) -> str:
    """The first line of a file, as far as it might be that of a log."""
    with path.open("rb") as file:
        return file.readline(2 * len(",".join(COLUMNS))).decode("utf-8", "replace").rstrip("\r\n")
