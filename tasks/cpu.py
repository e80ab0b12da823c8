"""The engine "cpu": the kernels of `kernels` and `adjoint` compute rollouts and gradients, run by run."""

import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from stablebptt.adjoint import linked as backward_linked
from stablebptt.adjoint import rollout as backward
from stablebptt.adjoint.generics import parameter_names
from stablebptt.kernels import linked as forward_linked
from stablebptt.kernels import rollout as forward
from stablebptt.kernels.core import ahead, threads
from stablebptt.kernels.core.structs import Reference
from stablebptt.tasks import joins, plain_python
from stablebptt.tasks.engine import ALONE, Evaluation, Gradient, Keys, Loss
from stablebptt.tasks.problems import EVALUATION_BATCH, Problem
from stablebptt.tasks.variants import Gates

# Work spaces are stored for at most this many batch sizes, so unusual sizes do not pile up.
MOST_WORKS = 5
# A thread is worth its trouble for so many multiply-adds (about 10 us). A time step costs about as much as `OVERHEAD` of them.
PART_WORK, OVERHEAD = 250_000, 100


class _Works(threading.local):
    """Work spaces by sizes, per thread of the caller: threads may share a problem."""

    def __init__(self) -> None:
        self.rollouts: dict[tuple[int, ...], Reference] = {}
        self.gradients: dict[tuple[int, ...], Reference] = {}


class _Linked(NamedTuple):
    """An episode whose system, loss and observation were compiled apart, and their types then."""

    kinds: tuple[Any, ...]
    episode: Reference


class Engine:
    """Computes a problem's rollouts and gradients on the CPU; see `engine.Engine`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.episode = problem.episode()
        self._structs = {name: Reference(getattr(self.episode, name)) for name in forward_linked.LINKED}
        self._parameter_names = parameter_names(problem.system)
        self._linked: dict[bool, _Linked] = {}
        self._works = _Works()
        self._work = problem.steps * (problem.n_parameters + OVERHEAD)  # multiply-adds per sample

    @functools.cached_property
    def _layers(self) -> np.ndarray:
        """Bounds (layers + 1,) of the arrays of parameters."""
        return joins.layers_of(self.problem)

    def prepare(self, x0: np.ndarray) -> None:
        """Compile rollouts and gradients; see `engine.Engine`."""
        with plain_python.explained(self.problem, x0[0].ravel()):
            self._episode(adjoint=True)

    def evaluate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], *, keys: Keys = None, paths: bool = False, queue: int = ALONE
    ) -> Iterator[Evaluation]:
        """Roll out S controllers, each from its own states (B, *state_shape); see `engine.Engine`."""
        compute = self._path if paths else self._losses
        return (compute(theta, x0, own) for theta, x0, own in zip(thetas, x0s, _keys(keys, x0s)))

    def gradients(
        self,
        thetas: list[np.ndarray],
        x0s: list[np.ndarray],
        gates: Gates,
        *,
        keys: Keys = None,
        parts: bool = False,
        queue: int = ALONE,
    ) -> Iterator[Gradient]:
        """Gradients (n_parameters,) of S controllers, each for its own states (B, *state_shape); see `engine.Engine`."""
        # Compute the type now: in a kernel's call, Numba would mistake an interrupt for a missing type.
        gates.packed._numba_type_  # noqa: B018
        return (self._gradient(theta, x0, own, gates, parts) for theta, x0, own in zip(thetas, x0s, _keys(keys, x0s)))

    def lend(self, other: "Engine") -> None:
        """Let the engine of a problem of the same sizes use the work spaces of this one."""
        other._works = self._works

    def _path(self, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> Evaluation:
        problem, batch, work = self.problem, len(x0), self._rolled_out(theta, x0, keys)
        paths = [arena.path for arena in work.arenas]
        states = np.concatenate([path.states.swapaxes(0, 1) for path in paths]).reshape(batch, -1, *problem.state_shape)
        controls = np.concatenate([path.controls.swapaxes(0, 1) for path in paths]).reshape(batch, -1, *problem.control_shape)
        return Evaluation(work.physics.copy(), work.effort.copy(), states, controls)

    def _losses(self, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> Evaluation:
        physics, effort = np.empty(len(x0)), np.empty(len(x0))
        for first in range(0, len(x0), EVALUATION_BATCH):
            part = slice(first, min(first + EVALUATION_BATCH, len(x0)))
            work = self._rolled_out(theta, x0[part], keys[part])
            physics[part], effort[part] = work.physics, work.effort
        return Evaluation(physics, effort)

    def _rolled_out(self, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray) -> forward.Work:
        batch, parts = len(x0), self._parts(len(x0))
        new = functools.partial(forward.new_work, self.episode, batch, self.problem.dtype, parts=parts)
        work = _kept(self._works.rollouts, (batch, parts), new)
        work.struct.keys[:] = keys
        self._call(work, forward.evaluate, theta, x0.reshape(batch, self.problem.n_state))
        found: forward.Work = work.struct
        last = np.concatenate([arena.path.states[-1] for arena in found.arenas])
        found.physics[~np.isfinite(last).all(axis=1)] = np.nan  # a loss may ignore some numbers
        return found

    def _gradient(self, theta: np.ndarray, x0: np.ndarray, keys: np.ndarray, gates: Gates, parts: bool) -> Gradient:
        kept = self._gradient_work(len(x0), len(gates.physics))
        work = kept.struct
        work.keys[:] = keys
        x = x0.reshape(work.x0_bar.shape)
        found = backward.Results(*self._call(kept, backward.gradient, theta, x, gates.packed))
        total, physics = self.problem.total(found.physics, found.effort)
        loss = Loss(total, physics) if found.finite else Loss(math.nan, math.nan)  # a loss may ignore some numbers
        rest = self._rest(work, x0.shape) if parts else {}
        if gates.join is None:
            return Gradient(work.gradients[0], loss, found.regular2, **rest)
        if not gates.is_combined:
            regular, modified = work.gradients
            joined = joins.join(gates.join, regular, modified, self._layers, work.joined)
            return Gradient(work.joined, loss, joined.norm2, regular, modified, joined.cosine, **rest)
        norms = math.sqrt(found.regular2) * math.sqrt(found.modified2)
        cosine = found.product / norms if norms > 0 else math.nan
        return Gradient(work.joined, loss, found.joined2, work.gradients[0], work.gradients[1], cosine, **rest)

    def _gradient_work(self, batch: int, adjoints: int) -> Reference:
        """The work space for a gradient of so many samples and adjoints."""
        problem, parts = self.problem, self._parts(batch)
        sizes = {"tape_bytes": problem.tape_bytes, "parts": parts}
        new = functools.partial(backward.new_work, self.episode, batch, adjoints, problem.dtype, **sizes)
        return _kept(self._works.gradients, (batch, adjoints, parts), new)

    def _rest(self, work: backward.Work, shape: tuple[int, ...]) -> dict[str, Any]:
        """What a gradient of states of this shape tells beside R and M."""
        last = np.concatenate([arena.forward.path.states[-1] for arena in work.arenas])
        parameters = self._parameters(work) if self._parameter_names else {}
        return {"x0": work.x0_bar.reshape(shape), "parameters": parameters, "last": last.reshape(shape)}

    def _parameters(self, work: backward.Work) -> dict[str, float]:
        """Derivatives by the system's parameters, of the first adjoint: sums over samples, in their order."""
        parts = np.concatenate([arena.bars.parameters[:, 0] for arena in work.arenas]).astype(np.float64)
        return dict(zip(self._parameter_names, parts.cumsum(axis=0)[-1].tolist()))

    def _episode(self, *, adjoint: bool) -> Reference:
        """The episode, with parts compiled apart, also for gradients (`adjoint`); anew if somebody changed their methods."""
        kinds = tuple(part._numba_type_ for part in self._structs.values())
        known = self._linked.get(adjoint)
        if known is None or known.kinds != kinds:
            entries = self._compile_ahead(adjoint)
            known = self._linked[adjoint] = _Linked(kinds, forward_linked.linked(self.episode, self._structs, entries))
        return known.episode

    def _compile_ahead(self, adjoint: bool) -> forward_linked.Entries:
        """Compile what rollouts, and gradients, need, on all cores; returns what the parts of the episode need."""
        dtype, both = self.problem.dtype, [backward_linked, forward_linked] if adjoint else [forward_linked]
        found = [linked.entries(self._structs, dtype) for linked in both]
        entries = {name: {key: entry for each in found for key, entry in each.get(name, {}).items()} for name in self._structs}
        blank = forward_linked.linked(self.episode, self._structs, entries, find=lambda *_: 0)
        points = [linked.entry_point(self.episode, blank, dtype) for linked in both]
        ahead.compile_ahead([points, *(list(part.values()) for each in found for part in each.values())])
        return entries

    def _parts(self, batch: int) -> int:
        """Parts of the work on a batch: one per thread, none too small to be worth it."""
        return max(1, min(threads.available(), batch, batch * self._work // PART_WORK))

    def _call(self, work: Reference, kernel: Any, theta: np.ndarray, x0: np.ndarray, *more: Any) -> Any:
        """Call an entry point; what is wrong with a user's function is told in the user's terms."""
        with plain_python.explained(self.problem, x0[0]):
            episode = self._episode(adjoint=kernel is backward.gradient)
            return threads.call(len(work.struct.bounds) - 1, kernel, episode, theta, x0, *more, work)


def _keys(keys: Keys, x0s: list[np.ndarray]) -> list[np.ndarray]:
    """What is random for each sample; by default its number."""
    return [np.arange(len(x0)) for x0 in x0s] if keys is None else keys


def _kept(known: dict[tuple[int, ...], Reference], sizes: tuple[int, ...], new: Callable[[], Any]) -> Reference:
    """The work space of these sizes, made if there is none."""
    if sizes not in known:
        if len(known) >= MOST_WORKS:
            known.clear()
        known[sizes] = Reference(new())
    return known[sizes]
