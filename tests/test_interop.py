"""Our simulators inside JAX and PyTorch: the gradients are those of our own sweep."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.interop import arrays
from stablebptt.kernels.generics import step
from stablebptt.tasks.variants import truncated

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
OPTIONS = {
    "cartpole": {"poles": 2, "hidden": (7,), "loss": "continuous"},
    "guidance": {"drivers": 2, "evaders": 2, "hidden": (7,), "regularization": 0.3},
    "quantum": {"points": 9, "width": 4, "target": 2},
}
STEPS = 6
VARIANTS = ["R", "M", "S", "N", "C", truncated(STEPS, 2), (0.5, np.linspace(0, 1, STEPS))]


def make(task, **more):
    options = {"steps": STEPS, "dtype": "float64", "output_init": "glorot", **OPTIONS[task], **more}
    return sb.problem(task, **options)


@pytest.fixture(params=OPTIONS)
def problem(request):
    return make(request.param)


def moved(function, x, direction, step=1e-5):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def test_arrays(problem, random):
    """Steps and costs are those of a rollout; vjps are derivatives."""
    theta, x0 = problem.init(1), problem.sample(3)
    path = problem.rollout(theta, x0)
    x, c = path.states[:, 2], path.controls[:, 2]
    np.testing.assert_array_equal(arrays.step(problem, x, c), path.states[:, 3])
    lam, dx, dc = random.standard_normal(x.shape), random.standard_normal(x.shape), random.standard_normal(c.shape)
    x_bar, c_bar = arrays.step_vjp(problem, x, c, lam)
    assert np.sum(x_bar * dx) == pytest.approx(np.sum(lam * moved(lambda v: arrays.step(problem, v, c), x, dx)), rel=1e-6)
    assert np.sum(c_bar * dc) == pytest.approx(np.sum(lam * moved(lambda v: arrays.step(problem, x, v), c, dc)), rel=1e-6)
    bars = random.standard_normal(3)
    bar = arrays.cost_vjp(problem, x, bars)
    assert np.sum(bar * dx) == pytest.approx(np.sum(bars * moved(lambda v: arrays.cost(problem, v), x, dx)), rel=1e-6)
    with pytest.raises(ValueError, match="c has shape"):
        arrays.step(problem, x, c[:2])


def test_systems_without_a_batched_step():
    """A batch is stepped sample by sample, in the precision of the problem."""
    problem = make("cartpole", dtype="float32")
    x, c = problem.sample(2), np.array([[0.5], [-2.0]])
    found, expected = arrays.step(problem, x, c), np.empty((2, problem.n_state), np.float32)
    for k in range(2):
        step(problem.system, x[k].ravel(), c[k].astype(np.float32), expected[k])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(2, -1), expected, rtol=1e-6)


def mlp(problem, theta, x, tanh):
    """Our MLP, in whatever the arrays are."""
    x = x.reshape(x.shape[0], -1)
    layers = list(problem.layers(theta).values()) if isinstance(theta, np.ndarray) else theta
    for i in range(0, len(layers) - 2, 2):
        x = tanh(x @ layers[i] + layers[i + 1])
    x = x @ layers[-2] + layers[-1]
    return x.reshape(x.shape[0], *problem.control_shape)


def flat_policy(problem):
    """Sizes of one tanh layer and an output layer for any task."""
    n, m, h = problem.n_state, problem.n_control, 5
    random = np.random.default_rng(3)
    return [random.standard_normal(s) * 0.3 for s in ((n, h), (h,), (h, m), (m,))]


def ours(problem, layers):
    """The same problem with our MLP of that shape, and its parameters."""
    import dataclasses

    from stablebptt.kernels.mlp import mlp as make_mlp

    controller = make_mlp((problem.n_state, layers[0].shape[1], problem.n_control))
    return dataclasses.replace(problem, controller=controller), np.concatenate([layer.ravel() for layer in layers])


def assert_gradient(problem, layers, x0, variant, loss, gradients):
    reference, theta = ours(problem, layers)
    expected = reference.gradient(theta, x0, variant)
    assert float(loss) == pytest.approx(expected.loss.total, rel=1e-12)
    found = np.concatenate([np.asarray(g).ravel() for g in gradients])
    np.testing.assert_allclose(found, expected.value, rtol=1e-8, atol=1e-10 * np.abs(expected.value).max() + 1e-300)


# --- JAX ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def jax():
    jax = pytest.importorskip("jax", reason="jax is not installed (extra: jax)")
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_jax_gradients_are_ours(jax, problem, variant):
    from stablebptt.interop.jax import rollout_loss

    x0, layers = problem.sample(3), flat_policy(problem)

    def policy(params, x):
        return mlp(problem, params, x, jax.numpy.tanh)

    call = jax.jit(jax.value_and_grad(lambda params: rollout_loss(problem, policy, params, x0, variant)))
    loss, gradients = call([jax.numpy.asarray(layer) for layer in layers])
    assert_gradient(problem, layers, x0, variant, loss, gradients)


def test_jax_step(jax, problem, random):
    from stablebptt.interop.jax import as_cost, as_step

    step, cost = as_step(problem), as_cost(problem)
    x, c = problem.sample(3), random.standard_normal((3, *problem.control_shape))
    np.testing.assert_array_equal(step(x, c), arrays.step(problem, x, c))
    _, pull = jax.vjp(step, x, c)
    lam = random.standard_normal(x.shape)
    for found, expected in zip(pull(jax.numpy.asarray(lam)), arrays.step_vjp(problem, x, c, lam)):
        np.testing.assert_array_equal(found, expected)
    many = jax.vmap(step)(np.stack([x, x]), np.stack([c, 2 * c]))
    np.testing.assert_array_equal(many[1], arrays.step(problem, x, 2 * c))
    np.testing.assert_array_equal(jax.grad(lambda v: cost(v).sum())(x), arrays.cost_vjp(problem, x, np.ones(3)))


def test_jax_gradients_of_the_initial_states(jax, problem, random):
    from stablebptt.interop.jax import rollout_loss

    layers, x0 = flat_policy(problem), problem.sample(2)

    def value(states):
        return rollout_loss(problem, lambda p, x: mlp(problem, p, x, jax.numpy.tanh), layers, states, "C")

    direction = random.standard_normal(x0.shape)
    slope = np.sum(np.asarray(jax.grad(value)(x0)) * direction)
    assert slope == pytest.approx(moved(lambda v: float(value(v)), x0, direction), rel=1e-5)


def test_jax_sees_a_divergence(jax):
    from stablebptt.interop.jax import rollout_loss

    problem = make("guidance")
    gradient = jax.grad(lambda p: rollout_loss(problem, lambda p, x: p * jax.numpy.ones((2, 2, 2)), p, problem.sample(2), "C"))
    assert not np.isfinite(gradient(1e200))


def test_jax_in_single_precision_refuses_double(jax):
    from stablebptt.interop.jax import as_step

    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        as_step(make("cartpole"))
    single = make("cartpole", dtype="float32")
    assert as_step(single)(single.sample(2), np.zeros((2, 1), np.float32)).dtype == np.float32


# --- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed (extra: torch)")


def torch_policy(torch, problem, layers):
    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ParameterList([torch.nn.Parameter(torch.as_tensor(layer)) for layer in layers])

        def forward(self, x):
            return mlp(problem, list(self.layers), x, torch.tanh)

    return Policy()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_torch_gradients_are_ours(torch, problem, variant):
    from stablebptt.interop.torch import rollout_loss

    x0, layers = problem.sample(3), flat_policy(problem)
    policy = torch_policy(torch, problem, layers)
    loss = rollout_loss(problem, policy, torch.as_tensor(x0), variant)
    (2 * loss).backward()
    assert_gradient(problem, layers, x0, variant, loss.detach(), [p.grad / 2 for p in policy.parameters()])


def test_torch_step(torch, problem, random):
    from stablebptt.interop.torch import as_step

    step = as_step(problem)
    x = torch.as_tensor(problem.sample(2)).requires_grad_()
    c = torch.as_tensor(random.standard_normal((2, *problem.control_shape))).requires_grad_()
    assert torch.autograd.gradcheck(step, (x, c), eps=1e-6, atol=1e-6)


def test_torch_frozen_parameters_have_no_gradient(torch):
    from stablebptt.interop.torch import rollout_loss

    problem = make("cartpole")
    policy = torch_policy(torch, problem, flat_policy(problem))
    policy.layers[0].requires_grad_(False)
    rollout_loss(problem, policy, torch.as_tensor(problem.sample(2)), "C").backward()
    assert policy.layers[0].grad is None and policy.layers[2].grad is not None
    with torch.no_grad():
        assert not rollout_loss(problem, policy, torch.as_tensor(problem.sample(2)), "M").requires_grad


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_examples_learn(framework, monkeypatch):
    pytest.importorskip(framework, reason=f"{framework} is not installed (extra: {framework})")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(f"{framework}_controller")
    losses = example.train("M", updates=25, steps=15)
    assert losses[-1] < losses[0]
    sys.modules.pop(f"{framework}_controller")
