"""Initial states as published (docs/cartpole.md, guidance.md, quantum.md), all drawn in float64 from one generator."""

import numpy as np


def cartpole(random: np.random.Generator, count: int, poles: int) -> np.ndarray:
    """States (count, 1+P, 2): every entry uniform in [-1, 1], angles uniform in pi +- pi/6 (hanging) [m, m/s, rad, rad/s]."""
    states = random.uniform(-1.0, 1.0, (count, 1 + poles, 2))
    states[:, 1:, 0] = np.pi + states[:, 1:, 0] * (np.pi / 6)
    return states


def guidance(random: np.random.Generator, count: int, drivers: int, evaders: int) -> np.ndarray:
    """States (count, D+E, 2, 2) at rest: drivers on the annulus 3 <= r <= 4 (radius and angle uniform); evaders around a
    common centre on the annulus 1 <= r <= 2, each offset uniformly by up to 0.5 in both directions."""
    states = np.zeros((count, drivers + evaders, 2, 2))
    states[:, :drivers, 0] = _on_annulus(random, (count, drivers), 3.0, 4.0)
    centre = _on_annulus(random, (count, 1), 1.0, 2.0)
    states[:, drivers:, 0] = centre + random.uniform(-0.5, 0.5, (count, evaders, 2))
    return states


def _on_annulus(random: np.random.Generator, shape: tuple[int, ...], inner: float, outer: float) -> np.ndarray:
    radius, angle = random.uniform(inner, outer, shape), random.uniform(0, 2 * np.pi, shape)
    return radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def quantum(random: np.random.Generator, count: int, basis: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """States (count, Nx, 2): superpositions of two eigenstates, `basis` (2, Nx), with normal magnitudes times a weight each and
    uniform phases, normalised."""
    magnitudes = random.standard_normal((count, 2)) * weights
    phases = random.uniform(0, 2 * np.pi, (count, 2))
    psi = (magnitudes * np.exp(1j * phases)) @ basis
    psi /= np.linalg.norm(psi, axis=1, keepdims=True)
    return np.stack([psi.real, psi.imag], axis=-1)
