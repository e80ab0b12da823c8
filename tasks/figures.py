"""Import path of version 0.1 for `stablebptt.tasks.pictures.curves` and `stablebptt.tasks.families`."""

from typing import Any

from stablebptt.tasks.families import groups
from stablebptt.tasks.pictures.curves import learning_curves, save  # noqa: F401


def families(runs: list[Any]) -> dict[str, list[Any]]:
    """Runs that differ only in the seed, by what tells them from the others."""
    return {alike.name: alike.runs for alike in groups(runs)}
