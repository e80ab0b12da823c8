"""Which joins and gates reach the known optimum of the linear-quadratic regulator: ``python docs/compare_joins.py``; a minute.

RMSprop from zero gain, as in docs/adding_a_system.md, 1500 updates; it prints the table of docs/joins.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "examples"))
import lqr

# All of docs/joins.md; gates with values that leave the regulator enough of its 120 time steps.
RULES = (
    *("R", "M", "C", "S", "N", "minmod", "leaky:leak=0.1", "leaky:leak=0.5", "mean", "normalized"),
    *("config", "config:length=minimum", "config:length=maximum", "config:length=harmonic", "imtlg", "pcgrad", "mgda"),
    *("projected", "R:decay=0.4", "M:decay=0.4", "C:decay=0.4", "R:truncate=20", "C:truncate=20", "R:random=120"),
)
UPDATES = 1500


def gaps():
    """How far each rule's loss stays above the optimum, relative to it, halfway and at the end."""
    for rule in RULES:
        above = lqr.above_optimum(rule, UPDATES)
        yield rule, above[UPDATES // 2], above[-1]


def main():
    print("| rule | after 750 updates | after 1500 |\n| --- | --- | --- |")
    for rule, *found in gaps():
        print(f"| `{rule}` | {' | '.join('below 1e-12' if gap < 1e-12 else f'{gap:.2g}' for gap in found)} |")


if __name__ == "__main__":
    main()
