"""A curriculum over the horizon: T = 25, 50, 100 in turn, against T = 100 at once, with the same number of time steps.

Two poles on a cart. A short horizon is a part of the long one: the time step stays, so the first runs learn what the first
quarter and half of a second allow.
"""

import stablebptt as sb

STEP, HORIZON = 0.01, 100  # [s], time steps
SIZES = {"clip": "norm", "train_count": 256, "test_count": 256}


def problem(steps):
    return sb.problem("cartpole", poles=2, steps=steps, duration=STEP * steps)


def curriculum(epochs, seed=0, horizons=(25, 50, HORIZON)):
    """A third of the work for each horizon, where `epochs` is that of the longest alone."""
    run = None
    for steps in horizons:
        work = epochs * horizons[-1] // steps // len(horizons)
        run = sb.train(problem(steps), epochs=max(work, 1), seed=seed, start=run, **SIZES)
    return run


def at_once(epochs, seed=0):
    return sb.train(problem(HORIZON), epochs=epochs, seed=seed, **SIZES)


if __name__ == "__main__":
    for seed in range(3):
        losses = [make(60, seed).history["test_loss"] for make in (curriculum, at_once)]
        print(f"seed {seed}: lowest test loss {losses[0].min():.4f} with the curriculum, {losses[1].min():.4f} at once")
