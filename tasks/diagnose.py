"""What R and M are like at one controller: their adjoints over time, exponents, agreement; docs/diagnosis.md.

An adjoint at time step t is the derivative of the loss by x_t. It is found as that of a rollout that begins there, so every
system, controller, loss and observation has it without further code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stablebptt.data import run_file, storage
from stablebptt.data.storage import Variable
from stablebptt.kernels.later import Along
from stablebptt.tasks import arguments, bars, variants, windows
from stablebptt.tasks.engine import Gradient
from stablebptt.tasks.pictures import curves, diagnosis
from stablebptt.tasks.problems import STATES, Problem, stream

MOST_TIMES = 128  # time steps whose adjoints are computed
MOST_DIRECTIONS = 64  # of states; beyond, random ones give a lower bound of the growth
# From this cosine on, R and M are called alike; before the first update of the published set-ups it is 1.
ALIKE = 0.95
# R's adjoint over M's, in a tenth of the rollouts, from which R is said to be blown up; and the median below which it is damped.
# docs/diagnosis.md: the first where C won, the second where R did.
EXPLODES, DAMPS = 20.0, 0.95
FORMATS = (".h5", ".png", ".pdf", ".svg")


class Agreement(NamedTuple):
    """How R and M agree in some parameters.

    cosine : of the angle between them; NaN if one of them is zero
    same_sign : share of equal signs, among the parameters where both are not zero
    zeroed : share of zeros of C, among those where M is not zero
    """

    cosine: float
    same_sign: float
    zeroed: float


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What `Problem.diagnose` found; docs/diagnosis.md explains how to read it.

    Attributes
    ----------
    title : of the problem
    time (n,) [s] : of the adjoints
    regular, modified (n, B) : norms of the derivatives of each sample's loss by its state, along all paths (R), and with the
        path through the network's input cut (M)
    closed_loop, physics (B,) : largest finite-time Lyapunov exponents [1/s], of system and controller together, and of the
        system alone under the same controls
    layers : `Agreement` by name of the parameters
    whole : `Agreement` of all parameters
    loss : mean loss
    """

    title: str
    time: np.ndarray
    regular: np.ndarray
    modified: np.ndarray
    closed_loop: np.ndarray
    physics: np.ndarray
    layers: dict[str, Agreement]
    whole: Agreement
    loss: float

    @property
    def growth(self) -> tuple[float, float]:
        """How much the adjoints of R and of M grow from the last time step back to the first; medians of the samples."""
        regular, modified = (_quantile(_ratio(norms[0], norms[-1]), 0.5) for norms in (self.regular, self.modified))
        return regular, modified

    @property
    def excess(self) -> tuple[float, float]:
        """R's adjoint of the first state relative to M's: median of the samples, and what a tenth of them exceed."""
        ratios = _ratio(self.regular[0], self.modified[0])
        return _quantile(ratios, 0.5), _quantile(ratios, 0.9)

    @property
    def advice(self) -> str:
        """What the numbers say, in a sentence, and how far."""
        (regular, modified), (middle, tenth), cosine = self.growth, self.excess, self.whole.cosine
        seen = f"back in time R's adjoint grows {_times(regular)} and M's {_times(modified)}; at t = {self.time[0]:g} s R's is "
        seen += f"{_times(middle)} M's, and above {_times(tenth)} in a tenth of the rollouts; their gradients have the cosine "
        return f"{seen}{cosine:.2f}: {_advice(middle, tenth, cosine)}"

    def table(self) -> list[dict[str, Any]]:
        """A row for every layer, and one for all parameters."""
        return [{"layer": name, **row._asdict()} for name, row in (*self.layers.items(), ("all", self.whole))]

    def numbers(self) -> dict[str, float]:
        """Medians of the samples, and the mean loss."""
        (regular, modified), (middle, tenth) = self.growth, self.excess
        return {
            "loss": self.loss,
            "growth_regular": regular,
            "growth_modified": modified,
            "regular_to_modified": middle,
            "regular_to_modified_tenth": tenth,
            "lyapunov_closed_loop": _quantile(self.closed_loop, 0.5),
            "lyapunov_physics": _quantile(self.physics, 0.5),
        }

    def plot(self) -> Any:
        """A matplotlib figure."""
        return diagnosis.draw(self)

    def save(self, path: str | Path) -> None:
        """Write a picture (.png, .pdf, .svg), or the numbers (.h5)."""
        save(self, Path(path))

    def __repr__(self) -> str:
        return f"Diagnosis of {self.title}: {self.advice}"


def diagnose(problem: Any, theta: np.ndarray, x0: np.ndarray, *, seed: int = 0, threads: int | None = None) -> Diagnosis:
    """See `Problem.diagnose`; theta (n_parameters,), x0 (B, *state_shape)."""
    problem = replace(problem, backend="cpu")
    gradient, path = problem.gradient(theta, x0, "C", seed=seed, threads=threads), problem.rollout(theta, x0, seed=seed)
    keys = problem.keys(len(x0), seed)
    with arguments.threads(threads), bars.in_session_compiling():
        times = np.unique(np.linspace(0, problem.steps - 1, min(problem.steps, MOST_TIMES)).round().astype(int))
        states = np.asarray(path.states, problem.dtype)
        found = [_adjoints(_tail(problem, int(t)), theta, np.ascontiguousarray(states[:, t]), keys) for t in times]
        regular, modified = (np.array([norms[v] for norms in found]) for v in (0, 1))
        closed_loop, physics = _exponents(problem, theta, x0, keys, seed)
    assert gradient.regular is not None and gradient.modified is not None
    parts = gradient.regular, gradient.modified, gradient.value
    layers = zip(*(problem.layers(part).items() for part in parts))
    return Diagnosis(
        title=problem.title,
        time=problem.time[times],
        regular=regular,
        modified=modified,
        closed_loop=closed_loop,
        physics=physics,
        layers={r[0]: _agreement(r[1], m[1], c[1]) for r, m, c in layers},
        whole=_agreement(*parts),
        loss=gradient.loss.total,
    )


def _tail(problem: Problem, first: int) -> Problem:
    """The rest of a problem from a time step on, with its share of the loss."""
    share = (problem.steps - first) / problem.steps
    tail = windows.part(problem, first, problem.steps)
    return replace(tail, time_weights=problem.time_weights[first:], regularization=problem.regularization * share)


def _cotangents(problem: Problem, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> Iterator[np.ndarray]:
    """Derivatives (B, n_state) of every sample's loss by its first state, in R and in M."""
    for variant in "RM":
        gates = variants.gates(variant, problem.steps, problem.dtype)
        found: Gradient = next(problem.engine.gradients([theta], [x0], gates, keys=[keys], parts=True))
        assert found.x0 is not None
        yield len(x0) * found.x0.reshape(len(x0), problem.n_state).astype(np.float64)


def _adjoints(problem: Problem, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Norms (B,) of the adjoints of the first state, in R and in M."""
    return [np.linalg.norm(bars, axis=1) for bars in _cotangents(problem, theta, x0, keys)]


def _exponents(problem: Problem, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest finite-time Lyapunov exponents (B,) of the closed loop and of the physics, from rows of dx_T / dx_0."""
    n, last = problem.n_state, np.zeros(problem.steps + 1)
    last[-1] = 1.0
    directions = np.eye(n)
    if n > MOST_DIRECTIONS:
        directions = np.linalg.qr(stream(seed, STATES).standard_normal((n, MOST_DIRECTIONS)))[0].T
    rows = []
    for direction in directions.astype(problem.dtype):
        component = replace(problem, loss_function=Along(direction), time_weights=last, regularization=0.0)
        rows.append(list(_cotangents(component, theta, x0, keys)))
    closed_loop, physics = (_exponent(np.stack(parts, axis=1), problem.steps * problem.dt) for parts in zip(*rows))
    return closed_loop, physics


def _exponent(jacobians: np.ndarray, duration: float) -> np.ndarray:
    """Logarithms (B,) of the largest singular values of jacobians (B, rows, n_state), per time; NaN where one is not finite."""
    finite = np.isfinite(jacobians).all(axis=(1, 2))
    stretch = np.linalg.norm(np.where(finite[:, None, None], jacobians, 0.0), 2, axis=(1, 2))
    with np.errstate(divide="ignore"):
        return np.where(finite, np.log(stretch) / duration, np.nan)


def _agreement(regular: Any, modified: Any, combined: Any) -> Agreement:
    r, m, c = (np.ravel(part).astype(np.float64) for part in (regular, modified, combined))
    both, counts = (r != 0) & (m != 0), m != 0
    norms = np.linalg.norm(r) * np.linalg.norm(m)
    return Agreement(
        cosine=float(r @ m / norms) if norms > 0 else math.nan,
        same_sign=float(np.mean(np.sign(r[both]) == np.sign(m[both]))) if both.any() else math.nan,
        zeroed=float(np.mean(c[counts] == 0)) if counts.any() else math.nan,
    )


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return one / other


def _quantile(values: np.ndarray, share: float) -> float:
    """A quantile of the samples that have a finite value; NaN if none has."""
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if known.size else math.nan


def _advice(middle: float, tenth: float, cosine: float) -> str:
    """As much advice as these numbers support."""
    if not math.isfinite(cosine):
        return "one of them is zero, so there is nothing to compare: diagnose a controller that was trained for some epochs"
    if tenth >= EXPLODES:
        return "the path through the network blows R up, at least in some rollouts, and C is made for that: try C"
    if cosine >= ALIKE:
        return "here they are nearly the same, and so are the variants: diagnose again after some epochs"
    if middle <= DAMPS:
        return "the controller damps what the physics amplifies, R counts on it, M does not: R won in five of six such systems"
    return "they differ, and these numbers do not tell which is better: try R and C with a few seeds"


def save(found: Diagnosis, path: Path) -> None:
    """Write a picture, or the numbers."""
    arguments.choice("format", path.suffix.lower(), FORMATS)
    if path.suffix.lower() != ".h5":
        curves.save(found.plot, path)
        return
    norms = "norm of the derivative of a sample's loss by its state, "
    group: storage.Group = {
        "time": Variable(found.time, ("time",), "s", "time of the adjoints"),
        "regular": Variable(found.regular, ("time", "sample"), "1", f"{norms}along all paths (R)"),
        "modified": Variable(found.modified, ("time", "sample"), "1", f"{norms}without the path through the network's input (M)"),
        "closed_loop": Variable(found.closed_loop, ("sample",), "s-1", "largest Lyapunov exponent of system and controller"),
        "physics": Variable(found.physics, ("sample",), "s-1", "largest Lyapunov exponent of the system under the same controls"),
    }
    rows, meanings = found.table(), ("cosine of R and M", "share of equal signs", "share that C sets to zero")
    names = run_file.flags([row["layer"] for row in rows])
    layers: storage.Group = {"layer": Variable(np.arange(len(rows)), ("layer",), "1", "parameters", names)}
    for name, meaning in zip(Agreement._fields, meanings):
        layers[name] = Variable(np.array([row[name] for row in rows]), ("layer",), "1", meaning)
    attributes = run_file.table_attributes(f"{found.title}: {found.advice}")
    storage.write(path, storage.encode(attributes, {"samples": group, "layers": layers}))


def _times(factor: float) -> str:
    return f"{factor:.0f} times" if 100 <= factor < 10_000 else f"{factor:.2g} times"
