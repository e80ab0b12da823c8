"""A policy as an ONNX model: "states" (batch, *state_shape) -> "controls" (batch, *control_shape).

Every kind of stage has a function that adds its nodes to the graph. onnxruntime knows all of their operators in float64,
too, which is not true of Softplus and Gelu.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, checker, helper, numpy_helper

from stablebptt.tasks.policies import SHARE_A, SHARE_B, Layer, Limited, Policy, Scaled, Seen
from stablebptt.version import __version__

OPSET = 17


class Graph:
    """Nodes and constants, in the order they were added; values go by their names."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Any) -> str:
        """An array that keeps its type; plain numbers are in the precision of the policy."""
        array = values if isinstance(values, np.ndarray) else np.array(values, self.dtype)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The result of an operator."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """The value x (batch, ...) with other axes behind the first."""
        return self.add("Reshape", x, self.constant(np.array([-1, *shape], np.int64)))

    def share(self, z: str) -> str:
        """``(1 + tanh(z)) / 2``."""
        return self.add("Mul", self.add("Add", self.add("Tanh", z), self.constant(1)), self.constant(0.5))


def model(policy: Policy) -> ModelProto:
    """The policy as a model that the checker of ONNX has accepted."""
    graph = Graph(policy.dtype)
    x = graph.reshape("states", policy.n_state)
    for stage in policy.stages:
        x = _NODES[type(stage)](graph, stage, x)
    shape = graph.constant(np.array([-1, *policy.control_shape], np.int64))
    graph.nodes.append(helper.make_node("Reshape", [x, shape], ["controls"]))
    kind = helper.np_dtype_to_tensor_dtype(graph.dtype)
    ends = [
        helper.make_tensor_value_info(name, kind, ["batch", *shape])
        for name, shape in (("states", policy.state_shape), ("controls", policy.control_shape))
    ]
    made = helper.make_graph(graph.nodes, "policy", ends[:1], ends[1:], graph.constants, doc_string=policy.title)
    opset = helper.make_opsetid("", OPSET)
    oldest = helper.find_min_ir_version_for([opset])
    names = {"producer_name": "stablebptt", "producer_version": __version__}
    found = helper.make_model(made, opset_imports=[opset], ir_version=oldest, **names)
    checker.check_model(found, full_check=True)
    return found


def _gelu(graph: Graph, z: str) -> str:
    square = graph.add("Mul", z, z)
    slope = graph.add("Add", graph.add("Mul", square, graph.constant(SHARE_B)), graph.constant(SHARE_A))
    return graph.add("Mul", z, graph.share(graph.add("Mul", z, slope)))


def _silu(graph: Graph, z: str) -> str:
    return graph.add("Mul", z, graph.share(graph.add("Mul", z, graph.constant(0.5))))


def _softplus(graph: Graph, z: str) -> str:
    """``max(z, 0) + log(1 + exp(-|z|))``."""
    share = graph.add("Exp", graph.add("Neg", graph.add("Abs", z)))
    return graph.add("Add", graph.add("Relu", z), graph.add("Log", graph.add("Add", share, graph.constant(1))))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "identity": lambda graph, z: z,
    "tanh": lambda graph, z: graph.add("Tanh", z),
    "relu": lambda graph, z: graph.add("Relu", z),
    "gelu": _gelu,
    "silu": _silu,
    "softplus": _softplus,
    "sin": lambda graph, z: graph.add("Sin", z),
}


def _layer(graph: Graph, stage: Layer, x: str) -> str:
    many = stage.windows > 1
    below = graph.add("Gather", x, graph.constant(stage.places()), axis=1) if many else x
    z = graph.add("Add", graph.add("MatMul", below, graph.constant(stage.kernel)), graph.constant(stage.bias))
    z = ACTIVATIONS[stage.activation](graph, z)
    return graph.reshape(z, stage.windows * len(stage.bias)) if many else z


def _seen(graph: Graph, stage: Seen, x: str) -> str:
    seen = graph.add("Gather", x, graph.constant(stage.places), axis=1)
    for turn, operator in ((1, "Sin"), (2, "Cos")):
        turned = stage.turns == turn
        if turned.any():
            seen = graph.add("Where", graph.constant(turned), graph.add(operator, seen), seen)
    return seen


def _scaled(graph: Graph, stage: Scaled, x: str) -> str:
    moved = graph.add("Sub", x, graph.constant(stage.shift))
    return graph.add("Mul", moved, graph.constant(stage.factor))


def _limited(graph: Graph, stage: Limited, x: str) -> str:
    reached = graph.add("Mul", graph.add("Tanh", x), graph.constant(stage.reach))
    return graph.add("Add", reached, graph.constant(stage.centre))


_NODES: dict[type, Callable[..., str]] = {Layer: _layer, Seen: _seen, Scaled: _scaled, Limited: _limited}
