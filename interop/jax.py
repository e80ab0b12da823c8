"""Controllers that live in JAX, trained through our simulators with a gradient variant of choice.

`as_step` is one simulator step as a differentiable JAX function, with our hand-written vjp behind it; `rollout_loss` is a whole
rollout's loss whose gradient is R, M, S, N, C or a pair of gate schedules. M stops the gradient at the input of the JAX network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablebptt.interop import arrays
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import gates

Policy = Callable[[Any, Any], Any]


def as_step(problem: Problem) -> Callable[[Any, Any], Any]:
    """The function (x (B, *state_shape), c (B, *control_shape)) -> next states, differentiable in both.

    Raises
    ------
    ValueError
        If the problem is in float64 and JAX is not (set ``jax_enable_x64``).
    """
    _precision(problem)

    def call(x: Any, c: Any) -> Any:
        result = jax.ShapeDtypeStruct(x.shape, problem.dtype)
        return jax.pure_callback(_host(lambda *v: arrays.step(problem, *v)), result, x, c, vmap_method="sequential")

    step = jax.custom_vjp(call)

    def forward(x: Any, c: Any) -> Any:
        return call(x, c), (x, c)

    def backward(kept: Any, lam: Any) -> Any:
        shapes = tuple(jax.ShapeDtypeStruct(value.shape, problem.dtype) for value in kept)
        return jax.pure_callback(_host(lambda *v: arrays.step_vjp(problem, *v)), shapes, *kept, lam, vmap_method="sequential")

    step.defvjp(forward, backward)
    return step


def as_cost(problem: Problem) -> Callable[[Any], Any]:
    """The function x (B, *state_shape) -> costs (B,), differentiable."""
    _precision(problem)

    def call(x: Any) -> Any:
        result = jax.ShapeDtypeStruct(x.shape[:1], problem.dtype)
        return jax.pure_callback(_host(lambda v: arrays.cost(problem, v)), result, x, vmap_method="sequential")

    cost = jax.custom_vjp(call)

    def backward(x: Any, bars: Any) -> Any:
        result = jax.ShapeDtypeStruct(x.shape, problem.dtype)
        call = _host(lambda *v: arrays.cost_vjp(problem, *v))
        return (jax.pure_callback(call, result, x, bars, vmap_method="sequential"),)

    cost.defvjp(lambda x: (call(x), x), backward)
    return cost


def rollout_loss(problem: Problem, policy: Policy, params: Any, x0: Any, variant: Any = "C") -> Any:
    """Mean loss of a rollout of a JAX controller; its gradient in `params` is that of the variant.

    Parameters
    ----------
    policy : (params, states (B, *state_shape)) -> controls (B, *control_shape)
    params : any tree of arrays
    x0 : (B, *state_shape)
    variant : "R", "M", "S", "N", "C" or a pair of gate schedules (a, b)
    """
    opened = gates(variant, problem.steps)
    pairs = [(jnp.asarray(a, problem.dtype), jnp.asarray(b, problem.dtype)) for a, b in zip(opened.physics, opened.network)]
    if not opened.joined:
        return _gated(problem, policy, params, x0, *pairs[0])

    @jax.custom_vjp
    def combined(params: Any, x0: Any) -> Any:
        return _gated(problem, policy, params, x0, *pairs[0])

    def backward(kept: Any, bar: Any) -> Any:
        regular, modified = (jax.grad(lambda p, x: _gated(problem, policy, p, x, *pair), (0, 1))(*kept) for pair in pairs)  # noqa: B023
        joined = jax.tree_util.tree_map(lambda r, m: bar * _combine(r, m), regular[0], modified[0])
        return joined, bar * regular[1]

    combined.defvjp(lambda params, x0: (combined(params, x0), (params, x0)), backward)
    return combined(params, x0)


def _gated(problem: Problem, policy: Policy, params: Any, x0: Any, physics: Any, network: Any) -> Any:
    step, cost = as_step(problem), as_cost(problem)

    def advance(x: Any, gate: Any) -> Any:
        a, b = gate
        control = policy(params, _gate(x, b))
        x_next = step(_gate(x, a), control)
        return x_next, (cost(x_next), control)

    _, (costs, controls) = jax.lax.scan(advance, jnp.asarray(x0, problem.dtype), (physics, network))
    weights = jnp.asarray(problem.time_weights[1:], problem.dtype)
    # A weight of 0 must hide a cost that is not finite, as in the sweep.
    shares = jnp.where(weights[:, None] != 0, costs, 0) * weights[:, None]
    return jnp.sum(jnp.mean(shares, axis=1)) + problem.regularization * jnp.mean(controls**2)


def _gate(x: Any, gate: Any) -> Any:
    """x itself, whose cotangent passes in the proportion `gate`."""
    constant = jax.lax.stop_gradient(x)
    return constant + gate * (x - constant)


def _combine(regular: Any, modified: Any) -> Any:
    """C of two gradients; NaN and Inf stay visible."""
    same = jnp.sign(regular) == jnp.sign(modified)
    return jnp.where(same, modified, 0) + 0 * regular + 0 * modified


def _host(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: function(*(np.asarray(value) for value in values))


def _precision(problem: Problem) -> None:
    if problem.dtype is np.float64 and not jax.config.jax_enable_x64:
        raise ValueError("the problem is in float64 and JAX in float32; use dtype float32, or set jax_enable_x64")
