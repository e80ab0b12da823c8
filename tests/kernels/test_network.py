"""Networks of any layers: against an independent form in NumPy, and their adjoints against finite differences."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.kernels.activations import ACTIVATIONS
from stablebptt.kernels.network import Convolution, Dense, cnn, mlp, network
from stablebptt.tasks.adjoint_check import control_rule, findings


def dense(*sizes, activation="tanh"):
    return sizes[0], mlp(sizes, ACTIVATIONS[activation])


def convolutional(shape, *layers, activation="tanh"):
    return shape[0] * shape[1], network(shape, layers, ACTIVATIONS[activation])


# Numbers of a state, and the network.
NETWORKS = {
    "published perceptron": dense(6, 100, 100, 1),
    "odd perceptron, three controls": dense(5, 7, 33, 3),
    "published convolutions": (64, cnn(32, 60)),
    "third convolution": convolutional((33, 2), Convolution(20), Convolution(5), Convolution(3), Dense(1)),
    "wide windows, dense after them": convolutional((19, 2), Convolution(3, taps=5, stride=3), Dense(7), Dense(1)),
    "several controls": convolutional((12, 3), Convolution(17, stride=1), Convolution(4, taps=4), Dense(3)),
    "positions left out": convolutional((16, 2), Convolution(9, taps=2, stride=3), Convolution(6, taps=1), Dense(2)),
    "all at once": convolutional((14, 1), Convolution(70, 7, 2), Convolution(5, 2, 1), Dense(18), Dense(4), Dense(2)),
    "rows further apart than their columns": dense(5, 128, 9, 256, 1),
    "the same in convolutions": convolutional((11, 2), Convolution(128), Convolution(7), Convolution(128, 2, 1), Dense(2)),
    "linear": dense(6, 1),
    "linear, three controls": dense(5, 3),
    "linear, 128 controls": dense(4, 128),
    "relu": dense(5, 20, 7, 2, activation="relu"),
    "gelu": dense(5, 20, 7, 1, activation="gelu"),
    "silu": convolutional((33, 2), Convolution(20), Convolution(5), Dense(1), activation="silu"),
    "softplus": dense(5, 20, 7, 2, activation="softplus"),
    "sin": convolutional((12, 3), Convolution(17, stride=1), Dense(3), activation="sin"),
    "identity": dense(5, 20, 1, activation="identity"),
}
IN_NUMPY = {
    "Tanh": np.tanh,
    "Relu": lambda z: np.maximum(z, 0),
    "Gelu": lambda z: z / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "Silu": lambda z: z / (1 + np.exp(-z)),
    "Softplus": lambda z: np.log1p(np.exp(z)),
    "Sin": np.sin,
    "Identity": lambda z: z,
}


def in_numpy(controller, theta, x):
    """The network again: layers by name, windows by slices; x (n, n_state)."""
    views, place = {}, 0
    for name, shape in controller.layout().items():
        views[name] = theta[place : place + np.prod(shape)].reshape(shape)
        place += np.prod(shape)
    assert place == theta.size
    names = list(dict.fromkeys(name.partition("/")[0] for name in views))
    values = x
    for number, name in enumerate(names):
        kernel, bias = views[f"{name}/kernel"], views[f"{name}/bias"]
        if name.startswith("conv"):
            taps, channels, _ = kernel.shape
            stride = controller.windows()[number][0] // channels
            below = values.reshape(len(x), -1, channels)
            starts = range(0, below.shape[1] - taps + 1, stride)
            values = np.stack([np.einsum("ntc,tcf->nf", below[:, s : s + taps], kernel) + bias for s in starts], axis=1)
        else:
            values = values.reshape(len(x), -1) @ kernel + bias
        if number < len(names) - 1:
            values = IN_NUMPY[type(controller.activation).__name__](values)
    return values


def drawn(name, n, random):
    """A network as the rules want it, with its numbers of states and controls around it; and inputs."""
    n_state, controller = NETWORKS[name]
    n_control = controller.windows()[-1][-1]
    sizes = {"n_seen": n_state, "n_control": n_control, "n_parameters": controller.n_parameters}
    around = SimpleNamespace(controller=controller, **sizes)
    parameters = 0.3 * random.standard_normal(controller.n_parameters)
    return around, {"state": random.standard_normal((n, n_state)), "parameters": parameters}


# Every activation has its own machine code.
LONG = {"relu", "gelu", "silu", "softplus", "sin", "identity", "linear"}
CASES = [(n, name) for n in (1, 7, 33) for name in NETWORKS if name not in LONG]
CASES += [pytest.param(7, name, marks=pytest.mark.slow) for name in sorted(LONG)]


@pytest.mark.parametrize("n, name", CASES)
def test_forward(name, n, random):
    around, inputs = drawn(name, n, random)
    found = control_rule(around).forward(inputs)
    np.testing.assert_allclose(found, in_numpy(around.controller, inputs["parameters"], inputs["state"]), rtol=1e-12, atol=1e-13)


@pytest.mark.thinned(8)
@pytest.mark.parametrize("n, name", CASES)
def test_adjoint(name, n, random):
    around, inputs = drawn(name, n, random)
    for unit in (False, True) if around.n_control == 1 else (False,):
        found = list(findings(control_rule(around, unit=unit), inputs, random))
        assert {finding.argument for finding in found} >= {"state", "parameters"}
        assert [finding for finding in found if not finding.passed] == []


def test_layouts_are_those_of_the_interface():
    assert list(mlp((4, 5, 1)).layout()) == ["dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias"]
    assert mlp((4, 5, 1)).layout()["dense_0/kernel"] == (4, 5)
    shapes = {"conv_0/kernel": (3, 2, 60), "conv_0/bias": (60,), "conv_1/kernel": (3, 60, 60), "conv_1/bias": (60,)}
    assert cnn(32, 60).layout() == shapes | {"dense_0/kernel": (420, 1), "dense_0/bias": (1,)}


@pytest.mark.parametrize(
    "shape, layers, message",
    [
        ((1, 4), [], "a dense one as the last"),
        ((8, 2), [Convolution(3), Convolution(3)], "a dense one as the last"),
        ((8, 2), [Convolution(3, taps=9), Dense(1)], "layer 0 has windows of 9 positions at distance 2; there are 8 below"),
        ((8, 2), [Convolution(3), Convolution(3, taps=4), Dense(1)], "layer 1 has windows of 4 .* there are 3 below"),
        ((8, 2), [Dense(3), Convolution(3), Dense(1)], "layer 1 has windows of 3 .* there are 1 below"),
        ((8, 2), [Convolution(3, stride=0), Dense(1)], "at distance 0"),
    ],
)
def test_networks_that_cannot_be_are_refused(shape, layers, message):
    with pytest.raises(ValueError, match=message):
        network(shape, layers)


def test_a_position_that_no_window_saw_keeps_no_old_numbers(random):
    """After a diverged gradient, whose cotangents are NaN, the next one is clean."""
    controller = network((16, 2), [Convolution(4, taps=2, stride=1), Convolution(3, taps=1, stride=2), Dense(1)])
    problem = dataclasses.replace(sb.problem("quantum", points=16, width=4, steps=3, dtype="float64"), controller=controller)
    theta, x0 = 0.3 * random.standard_normal(controller.n_parameters), problem.sample(2)
    clean = problem.gradient(theta, x0, "C").value
    with pytest.raises(sb.DivergedError):
        problem.gradient(theta * 1e300, x0, "C")
    assert np.array_equal(problem.gradient(theta, x0, "C").value, clean)
