"""The runs in a folder of files, checked."""

from pathlib import Path
from typing import Any

from stablebptt.data import run_file
from stablebptt.data.run_file import Content
from stablebptt.data.storage import FileFormatError
from stablebptt.tasks.bars import Tell, each
from stablebptt.tasks.registry import TASKS, title

SOLVED_BELOW = "best test loss below which the task counts as solved"


def threshold(run: Any) -> float:
    """The test loss below which a run has solved its task; NaN where none is known."""
    task = TASKS.get(run.config["task"])
    return float("nan") if task is None or task.solved is None else task.solved(**run.config["options"])


def load_runs(folder: Path, tell: Tell | None = None) -> tuple[list[Content], list[str]]:
    """All run files in a folder, and one line about each file that could not be read."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    runs, problems = [], []
    for path in each(sorted(folder.glob("*.h5")), tell):
        try:
            if (content := run_file.load_if_run(path)) is not None:
                check_known(content, path)
                runs.append(content)
        except FileFormatError as error:
            problems.append(str(error))
    problems += [f"{path.name}: {path.read_text('utf-8')}" for path in sorted(folder.glob("*.error.txt")) if path.is_file()]
    return runs, problems


def check_known(run: Any, path: Path) -> None:
    """Refuse a run in a file whose configuration does not say which problem it is a run of."""
    try:
        title(run.config), threshold(run)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: the configuration makes no problem ({error})") from None
