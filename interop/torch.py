"""Controllers that live in PyTorch, trained through our simulators with a gradient variant of choice.

`as_step` is one simulator step as a differentiable function, with our hand-written vjp behind it; `RolloutLoss` is a whole
rollout's loss whose gradient is R, M, S, N, C or a pair of gate schedules. M stops the gradient at the input of the network.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stablebptt.interop import arrays
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import gates

Policy = Callable[[torch.Tensor], torch.Tensor]


class Step(torch.autograd.Function):
    """``Step.apply(problem, x, c)``: next states; see `as_step`."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Any, c: Any) -> Any:
        ctx.problem = problem
        ctx.save_for_backward(x, c)
        return torch.as_tensor(arrays.step(problem, _numpy(x), _numpy(c)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, lam: Any) -> Any:
        x, c = ctx.saved_tensors
        x_bar, c_bar = arrays.step_vjp(ctx.problem, _numpy(x), _numpy(c), _numpy(lam))
        return None, torch.as_tensor(x_bar), torch.as_tensor(c_bar)


class Cost(torch.autograd.Function):
    """``Cost.apply(problem, x)``: costs (B,) of states."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Any) -> Any:
        ctx.problem = problem
        ctx.save_for_backward(x)
        return torch.as_tensor(arrays.cost(problem, _numpy(x)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bars: Any) -> Any:
        return None, torch.as_tensor(arrays.cost_vjp(ctx.problem, _numpy(ctx.saved_tensors[0]), _numpy(bars)))


class RolloutLoss(torch.autograd.Function):
    """``RolloutLoss.apply(problem, policy, variant, x0, *parameters)``: mean loss of a rollout of a PyTorch controller.

    Its gradient in the parameters (those of the policy) is that of the variant: "R", "M", "S", "N", "C" or a pair of schedules.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, policy: Policy, variant: Any, x0: Any, *parameters: Any) -> Any:
        opened = gates(variant, problem.steps)
        wanted = [p for p in parameters if p.requires_grad]
        gradients = []
        with torch.enable_grad():
            for a, b in zip(opened.physics, opened.network):
                loss = _gated(problem, policy, x0.detach(), a, b)
                if wanted:
                    gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True))
        if wanted:
            joined = [_combine(r, m) for r, m in zip(*gradients)] if opened.joined else gradients[0]
            found = iter(joined)
            ctx.gradients = [next(found) if p.requires_grad else None for p in parameters]
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Any) -> Any:
        return (None, None, None, None, *(None if g is None else bar * g for g in ctx.gradients))


def as_step(problem: Problem) -> Callable[[Any, Any], Any]:
    """The function (x (B, *state_shape), c (B, *control_shape)) -> next states, differentiable (once) in both."""
    return lambda x, c: Step.apply(problem, x, c)


def rollout_loss(problem: Problem, policy: torch.nn.Module, x0: Any, variant: Any = "C") -> Any:
    """`RolloutLoss` of a module: ``rollout_loss(problem, policy, x0, "M").backward()`` fills its parameters' gradients."""
    return RolloutLoss.apply(problem, policy, variant, x0, *policy.parameters())


def _gated(problem: Problem, policy: Policy, x: Any, physics: Sequence[float], network: Sequence[float]) -> Any:
    total, squares = torch.zeros((), dtype=x.dtype), []
    for t in range(problem.steps):
        control = policy(_gate(x, float(network[t])))
        x = Step.apply(problem, _gate(x, float(physics[t])), control)
        weight = float(problem.time_weights[t + 1])
        if weight != 0:
            total = total + weight * Cost.apply(problem, x).mean()
        squares.append(control.square().mean())
    return total + problem.regularization * torch.stack(squares).mean()


def _gate(x: Any, gate: float) -> Any:
    """x itself, whose cotangent passes in the proportion `gate`."""
    if gate in (0.0, 1.0):
        return x if gate else x.detach()
    constant = x.detach()
    return constant + gate * (x - constant)


def _combine(regular: Any, modified: Any) -> Any:
    """C of two gradients; NaN and Inf stay visible. A parameter that one of them never saw has no gradient."""
    if regular is None or modified is None:
        return None
    same = torch.sign(regular) == torch.sign(modified)
    return torch.where(same, modified, torch.zeros_like(modified)) + 0 * regular + 0 * modified


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy()
