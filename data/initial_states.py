"""Initial states as published; METHOD, section 3. All are drawn in float64 from one generator."""

import numpy as np


def cartpole(random: np.random.Generator, count: int, poles: int) -> np.ndarray:
    """States (count, 1+P, 2): every entry uniform in [-1, 1], angles uniform in pi +- pi/6 (hanging) [m, m/s, rad, rad/s]."""
    states = random.uniform(-1.0, 1.0, (count, 1 + poles, 2))
    states[:, 1:, 0] = np.pi + states[:, 1:, 0] * (np.pi / 6)
    return states
