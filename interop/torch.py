"""Controllers written in PyTorch, trained through our simulators with any gradient variant.

`as_step` is one simulator step as a differentiable function with our hand-written vjp. `RolloutLoss` is the loss of a whole
rollout; its gradient is R, M, S, N, a join of R and M such as C, or that of gates. M stops the gradient at the input of the
network. A join runs two adjoint passes, with the gates of R and of M, through the graph of one forward pass: both see the same
dropout masks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from stablebptt.interop import arrays
from stablebptt.tasks import joins, variants
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.joins import Join
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import Gates

Policy = Callable[[torch.Tensor], torch.Tensor]


class Step(torch.autograd.Function):
    """``Step.apply(problem, x, c)``: x_next (B, *state_shape) of x (B, *state_shape), c (B, *control_shape); see `as_step`."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Any, c: Any) -> Any:
        arrays.expect(problem, "x", x, ("B", *problem.state_shape))
        arrays.expect(problem, "c", c, (len(x), *problem.control_shape))
        ctx.problem = problem
        ctx.save_for_backward(x, c)
        return _tensor(arrays.step(problem, _numpy(x), _numpy(c)), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, lam: Any) -> Any:
        x, c = ctx.saved_tensors
        x_bar, c_bar = arrays.step_vjp(ctx.problem, _numpy(x), _numpy(c), _numpy(lam))
        return None, _tensor(x_bar, x), _tensor(c_bar, c)


class Cost(torch.autograd.Function):
    """``Cost.apply(problem, x)``: costs (B,) of states x (B, *state_shape)."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Any) -> Any:
        arrays.expect(problem, "x", x, ("B", *problem.state_shape))
        ctx.problem = problem
        ctx.save_for_backward(x)
        return _tensor(arrays.cost(problem, _numpy(x)), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bars: Any) -> Any:
        (x,) = ctx.saved_tensors
        return None, _tensor(arrays.cost_vjp(ctx.problem, _numpy(x), _numpy(bars)), x)


class Gate(torch.autograd.Function):
    """``Gate.apply(x, shares, passes)``: x unchanged; the share of the current adjoint pass scales its cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Any, shares: Sequence[float], passes: "Sweep") -> Any:
        ctx.shares, ctx.passes = shares, passes
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Any) -> Any:
        share = ctx.shares[ctx.passes.number]
        return share * bar if share else None, None, None


class Sweep:
    """The m adjoint passes through one graph, one by one; `number` is the current pass."""

    def __init__(self, gates: Gates) -> None:
        self.count, self.number = len(gates.physics), 0
        self.physics, self.network = gates.physics.T.tolist(), gates.network.T.tolist()  # per time step, a share per pass

    def gate(self, x: Any, shares: Sequence[float]) -> Any:
        """x unchanged, with a cotangent scaled by the share of each pass."""
        if all(share == 1 for share in shares):
            return x
        return Gate.apply(x, shares, self) if any(shares) else x.detach()

    def gradients(self, loss: Any, wanted: list[Any]) -> list[Any]:
        """The gradients of each pass in `wanted` (None where the loss does not depend on a tensor)."""
        if not loss.requires_grad:
            return [(None,) * len(wanted)] * self.count
        found = []
        for number in range(self.count):
            self.number, again = number, number + 1 < self.count
            found.append(torch.autograd.grad(loss, wanted, retain_graph=again, allow_unused=True))
        return found


class RolloutLoss(torch.autograd.Function):
    """``RolloutLoss.apply(problem, policy, variant, x0, *parameters)``: mean loss of a rollout of a PyTorch controller.

    The rollout begins at x0 (B, *state_shape); the policy is a function of states (B, *state_shape) to controls
    (B, *control_shape).
    The gradient in the policy's parameters is that of the variant: "R", "M", "S", "N", "C", another join or gates
    (docs/joins.md), or a pair of schedules. Per layer: every tensor of parameters is a layer.
    The gradient in x0 is the adjoint lam_0 of the variant; of a join, that of R.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, policy: Policy, variant: Any, x0: Any, *parameters: Any) -> Any:
        gates = variants.gates_of(variant, problem)
        x0 = _states(problem, x0)
        start = x0.detach().requires_grad_(x0.requires_grad)
        wanted = [value for value in (start, *parameters) if value.requires_grad]
        passes = Sweep(gates)
        with torch.enable_grad():
            loss = _rollout(problem, policy, start, passes)
            gradients = passes.gradients(loss, wanted)
        first = int(start.requires_grad)  # the gradient in x0 is not joined
        parameters_of = [each[first:] for each in gradients]
        values = list(parameters_of[0]) if gates.join is None else _joined(gates.join, *parameters_of)
        if start.requires_grad:
            values.insert(0, torch.zeros_like(start) if gradients[0][0] is None else gradients[0][0])
        found = iter(values)
        ctx.gradients = [next(found) if value.requires_grad else None for value in (start, *parameters)]
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Any) -> Any:
        return (None, None, None, *(None if g is None else bar.to(g) * g for g in ctx.gradients))


class ProblemLoss(torch.autograd.Function):
    """``ProblemLoss.apply(problem, variant, names, theta, x0, *values)``; see `problem_loss`."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, variant: Any, names: Sequence[str], theta: Any, x0: Any, *values: Any) -> Any:
        numbers = dict(zip(names, (float(value) for value in values)))
        found = arrays.gradient(problem, _numpy(theta), _numpy(x0), variant, numbers)
        parameters = (_number(found.parameters[name], value) for name, value in zip(names, values))
        ctx.gradients = [_tensor(found.value, theta), _tensor(np.asarray(found.x0), x0), *parameters]
        return _number(found.loss.total, theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Any) -> Any:
        return (None, None, None, *(bar.to(gradient) * gradient for gradient in ctx.gradients))


def problem_loss(problem: Problem, theta: Any, x0: Any, variant: Any = "R", parameters: Mapping[str, Any] | None = None) -> Any:
    """Mean loss of the problem's own controller, with the gradient of the variant in theta, x0 and numbers of the system.

    Parameters
    ----------
    theta (n_parameters,), x0 (B, *state_shape) : tensors in the problem's precision
    parameters : numbers of the system by name, as tensors, instead of its own; it needs a method for `step_parameters_vjp`
    """
    given = dict(parameters or {})
    theta = _given(problem, "theta", theta, (problem.n_parameters,))
    return ProblemLoss.apply(problem, variant, tuple(given), theta, _states(problem, x0), *given.values())


def as_step(problem: Problem) -> Callable[[Any, Any], Any]:
    """The function (x (B, *state_shape), c (B, *control_shape)) -> x_next (B, *state_shape), differentiable (once) in both.

    Tensors must have the problem's precision and may lie on any device; NumPy arrays are converted.
    """

    def step(x: Any, c: Any) -> Any:
        x = _given(problem, "x", x, ("B", *problem.state_shape))
        return Step.apply(problem, x, _given(problem, "c", c, (len(x), *problem.control_shape)))

    return step


def rollout_loss(problem: Problem, policy: torch.nn.Module, x0: Any, variant: Any = "C") -> Any:
    """`RolloutLoss` of a module: ``rollout_loss(problem, policy, x0, "M").backward()`` fills the gradients of its parameters.

    Parameters
    ----------
    policy : module, states (B, *state_shape) -> controls (B, *control_shape), both in the problem's precision; it runs forward
        once per time step for every variant
    x0 : (B, *state_shape), a tensor in the problem's precision on any device, or a NumPy array, which is converted; if it
        requires a gradient, ``x0.grad`` is the adjoint lam_0 of the variant, and of a join that of R
    variant : "R", "M", "S", "N", "C", another join or gates (docs/joins.md), or a pair of gate schedules (a, b)

    Raises
    ------
    TypeError, ValueError
        If shapes or precisions do not fit.
    """
    if not isinstance(policy, torch.nn.Module):
        raise ArgumentError(
            f"policy is {type(policy).__name__}; it must be a torch.nn.Module "
            "(of a function, give the parameters, too: RolloutLoss.apply(problem, policy, variant, x0, *parameters))"
        )
    try:
        if torch.is_grad_enabled():
            return RolloutLoss.apply(problem, policy, variant, x0, *policy.parameters())
        return _rollout(problem, policy, _states(problem, x0), Sweep(variants.gates_of(variant, problem)))
    except RuntimeError as error:
        found = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if p.is_floating_point()}
        wanted = np.dtype(problem.dtype).name
        if not found or wanted in found:
            raise
        raise ArgumentError(
            f"the policy computes in {', '.join(sorted(found))} and the problem in {wanted}; convert the policy with .to(...), "
            "or make the problem with another dtype"
        ) from error


def _rollout(problem: Problem, policy: Policy, x: Any, passes: Sweep) -> Any:
    arrays.bare(problem)
    costs, squares = 0.0, []
    for t in range(problem.steps):
        control = policy(passes.gate(x, passes.network[t]))
        arrays.expect(problem, "what the policy returns", control, (len(x), *problem.control_shape))
        x = Step.apply(problem, passes.gate(x, passes.physics[t]), control)
        squares.append(control.square().mean())
        if problem.time_weights[t + 1] != 0:  # a weight of 0 hides a cost that is not finite, as in our own adjoint pass
            costs = costs + float(problem.time_weights[t + 1]) * Cost.apply(problem, x).mean()
    return costs + problem.regularization * torch.stack(squares).mean().to(x.device)


def _joined(kind: Join, regular: Sequence[Any], modified: Sequence[Any]) -> list[Any]:
    """R and M, given as tensors, joined. A tensor that neither pass reaches has no gradient."""
    if isinstance(kind, joins.Signs):
        return [_combine(r, m) for r, m in zip(regular, modified)]
    zeros = [next((torch.zeros_like(each) for each in pair if each is not None), None) for pair in zip(regular, modified)]
    places = [place for place, zero in enumerate(zeros) if zero is not None]
    values: list[Any] = [None] * len(zeros)
    if places:
        r, m = ([_numpy(zeros[k] if each[k] is None else each[k]) for k in places] for each in (regular, modified))
        for place, value in zip(places, joins.join_arrays(kind, r, m)):
            values[place] = _tensor(value, zeros[place])
    return values


def _combine(regular: Any, modified: Any) -> Any:
    """C of two gradients; NaN and Inf stay visible. A parameter that neither pass reaches has no gradient."""
    if regular is None or modified is None:
        seen = regular if modified is None else modified
        return None if seen is None else 0 * seen
    same = torch.sign(regular) == torch.sign(modified)
    return torch.where(same, modified, torch.zeros_like(modified)) + 0 * regular + 0 * modified


def _states(problem: Problem, x0: Any) -> Any:
    return _given(problem, "x0", x0, ("B", *problem.state_shape))


def _given(problem: Problem, name: str, value: Any, shape: tuple[Any, ...]) -> Any:
    """A tensor of this shape: a NumPy array is converted to the problem's precision, a tensor must have it."""
    return arrays.given(problem, name, value, shape, torch.Tensor, torch.tensor)


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy()


def _number(value: float, like: Any) -> Any:
    """A number as a tensor of the precision and on the device of `like`."""
    return torch.tensor(value, dtype=torch.float64).to(like)


def _tensor(values: np.ndarray, like: Any) -> Any:
    """A result as a tensor on the device of `like`."""
    return torch.as_tensor(values, device=like.device)
