"""Adjoints against finite differences: what `stablebptt TASK check` shows, and what the tests are built from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stablebptt.adjoint.generics import clear, control_batch_vjp, cost_vjp, parameter_vjp, step_batch_vjp, step_vjp, unpack
from stablebptt.kernels.compiler import kernel
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import System, control_batch, cost, new_tape, pack, scratch_size, step, step_batch, weight_count
from stablebptt.kernels.simd import padded
from stablebptt.tasks.custom import cast
from stablebptt.tasks.problems import Problem

Arrays = dict[str, np.ndarray]
# Central differences of order 6: their error is far below 1e-10 for smooth functions and steps of this size.
STENCIL = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60))
STEP = 2e-3
TOLERANCE = 1e-7
COTANGENTS = 3


@dataclass(frozen=True)
class Rule:
    """A forward function and its vjp.

    Attributes
    ----------
    name : str
    forward : (inputs) -> outputs, one array
    vjp : (inputs, cotangents (m, *outputs)) -> per input the cotangents (m, *input)
    step : of the finite differences, smaller where the function bends more
    """

    name: str
    forward: Callable[[Arrays], np.ndarray]
    vjp: Callable[[Arrays, np.ndarray], Arrays]
    step: float = STEP


@dataclass(frozen=True)
class Finding:
    """Outcome for one argument: ``|<y, J dx> - <J^T y, dx>|`` relative to the sum of absolute terms."""

    rule: str
    argument: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCE  # NaN fails


def directional(rule: Rule, inputs: Arrays, name: str, direction: np.ndarray) -> Any:
    """Derivative of a rule's forward function along a direction of one input."""
    total: Any = 0.0
    for distance, weight in STENCIL:
        for sign in (1, -1):
            moved = inputs | {name: inputs[name] + sign * distance * rule.step * direction}
            total = total + sign * weight / rule.step * np.array(rule.forward(moved))
    return total


def findings(rule: Rule, inputs: Arrays, random: np.random.Generator) -> Iterator[Finding]:
    """Test every argument of a rule with `COTANGENTS` random cotangents at once."""
    output = np.asarray(rule.forward(inputs))
    cotangents = random.standard_normal((COTANGENTS, *output.shape))
    results = rule.vjp(inputs, cotangents)
    for name, bars in results.items():
        direction = random.standard_normal(inputs[name].shape)
        change = directional(rule, inputs, name, direction)
        worst = 0.0
        for cotangent, bar in zip(cotangents, bars):
            left, right = np.sum(cotangent * change), np.sum(bar * direction)
            scale = np.sum(np.abs(cotangent * change)) + np.sum(np.abs(bar * direction))
            error = abs(left - right) / scale if scale > 0 else abs(left - right)
            worst = error if not error <= worst else worst  # keeps NaN
        yield Finding(rule.name, name, float(worst))


@kernel
def _step(system, x, c, x_next):
    step(system, x, c, x_next)


@kernel
def _step_vjp(system, x, c, lam, lam_x, lam_c):
    step_vjp(system, x, c, lam, lam_x, lam_c)


@kernel
def _step_batch(system, x, c, x_next, scratch):
    step_batch(system, x, c, x_next, scratch)


@kernel
def _step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch)


@kernel
def _cost(loss, x):
    return cost(loss, x)


@kernel
def _cost_vjp(loss, x, cost_bar, x_bar):
    cost_vjp(loss, x, cost_bar, x_bar)


@kernel
def _control(controller, theta, weights, x, c, tape):
    pack(controller, theta, weights)
    control_batch(controller, weights, x, c, tape, 0)


@kernel
def _control_vjp(controller, weights, x, tape, c_bar, ones, x_bar, gradients, unit):
    """Cotangents of x and theta for m cotangents c_bar (m, n, n_control), one after the other (or as `unit`)."""
    clear(controller, tape)
    for v in range(c_bar.shape[0]):
        control_batch_vjp(controller, weights, tape, x, 0, c_bar[v], x_bar[v], True, v, 0)
    if unit:
        control_batch_vjp(controller, weights, tape, x, 0, ones, ones, False, 0, 0)
    parameter_vjp(controller, weights, tape, x, 0, c_bar, unit)
    unpack(controller, tape, gradients)


def step_rule(problem: Problem) -> Rule:
    """`step` of one sample."""

    def forward(inputs: Arrays) -> np.ndarray:
        x_next = np.zeros(problem.n_state)
        _step(problem.system, inputs["state"], inputs["control"], x_next)
        return x_next

    def vjp(inputs: Arrays, lam: np.ndarray) -> Arrays:
        lam_x, lam_c = np.zeros_like(lam), np.zeros((len(lam), problem.n_control))
        _step_vjp(problem.system, inputs["state"], inputs["control"], lam, lam_x, lam_c)
        return {"state": lam_x, "control": lam_c}

    return Rule("step", forward, vjp)


def step_batch_rule(problem: Problem) -> Rule:
    """`step_batch`, with the scratch space that the system asks for."""

    def forward(inputs: Arrays) -> np.ndarray:
        x_next = np.zeros_like(inputs["state"])
        scratch = np.zeros(scratch_size(problem.system, len(x_next), COTANGENTS))
        _step_batch(problem.system, inputs["state"], inputs["control"], x_next, scratch)
        return x_next

    def vjp(inputs: Arrays, lam: np.ndarray) -> Arrays:
        batch, m = len(inputs["state"]), len(lam)
        lam = np.ascontiguousarray(lam.swapaxes(0, 1))
        lam_x, lam_c = np.zeros_like(lam), np.zeros((batch, m, problem.n_control))
        scratch = np.zeros(scratch_size(problem.system, batch, m))
        x, c = inputs["state"], inputs["control"]
        _step_batch_vjp(problem.system, x, forward(inputs), c, lam, lam_x, lam_c, scratch)
        return {"state": lam_x.swapaxes(0, 1), "control": lam_c.swapaxes(0, 1)}

    return Rule("step_batch", forward, vjp)


def cost_rule(problem: Problem) -> Rule:
    """`cost` of one state."""

    def forward(inputs: Arrays) -> np.ndarray:
        return np.array(_cost(problem.loss_function, inputs["state"]))

    def vjp(inputs: Arrays, bars: np.ndarray) -> Arrays:
        x_bar = np.zeros((len(bars), problem.n_state))
        for bar, row in zip(bars, x_bar):
            _cost_vjp(problem.loss_function, inputs["state"], float(bar), row)
        return {"state": x_bar}

    return Rule("cost", forward, vjp)


def control_rule(problem: Problem, unit: bool = False) -> Rule:
    """`control` of a batch; `unit`: the parameters' cotangents by way of unit cotangents (one control only)."""
    controller = problem.controller

    def run(inputs: Arrays, variants: int) -> tuple[np.ndarray, np.ndarray, Any]:
        n = len(inputs["state"])
        tape = new_tape(controller, n, n, variants, variants, np.float64)
        weights, c = aligned((weight_count(controller),), np.float64), np.zeros((n, problem.n_control))
        _control(controller, inputs["parameters"], weights, inputs["state"], c, tape)
        return weights, c, tape

    def vjp(inputs: Arrays, bars: np.ndarray) -> Arrays:
        m, n = bars.shape[:2]
        weights, _, tape = run(inputs, m)
        x_bar = np.zeros((m, n, padded(problem.n_state)))
        gradients = np.zeros((m, problem.n_parameters))
        ones = np.ones((n, problem.n_control))
        _control_vjp(controller, weights, inputs["state"], tape, bars, ones, x_bar, gradients, unit)
        return {"state": x_bar[:, :, : problem.n_state], "parameters": gradients}

    name = "control (unit cotangents)" if unit else "control"
    return Rule(name, lambda inputs: run(inputs, 1)[1], vjp)


def rollout_rule(problem: Problem) -> Rule:
    """The whole rollout's loss, backwards by the sweep with all gates open (variant R)."""

    def forward(inputs: Arrays) -> np.ndarray:
        return np.array(problem.loss(inputs["parameters"], inputs["state"]).total)

    def vjp(inputs: Arrays, bars: np.ndarray) -> Arrays:
        value = problem.gradient(inputs["parameters"], inputs["state"], "R").value
        return {"parameters": bars.reshape(-1, 1) * value}

    return Rule("rollout and sweep", forward, vjp, STEP / 10)


@dataclass(frozen=True)
class _Subject:
    """A system without a problem around it."""

    system: System
    n_state: int
    n_control: int


def check_system(system: System, seed: int = 0) -> list[Finding]:
    """Test `step_vjp` of a system alone, at random states and controls; it must say its `state_shape` and `control_shape`."""
    shapes: list[Any] = [getattr(system, name, None) for name in ("state_shape", "control_shape")]
    if None in shapes:
        raise TypeError(f"{type(system).__name__} has no state_shape and control_shape; define them in the class")
    random = np.random.default_rng(seed)
    subject: Any = _Subject(cast(system, np.float64), *(int(np.prod(shape)) for shape in shapes))
    one = {"state": random.standard_normal(subject.n_state), "control": random.standard_normal(subject.n_control)}
    three = {name: random.standard_normal((3, len(values))) for name, values in one.items()}
    jobs = [(step_rule(subject), one), (step_batch_rule(subject), three)]
    return [finding for rule, inputs in jobs for finding in findings(rule, inputs, random)]


def check(problem: Problem, seed: int = 0) -> list[Finding]:
    """Test all adjoints of a float64 problem at random places near its own initial states."""
    random = np.random.default_rng(seed)
    states = problem.sample(3, seed)
    flat = states.reshape(3, problem.n_state) + 0.1 * random.standard_normal((3, problem.n_state))  # no special place
    controls = random.standard_normal((3, problem.n_control))
    theta = problem.init(seed) + 0.1 * random.standard_normal(problem.n_parameters)
    one = {"state": flat[0], "control": controls[0]}
    jobs = [
        (step_rule(problem), one),
        (step_batch_rule(problem), {"state": flat, "control": controls}),
        (cost_rule(problem), {"state": flat[0]}),
        (control_rule(problem), {"state": flat, "parameters": theta}),
    ]
    if problem.n_control == 1:
        jobs.append((control_rule(problem, unit=True), {"state": flat, "parameters": theta}))
    jobs.append((rollout_rule(problem), {"state": states, "parameters": problem.init(seed)}))
    return [finding for rule, inputs in jobs for finding in findings(rule, inputs, random)]
