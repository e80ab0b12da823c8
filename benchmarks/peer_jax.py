"""The update in JAX: as one writes it first, and as fast as we could make it. See `peers.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import times

# Forms of the tuned program that are tried, by task; the fastest is measured.
CHOICES = {
    "cartpole": [(True, True), (True, False)],
    "guidance": [(True, False), (False, False)],
    "quantum": [(True, False)],
}


def programs(form: str, case: Any) -> dict[str, Callable[[], Any]]:
    """Functions without arguments for the forward pass (loss), R and C (loss, gradient), of the form "first" or "tuned"."""
    if hasattr(case.system, "solve"):
        case = case._replace(system=case.system._replace(solve=solve))
    given = jax.device_put((case.layers, case.x0))
    if form == "first":
        return {name: ready(function, given) for name, function in first(case).items()}
    tried = [Tuned(case, Choice(*choice)).programs() for choice in CHOICES[case.task]]
    return {name: fastest([ready(functions[name], given) for functions in tried]) for name in tried[0]}


def ready(function: Any, given: Any) -> Callable[[], Any]:
    """A compiled function that returns when all is computed."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*given))


def fastest(functions: list[Any]) -> Any:
    if len(functions) == 1:
        return functions[0]
    for function in functions:
        function()
    rounds = [[min(times(function, 5)) for function in functions] for _ in range(3)]
    return functions[int(np.argmin(np.min(rounds, axis=0)))]


def join(regular: Any, modified: Any) -> Any:
    """C of the gradients R and M."""
    return jax.tree.map(lambda r, m: jnp.where(jnp.sign(r) == jnp.sign(m), m, 0), regular, modified)


def solve(hopping: float, detuning: Any, x: Any) -> Any:
    """The quantum system's solver: LAPACK's for tridiagonal matrices."""
    diagonal = jax.lax.complex(jnp.ones_like(detuning), detuning)
    beside = jnp.full_like(diagonal, -1j * hopping)
    below, above = beside.at[:, 0].set(0), beside.at[:, -1].set(0)
    y = jax.lax.linalg.tridiagonal_solve(below, diagonal, above, jax.lax.complex(x[..., 0], x[..., 1])[..., None])[..., 0]
    return jnp.stack((y.real, y.imag), -1)


# --- as one writes it first -----------------------------------------------------------------------------------------


def policy(case: Any, layers: Any, x: Any) -> Any:
    """Controls (B, *control_shape) of the network."""
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        if w.ndim == 3:
            x = jax.lax.conv_general_dilated(x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        else:
            x = x.reshape(len(x), -1) @ w
        x = jnp.tanh(x + b)
    return (x.reshape(len(x), -1) @ kernel + bias).reshape(len(x), *case.control_shape)


def total(case: Any, layers: Any, x0: Any, stop: bool = False) -> Any:
    """The loss; with `stop` its gradient is M."""

    def advance(x: Any, _: Any) -> Any:
        c = policy(case, layers, jax.lax.stop_gradient(x) if stop else x)
        x = case.system.step(jnp, x, c)
        return x, (case.system.cost(jnp, x).mean() if case.continuous else None, c)

    x, (costs, controls) = jax.lax.scan(advance, x0, length=case.steps)
    physics = costs.sum() if case.continuous else case.system.cost(jnp, x).mean()
    return case.weight * physics + case.rho * (controls**2).mean()


def first(case: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """scan, value_and_grad, stop_gradient, jit."""

    def combined(layers: Any, x0: Any) -> Any:
        loss, regular = jax.value_and_grad(partial(total, case))(layers, x0)
        return loss, join(regular, jax.grad(partial(total, case, stop=True))(layers, x0))

    return {"forward": partial(total, case), "R": jax.value_and_grad(partial(total, case)), "C": combined}


# --- as fast as we could make it ------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """Where one form or another of the tuned program is faster.

    batched : derivatives of the network for all time steps at once, before the adjoints run back
    jacobian : those of the physics, too
    unroll, back : time steps per round of the loops
    """

    batched: bool
    jacobian: bool
    unroll: int = 1
    back: int = 1


def windows(w: Any, x: Any) -> Any:
    """What a layer sees of x (rows, ..): all (rows, n), or three positions at every second one (rows, positions, 3 channels)."""
    if w.ndim == 2:
        return x.reshape(len(x), -1)
    end = x.shape[1] - 2
    return jnp.concatenate([x[:, tap : tap + end : 2] for tap in range(3)], -1)


def network(layers: Any, x: Any) -> tuple[Any, list[Any]]:
    """Controls (rows, n_control) for states (rows, *state_shape), and the inputs of all layers."""
    inputs = [x]
    for w, b in layers:
        x = windows(w, inputs[-1]) @ w.reshape(-1, w.shape[-1]) + b
        inputs.append(jnp.tanh(x))
    return x, inputs[:-1]


def network_vjp(layers: Any, inputs: list[Any], bar: Any) -> tuple[list[Any], Any]:
    """Cotangents of all layers' sums, and of the states, for cotangents (rows, n_control) of the controls."""
    deltas = []
    for (w, _), x in zip(reversed(layers), reversed(inputs)):
        deltas.append(bar)
        [bar] = jax.linear_transpose(partial(windows, w), x)(bar @ w.reshape(-1, w.shape[-1]).T)
        if x is not inputs[0]:
            bar = bar * (1 - x * x)
    return deltas[::-1], bar


def weights_vjp(layers: Any, inputs: list[Any], deltas: list[Any]) -> list[Any]:
    """Cotangents of kernels and biases, summed over the rows."""
    found = []
    for (w, _), x, delta in zip(layers, inputs, deltas):
        delta = delta.reshape(-1, w.shape[-1])
        seen = windows(w, x).reshape(len(delta), -1)
        found.append(((seen.T @ delta).reshape(w.shape), delta.sum(0)))
    return found


def merge(x: Any) -> Any:
    """Rows of time steps and samples."""
    return x.reshape(-1, *x.shape[2:])


class Tuned:
    """One forward pass that stores its activations, and one loop back that carries all adjoints.

    M's adjoint never meets the network, and the weights' gradients are products over all time steps at once.
    """

    def __init__(self, case: Any, choice: Choice) -> None:
        self.case, self.choice = case, choice

    def programs(self) -> dict[str, Callable[[Any, Any], Any]]:
        return {"forward": self.loss, "R": self.regular, "C": self.combined}

    def loss(self, layers: Any, x0: Any) -> Any:
        """Forward without a tape."""
        return self.total(*self.rollout(layers, x0, tape=False)[:2])

    def regular(self, layers: Any, x0: Any) -> Any:
        loss, [found] = self.gradients(layers, x0, 1)
        return loss, found

    def combined(self, layers: Any, x0: Any) -> Any:
        loss, both = self.gradients(layers, x0, 2)
        return loss, join(*both)

    def rollout(self, layers: Any, x0: Any, tape: bool) -> Any:
        """States x_1 .. x_T, controls, and the layers' inputs, all (T, B, ..)."""

        def advance(x: Any, _: Any) -> Any:
            c, inputs = network(layers, x)
            x = self.case.system.step(jnp, x, c.reshape(-1, *self.case.control_shape))
            return x, (x, c, inputs if tape else None)

        return jax.lax.scan(advance, x0, length=self.case.steps, unroll=self.choice.unroll)[1]

    def total(self, states: Any, controls: Any) -> Any:
        case = self.case
        shown = merge(states) if case.continuous else states[-1]
        costs = case.system.cost(jnp, shown).sum() / states.shape[1]
        return case.weight * costs + (case.rho * (controls**2).mean() if case.rho else 0)

    def gradients(self, layers: Any, x0: Any, m: int) -> Any:
        """The loss, and the gradients R (m = 1) or R and M (m = 2)."""
        states, controls, inputs = self.rollout(layers, x0, tape=True)
        loss, bars = jax.value_and_grad(self.total, (0, 1))(states, controls)
        shared = self.choice.batched and controls.shape[-1] == 1
        units, jacobian = self.linearised(layers, inputs) if self.choice.batched else (None, None)
        g, deltas = self.adjoints(layers, inputs, controls, bars, jacobian, m)
        rows = [merge(x) for x in inputs]
        if shared:
            every = [[d.reshape(*d.shape[: d.ndim]) * one(g[:, k], d) for d in units] for k in range(m)]
        else:
            every = [network_vjp(layers, rows, merge(g[:, k]))[0] for k in range(m)]
            if deltas is not None:
                every[0] = [merge(d) for d in deltas]
        return loss, [weights_vjp(layers, rows, d) for d in every]

    def linearised(self, layers: Any, inputs: list[Any]) -> Any:
        """Deltas for a cotangent of 1 of the last control, and derivatives of the controls (T, n_control, B, *state_shape)."""
        rows = [merge(x) for x in inputs]
        steps, batch = inputs[0].shape[:2]
        n_control = self.case.layers[-1][1].size
        found = []
        for k in range(n_control):
            unit = jnp.zeros((steps * batch, n_control)).at[:, k].set(1)
            units, bar = network_vjp(layers, rows, unit)
            found.append(bar.reshape(steps, batch, *bar.shape[1:]))
        return units, jnp.stack(found, 1)

    def adjoints(self, layers: Any, inputs: list[Any], controls: Any, bars: Any, jacobian: Any, m: int) -> Any:
        """Cotangents g (T, m, B, n_control) of the controls, and R's deltas where the network runs back in the loop."""
        case = self.case
        physics = self.physics_jacobians(inputs[0], controls) if self.choice.jacobian else None

        def back(lam: Any, known: Any) -> Any:
            xs, c, state_bar, control_bar, through, matrices = known
            lam = lam + state_bar
            if matrices is None:
                pull = jax.vjp(partial(case.system.step, jnp), xs[0], c.reshape(-1, *case.control_shape))[1]
                lam, g = jax.vmap(pull)(lam)
            else:
                lam, g = (jnp.einsum("mbj,bjk->mbk", lam.reshape(m, len(c), -1), a) for a in matrices)
                lam = lam.reshape(m, *xs[0].shape)
            g = g.reshape(m, *c.shape) + control_bar
            deltas = None
            if through is None:
                deltas, bar = network_vjp(layers, xs, g[0])
            else:
                bar = sum(one(g[0, :, k], through[k]) * through[k] for k in range(c.shape[-1]))
            return lam.at[0].add(bar), (g, deltas)

        xs = (inputs, controls, *bars, jacobian, physics)
        start = jnp.zeros((m, *inputs[0].shape[1:]))
        return jax.lax.scan(back, start, xs, reverse=True, unroll=self.choice.back)[1]

    def physics_jacobians(self, states: Any, controls: Any) -> Any:
        """S_x (T, B, n, n) and S_c (T, B, n, n_control)."""
        n, shape = states[0, 0].size, states.shape[:2]

        def step(x: Any, c: Any) -> Any:
            x, c = x.reshape(1, *states.shape[2:]), c.reshape(1, *self.case.control_shape)
            return self.case.system.step(jnp, x, c).ravel()

        found = jax.vmap(jax.vmap(jax.jacfwd(step, (0, 1))))(states.reshape(*shape, n), controls)
        return found


def one(g: Any, like: Any) -> Any:
    """A number per row (.., rows) as an array (rows, 1, ..) with the axes of another."""
    return g.reshape(len(like), *(1,) * (like.ndim - 1))
