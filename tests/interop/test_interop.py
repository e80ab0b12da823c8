"""Our simulators inside JAX and PyTorch: the gradients are those of our own sweep."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

import stablebptt as sb
from stablebptt.interop import arrays
from stablebptt.kernels.generics import step
from stablebptt.tasks.variants import gates, truncated

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
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
    lams = np.stack([lam, 2 * lam, dx], axis=1)
    for k, (many_x, many_c) in enumerate(zip(*(bars.swapaxes(0, 1) for bars in arrays.step_vjps(problem, x, c, lams)))):
        one_x, one_c = arrays.step_vjp(problem, x, c, lams[:, k])
        np.testing.assert_allclose(many_x, one_x, rtol=1e-12)
        np.testing.assert_allclose(many_c, one_c, rtol=1e-12)
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

    from stablebptt.kernels.network import mlp as make_mlp

    controller = make_mlp((problem.n_state, layers[0].shape[1], problem.n_control))
    return dataclasses.replace(problem, controller=controller), np.concatenate([layer.ravel() for layer in layers])


def assert_gradient(problem, layers, x0, variant, loss, gradients):
    reference, theta = ours(problem, layers)
    expected = reference.gradient(theta, x0, variant)
    assert float(loss) == pytest.approx(expected.loss.total, rel=1e-12)
    found = np.concatenate([np.asarray(g).ravel() for g in gradients])
    np.testing.assert_allclose(found, expected.value, rtol=1e-8, atol=1e-10 * np.abs(expected.value).max() + 1e-300)


# --- SciPy --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A problem in float32, its states, and the function that SciPy gets."""
    problem = make("cartpole", dtype="float32", steps=4, hidden=(4,))
    states = problem.sample(4)
    problem.gradient(problem.init(), states)  # arenas in float32 are there
    return problem, states, sb.minimize_fun(problem, states)


METHODS = ["BFGS", "CG", "L-BFGS-B", "TNC", "SLSQP", "Newton-CG", "trust-constr"]


@pytest.mark.parametrize("method", METHODS)
def test_scipy_descends_in_every_method(small, method):
    """Newton-CG takes differences of gradients over 1e-8: float32 sees none, and would call the first point a success."""
    problem, _, fun = small
    start = problem.init().astype(float)
    found = minimize(fun, start, jac=True, method=method, options={"maxfun" if method == "TNC" else "maxiter": 20})
    assert found.x.dtype == np.float64 and found.fun < 0.9 * fun(start)[0], found


def test_scipy_is_spoken_to_in_float64(small):
    problem, states, fun = small
    theta = problem.init().astype(float)
    value, slope = fun(theta)
    assert type(value) is float and slope.dtype == np.float64 and slope.flags.c_contiguous and slope.shape == theta.shape
    expected = problem.gradient(theta, states)
    assert value == pytest.approx(expected.loss.total, rel=1e-5)
    np.testing.assert_allclose(slope, expected.value, rtol=1e-4, atol=1e-6)
    slope[:] = 0
    direction = np.random.default_rng(0).standard_normal(theta.shape)
    assert fun(theta)[1] @ direction == pytest.approx(moved(lambda v: fun(v)[0], theta, direction), rel=1e-7)
    listed = fun(theta.tolist())
    assert listed[0] == value and np.array_equal(listed[1], fun(theta)[1])
    with pytest.warns(UserWarning, match=r"theta is in float32.*astype\(float\)"):
        assert fun(problem.init())[0] == value


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_line_searches_that_go_astray(small, bad):
    problem, _, fun = small
    theta = np.full(problem.n_parameters, bad)
    value, slope = fun(theta)
    assert type(value) is float and value == np.inf
    assert np.array_equal(slope, np.zeros(problem.n_parameters)) and slope.dtype == np.float64


def test_what_scipy_is_given_is_checked_at_the_door(small):
    problem, states, fun = small
    for given, error, words in (
        (np.zeros((2, 2)), ValueError, "x0 has shape"),
        (states * np.nan, ValueError, "x0 has a value that is not finite"),
        (states + 0j, TypeError, "x0 must be an array of real numbers"),
    ):
        with pytest.raises(error, match=words):
            sb.minimize_fun(problem, given)
    with pytest.raises(ValueError, match="unknown variant 'Q'"):
        sb.minimize_fun(problem, states, "Q")
    with pytest.raises(ValueError, match="theta has shape"):
        fun(problem.init()[1:].astype(float))
    with pytest.raises(TypeError, match="theta must be"):
        fun(problem.init() + 0j)
    mine, theta = states.copy(), problem.init().astype(float)
    kept = sb.minimize_fun(problem, mine)
    mine[:] = np.nan
    assert kept(theta)[0] == fun(theta)[0]


def test_a_changed_problem_has_arenas_of_its_own(small):
    from stablebptt.tasks.custom import in_float64

    problem, states, _ = small
    theta = problem.init()
    fresh = make("cartpole", steps=4, hidden=(4,), dtype="float32")
    assert np.array_equal(in_float64(problem).gradient(theta, states).value, in_float64(fresh).gradient(theta, states).value)


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


NAMED = ("config/layer", "leaky:leak=0.3:decay=0.1", "imtlg:truncate=2")
OTHERS = [*(pytest.param(name, id=name) for name in NAMED), pytest.param(lambda rr, rm, mm: (rr / mm, 1), id="own")]


@pytest.mark.parametrize("variant", OTHERS)
def test_jax_joins_are_ours(jax, variant):
    from stablebptt.interop.jax import rollout_loss

    problem = make("cartpole")
    x0, layers = problem.sample(3), flat_policy(problem)

    def loss(params):
        weights, _ = params  # whole numbers have no gradient
        return rollout_loss(problem, lambda p, x: mlp(problem, p[0], x, jax.numpy.tanh), (weights, params[1]), x0, variant)

    params = ([jax.numpy.asarray(layer) for layer in layers], jax.numpy.arange(3))
    found, (gradients, _) = jax.jit(jax.value_and_grad(loss, allow_int=True))(params)
    assert_gradient(problem, layers, x0, variant, found, gradients)
    with pytest.raises(ValueError, match="draws its gates for every update"):
        rollout_loss(problem, lambda p, x: x, layers, x0, "R:random=3")


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


def jax_policy(jax, problem):
    return lambda params, x: mlp(problem, params, x, jax.numpy.tanh)


@pytest.mark.parametrize("variant", ["R", "C"])
def test_jax_runs_forward_once(jax, monkeypatch, variant):
    from stablebptt.interop.jax import rollout_loss

    problem, calls = make("cartpole"), {"step": 0, "step_vjps": 0}

    def counting(name, function):
        def call(*given):
            calls[name] += 1
            return function(*given)

        return call

    for name in calls:
        monkeypatch.setattr(arrays, name, counting(name, getattr(arrays, name)))
    policy, x0 = jax_policy(jax, problem), problem.sample(2)
    jax.block_until_ready(jax.grad(lambda p: rollout_loss(problem, policy, p, x0, variant))(flat_policy(problem)))
    assert calls == {"step": STEPS, "step_vjps": STEPS}


def test_jax_policies_with_random_keys_and_closures(jax):
    """C joins R and M of the same masks; what a policy takes from around it is differentiated like its parameters."""
    from stablebptt.interop.jax import rollout_loss

    problem, layers, key = make("cartpole"), flat_policy(make("cartpole")), jax.random.PRNGKey(3)
    x0 = problem.sample(3)

    def dropout(params, x):
        layers, key = params
        hidden = jax.numpy.tanh(x.reshape(len(x), -1) @ layers[0] + layers[1])
        return (hidden * jax.random.bernoulli(key, 0.5, hidden.shape)) @ layers[2] + layers[3]

    def inside(layers, variant):
        return rollout_loss(problem, dropout, (layers, key), x0, variant)

    def around(layers, variant):
        return rollout_loss(problem, lambda _, x: dropout((layers, key), x), None, x0, variant)

    for loss in (inside, around):
        found = {v: jax.jit(jax.grad(lambda p, v=v, loss=loss: loss(p, v)))(layers) for v in "RMC"}
        for r, m, c in zip(*(found[v] for v in "RMC")):
            np.testing.assert_array_equal(c, np.where(np.sign(r) == np.sign(m), m, 0))
        assert any(np.any(np.sign(r) != np.sign(m)) for r, m in zip(found["R"], found["M"]))


def test_jax_precisions_and_shapes(jax):
    from stablebptt.interop.jax import as_step, rollout_loss

    single, x0 = make("cartpole", dtype="float32"), make("cartpole").sample(3)
    layers = [jax.numpy.asarray(layer, "float32") for layer in flat_policy(single)]
    policy, jnp = jax_policy(jax, single), jax.numpy
    gradients = jax.grad(lambda p: rollout_loss(single, policy, p, x0, "C"))(layers)  # states of NumPy are converted
    reference, theta = ours(single, layers)
    expected = reference.gradient(theta, x0, "C").value
    assert all(g.dtype == np.float32 for g in gradients)
    np.testing.assert_allclose(np.concatenate([g.ravel() for g in gradients]), expected, rtol=1e-3, atol=1e-5)
    double, words = [layer.astype("float64") for layer in layers], "is in float64 and the problem in float32"
    with pytest.raises(TypeError, match=f"what the policy returns {words}"):
        rollout_loss(single, policy, double, x0)
    with pytest.raises(TypeError, match=f"x0 {words}; convert it, or make the problem with dtype='float64'"):
        rollout_loss(single, policy, layers, jnp.asarray(x0))
    with pytest.raises(TypeError, match=f"x {words}"):
        as_step(single)(jnp.asarray(x0), np.zeros((3, 1)))
    for given, words in ((x0[0], "x0 has shape"), (x0[:0], "x0 has shape"), (jnp.asarray(x0[0], "float32"), "x0 has shape")):
        with pytest.raises(ValueError, match=words):
            rollout_loss(single, policy, layers, given)
    with pytest.raises(ValueError, match=r"what the policy returns has shape \(3,\); it must be \(3, 1\)"):
        rollout_loss(single, lambda p, x: x.sum((1, 2)), layers, x0)
    with pytest.raises(ValueError, match=r"c has shape \(2, 1\); it must be \(3, 1\)"):
        as_step(single)(x0, np.zeros((2, 1)))


def test_jax_closed_gates_hide_what_is_not_finite(jax):
    """The network's derivative at the first state is infinite; M never asks for it, R must show it."""
    from stablebptt.interop.jax import rollout_loss

    problem = make("cartpole")
    x0 = np.zeros((1, 3, 2))

    def policy(p, x):
        return p * jax.numpy.sqrt(jax.numpy.abs(x[:, 0, :1]))

    found = {v: jax.grad(lambda x, v=v: rollout_loss(problem, policy, 0.5, x, v))(jax.numpy.asarray(x0)) for v in "RM"}
    assert np.all(np.isfinite(found["M"])) and not np.all(np.isfinite(found["R"]))


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


@pytest.mark.parametrize("variant", OTHERS)
def test_torch_joins_are_ours(torch, variant):
    """The gradient in x0 is no part of what is joined, nor is a tensor that no pass reaches."""
    from stablebptt.interop.torch import problem_loss, rollout_loss

    problem = make("cartpole")
    x0, layers = problem.sample(3), flat_policy(problem)
    policy = torch_policy(torch, problem, layers)
    policy.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    states = torch.as_tensor(x0).clone().requires_grad_()
    loss = rollout_loss(problem, policy, states, variant)
    loss.backward()
    assert_gradient(problem, layers, x0, variant, loss.detach(), [p.grad for p in policy.layers])
    assert policy.unused.grad is None
    reference, theta = ours(problem, layers)
    np.testing.assert_allclose(states.grad, reference.gradient(theta, x0, variant).x0, rtol=1e-9)
    for refused in (rollout_loss, problem_loss):
        with pytest.raises(ValueError, match="draws its gates for every update"):
            given = policy if refused is rollout_loss else torch.as_tensor(problem.init())
            refused(problem, given, torch.as_tensor(x0), "R:random=3")


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


def torch_gradients(torch, problem, policy, x0, variant):
    """Gradients of the parameters and of the states, with the random numbers of seed 1."""
    from stablebptt.interop.torch import rollout_loss

    torch.manual_seed(1)
    policy.zero_grad()
    states = torch.as_tensor(x0).clone().requires_grad_()
    rollout_loss(problem, policy, states, variant).backward()
    return [p.grad.clone() for p in policy.parameters()], states.grad


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_initial_states_have_the_same_gradient_in_torch_and_jax(torch, jax, variant):
    """That of the adjoint: of R the derivative, of C that of R, zero where both paths are closed."""
    from stablebptt.interop.jax import rollout_loss

    problem = make("cartpole")
    x0, layers = problem.sample(3), flat_policy(problem)
    _, found = torch_gradients(torch, problem, torch_policy(torch, problem, layers), x0, variant)
    policy = jax_policy(jax, problem)
    expected = jax.grad(lambda x: rollout_loss(problem, policy, layers, x, variant))(jax.numpy.asarray(x0))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)
    opened = gates(variant, STEPS)
    assert np.any(found.numpy()) == bool(opened.physics[0, 0] or opened.network[0, 0])


def test_torch_gradients_of_the_initial_states(torch, problem, random):
    from stablebptt.interop.torch import rollout_loss

    x0, policy = problem.sample(2), torch_policy(torch, problem, flat_policy(problem))
    direction = random.standard_normal(x0.shape)
    slope = moved(lambda v: rollout_loss(problem, policy, torch.as_tensor(v), "R").item(), x0, direction)
    for variant in "RC":
        _, found = torch_gradients(torch, problem, policy, x0, variant)
        assert np.sum(found.numpy() * direction) == pytest.approx(slope, rel=1e-5)
    policy.requires_grad_(False)
    states = torch.as_tensor(x0).requires_grad_()
    rollout_loss(problem, policy, 1 * states, "C").backward()  # through what made the states
    np.testing.assert_array_equal(states.grad, found)


def test_torch_runs_the_network_forward_once(torch):
    """C is joined of R and M of one forward pass: the same dropout masks, and batch statistics that saw T batches."""
    problem = make("cartpole")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(problem.n_state, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Tanh(),
        torch.nn.Linear(8, 1),
    ).double()  # fmt: skip
    x0, found, seen = problem.sample(4), {}, 0
    for variant in "RMC":
        found[variant], _ = torch_gradients(torch, problem, network, x0, variant)
        assert network[2].num_batches_tracked == seen + STEPS
        seen += STEPS
    disagreed = 0
    for r, m, c in zip(found["R"], found["M"], found["C"]):
        assert torch.equal(c, torch.where(torch.sign(r) == torch.sign(m), m, torch.zeros_like(m)))
        disagreed += int(torch.sum(torch.sign(r) != torch.sign(m)))
    assert disagreed


def test_torch_precisions_and_shapes(torch):
    from stablebptt.interop.torch import as_step, rollout_loss

    single, x0 = make("cartpole", dtype="float32"), make("cartpole").sample(3)
    layers = [layer.astype(np.float32) for layer in flat_policy(single)]
    policy = torch_policy(torch, single, layers)
    rollout_loss(single, policy, x0, "C").backward()  # states of NumPy are converted
    reference, theta = ours(single, layers)
    found = np.concatenate([p.grad.numpy().ravel() for p in policy.parameters()])
    np.testing.assert_allclose(found, reference.gradient(theta, x0, "C").value, rtol=1e-3, atol=1e-5)
    assert as_step(single)(x0, np.zeros((3, 1))).dtype == torch.float32
    states, words = torch.as_tensor(x0), "is in float64 and the problem in float32"
    with pytest.raises(TypeError, match=f"x0 {words}; convert it, or make the problem with dtype='float64'"):
        rollout_loss(single, policy, states)
    with pytest.raises(TypeError, match=r"x0 is in int64 and the problem in float32; convert it$"):
        rollout_loss(single, policy, states.long())
    with pytest.raises(TypeError, match=f"x {words}"):
        as_step(single)(states, torch.zeros(3, 1))
    with pytest.raises(TypeError, match=f"c {words}"):
        as_step(single)(states.float(), torch.zeros(3, 1, dtype=torch.float64))
    for double in (policy.double(), policy.double().requires_grad_(False)):
        with pytest.raises(TypeError, match="the policy computes in float64 and the problem in float32"):
            rollout_loss(single, double, x0)
    policy.float()
    with pytest.raises(ValueError, match=r"x0 has shape \(3, 2\); it must be \(B, 3, 2\)"):
        rollout_loss(single, policy, x0[0])
    with pytest.raises(ValueError, match=r"x0 has shape \(0, 3, 2\)"):
        rollout_loss(single, policy, states[:0].float())
    with pytest.raises(ValueError, match=r"c has shape \(2, 1\); it must be \(3, 1\)"):
        as_step(single)(x0, np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"what the policy returns has shape \(3, 2, 1\); it must be \(3, 1\)"):
        rollout_loss(single, torch.nn.Conv1d(3, 2, 2), x0)
    with pytest.raises(TypeError, match=r"policy is function; it must be a torch\.nn\.Module"):
        rollout_loss(single, lambda x: x, x0)


def test_torch_policies_that_remember(torch):
    """A policy may keep what it saw: the graph of a whole rollout is one."""

    class Memory(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
            self.kept = 0.0

        def forward(self, x):
            self.kept = 0.5 * self.kept + self.gain * x[:, 1, :1]
            return self.kept

    problem = make("cartpole")
    x0, policy = problem.sample(2), Memory()

    def value(gain):
        from stablebptt.interop.torch import rollout_loss

        policy.kept = 0.0
        policy.gain.data.fill_(gain)
        return rollout_loss(problem, policy, x0, "C").item()

    slope = (value(0.3 + 1e-5) - value(0.3 - 1e-5)) / 2e-5
    policy.gain.data.fill_(0.3)
    found = {}
    for variant in "RMC":
        policy.kept = 0.0
        found[variant] = torch_gradients(torch, problem, policy, x0, variant)[0][0].item()
    assert found["R"] == pytest.approx(slope, rel=1e-6) and found["M"] != found["R"]
    assert found["C"] == (found["M"] if found["M"] * found["R"] > 0 else 0)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_examples_learn(framework, monkeypatch):
    pytest.importorskip(framework, reason=f"{framework} is not installed (extra: {framework})")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(f"{framework}_controller")
    losses = example.train("M", updates=25, steps=15)
    assert losses[-1] < losses[0]
    sys.modules.pop(f"{framework}_controller")
