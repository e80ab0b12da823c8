"""Gradients of the initial states and of the system's parameters in PyTorch and JAX are those of `Problem.gradient`."""

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.interop import arrays
from stablebptt.kernels.pendulum import Pendulum
from stablebptt.tasks.evaluate import with_fields

PARAMETERS = {"gravity": 9.0, "length": 0.8}


@pytest.fixture(scope="module")
def problem():
    return sb.problem("pendulum", steps=5, hidden=(6,), dtype="float64", output_init="glorot")


@pytest.fixture(scope="module")
def given(problem):
    return problem.init(1), problem.sample(3, 2)


def expected(problem, given, variant):
    return with_fields(problem, PARAMETERS).gradient(*given, variant)


@pytest.mark.parametrize("variant", ["R", "M", "C"])
def test_torch(problem, given, variant):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
    from stablebptt.interop.torch import problem_loss

    theta, x0 = (torch.tensor(values, requires_grad=True) for values in given)
    parameters = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in PARAMETERS.items()}
    loss = problem_loss(problem, theta, x0, variant, parameters)
    (3 * loss).backward()
    right = expected(problem, given, variant)
    assert loss.item() == right.loss.total
    np.testing.assert_allclose(theta.grad.numpy(), 3 * right.value, rtol=1e-14)
    np.testing.assert_allclose(x0.grad.numpy(), 3 * right.x0, rtol=1e-14)
    for name, value in parameters.items():
        assert value.grad.item() == pytest.approx(3 * right.parameters[name], rel=1e-14)


@pytest.mark.parametrize("variant", ["R", "M", "C"])
def test_jax(problem, given, variant):
    jax = pytest.importorskip("jax", reason="jax is not installed (extra: jax)")
    from stablebptt.interop.jax import problem_loss

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        value_and_grad = jax.value_and_grad(lambda t, x, p: 3 * problem_loss(problem, t, x, variant, p), (0, 1, 2))
        loss, gradients = jax.jit(value_and_grad)(*map(jax.numpy.asarray, given), PARAMETERS)
    finally:
        jax.config.update("jax_enable_x64", before)
    right = expected(problem, given, variant)
    assert float(loss) == pytest.approx(3 * right.loss.total, rel=1e-14)
    np.testing.assert_allclose(gradients[0], 3 * right.value, rtol=1e-13)
    np.testing.assert_allclose(gradients[1], 3 * right.x0, rtol=1e-13)
    for name, value in gradients[2].items():
        assert float(value) == pytest.approx(3 * right.parameters[name], rel=1e-13)


def test_a_system_without_these_derivatives_says_so():
    bare = sb.problem("cartpole", steps=3, hidden=(4,))
    with pytest.raises(ValueError, match="CartPole has no method for step_parameters_vjp"):
        arrays.gradient(bare, bare.init(0), bare.sample(1), "R", {"gravity": 9.0})
    assert type(with_fields(sb.problem("pendulum"), PARAMETERS).system) is Pendulum
