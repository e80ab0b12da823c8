"""Problems whose policies differ: in layers, activations, limits, observations and precision."""

import stablebptt as sb

PROBLEMS = {
    "cartpole": {}, "two poles": {"poles": 2}, "one layer": {"hidden": (7,)}, "three layers": {"hidden": (7, 3, 9)},
    "float64": {"dtype": "float64"}, "guidance": {"drivers": 3}, "quantum": {}, "narrow": {"points": 12, "width": 5},
    "pendulum": {}, "bounded": {"bound": 2.0}, "lopsided": {"bound": [[-1.0], [5.0]]},
    **{name: {"activation": name} for name in ("relu", "gelu", "silu", "softplus", "sin", "identity")},
    "angles": {"poles": 2, "observe": "angles=2:4"}, "chosen": {"observe": "choose=3:2:2"},
    "joined": {"observe": "state,angles=2"}, "noisy": {"observe": "angles=2,noise=0.1"},
    "herd": {"observe": "choose=0:1:5:9", "activation": "gelu"},
}  # fmt: skip
TASKS = {"herd": "guidance", "guidance": "guidance", "quantum": "quantum", "narrow": "quantum", "pendulum": "pendulum"}


def problem_of(name):
    return sb.problem(TASKS.get(name, "cartpole"), steps=3, output_init="glorot", **PROBLEMS[name])
