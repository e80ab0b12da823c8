"""Cost of checkpoints and of the search for divergence: ``python benchmarks/checkpoints.py``.

A checkpoint is the whole run file, with its history; by default it is written every 30 s at most. The search looks at two
numbers per update (the loss and the gradient's squared norm, which the kernel computes anyway).
"""

import tempfile
from pathlib import Path

from common import PROBLEMS, seconds

import stablebptt as sb
from stablebptt.tasks import divergence, runs
from stablebptt.tasks.problems import TESTING
from stablebptt.tasks.training import Settings
from stablebptt.tasks.variants import gates

EPOCHS, REPEATS, INTERVAL = 1000, 15, 30.0


def measure(task, folder, **options):
    problem = sb.problem(task, **options)
    run = sb.train(problem, "C", 1, out=folder / f"{task}.h5")
    settings = Settings(epochs=EPOCHS)
    testing = problem.sample(settings.test_count, 0, TESTING)
    row = tuple(run.history[name][0] for name in runs.HISTORY)
    theta = run.theta
    state = settings.optimizer.init(theta)
    progress = runs.Progress(EPOCHS, theta, state, theta, 1.0, 1, tuple(row for _ in range(EPOCHS)))

    def save():
        runs.run_file.save(folder / "long.h5", runs.run_of(problem, settings, progress, testing, "running"), progress)

    checkpoint = seconds(save, REPEATS)
    x0, opened = problem.sample(8), gates("C", problem.steps, problem.dtype)
    result = next(problem.engine.gradients([theta], [x0], opened))
    update = seconds(lambda: next(problem.engine.gradients([theta], [x0], opened)), 200)
    look = seconds(lambda: divergence.check_gradient(problem, result, theta, x0, opened), 2000)
    size = (folder / "long.h5").stat().st_size
    print(
        f"{task:<10} checkpoint {1e3 * checkpoint:6.1f} ms, {size / 1e3:5.0f} kB, "
        f"{100 * checkpoint / INTERVAL:.3f} % of {INTERVAL:.0f} s;  "
        f"looking for divergence {1e6 * look:.2f} us of an update's {1e3 * update:.3f} ms ({100 * look / update:.3f} %)"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for task, options in PROBLEMS.values():
            measure(task, Path(name), **options)
