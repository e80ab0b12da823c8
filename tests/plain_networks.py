"""Controllers again, in plain NumPy."""

import numpy as np


def convolutions(problem, theta, x):
    """The CNN of quantum control: x (points, 2)."""
    layers = problem.layers(theta)
    for name in ("conv_0", "conv_1"):
        kernel, bias = layers[f"{name}/kernel"], layers[f"{name}/bias"]
        windows = [x[p : p + 3] for p in range(0, len(x) - 2, 2)]
        x = np.tanh(np.array([np.einsum("tc,tcf->f", w, kernel) for w in windows]) + bias)
    return x.ravel() @ layers["dense_0/kernel"] + layers["dense_0/bias"]
