"""Write the tables of docs/joins.md that compare training, and draw their figure, from the results beside this file.

``python docs/comparison/make_tables.py``, after ``python docs/comparison/make_tables.py --keep FOLDER`` has merged what
``train.py`` left there. Every part of the page between ``<!-- made: NAME -->`` and ``<!-- end -->`` is written anew.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reproduction"))

from judgement import mean_of
from make_page import PART, number, table
from train import EPOCHS, FRESH_SEEDS, LEARNING_RATES, LOOKED_AT_AGAIN, RULES, SEEDS

from stablebptt.data.storage import write
from stablebptt.tasks import collecting, keeping
from stablebptt.tasks.families import COMPLETE, UNFINISHED, outcome
from stablebptt.tasks.pictures import curves

HERE = Path(__file__).resolve().parent
PAGE, IMAGE, RESULTS = HERE.parent / "joins.md", HERE.parent / "images" / "joins.png", HERE / "results"
NAMES = {
    **{"guidance": "guidance, rho 0.001", "cartpole": "cart-pole, 4 poles", "quantum": "quantum, target 5"},
    **{"ball": "ball on stiff ground", "quadrotor": "planar quadrotor", "pendulum_chain": "chain of 3 links on a cart"},
}
# The loss below which a system counts as learned: where its task is solved, or about what the better half of the rules reaches.
THRESHOLDS = {"guidance": 1.0, "cartpole": 0.05, "quantum": 110.0, "ball": 0.02, "quadrotor": 0.1, "pendulum_chain": 0.13}
LAST = 4  # evaluated epochs, of which the mean is the last loss
EQUAL = LEARNING_RATES[0]


@dataclass(frozen=True)
class Trained:
    """What is known of one run: its mean last losses (infinite if it diverged), the epoch at which it was learned, seconds."""

    test: float
    train: float
    learned: float
    seconds: float = 0.0


Runs = dict[tuple[str, str, float], dict[int, Trained]]  # by system, rule and learning rate; then by seed


def keep(folder: Path) -> None:
    """Merge the runs of a folder that have ended."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found, problems = collecting.load_runs(place)
        print(place.name, keeping.keep([run for run in found if outcome(run) != UNFINISHED], RESULTS), *problems)


def read(folder: Path = RESULTS) -> Runs:
    """All results of a folder."""
    runs: Runs = {}
    for path in sorted(folder.glob("*.h5")):
        for result in keeping.load(path):
            config = result.config
            place = system_of(config), config["variant"], config["optimizer"]["learning_rate"]
            runs.setdefault(place, {})[config["seed"]] = trained(result, THRESHOLDS[place[0]])
    return runs


def system_of(config: dict[str, Any]) -> str:
    """Name of the system of a configuration: that of its task, or the one with its title."""
    if config["task"] in EPOCHS:
        return config["task"]
    return next(name for name, title in NAMES.items() if title == config["options"]["title"])


def trained(result: keeping.Result, threshold: float) -> Trained:
    """What is looked at of a result."""
    ended = outcome(result) == COMPLETE
    last = [float(np.mean(result.history[name][-LAST:])) if ended else np.inf for name in ("test_loss", "train_loss")]
    learned = result.history["epoch"][result.history["test_loss"] < threshold]
    return Trained(*last, float(learned[0]) if learned.size else np.inf, result.numbers["seconds"])


def whole(runs: Runs, system: str, rule: str, rate: float, seeds: Sequence[int] = SEEDS) -> list[Trained]:
    """The runs of all seeds, in order; none unless all are there."""
    found = runs.get((system, rule, rate), {})
    return [found[seed] for seed in seeds] if all(seed in found for seed in seeds) else []


def systems(runs: Runs) -> list[str]:
    """Systems of which all rules are there with the equal learning rate."""
    return [system for system in NAMES if all(whole(runs, system, rule, EQUAL) for rule in RULES)]


def best_rate(runs: Runs, system: str, rule: str) -> float | None:
    """The rate with the lowest median of the last *training* losses; None unless all rates are there."""
    found = {rate: [run.train for run in whole(runs, system, rule, rate)] for rate in LEARNING_RATES}
    return min(found, key=lambda rate: float(np.median(found[rate]))) if all(found.values()) else None


def log_ratios(ours: list[Trained], those: list[Trained]) -> np.ndarray:
    """Logarithms of the last test losses, relative to others of the same seeds."""
    with np.errstate(invalid="ignore"):
        return np.log([a.test for a in ours]) - np.log([b.test for b in those])


def equal(runs: Runs, system: str, rule: str) -> np.ndarray:
    """Log ratios to R, both with the equal learning rate."""
    return log_ratios(whole(runs, system, rule, EQUAL), whole(runs, system, "R", EQUAL))


def best(runs: Runs, system: str, rule: str) -> np.ndarray | None:
    """Log ratios to R, each with its best learning rate."""
    rates = best_rate(runs, system, rule), best_rate(runs, system, "R")
    if rates[0] is None or rates[1] is None:
        return None
    return log_ratios(whole(runs, system, rule, rates[0]), whole(runs, system, "R", rates[1]))


def ordered(runs: Runs) -> list[str]:
    """Rules, by the geometric mean of their ratios to R over all systems with the equal learning rate."""
    return sorted(RULES, key=lambda rule: float(np.mean([equal(runs, system, rule) for system in systems(runs)])))


def cell(values: np.ndarray) -> str:
    """A geometric mean with its bootstrap interval; without, where a run diverged or the values are R's own."""
    if not np.all(np.isfinite(values)) or not np.any(values):
        return short(float(np.mean(values)))
    found = mean_of(values)
    return f"{short(found.mean)} ({short(found.low)} .. {short(found.high)})"


def short(logarithm: float) -> str:
    """A ratio with two decimals, if it is no large one."""
    value = math.exp(logarithm)
    return number(value) if value >= 10 else f"{value:.2f}"


def ratios(runs: Runs) -> str:
    """The first table."""
    shown, rows = systems(runs), []
    for rule in ordered(runs):
        values = [equal(runs, system, rule) for system in shown]
        bests = [found for system in shown if (found := best(runs, system, rule)) is not None]
        together = np.concatenate(values)
        lower = "-" if rule == "R" else f"{np.sum(together < 0)} of {len(together)}"
        rows.append((f"`{rule}`", *map(cell, values), cell(together), lower, cell(np.concatenate(bests)) if bests else "-"))
    tuned = [NAMES[system].partition(",")[0] for system in shown if best(runs, system, "R") is not None]
    last = "all, best of three rates" if tuned and len(tuned) == len(shown) else f"best of three rates ({', '.join(tuned)})"
    return table(("rule", *(NAMES[system] for system in shown), "all", "lower than R", last), rows)


def details(runs: Runs) -> str:
    """A table for every system: losses, seeds that learned, and when."""
    return "\n\n".join(f"**{NAMES[system]}**, {EPOCHS[system]} epochs\n\n{_detail(runs, system)}" for system in systems(runs))


def _detail(runs: Runs, system: str) -> str:
    rows = []
    for rule in sorted(RULES, key=lambda rule: float(np.median([run.test for run in whole(runs, system, rule, EQUAL)]))):
        found = whole(runs, system, rule, EQUAL)
        rate = best_rate(runs, system, rule)
        tuned = "-" if rate is None else f"{spread(whole(runs, system, rule, rate))} at {rate:g}"
        learned = f"{sum(np.isfinite(run.learned) for run in found)} of {len(found)}"
        rows.append((f"`{rule}`", spread(found), learned, when(found), tuned))
    below = f"seeds below {THRESHOLDS[system]:g}"
    headings = ("rule", "last test loss, median (range)", below, "epoch, median", "best of three rates")
    return table(headings, rows)


def spread(found: Iterable[Trained]) -> str:
    losses = [run.test for run in found]
    return f"{number(float(np.median(losses)))} ({number(min(losses))} .. {number(max(losses))})"


def when(found: Iterable[Trained]) -> str:
    """The median epoch at which runs were learned; those that never were count as late."""
    middle = float(np.median([run.learned for run in found]))
    return f"{middle:.0f}" if np.isfinite(middle) else "never"


def fresh(runs: Runs) -> str:
    """What the seeds say that had no part in choosing what to look at."""
    rows = []
    for system, rules in LOOKED_AT_AGAIN.items():
        for rule in rules:
            found = whole(runs, system, rule, EQUAL, FRESH_SEEDS)
            those = whole(runs, system, "R", EQUAL, FRESH_SEEDS)
            if found and those:
                learned = f"{sum(np.isfinite(run.learned) for run in found)} of {len(found)}"
                ratios = log_ratios(found, those)
                lower = "-" if rule == "R" else f"{np.sum(ratios < 0)} of {len(ratios)}"
                rows.append((NAMES[system], f"`{rule}`", spread(found), learned, when(found), cell(ratios), lower))
    losses, learning = ("rule", "last test loss, median (range)"), ("seeds that learned", "epoch, median")
    return table(("system", *losses, *learning, "ratio to R", "lower than R"), rows)


def coverage(runs: Runs) -> str:
    """What is in, by system and learning rate."""
    planned = len(RULES) * len(SEEDS)
    rows = []
    for system, name in NAMES.items():
        seeds = [[runs.get((system, rule, rate), {}) for rule in RULES] for rate in LEARNING_RATES]
        counts = [sum(seed in found for found in by_rule for seed in SEEDS) for by_rule in seeds]
        rows.append((name, str(EPOCHS[system]), *(f"{count} of {planned}" for count in counts)))
    made = [run for found in runs.values() for run in found.values()]
    lost, hours = sum(not np.isfinite(run.test) for run in made), sum(run.seconds for run in made) / 3600
    words = f"{len(made)} runs with the other seeds, {lost} of them diverged; {hours:.1f} hours of one core together."
    return f"{table(('system', 'epochs', *(f'rate {rate:g}' for rate in LEARNING_RATES)), rows)}\n\n{words}"


PARTS: dict[str, Callable[[Runs], str]] = {"ratios": ratios, "fresh": fresh, "details": details, "coverage": coverage}


def filled(page: str, runs: Runs) -> str:
    """The page with its parts written anew."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]](runs)}\n{found[3]}", page)


def figure(runs: Runs) -> Any:
    """A panel for each system: every seed's ratio to R, with the equal and with the best learning rate."""
    shown, rules = systems(runs), ordered(runs)
    drawn = curves.new_figure(2.2 + 1.75 * len(shown), 6.4)
    panels = np.atleast_1d(drawn.subplots(1, len(shown), sharey=True))
    for axes, system in zip(panels, shown):
        for place, rule in enumerate(rules):
            _row(axes, np.exp(equal(runs, system, rule)), place, {"color": "C0", "marker": "o"})
            if (tuned := best(runs, system, rule)) is not None:
                _row(axes, np.exp(tuned), place + 0.3, {"color": "C1", "marker": "d"})
        axes.axvline(1, color="0.45", linewidth=1)
        axes.set_xscale("log")
        _scale(axes)
        axes.set_title(NAMES[system].replace(", ", "\n").replace(" on ", "\non "), fontsize="small")
        axes.grid(True, axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rules)), rules, fontsize="small")
    panels[0].set_ylim(len(rules) - 0.4, -0.6)
    panels[len(panels) // 2].set_xlabel("last test loss / that of R with the same seed; lines: geometric means", fontsize="small")
    looks = [{"color": "C0", "marker": "o"}, {"color": "C1", "marker": "d"}]
    curves.legend_below(drawn, ["equal learning rate", "best of three"], looks)
    return drawn


def _row(axes: Any, values: np.ndarray, place: float, look: dict[str, str]) -> None:
    kept = values[np.isfinite(values)]
    axes.plot(kept, np.full(len(kept), place), linestyle="none", markersize=3, alpha=0.6, **look)
    if len(kept) == len(values):
        axes.plot(np.full(2, np.exp(np.mean(np.log(values)))), [place - 0.25, place + 0.25], color=look["color"], linewidth=1.6)


def _scale(axes: Any) -> None:
    """Limits that show at least 0.5 to 2, and ticks at 1, or also at 2 and 5 where there are few decades."""
    low, high = axes.get_xlim()
    low, high = min(low, 0.5), max(high, 2.0)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder of train.py")
    given = parser.parse_args()
    if given.keep is not None:
        keep(given.keep)
    runs = read()
    write(PAGE, filled(PAGE.read_text("utf-8"), runs).encode())
    curves.save(lambda: figure(runs), IMAGE)


if __name__ == "__main__":
    main()
