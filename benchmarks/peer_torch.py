"""The update in PyTorch: eager as one writes it first, and compiled. See `peers.py`."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import peer_physics
import torch

# Compiled parts hold this many time steps: more cost minutes of compiling, fewer cost calls (about 100 us each).
UNROLL = {"cartpole": 10, "guidance": 6, "quantum": 1}
# From so many samples on, cyclic reduction is faster than LAPACK on dense matrices (PyTorch has no tridiagonal solver).
LARGE = 32


def programs(form: str, case: Any) -> dict[str, Callable[[], Any]]:
    """Functions without arguments for the forward pass (loss), R and C (loss, gradient), of the form "eager" or "compiled"."""
    system = case.system
    if hasattr(system, "solve"):
        system = system._replace(tilts=torch.tensor(system.tilts), target=torch.tensor(system.target), solve=solve)
    case = case._replace(system=system)
    torch.compiler.reset()
    torch.compiler.set_stance("default")
    layers = [tuple(torch.tensor(part).requires_grad_(form == "eager") for part in layer) for layer in case.layers]
    made = Eager(case) if form == "eager" else Compiled(case, UNROLL[case.task])
    jobs = {name: partial(function, layers, torch.tensor(case.x0)) for name, function in made.programs().items()}
    if form == "compiled":
        for job in (*jobs.values(), *jobs.values()):
            job()
        torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)  # shapes stay what they are
    return jobs


@cache
def neighbours(n: int) -> Any:
    """A matrix (n, n) with ones beside the diagonal."""
    ones = torch.ones(n - 1)
    return (torch.diag(ones, 1) + torch.diag(ones, -1)).to(torch.complex64)


def solve(hopping: float, detuning: Any, x: Any) -> Any:
    """The quantum system's solver."""
    if len(x) >= LARGE:
        return torch.stack(peer_physics.cyclic_reduction(torch, hopping, detuning, x[..., 0], x[..., 1]), -1)
    matrix = torch.diag_embed(torch.complex(torch.ones_like(detuning), detuning)) - 1j * hopping * neighbours(detuning.shape[-1])
    return torch.view_as_real(torch.linalg.solve(matrix, torch.view_as_complex(x.contiguous())))


def join(regular: Any, modified: Any) -> Any:
    """C of the gradients R and M."""
    return [torch.where(torch.sign(r) == torch.sign(m), m, 0) for r, m in zip(regular, modified)]


def windows(w: Any, x: Any) -> Any:
    """What a layer sees of x (B, ..): all (B, n), or three positions at every second one (B, positions, 3 channels)."""
    if w.ndim == 2:
        return x.reshape(len(x), -1)
    end = x.shape[1] - 2
    return torch.cat([x[:, tap : tap + end : 2] for tap in range(3)], -1)


def network(layers: Any, x: Any) -> Any:
    """Controls (B, n_control) for states (B, *state_shape), and the inputs of all layers."""
    inputs = [x]
    for w, b in layers:
        seen = windows(w, inputs[-1])
        x = torch.addmm(b, seen.flatten(0, -2), w.flatten(0, -2)).view(*seen.shape[:-1], -1)
        inputs.append(torch.tanh(x))
    return x, inputs[:-1]


class Gate(torch.autograd.Function):
    """The network's input. It lets a cotangent pass while `open` is set."""

    open = True

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, bar: Any) -> Any:
        return bar if Gate.open else None


class Eager:
    """A loop and autograd; R and M run back through one graph, with a gate at the network's input."""

    def __init__(self, case: Any) -> None:
        self.case = case

    def programs(self) -> dict[str, Callable[[Any, Any], Any]]:
        return {"forward": torch.no_grad()(self.total), "R": self.regular, "C": self.combined}

    def total(self, layers: Any, x: Any) -> Any:
        case, costs, controls = self.case, [], []
        for _ in range(case.steps):
            c = network(layers, Gate.apply(x))[0]
            x = case.system.step(torch, x, c.view(-1, *case.control_shape))
            controls.append(c)
            if case.continuous:
                costs.append(x)
        shown = torch.cat(costs) if case.continuous else x
        physics = case.weight * case.system.cost(torch, shown).sum() / len(x)
        return physics + case.rho * (torch.stack(controls) ** 2).mean() if case.rho else physics

    def regular(self, layers: Any, x: Any) -> Any:
        loss = self.total(layers, x)
        return loss.detach(), torch.autograd.grad(loss, flat(layers))

    def combined(self, layers: Any, x: Any) -> Any:
        loss, every = self.total(layers, x), flat(layers)
        regular = torch.autograd.grad(loss, every, retain_graph=True)
        Gate.open = False
        try:
            return loss.detach(), join(regular, torch.autograd.grad(loss, every))
        finally:
            Gate.open = True


def flat(layers: Any) -> list[Any]:
    return [part for layer in layers for part in layer]


def network_vjp(layers: Any, inputs: Any, bar: Any) -> Any:
    """Cotangents (rows, ..) of all layers' sums, and of the states, for cotangents of the controls."""
    deltas = []
    for (w, _), x in zip(reversed(layers), reversed(inputs)):
        deltas.append(bar)
        seen_bar = (bar.flatten(0, -2) @ w.flatten(0, -2).T).view(*bar.shape[:-1], -1)
        bar = windows_vjp(w, x, seen_bar)
        if x is not inputs[0]:
            bar = bar * (1 - x * x)
    return deltas[::-1], bar


def windows_vjp(w: Any, x: Any, bar: Any) -> Any:
    """Cotangent of x for one of ``windows(w, x)``."""
    if w.ndim == 2:
        return bar.view(x.shape)
    channels, end = x.shape[-1], x.shape[1] - 2
    even, odd, last = bar.split(channels, -1)
    rows = torch.zeros_like(x)
    rows[:, 0:end:2] = even
    rows[:, 1 : 1 + end : 2] = odd
    rows[:, 2 : 2 + end : 2] += last
    return rows


def weights_vjp(layers: Any, inputs: Any, deltas: Any) -> list[Any]:
    """Cotangents of kernels and biases, summed over the rows."""
    found = []
    for (w, _), x, delta in zip(layers, inputs, deltas):
        delta = delta.reshape(-1, w.shape[-1])
        found += [(windows(w, x).reshape(len(delta), -1).T @ delta).view(w.shape), delta.sum(0)]
    return found


compiled = partial(torch.compile, fullgraph=True, dynamic=False)


class Compiled:
    """`torch.compile` of parts of the loops forward and back; products over all time steps between them.

    One forward pass stores its activations. The network is linearised for all time steps at once; the loop back holds the physics
    and carries R and M together.
    """

    def __init__(self, case: Any, unroll: int) -> None:
        self.case, self.unroll = case, unroll
        self.ahead, self.back = compiled(self._ahead), compiled(self._back)
        self.linearised, self.gradients = compiled(self._linearised), compiled(self._gradients)
        self.final = compiled(self._final)

    def programs(self) -> dict[str, Callable[[Any, Any], Any]]:
        without = torch.no_grad()
        return {"forward": without(self.loss), "R": without(self.regular), "C": without(self.combined)}

    def loss(self, layers: Any, x0: Any) -> Any:
        return self.final(*self.rollout(layers, x0)[1:3])[0]

    def regular(self, layers: Any, x0: Any) -> Any:
        loss, [found] = self.update(layers, x0, 1)
        return loss, found

    def combined(self, layers: Any, x0: Any) -> Any:
        loss, both = self.update(layers, x0, 2)
        return loss, join(*both)

    def rollout(self, layers: Any, x: Any) -> Any:
        """States x_0 .. x_{T-1}, states x_1 .. x_T, controls (T, B, ..), and the layers' inputs in rows."""
        parts = []
        for _ in range(0, self.case.steps, self.unroll):
            x, part = self.ahead(layers, x)
            parts.append(part)
        states, controls, *hidden = (torch.cat(part) for part in zip(*parts))
        return states, torch.cat((states[1:], x[None])), controls, [states.flatten(0, 1), *(h.flatten(0, 1) for h in hidden)]

    def _ahead(self, layers: Any, x: Any) -> Any:
        tape = []
        for _ in range(self.unroll):
            c, inputs = network(layers, x)
            tape.append((x, c, *inputs[1:]))
            x = self.case.system.step(torch, x, c.view(-1, *self.case.control_shape))
        return x, [torch.stack(part) for part in zip(*tape)]

    def _final(self, states: Any, controls: Any) -> Any:
        """The loss, and its cotangents of x_1 .. x_T and of the controls."""
        case, batch = self.case, states.shape[1]
        shown = states.flatten(0, 1) if case.continuous else states[-1]
        costs, pull = torch.func.vjp(partial(case.system.cost, torch), shown)
        [bar] = pull(torch.full_like(costs, case.weight / batch))
        bar = bar.view(-1, *states.shape[1:])
        if not case.continuous:
            bar = torch.cat((torch.zeros_like(states[1:]), bar))
        loss = case.weight * costs.sum() / batch + case.rho * (controls**2).mean()
        return loss, bar, 2 * case.rho / controls.numel() * controls

    def _linearised(self, layers: Any, inputs: Any) -> Any:
        """Deltas, and derivatives of the controls (n_control, rows, *state_shape), for a cotangent of 1 of every control."""
        n = layers[-1][1].shape[0]
        units = torch.eye(n).repeat_interleave(len(inputs[0]), 0)
        deltas, bar = network_vjp(layers, [x.repeat(n, *(1,) * (x.ndim - 1)) for x in inputs], units)
        return deltas, bar.view(n, -1, *bar.shape[1:])

    def _back(self, lam: Any, known: Any) -> Any:
        """Adjoints (m, B, ..) one part of the way back, and cotangents (m, B, n_control) of the controls."""
        found, m = [], len(lam)
        for x, c, state_bar, control_bar, through in zip(*(reversed(part.unbind()) for part in known)):
            both = twice(x, m), twice(c.view(-1, *self.case.control_shape), m)
            pull = torch.func.vjp(partial(self.case.system.step, torch), *both)[1]
            lam, g = (bar.view(m, len(x), *bar.shape[1:]) for bar in pull((lam + state_bar).flatten(0, 1)))
            g = g.reshape(m, *c.shape) + control_bar
            found.append(g)
            network = sum(column(g[0, :, k], part) * part for k, part in enumerate(through))
            lam = torch.cat((lam[:1] + network, lam[1:]))
        return lam, torch.stack(found[::-1])

    def _gradients(self, layers: Any, inputs: Any, g: Any, units: Any) -> Any:
        """Gradients for cotangents g (T, m, B, n_control)."""
        every = []
        for bar in g.unbind(1):
            rows = bar.flatten(0, 1)
            one = rows.shape[1] == 1
            deltas = [column(rows[:, 0], d) * d for d in units] if one else network_vjp(layers, inputs, rows)[0]
            every.append(weights_vjp(layers, inputs, deltas))
        return every

    def update(self, layers: Any, x0: Any, m: int) -> Any:
        before, after, controls, inputs = self.rollout(layers, x0)
        loss, state_bar, control_bar = self.final(after, controls)
        units, through = self.linearised(layers, inputs)
        through = through.view(len(through), *before.shape).transpose(0, 1)
        lam, parts = torch.zeros((m, *x0.shape)), []
        for first in reversed(range(0, self.case.steps, self.unroll)):
            part = slice(first, first + self.unroll)
            known = [values[part] for values in (before, controls, state_bar, control_bar, through)]
            lam, g = self.back(lam, known)
            parts.append(g)
        return loss, self.gradients(layers, inputs, torch.cat(parts[::-1]), units)


def twice(x: Any, m: int) -> Any:
    """m copies of the samples."""
    return x.repeat(m, *(1,) * (x.ndim - 1))


def column(g: Any, like: Any) -> Any:
    """A number per row as an array with the axes of another."""
    return g.view(-1, *(1,) * (like.ndim - 1))
