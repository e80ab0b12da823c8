"""A sweep in one table, one page and the published figures, from the run files in a folder."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from stablebptt.data import columns, run_file, storage
from stablebptt.data.run_file import Content
from stablebptt.data.storage import FileFormatError, Group
from stablebptt.tasks import keeping
from stablebptt.tasks.bars import Tell
from stablebptt.tasks.callbacks import STOPPED
from stablebptt.tasks.collecting import SOLVED_BELOW, load_runs, threshold
from stablebptt.tasks.families import (
    DIVERGED,
    ENDED,
    UNFINISHED,
    facts,
    groups,
    outcome,
    shown,
    trouble,
    variant_name,
    varied,
    word,
)
from stablebptt.tasks.pictures import curves
from stablebptt.tasks.registry import title as title_of
from stablebptt.tasks.report_pages import Page, html, markdown

VARIANTS, CLIPS = ("R", "M", "C", "S", "N", "schedule"), ("none", "value", "norm")
CONFIDENCE = 0.95
MOST_COLUMNS = 4  # of panels in a figure
MOST_NAMED = 12  # values of one thing in the plan


@dataclass(frozen=True)
class Family:
    """Runs that differ only in the seed.

    Attributes
    ----------
    task, title, variant, clip : what they have in common
    others : what else distinguishes them from the other families of that title, in words
    runs : content of their files
    """

    task: str
    title: str
    variant: str
    clip: str
    others: dict[str, str]
    runs: tuple[Content, ...]

    @property
    def name(self) -> str:
        """The variant, and all that distinguishes them besides the clipping."""
        return ", ".join([self.variant, *(f"{shown(name)} {value}" for name, value in self.others.items())])

    def last(self) -> np.ndarray:
        return np.array([run_file.last(run.history)[1] for run in self.runs])

    def best(self) -> np.ndarray:
        return np.array([run_file.best(run.history)[1] for run in self.runs])

    def count(self, word: str) -> int:
        """How many runs are complete, diverged or unfinished."""
        return sum(outcome(run) == word for run in self.runs)

    def seeds(self) -> int:
        return len({run.config["seed"] for run in self.runs})

    def solved(self) -> int:
        return sum(bool(best < threshold(run)) for best, run in zip(self.best(), self.runs))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for fewer than two finite values.

    Of positive values it is that of the logarithm of the mean (by the delta method), so that it stays positive.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    mean = float(known.mean())
    half = float(stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2) * known.std(ddof=1) / np.sqrt(len(known)))
    if known.min() > 0:
        return mean * math.exp(-half / mean), mean * math.exp(half / mean)
    return mean - half, mean + half


def families(runs: Iterable[Content]) -> list[Family]:
    """Runs by all they have in common besides the seed: task, difficulty, clipping, variant, and whatever else varies."""
    found = []
    for task, alike in _by(runs, lambda run: run.config["task"]).items():
        telling = {name for titled in _by(alike, _title).values() for name in varied(titled)} - {"clip"}
        for group in groups(alike):
            first = group.runs[0]
            others = {name: value for name, value in group.parts.items() if name in telling}
            members = tuple(sorted(group.runs, key=lambda run: run.config["seed"]))
            found.append(Family(task, _title(first), group.parts["variant"], first.config["clip"], others, members))
    return sorted(found, key=_order)


def _title(run: Content) -> str:
    return title_of(run.config)


def _by(runs: Iterable[Content], key: Callable[[Content], str]) -> dict[str, list[Content]]:
    """Runs by something that they have in common."""
    found: dict[str, list[Content]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _order(family: Family) -> tuple[Any, ...]:
    name = variant_name(family.runs[0])
    place = VARIANTS.index(name) if name in VARIANTS else len(VARIANTS)
    return family.task, _natural(family.title), CLIPS.index(family.clip), place, name, _natural(family.name)


def _natural(title: str) -> list[Any]:
    """Sort key that compares numbers as numbers."""
    return [(1, float(word), "") if word.replace(".", "", 1).isdecimal() else (0, 0.0, word) for word in title.split()]


NUMBERS = (
    "seeds", "last test loss: mean", "median", "95 % of the mean", "best: mean", "solved", "diverged", "unfinished",
)  # fmt: skip


def headings(found: list[Family]) -> tuple[str, ...]:
    """Headings of the table of one difficulty: the variant, all else that was varied, the clipping, and numbers."""
    return ("variant", *map(shown, _others(found)), "clip", *NUMBERS)


def _others(found: list[Family]) -> list[str]:
    return list(dict.fromkeys(name for family in found for name in family.others))


def rows(found: list[Family]) -> list[tuple[str, ...]]:
    """Cells of the table of one difficulty, in the order of `headings`."""
    table: list[tuple[str, ...]] = []
    for family in found:
        last, best = family.last(), family.best()
        low, high = interval(last)
        count = len(family.runs)
        others = (family.others.get(name, "-") for name in _others(found))
        table.append(
            (
                family.variant,
                *others,
                family.clip,
                str(family.seeds()),
                number(np.nanmean(last) if np.isfinite(last).any() else np.nan),
                number(np.nanmedian(last) if np.isfinite(last).any() else np.nan),
                f"{number(low)} .. {number(high)}" if np.isfinite(low) else "-",
                number(np.nanmean(best) if np.isfinite(best).any() else np.nan),
                f"{family.solved()}/{count}",
                f"{family.count(DIVERGED)}/{count}",
                f"{family.count(UNFINISHED)}/{count}",
            )
        )
    return table


RUN_HEADINGS: tuple[str, ...] = ("file", "run", "clip", "seed", "epochs", "status", "last test loss", "best test loss", "seconds")


def run_rows(found: list[Family]) -> list[tuple[str, ...]]:
    """Cells of the table of all runs of one difficulty, in the order of `RUN_HEADINGS`."""
    table: list[tuple[str, ...]] = []
    for family in found:
        for run, last, best in zip(family.runs, family.last(), family.best()):
            done, seconds = f"{len(run.history['epoch'])}/{run.config['epochs']}", f"{run.history['seconds'].sum():.1f}"
            words = (Path(run.path).name, family.name, family.clip, str(run.config["seed"]), done, outcome(run))
            table.append((*words, number(last), number(best), seconds))
    return table


def number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"


def draw(found: list[Family], task: str) -> Any:
    """The published figure of a task: a column per difficulty, a row per clipping, a line with its 95 % band per kind of run.

    More than four difficulties take several rows of panels.
    """
    chosen = [family for family in found if family.task == task]
    titles = list(dict.fromkeys(family.title for family in chosen))
    clips = [clip for clip in CLIPS if any(family.clip == clip for family in chosen)]
    blocks = [titles[k : k + MOST_COLUMNS] for k in range(0, len(titles), MOST_COLUMNS)]
    rows = [(block, clip) for block in blocks for clip in clips]
    figure = curves.new_figure(max(3.4 * len(blocks[0]) + 0.6, 5.0), 2.7 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(blocks[0]), squeeze=False)
    lines = list(dict.fromkeys((family.variant, family.name) for family in chosen))
    looks = dict(zip((name for _, name in lines), curves.distinct_looks(lines)))
    longest = max((len(run.history["epoch"]) for family in chosen for run in family.runs), default=0)
    for (block, clip), panels in zip(rows, grid):
        for title, axes in zip(block, panels):
            here = [family for family in chosen if (family.title, family.clip) == (title, clip)]
            for family in here:
                _band(axes, family, looks[family.name])
            curves.epoch_axis(axes, longest, empty=curves.EMPTY if here else "no run")
            axes.set_xlabel("epoch" if clip == clips[-1] else "")
            axes.set_title(title.partition(", ")[2] or title if clip == clips[0] else "", fontsize="medium")
        for axes in panels[len(block) :]:
            axes.set_axis_off()
        panels[0].set_ylabel(f"test loss, clip {clip}")
    for column in range(len(titles)):
        first = column // MOST_COLUMNS * len(clips)
        _share_scale([panels[column % MOST_COLUMNS] for panels in grid[first : first + len(clips)]])
    labels = [_label(name, [run for family in chosen if family.name == name for run in family.runs]) for name in looks]
    curves.legend_below(figure, labels, list(looks.values()), title=task)
    return figure


def _label(name: str, runs: list[Content]) -> str:
    """A name in the legend, with what became of its runs if they are not all complete."""
    said = trouble(runs)
    return f"{name} ({', '.join(said)})" if said else name


def _share_scale(panels: list[Any]) -> None:
    """The same loss axis for one difficulty, logarithmic if that helps."""
    shown = [axes for axes in panels if axes.get_lines()]
    if curves.log_helps(shown):
        for axes in shown:
            curves.log_axis(axes)
    limits = [axes.get_ylim() for axes in shown]
    for axes in shown:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _band(axes: Any, family: Family, look: dict[str, Any]) -> None:
    epochs = curves.epochs_of(list(family.runs), "test_loss")
    values = curves.aligned([run.history["test_loss"] for run in family.runs])[:, epochs - 1]
    known = np.isfinite(values).any(axis=0)
    if not known.any():
        return
    mean = np.full(len(known), np.nan)
    mean[known] = np.nanmean(values[:, known], axis=0)
    curves.line(axes, epochs, mean, family.name, look)
    if len(values) > 1:
        low, high = np.array([interval(column) for column in values.T]).T
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, linewidth=0)


def table(found: list[Family]) -> dict[str, Group]:
    """All runs as columns of one HDF5 group: their files, all that was varied, and what became of them."""
    runs = [(family, run) for family in found for run in family.runs]
    last = [values for family in found for values in family.last()]
    best = [values for family in found for values in family.best()]
    names = [Path(run.path).name for _, run in runs]
    variants = [variant_name(run) for _, run in runs]
    made: Group = {
        "file": columns.letters("name of the run file, in letters of UTF-8", "file_letter", names),
        "difficulty": columns.words("task and its difficulty", [f.title for f, _ in runs]),
        "variant": columns.words("gradient variant", variants, [*VARIANTS, *variants]),
        "clip": columns.words("clipping", [f.clip for f, _ in runs], CLIPS),
        "seed": columns.numbers("seed", [run.config["seed"] for _, run in runs]),
        "epochs": columns.numbers("epochs done", [len(run.history["epoch"]) for _, run in runs]),
        "last_test_loss": columns.numbers("last test loss that was computed", last),
        "best_test_loss": columns.numbers("lowest test loss", best),
        "solved_below": columns.numbers(SOLVED_BELOW, [threshold(run) for _, run in runs]),
        "diverged": columns.numbers("1 if the run diverged", [int(outcome(run) == DIVERGED) for _, run in runs]),
        "complete": columns.numbers("1 if the run is complete", [int(outcome(run) in ENDED) for _, run in runs]),
        "seconds": columns.numbers("wall time of all epochs", [float(run.history["seconds"].sum()) for _, run in runs], "s"),
    }
    schedules = [facts(run)["variant"] if variant_name(run) == "schedule" else None for _, run in runs]
    if len({json.dumps(each) for each in schedules if each is not None}) > 1:
        made["schedule"] = columns.anything("gates of a schedule", schedules, "schedule")
    for name in ["epochs", *(name for name in varied([run for _, run in runs]) if name not in ("epochs", "clip"))]:
        column = f"{name}_planned" if name == "epochs" else columns.name_of(name, made)
        made[column] = columns.anything(shown(column), [facts(run).get(name) for _, run in runs], column)
    return {"runs": made}


def write(folder: Path, tell: Tell | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Write report.h5, report.md, report.html and a figure per task into the subfolder `report` of a folder of run files.

    Returns the report's path and the counts of runs by outcome. `tell` is told how many files are read. The results are merged
    into the folder `keep`, if it is given.
    """
    loaded, problems = load_runs(folder, tell)
    if not loaded:
        raise FileFormatError(f"{folder} holds no run file")
    found = families(loaded)
    runs = [run for family in found for run in family.runs]  # without copies
    tasks = list(dict.fromkeys(family.task for family in found))
    place = folder / "report"
    place.mkdir(exist_ok=True)
    attributes = run_file.table_attributes(f"report of {folder.resolve().name}")
    storage.write(place / "report.h5", storage.encode(attributes, table(found)))
    pictures = {task: f"{task}.png" for task in tasks}
    for task, picture in pictures.items():
        curves.save(partial(draw, found, task), place / picture)
    page = page_of(folder, found, problems, pictures)
    storage.write(place / "report.md", markdown(page).encode())
    storage.write(place / "report.html", html(page).encode())
    return {
        "report": str(place / "report.html"),
        "runs": len(runs),
        "unfinished": sum(outcome(run) == UNFINISHED for run in runs),
        "diverged": sum(outcome(run) == DIVERGED for run in runs),
        "solved": sum(family.solved() for family in found),
        "unreadable_or_failed": len(problems),
        **(keeping.keep(runs, keep) if keep is not None else {}),
    }


def page_of(folder: Path, found: list[Family], problems: list[str], pictures: dict[str, str]) -> Page:
    """What the report says, before it becomes Markdown or HTML."""
    runs = [run for family in found for run in family.runs]
    fates = [outcome(run) for run in runs]
    told = [word for word in (*ENDED, DIVERGED, UNFINISHED) if word != STOPPED or word in fates]
    counts = ", ".join(f"{fates.count(word)} {word}" for word in told)
    computed = dict.fromkeys(_versions(run.attributes.get("versions", "{}")) for run in runs)
    about = {
        "runs": f"{len(runs)} ({counts})",
        **plan(runs),
        "date": datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC"),
        "versions": _versions(json.dumps(run_file.versions())),
        "runs computed with": "; ".join(computed),
    }
    failed = [f"{Path(run.path).name}: {run.status}" for run in runs if outcome(run) not in ENDED]
    sections = []
    for title in dict.fromkeys(family.title for family in found):
        alike = [family for family in found if family.title == title]
        sections.append((title, _told(alike), (headings(alike), rows(alike)), (RUN_HEADINGS, run_rows(alike))))
    return Page(f"Report of {folder.resolve().name}", about, pictures, sections, failed, problems)


def plan(runs: list[Content]) -> dict[str, str]:
    """What was run: what varies, and what is the same in all runs."""
    known = [facts(run) for run in runs]
    telling = ["variant", *varied(runs)]
    values = {name: _in_order([one[name] for one in known if name in one]) for one in known for name in one}
    kinds = [f"{shown(name)} {_listed(values[name])}" for name in telling if len(values[name]) > 1]
    same = [name for name, words in values.items() if len(words) == 1 and "." not in name and all(name in one for one in known)]
    return {
        "varied": "; ".join(kinds) or "nothing but the seed",
        "seeds": _listed([str(seed) for seed in sorted({run.config["seed"] for run in runs})]),
        "the same in all": ", ".join(f"{shown(name)} {values[name][0]}" for name in same),
    }


def _in_order(values: list[Any]) -> list[str]:
    """Different values as words, numbers by size."""
    is_number = all(isinstance(value, int | float) for value in values)
    return list(dict.fromkeys(word(value) for value in (sorted(values) if is_number else values)))


def _listed(values: list[str]) -> str:
    more = f", .. {values[-1]} ({len(values)} values)" if len(values) > MOST_NAMED else ""
    return ", ".join(values[: MOST_NAMED - 1 if more else MOST_NAMED]) + more


def _versions(words: Any) -> str:
    try:
        return ", ".join(f"{name} {version}" for name, version in json.loads(words).items())
    except (AttributeError, TypeError, ValueError):
        return "unknown"


def _told(found: list[Family]) -> str:
    """Epochs planned, and what counts as solved."""
    epochs = sorted({run.config["epochs"] for family in found for run in family.runs})
    limits = sorted({threshold(run) for family in found for run in family.runs})
    text = f"Epochs planned: {', '.join(map(str, epochs))}."
    if np.isfinite(limits).all():
        text += f" Solved: best test loss below {' to '.join(f'{v:g}' for v in dict.fromkeys((limits[0], limits[-1])))}."
    return text + " Intervals are Student's, of the logarithm of the mean."
