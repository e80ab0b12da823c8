"""Many runs as one resumable job: the plan, the drive, the workers. (The report, in `tasks.reports`, starts without Numba.)"""

from stablebptt.tasks.sweeps.drive import Estimate, SweepProgress, dask_executor, estimate, run_one, sweep
from stablebptt.tasks.sweeps.plans import PAPER, Planned, make_plan, paper_plan, read_plan
from stablebptt.tasks.sweeps.workers import Outcome, cores, outcome_of

__all__ = [
    "PAPER", "Estimate", "Outcome", "Planned", "SweepProgress", "cores", "dask_executor", "estimate", "make_plan",
    "outcome_of", "paper_plan",
    "read_plan", "run_one", "sweep",
]  # fmt: skip
