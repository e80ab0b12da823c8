"""A policy as a plain PyTorch module, and as an exported program that loads with PyTorch alone.

Every kind of stage is a module. Weights are parameters that ask for no gradient; `requires_grad_` changes that.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stablebptt.tasks import policies
from stablebptt.tasks.policies import Policy

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functools.partial(nn.functional.gelu, approximate="tanh"),
    "silu": nn.functional.silu,
    "softplus": lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    "sin": torch.sin,
}


class Layer(nn.Module):
    """A layer: one `torch.nn.Linear` for all windows."""

    def __init__(self, stage: policies.Layer) -> None:
        super().__init__()
        window, outputs = stage.kernel.shape
        self.window, self.windows, self.stride = window, stage.windows, stage.stride
        self.linear = nn.utils.skip_init(nn.Linear, window, outputs, dtype=_tensor(stage.bias).dtype)
        self.linear.weight.data = _tensor(stage.kernel.T)
        self.linear.bias.data = _tensor(stage.bias)
        self.activation = ACTIVATIONS[stage.activation]

    def forward(self, x: Any) -> Any:
        below = x.unfold(1, self.window, self.stride)[:, : self.windows] if self.windows > 1 else x
        return self.activation(self.linear(below)).flatten(1)


class Seen(nn.Module):
    """An observation."""

    def __init__(self, stage: policies.Seen) -> None:
        super().__init__()
        self.register_buffer("places", _tensor(stage.places))
        self.register_buffer("sines", _tensor(stage.turns == 1))
        self.register_buffer("cosines", _tensor(stage.turns == 2))

    def forward(self, x: Any) -> Any:
        seen = x[:, self.places]
        return torch.where(self.sines, torch.sin(seen), torch.where(self.cosines, torch.cos(seen), seen))


class Scaled(nn.Module):
    """``(y - shift) factor``."""

    def __init__(self, stage: policies.Scaled) -> None:
        super().__init__()
        self.register_buffer("shift", _tensor(stage.shift))
        self.register_buffer("factor", _tensor(stage.factor))

    def forward(self, x: Any) -> Any:
        return (x - self.shift) * self.factor


class Limited(nn.Module):
    """``centre + reach tanh(u)``."""

    def __init__(self, stage: policies.Limited) -> None:
        super().__init__()
        self.register_buffer("centre", _tensor(stage.centre))
        self.register_buffer("reach", _tensor(stage.reach))

    def forward(self, x: Any) -> Any:
        return self.centre + self.reach * torch.tanh(x)


_MODULES: dict[type, Callable[..., nn.Module]] = {
    policies.Layer: Layer,
    policies.Seen: Seen,
    policies.Scaled: Scaled,
    policies.Limited: Limited,
}


def module(policy: Policy) -> nn.Module:
    """The policy as a module: states (B, *state_shape) -> controls (B, *control_shape), in its precision."""
    stages = [_MODULES[type(stage)](stage) for stage in policy.stages]
    found = nn.Sequential(nn.Flatten(), *stages, nn.Unflatten(1, policy.control_shape))
    return found.requires_grad_(False).eval()


def save(policy: Policy, file: Path) -> None:
    """Write the module as an exported program, for `torch.export.load`; the batch may have any size."""
    dtype = _tensor(np.empty(0, policy.dtype)).dtype
    states = torch.zeros(2, *policy.state_shape, dtype=dtype)
    program = torch.export.export(module(policy), (states,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    content = io.BytesIO()
    torch.export.save(program, content)
    file.write_bytes(content.getvalue())


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, order="C"))
