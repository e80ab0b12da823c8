"""Write the tables of docs/reproduction.md and draw its figures from the results beside this file, without training.

``python docs/reproduction/make_page.py``: every part of the page between ``<!-- made: NAME -->`` and ``<!-- end -->`` is written
anew. All else is written by hand.
"""

import itertools
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import judgement
import why
from judgement import CLIPS, LEVELS, NAMES, SEEDS, VARIANTS, Mean, Results, level_name

from stablebptt.data.storage import write
from stablebptt.tasks.families import COMPLETE, DIVERGED, UNFINISHED, outcome

HERE = Path(__file__).resolve().parent
PAGE, IMAGES, RESULTS = HERE.parent / "reproduction.md", HERE.parent / "images", HERE / "results"
PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Claims of the paper: words, task, two variants of which the first is to be better, and whether more so when it is harder.
CLAIMS: tuple[tuple[str, str, str, bool], ...] = (
    ("Guidance: C pulls ahead of R as rho falls", "guidance", "CR", True),
    ("Guidance: M pulls ahead of R as rho falls", "guidance", "MR", True),
    ("Cart-pole: C beats R as poles are added", "cartpole", "CR", True),
    ("Cart-pole: C beats M", "cartpole", "CM", False),
    ("Cart-pole: C beats S", "cartpole", "CS", False),
    ("Quantum: C beats R for higher targets", "quantum", "CR", True),
)


def number(value: float) -> str:
    """A number with two digits, or more before the point."""
    if not np.isfinite(value):
        return "inf" if value > 0 else "-"
    return f"{value:.0f}" if 10 <= abs(value) < 1e5 else f"{value:.2g}"


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    named = list(headings)
    return "\n".join([row(named), row(["---"] * len(named)), *map(row, rows)])


def ratio(found: Mean | None) -> str:
    """A ratio; with its interval, where there are pairs enough to speak of one."""
    if found is None:
        return "-"
    if len(found.values) < judgement.FEWEST:
        return number(np.exp(found.mean))
    return f"{number(np.exp(found.mean))} ({number(np.exp(found.low))} .. {number(np.exp(found.high))})"


def pairs(found: Mean | None) -> str:
    return "-" if found is None else f"{found.below} of {len(found.values)}"


def judged(found: dict[str, Mean | None]) -> str:
    """Verdicts, each with the levels that it is about; where there is none, how many seeds would bring it."""
    kinds = ("agrees", "does not", "undecided", "no pair yet")
    lines: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, mean in found.items():
        verdict = "no pair yet" if mean is None else mean.verdict
        lines[verdict].append(f"{name} ({needed(mean)})" if mean is not None and verdict == "undecided" else name)
    return "<br>".join(f"**{verdict}**: {', '.join(names)}" for verdict, names in lines.items() if names)


def needed(found: Mean) -> str:
    """How many seeds would decide, with two digits; how many pairs there are, if these are too few to tell."""
    if (count := len(found.values)) < judgement.FEWEST:
        return f"{count} pair{'s' * (count > 1)}"
    many = found.needed > judgement.MOST_SEEDS
    return f"> {judgement.MOST_SEEDS}" if many else f"{float(f'{found.needed:.2g}'):.0f}"


def verdicts(results: Results) -> str:
    """The first table: every claim, its numbers, and what they say."""
    rows = [_flat(results)]
    for words, task, pair, harder in CLAIMS:
        claim = task, pair, harder
        rows.append(_claim(results, words, claim, judgement.last))
        if harder and results.levels(task):
            rows.append(_claim(results, "The same by the last losses on the training states", claim, judgement.last_training))
        if pair == "CR" and results.levels(task):
            rows.append(_until_solved(results, task))
    ratios = "ratio of last test losses (95 %), and in how many pairs of one seed it is below 1"
    return table(("claim of the paper", ratios, "here (seeds that would decide)"), rows)


def _claim(results: Results, words: str, claim: tuple[str, str, bool], measure: judgement.Measure) -> tuple[str, str, str]:
    """One claim (task, pair of variants, whether it is about what makes the task harder) by one measure."""
    task, pair, harder = claim
    found = {level_name(task, level): judgement.comparison(results, task, level, pair, measure) for level in LEVELS[task][1]}
    numbers = [f"{name}: {ratio(mean)}, {pairs(mean)}" for name, mean in found.items() if mean is not None]
    if harder and (change := judgement.trend(results, task, pair, measure)) is not None:
        numbers.append(f"from level to level: times {ratio(change)}")
        found["from level to level"] = change
    return words, "<br>".join(numbers) or "-", judged(found)


def _until_solved(results: Results, task: str) -> tuple[str, str, str]:
    """C and R once more, by the epochs until a run is solved."""
    found, numbers = {}, []
    for level in LEVELS[task][1]:
        name = level_name(task, level)
        found[name] = mean = judgement.comparison(results, task, level, "CR", judgement.epochs_until_solved)
        ended = [{run.config["seed"]: run for run in results.ended(task, level, variant)} for variant in "CR"]
        both = ended[0].keys() & ended[1].keys()
        counts = [sum(judgement.solved(runs[seed]) for seed in both) for runs in ended]
        if mean is not None:
            numbers.append(f"{name}: {ratio(mean)}; solved {counts[0]} and {counts[1]} of {len(mean.values)}")
    return "The same by the epochs until solved", "<br>".join(numbers) or "-", judged(found)


def _flat(results: Results) -> tuple[str, str, str]:
    """S does not learn guidance: its last loss is its first one."""
    runs = [result for level in LEVELS["guidance"][1] for result in results.ended("guidance", level, "S")]
    words = "Guidance: S does not learn"
    if not runs:
        return words, "-", "**no run yet**"
    changes = [judgement.last(run) / float(run.history["test_loss"][0]) for run in runs]
    flat = sum(change == 1 for change in np.round(changes, 5))
    return words, f"last loss as the first in {flat} of {len(runs)} runs", f"**{'agrees' if flat == len(runs) else 'does not'}**"


def coverage(results: Results) -> str:
    """What is in and what is missing, by task and level: seeds of every variant, and of the other ways of clipping."""
    rows = []
    for task, (_, levels) in LEVELS.items():
        for level in levels:
            cells = []
            for clip in CLIPS:
                planned = SEEDS[task] if clip == "norm" else 1
                counts = [sum(outcome(r) == COMPLETE for r in results.of(task, level, v, clip).values()) for v in VARIANTS]
                cells.append(f"{', '.join(map(str, counts))} of {planned}" if any(counts) else f"none of {planned}")
            rows.append((f"{NAMES[task]}, {level_name(task, level)}", *cells))
    headings = [f"clip {clip}: complete runs of {', '.join(VARIANTS)}" if clip == "norm" else f"clip {clip}" for clip in CLIPS]
    return f"{table(('', *headings), rows)}\n\n{_counts(results)}"


def _counts(results: Results) -> str:
    runs = results.all()
    published = [results.published(task, level, variant, clip) for task, (_, levels) in LEVELS.items() for level in levels
                 for variant in VARIANTS for clip in CLIPS]  # fmt: skip
    done = sum(run is not None for run in published)
    kinds = ", ".join(f"{sum(outcome(run) == kind for run in runs)} {kind}" for kind in (COMPLETE, DIVERGED, UNFINISHED))
    text = f"{len(runs)} runs: {kinds}. Of the {len(published)} published runs (seed 0) {done} are in."
    return text + (f" {results.others} further runs have other settings and are not judged." if results.others else "")


def losses(results: Results, task: str) -> str:
    """Last losses of a task by level and variant, and pairs with R."""
    rows = []
    for level in results.levels(task):
        for variant in VARIANTS:
            if not (runs := results.ended(task, level, variant)):
                continue
            last = np.array([judgement.last(run) for run in runs])
            low, middle, high = np.percentile(last, [25, 50, 75])
            found = judgement.comparison(results, task, level, variant + "R") if variant != "R" else None
            rows.append((
                level_name(task, level) if variant == "R" or not rows or rows[-1][-1] != level_name(task, level) else "",
                variant,
                str(len(runs)),
                f"{number(middle)} ({number(low)} .. {number(high)})",
                number(np.median([run.numbers["best_test_loss"] for run in runs])),
                ratio(found),
                pairs(found),
                level_name(task, level),
            ))  # fmt: skip
    headings = ("", "", "seeds", "last test loss, median (quartiles)", "best, median", "last / that of R (95 %)", "lower than R")
    return table(headings, (cells[:-1] for cells in rows))


def times(results: Results, task: str) -> str:
    """Seeds solved, when, and the size of updates."""
    rows = []
    for level in results.levels(task):
        for variant in VARIANTS:
            if not (runs := results.ended(task, level, variant)):
                continue
            until = judgement.comparison(results, task, level, variant + "R", judgement.epochs_until_solved)
            rows.append((
                level_name(task, level) if variant == "R" else "",
                variant,
                f"{sum(map(judgement.solved, runs))} of {len(runs)}",
                *(str(sum(0 < run.numbers["first_epoch_solved"] <= epoch for run in runs)) for epoch in (100, 300)),
                _epoch(runs),
                "-" if variant == "R" else ratio(until),
                number(_size(runs)),
            ))  # fmt: skip
    until, sizes = "epochs until solved / those of R (95 %)", "size of the updates, median"
    return table(("", "", "solved", "by epoch 100", "by 300", "epoch, median", until, sizes), rows)


def _epoch(runs: list[judgement.Result]) -> str:
    """Median of the epochs at which runs were solved; those that never were count as late."""
    epochs = [run.numbers["first_epoch_solved"] if judgement.solved(run) else np.inf for run in runs]
    middle = float(np.median(epochs))
    return f"{middle:.0f}" if np.isfinite(middle) else "never"


def section(results: Results, task: str) -> str:
    """Figure and tables of one task."""
    if not results.levels(task):
        return "No run yet."
    figure = f"![{NAMES[task]}: losses, seeds solved and the size of the updates over the epochs](images/reproduction-{task}.png)"
    return f"{figure}\n\n{losses(results, task)}\n\n{times(results, task)}"


def clipping(results: Results) -> str:
    """The published runs by their clipping: what it changes on the whole; and every run."""
    places = [(task, level, variant) for task, (_, levels) in LEVELS.items() for level in levels for variant in VARIANTS]
    rows = [_clipped(results, *place) for place in places if any(results.published(*place, clip) for clip in CLIPS[1:])]
    if not rows:
        return "No run yet."
    tasks = results.clipped_tasks()
    figures = (f"![{NAMES[task]}: test losses by clipping](images/{judgement.CLIPPING.format(task)})" for task in tasks)
    rows = [("", *cells[1:]) if k > 0 and cells[0] == rows[k - 1][0] else cells for k, cells in enumerate(rows)]
    headings = ("", "", *(f"clip {clip}" for clip in CLIPS), f"size of the updates: {', '.join(CLIPS)}")
    return "\n\n".join((_clippings(results), *figures, table(headings, rows)))


def _clippings(results: Results) -> str:
    """By task and clipping: ratios of last losses to those with clipping by norm, over levels; and of C to R, for every level."""
    rows = []
    for task, clip in itertools.product(results.clipped_tasks(), CLIPS):
        levels = LEVELS[task][1]
        to_norm = ([((task, level, v, clip), (task, level, v, "norm")) for level in levels] for v in VARIANTS)
        means = [None if clip == "norm" else judgement.between(results, given) for given in to_norm]
        of_c = (judgement.between(results, [((task, level, "C", clip), (task, level, "R", clip))]) for level in levels)
        cells = ("-" if mean is None else f"{ratio(mean)}, {pairs(mean)}" for mean in means)
        rows.append((NAMES[task] if clip == CLIPS[0] else "", clip, *cells, ", ".join(map(ratio, of_c))))
    ratios = (f"{variant} / {variant} clipped by norm" for variant in VARIANTS)
    return table(("", "clip", *ratios, "C / R, from easy to hard"), rows)


def _clipped(results: Results, task: str, level: float, variant: str) -> tuple[str, ...]:
    """By clipping: last loss, epoch of being solved, and size of the updates."""
    runs = [results.published(task, level, variant, clip) for clip in CLIPS]
    name = f"{NAMES[task]}, {level_name(task, level)}"
    return name, variant, *map(_came_to, runs), ", ".join("-" if run is None else number(_size([run])) for run in runs)


def _came_to(run: judgement.Result | None) -> str:
    """Last loss of a run, and the epoch in which it was solved."""
    if run is None:
        return "-"
    ended = number(judgement.last(run)) if outcome(run) == COMPLETE else f"diverged after epoch {run.numbers['epochs']}"
    return f"{ended}, solved in {_epoch([run])}" if judgement.solved(run) else ended


def _size(runs: list[judgement.Result]) -> float:
    """Size of the updates: the root of the median of its mean square in an epoch; the median over runs."""
    return float(np.median([np.sqrt(np.median(run.history["gradient_norm2"])) for run in runs]))


def machine(results: Results) -> str:
    """Machine time by task and version."""
    made: dict[tuple[str, str, str], list[judgement.Result]] = {}
    for task in LEVELS:
        for run in results.all():
            if run.config["task"] == task:
                made.setdefault((NAMES[task], _version(run), run.config.get("backend", "cpu")), []).append(run)
    rows = []
    for names, runs in made.items():
        every = ", ".join(str(n) for n in sorted({run.config["evaluate_every"] for run in runs}))
        seconds = [run.numbers["seconds"] for run in runs]
        together = f"{sum(seconds) / 3600:.1f} h" if names[-1] == "cpu" else "at the same time"
        rows.append((*names, every, str(len(runs)), f"{np.median(seconds):.0f} s", together))
    return table(("", "version", "backend", "evaluated every .. epochs", "runs", "a run, median", "together"), rows)


def _version(run: judgement.Result) -> str:
    """The version that computed a run, and its commit if it is known."""
    return ", ".join(filter(None, (run.words["version"], run.words["git_commit"][:7])))


def reasons(_: Results) -> str:
    """For every question of why.py, what one change does to the losses of the variants."""
    found = why.read()
    asked = [asked for asked in why.QUESTIONS if any(place[0] == asked for place in found)]
    return "\n\n".join(_question(name, found) for name in asked) or "No run yet."


def _question(asked: str, found: dict[tuple[str, str], dict[str, list[judgement.Result]]]) -> str:
    question, rows = why.QUESTIONS[asked], []
    for changed in why.CHANGES:
        if runs := found.get((asked, changed)):
            rows.append((changed, *(_ended(runs.get(variant, [])) for variant in question.variants)))
    return f"**{asked[0].upper()}{asked[1:]}**, {question.epochs} epochs:\n\n{table(('', *question.variants), rows)}"


def _ended(runs: list[judgement.Result]) -> str:
    """Median and range of last losses, and how many runs were solved."""
    if not runs:
        return "-"
    last = [judgement.last(run) for run in runs]
    losses = " .. ".join(number(value) for value in (min(last), max(last)))
    return f"{number(float(np.median(last)))} ({losses}), {sum(map(judgement.solved, runs))} of {len(runs)} solved"


PARTS: dict[str, Callable[[Results], str]] = {"verdicts": verdicts, "coverage": coverage, "clipping": clipping}
PARTS |= {"machine": machine, "reasons": reasons}
PARTS |= {task: partial(section, task=task) for task in LEVELS}


def filled(page: str, results: Results) -> str:
    """The page with its parts written anew."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]](results)}\n{found[3]}", page)


def main() -> None:
    import drawing

    results = judgement.read(RESULTS)
    write(PAGE, filled(PAGE.read_text("utf-8"), results).encode())
    drawing.draw(results, IMAGES)


if __name__ == "__main__":
    main()
