"""A controller written in JAX, trained through our cart-pole. Variant M stops the gradient at the input of the JAX network."""

import jax
import jax.numpy as jnp

import stablebptt as sb
from stablebptt.interop.jax import rollout_loss


def policy(params, states):
    """Two layers; the states (B, 3, 2) are flattened."""
    x = states.reshape(states.shape[0], -1)
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def train(variant="M", updates=200, steps=60):
    """Losses of plain gradient descent with clipped steps."""
    problem = sb.problem("cartpole", poles=2, steps=steps)
    keys = jax.random.split(jax.random.PRNGKey(0))
    params = {"w1": 0.4 * jax.random.normal(keys[0], (6, 32)), "b1": jnp.zeros(32)}
    params["w2"] = 0.1 * jax.random.normal(keys[1], (32, 1))
    x0 = problem.sample(16, seed=0)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: rollout_loss(problem, policy, p, x0, variant)))
    losses = []
    for _ in range(updates):
        loss, gradient = value_and_grad(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree_util.tree_leaves(gradient)))
        rate = 0.05 / jnp.maximum(norm, 1.0)
        params = jax.tree_util.tree_map(lambda p, g: p - rate * g, params, gradient)  # noqa: B023
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for name in ("R", "M", "C"):
        found = train(name)
        print(f"{name}: loss {found[0]:.3f} -> {found[-1]:.3f}")
