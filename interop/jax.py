"""Controllers written in JAX, trained through our simulators with any gradient variant.

`as_step` is one simulator step as a differentiable JAX function with our hand-written vjp. `rollout_loss` is the loss of a whole
rollout; its gradient is R, M, S, N, a join of R and M such as C, or that of gates. M stops the gradient at the input of the JAX
network. A join runs the adjoints of R and M back together, so network and simulator run forward once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablebptt.interop import arrays
from stablebptt.tasks import joins, variants
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import Gates

Policy = Callable[[Any, Any], Any]


def as_step(problem: Problem) -> Callable[[Any, Any], Any]:
    """The function (x (B, *state_shape), c (B, *control_shape)) -> x_next (B, *state_shape), differentiable in both.

    JAX arrays must have the problem's precision; NumPy arrays are converted to it.

    Raises
    ------
    ValueError
        If the problem is in float64 and JAX is not (set ``jax_enable_x64``).
    """
    _precision(problem)

    @jax.custom_vjp
    def step(x: Any, c: Any) -> Any:
        return _step(problem, x, c)

    def backward(residuals: Any, lam: Any) -> Any:
        x, c = residuals
        return tuple(bar[:, 0] for bar in _step_vjps(problem, x, c, lam[:, None]))

    step.defvjp(lambda x, c: (step(x, c), (x, c)), backward)

    def call(x: Any, c: Any) -> Any:
        x = _array(problem, "x", x, ("B", *problem.state_shape))
        return step(x, _array(problem, "c", c, (len(x), *problem.control_shape)))

    return call


def as_cost(problem: Problem) -> Callable[[Any], Any]:
    """The function x (B, *state_shape) -> costs (B,), differentiable."""
    _precision(problem)

    def call(x: Any) -> Any:
        return _on_host(problem, arrays.cost, x.shape[:1], x)

    cost = jax.custom_vjp(call)

    def backward(x: Any, bars: Any) -> Any:
        return (_on_host(problem, arrays.cost_vjp, x.shape, x, bars),)

    cost.defvjp(lambda x: (call(x), x), backward)
    return lambda x: cost(_array(problem, "x", x, ("B", *problem.state_shape)))


def rollout_loss(problem: Problem, policy: Policy, params: Any, x0: Any, variant: Any = "C") -> Any:
    """Mean loss, a number, of a rollout of a JAX controller; its gradient in `params` is that of the variant.

    The gradient in x0 is the adjoint lam_0 of the variant; of a join, that of R. Per layer: every array in `params` is a layer.

    Parameters
    ----------
    policy : (params, states (B, *state_shape)) -> controls (B, *control_shape), both in the problem's precision
    params : any tree of arrays
    x0 : (B, *state_shape); a NumPy array is converted to the problem's precision, a JAX array must have it
    variant : "R", "M", "S", "N", "C", another join or gates (docs/joins.md), or a pair of gate schedules (a, b)

    Raises
    ------
    TypeError, ValueError
        If shapes or precisions do not fit, or the problem is in float64 and JAX is not.
    """
    _precision(problem)
    arrays.bare(problem)
    gates = variants.gates_of(variant, problem)
    x0 = _array(problem, "x0", x0, ("B", *problem.state_shape))
    # Values that the policy closes over become arguments like its parameters, so that they have gradients, too.
    converted, around = jax.closure_convert(policy, params, x0)

    def losses(*variables: Any) -> Any:
        return _losses(problem, lambda every, x: converted(every[0], x, *every[1]), gates, variables)

    if gates.join is None:
        return losses(((params, around), x0))[0]

    @jax.custom_vjp
    def combined(every: Any, x0: Any) -> Any:
        return losses((every, x0))[0]

    def forward(every: Any, x0: Any) -> Any:
        (loss, _), pull = jax.vjp(losses, (every, x0), (every, x0))
        return loss, pull

    def backward(pull: Any, bar: Any) -> Any:
        (regular, x_bar), (modified, _) = pull((jnp.ones_like(bar), jnp.ones_like(bar)))
        if gates.is_combined:
            return jax.tree_util.tree_map(lambda r, m: _combine(bar, r, m), regular, modified), bar * x_bar
        return _join(gates.join, bar, regular, modified), bar * x_bar

    combined.defvjp(forward, backward)
    return combined((params, around), x0)


def problem_loss(problem: Problem, theta: Any, x0: Any, variant: Any = "R", parameters: Mapping[str, Any] | None = None) -> Any:
    """Mean loss of the problem's own controller, with the gradient of the variant in theta, x0 and numbers of the system.

    Parameters
    ----------
    theta (n_parameters,), x0 (B, *state_shape) : arrays in the problem's precision
    parameters : numbers of the system by name, instead of its own; it needs a method for `step_parameters_vjp`
    """
    _precision(problem)
    given = dict(parameters or {})
    names = tuple(given)
    theta = _array(problem, "theta", theta, (problem.n_parameters,))
    x0 = _array(problem, "x0", x0, ("B", *problem.state_shape))

    def on_host(problem: Problem, theta: Any, x0: Any, values: Any) -> Any:
        found = arrays.gradient(problem, theta, x0, variant, dict(zip(names, values.tolist())))
        numbers = [found.parameters[name] for name in names]
        return tuple(np.asarray(part, problem.dtype) for part in (found.loss.total, found.value, found.x0, numbers))

    def found(*given: Any) -> Any:
        return _on_host(problem, on_host, [(), *(part.shape for part in given)], *given)

    @jax.custom_vjp
    def loss(theta: Any, x0: Any, values: Any) -> Any:
        return found(theta, x0, values)[0]

    def forward(*given: Any) -> Any:
        value, *gradients = found(*given)
        return value, gradients

    def backward(gradients: Any, bar: Any) -> Any:
        return tuple(bar * gradient for gradient in gradients)

    loss.defvjp(forward, backward)
    return loss(theta, x0, jnp.array([given[name] for name in names], problem.dtype))


def _losses(problem: Problem, policy: Policy, gates: Gates, variables: tuple[Any, ...]) -> tuple[Any, ...]:
    """The loss of one rollout, once per adjoint that runs back through it.

    variables : (params, x0) per adjoint, all equal; the gradient in the v-th belongs to the v-th gates
    """
    m, cost, advance = len(variables), as_cost(problem), _advance(problem, policy)
    every, starts = zip(*variables)
    physics, network = (jnp.asarray(values[:m].T, problem.dtype) for values in (gates.physics, gates.network))

    def body(xs: Any, gate: Any) -> Any:
        xs, controls = advance(every, xs, gate)
        return xs, (xs, controls)

    _, (states, controls) = jax.lax.scan(body, starts, (physics, network))
    # A weight of 0 hides a cost that is not finite, as in our own adjoint pass.
    shown = np.flatnonzero(problem.time_weights[1:])
    weights = jnp.asarray(problem.time_weights[1:][shown], problem.dtype)

    def total(states: Any, controls: Any) -> Any:
        effort = problem.regularization * jnp.mean(controls**2)
        if not len(shown):
            return effort
        costs = cost(states[shown].reshape(-1, *problem.state_shape)).reshape(len(shown), -1)
        return jnp.sum(weights * jnp.mean(costs, axis=1)) + effort

    return tuple(map(total, states, controls))


def _advance(problem: Problem, policy: Policy) -> Callable[[Any, Any, Any], Any]:
    """One time step of the rollout with its m adjoints: (params, states, gates (a (m,), b (m,))) -> (next states, controls).

    Params, states and controls are m-tuples of equal values, one per adjoint, so the network and the simulator run once. Each
    adjoint follows the recursion ``lam_t = a S_x^T lam_{t+1} + b N_x^T g_t`` with ``g_t = S_c^T lam_{t+1}`` + regulariser.
    """

    def result(x: Any, control: Any, m: int) -> Any:
        arrays.expect(problem, "what the policy returns", control, (len(x), *problem.control_shape))
        return (_step(problem, x, control),) * m, (control,) * m

    @jax.custom_vjp
    def advance(every: Any, xs: Any, gate: Any) -> Any:
        return result(xs[0], policy(every[0], xs[0]), len(xs))

    def forward(every: Any, xs: Any, gate: Any) -> Any:
        control, pull = jax.vjp(policy, every[0], xs[0])
        return result(xs[0], control, len(xs)), (pull, xs[0], control, gate)

    def backward(residuals: Any, bars: Any) -> Any:
        (pull, x, control, gate), (lams, control_bars) = residuals, bars
        lam_x, lam_c = _step_vjps(problem, x, control, jnp.stack(lams, axis=1))
        every_bars, x_bars = [], []
        for v, (a, b) in enumerate(zip(*gate)):
            every_bar, through_network = pull(lam_c[:, v] + control_bars[v])
            every_bars.append(every_bar)
            x_bars.append(_through(a, lam_x[:, v]) + _through(b, through_network))
        return tuple(every_bars), tuple(x_bars), jax.tree_util.tree_map(jnp.zeros_like, gate)

    advance.defvjp(forward, backward)
    return advance


def _through(gate: Any, bar: Any) -> Any:
    """The share of a cotangent that a gate lets through; 0 if the gate is closed, even if the cotangent is infinite."""
    return jnp.where(gate != 0, gate * bar, 0)


def _combine(bar: Any, regular: Any, modified: Any) -> Any:
    """`bar` times C of two gradients; NaN and Inf stay visible. Integer parameters have no gradient."""
    if regular.dtype == jax.dtypes.float0:
        return regular
    same = jnp.sign(regular) == jnp.sign(modified)
    return (bar * (jnp.where(same, modified, 0) + 0 * regular + 0 * modified)).astype(regular.dtype)


def _join(kind: Any, bar: Any, regular: Any, modified: Any) -> Any:
    """`bar` times another join of two gradients, which the host computes. Integer parameters have no gradient."""
    leaves, tree = jax.tree_util.tree_flatten(regular)
    places = [place for place, leaf in enumerate(leaves) if leaf.dtype != jax.dtypes.float0]
    if not places:
        return regular
    others = jax.tree_util.tree_leaves(modified)
    given = [[each[place] for place in places] for each in (leaves, others)]
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in given[0]]

    def call(*values: Any) -> Any:
        arrays = [np.asarray(value) for value in values]
        return joins.join_arrays(kind, arrays[: len(places)], arrays[len(places) :])

    joined = jax.pure_callback(call, shapes, *given[0], *given[1], vmap_method="sequential")
    for place, value in zip(places, joined):
        leaves[place] = (bar * value).astype(value.dtype)
    return jax.tree_util.tree_unflatten(tree, leaves)


def _step(problem: Problem, x: Any, c: Any) -> Any:
    return _on_host(problem, arrays.step, x.shape, x, c)


def _step_vjps(problem: Problem, x: Any, c: Any, lams: Any) -> Any:
    shapes = [(*lams.shape[:2], *part.shape[1:]) for part in (x, c)]
    return _on_host(problem, arrays.step_vjps, shapes, x, c, lams)


def _on_host(problem: Problem, function: Callable[..., Any], shapes: Any, *values: Any) -> Any:
    """What a function of `arrays` returns: a JAX array of the given shape, or one of each in a list of shapes."""

    def result(shape: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, problem.dtype)

    def call(*values: Any) -> Any:
        return function(problem, *map(np.asarray, values))

    results = tuple(map(result, shapes)) if isinstance(shapes, list) else result(shapes)
    return jax.pure_callback(call, results, *values, vmap_method="sequential")


def _array(problem: Problem, name: str, value: Any, shape: tuple[Any, ...]) -> Any:
    """A JAX array of this shape: a NumPy array is converted to the problem's precision, a JAX array must have it."""
    return arrays.given(problem, name, value, shape, jax.Array, jnp.asarray)


def _precision(problem: Problem) -> None:
    if problem.dtype is np.float64 and not jax.config.jax_enable_x64:
        raise ArgumentError("the problem is in float64 and JAX in float32; use dtype float32, or set jax_enable_x64")
