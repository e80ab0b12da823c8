"""The plan of a sweep: which runs, from a TOML file or a table."""

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablebptt.data.atomic import expanded
from stablebptt.data.run_file import EVERY_EPOCH
from stablebptt.tasks import arguments, custom, problem, variants, windows
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import GATES, Problem, stream
from stablebptt.tasks.registry import TASKS
from stablebptt.tasks.runs import problem_of
from stablebptt.tasks.settings import settings_in_words
from stablebptt.tasks.task import LISTS, Task

PAPER = {name: task.published for name, task in TASKS.items() if task.published is not None}
PAPER_TRAINING = {"variant": ["R", "M", "C", "S"], "clip": ["none", "value", "norm"]}
USUAL_LISTS = ("hidden", "weights")  # arguments of a custom function whose value is a list
LONGEST_TITLE = 160  # letters of it in a file's name


@dataclass(frozen=True)
class Planned:
    """One run of a plan: its configuration, as the run file will hold it.

    Attributes
    ----------
    config : the configuration

    Examples
    --------
    >>> paper_plan("cartpole")[0].name[:15]
    'cartpole-1-pole'
    """

    config: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is, in words that fit into a file name."""
        title, variant = (_plain(text) for text in (problem_of(self.config, "plan").title, _variant(self.config)))
        words = [title.lstrip("-.") or self.config["task"], variant, self.config["clip"]]
        return re.sub("-+", "-", "-".join([*words, f"seed{self.config['seed']}"]))

    @property
    def name(self) -> str:
        """Name of its file: the label, and a hash of the whole configuration, without what older ones did not say."""
        told = {name: value for name, value in self.config.items() if (name, value) not in EVERY_EPOCH.items()}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return f"{self.label}-{digest[:8]}.h5"


def read_plan(path: str | Path, seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """The runs of a plan, a TOML file with `task` and the tables [options] and [train], seeds outermost.

    A task "module:function" or "file.py:function" is a function of one's own that makes a problem from the [options].

    Where a list is given for one value, all its values are run; "0:10" is the list 0 .. 9. `seeds` and `epochs` replace those
    of the plan.

    Parameters
    ----------
    path : of the plan
    seeds : one, or a range such as "0:10"; instead of the plan's
    epochs : instead of the plan's

    Raises
    ------
    ValueError, TypeError
        With what was given and what is allowed.

    Examples
    --------
    >>> from pathlib import Path
    >>> text = 'task = "cartpole"\\n[options]\\npoles = [1, 2]\\n[train]\\nvariant = ["R", "C"]'
    >>> _ = Path("plan.toml").write_text(text)
    >>> len(read_plan("plan.toml", seeds="0:3"))
    12
    """
    try:
        content = tomllib.loads(expanded(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} is not a TOML file: {error}") from None
    try:
        return make_plan(content, seeds, epochs)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"{path}: {error}") from None


def paper_plan(name: str, seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """The published runs of one task, or of "all" tasks (132).

    Parameters
    ----------
    name : of a task, or "all"
    seeds : one, or a range such as "0:10"; instead of the plan's
    epochs : instead of the plan's

    Examples
    --------
    >>> len(paper_plan("all"))
    132
    """
    names = list(PAPER) if name == "all" else (arguments.choice("paper", name, (*PAPER, "all")),)
    plans = ({"task": each, "options": PAPER[each], "train": PAPER_TRAINING} for each in names)
    return [planned for plan in plans for planned in make_plan(plan, seeds, epochs)]


def make_plan(content: Mapping[str, Any], seeds: Any = None, epochs: int | None = None) -> list[Planned]:
    """`read_plan` of the file's content.

    Parameters
    ----------
    content : of a plan
    seeds : one, or a range such as "0:10"; instead of the plan's
    epochs : instead of the plan's

    Examples
    --------
    >>> len(make_plan({"task": "cartpole", "options": {"poles": [1, 2]}}))
    2
    """
    unknown = sorted(set(content) - {"task", "options", "train"})
    if unknown:
        raise ArgumentError(f"unknown entry {unknown[0]!r}; a plan has task, [options] and [train]")
    if not isinstance(content.get("task"), str):
        raise ArgumentError("a plan needs a task, such as task = \"cartpole\"")
    for table in ("options", "train"):
        if not isinstance(content.get(table, {}), Mapping):
            raise ArgumentError(f"[{table}] must be a table")
    train = {"seed": 0, **content.get("train", {})}
    train |= {name: value for name, value in (("seed", seeds), ("epochs", epochs)) if value is not None}
    chosen = {"seed": train.pop("seed")}  # seeds vary slowest: the first runs show all variants
    axes = [_axis("train", name, value, content["task"]) for name, value in chosen.items()]
    axes += [_axis("options", name, value, content["task"]) for name, value in content.get("options", {}).items()]
    axes += [_axis("train", name, value, content["task"]) for name, value in train.items()]
    runs = {}
    for values in itertools.product(*(values for _, _, values in axes)):
        given: dict[str, dict[str, Any]] = {"options": {}, "train": {}}
        for (table, name, _), value in zip(axes, values):
            given[table][name] = value
        planned = Planned(_configuration(content["task"], given["options"], given["train"]))
        runs[planned.name] = planned
    return list(runs.values())


def problem_of_run(config: dict[str, Any]) -> Problem:
    """The problem of a planned run."""
    return custom.remake(config["options"]) if config["task"] == custom.TASK else problem_of(config, "plan")


def _plain(text: str) -> str:
    """A text in letters that fit into a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)[:LONGEST_TITLE]


def _variant(config: Mapping[str, Any]) -> str:
    return config["variant"] if isinstance(config["variant"], str) else "schedule"


def _axis(table: str, name: str, value: Any, task: str) -> tuple[str, str, list[Any]]:
    """All values of one entry of a plan."""
    if isinstance(value, str) and (numbers := arguments.span(name, value)) is not None:
        return table, name, numbers
    if not isinstance(value, list):
        return table, name, [value]
    is_list = table == "options" and name in _lists(task)
    values = [value] if is_list and not any(isinstance(item, list) for item in value) else value
    if not values:
        raise ArgumentError(f"{name} is an empty list")
    return table, name, values


def _lists(task: str) -> tuple[str, ...]:
    """Names of the options of a task whose value is a list."""
    found = custom.find(task) if ":" in task else TASKS.get(task)
    return tuple(o.name for o in found.options if o.kind in LISTS) if isinstance(found, Task) else USUAL_LISTS


def _configuration(task: str, options: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    made = custom.from_source(task, **options) if ":" in task else problem(task, **options)
    settings = settings_in_words(train).within(made.steps)
    variants.gates_of(settings.variant, made, stream(settings.seed, GATES))
    windows.split(made, settings)
    if made.backend != "cpu":
        advice = "a device trains many seeds together: train --seeds 0:132 --backend cuda"
        raise ArgumentError(f"a sweep computes on the CPU; {advice}")
    return {"task": made.task, "options": made.options, **settings.describe()}
