"""Adjoints against finite differences, for `stablebptt TASK check` and for the tests."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

import numpy as np

from stablebptt.adjoint import generics as backward
from stablebptt.kernels import generics as forward
from stablebptt.kernels.core.dispatch import kernel
from stablebptt.kernels.core.simd import padded
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.threads import WHOLE
from stablebptt.kernels.dense import aligned
from stablebptt.kernels.generics import Controller, State, System, is_of_states
from stablebptt.tasks import adjoint_check_states, arguments, batches, plain_python
from stablebptt.tasks.custom import cast
from stablebptt.tasks.differences import TOLERANCE, Arrays, Finding, Rule, findings, in_place
from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.problems import Problem

__all__ = ["TOLERANCE", "Finding", "Rule", "check", "check_system", "findings"]

# Sizes of the batches that states are split into: some fill the vectors' lanes, some do not.
BATCHES = (1, 3, 8, 33, 64)
# Rows in the check of a network, and initial states in the check of the rollout.
ROWS, ROLLED = 33, 3
# States at which plain Python calls the user's functions.
PLAIN = 6
# States for a second trial with one cotangent, to reach all branches.
MANY = 100
# Relative difference allowed between two ways of computing one step.
SAME = 1e-9


@kernel
def _control(controller, theta, weights, x, c, tape):
    forward.pack(controller, theta, weights)
    forward.control_batch(controller, weights, x, c, tape, 0)


class _Bars(Struct):
    """Cotangents of n controls, in and out.

    c_bar (m, n, n_control) : of the controls
    hidden (m or 1, n, n_control) : those that fill the slots of the tape
    x_bar (m, n, padded n_seen), gradients (m, n_parameters) : results
    """

    c_bar: np.ndarray
    hidden: np.ndarray
    x_bar: np.ndarray
    gradients: np.ndarray


@kernel
def _control_vjp(controller, weights, tape, x, bars):
    """Compute the cotangents of x, then those of theta."""
    backward.clear(controller, tape)
    rows, c_bar, hidden = backward.Rows(x, 0, 0, 0), bars.c_bar, bars.hidden
    for v in range(c_bar.shape[0]):
        backward.control_batch_vjp(controller, weights, tape, rows, c_bar[v])
        backward.state_vjp(controller, weights, tape, rows, c_bar[v], bars.x_bar[v])
    for v in range(hidden.shape[0]):
        backward.control_batch_vjp(controller, weights, tape, backward.Rows(x, 0, v, 0), hidden[v])
    backward.parameter_vjp(controller, weights, tape, rows, c_bar)
    backward.unpack(controller, tape.sums, bars.gradients, WHOLE)


# Ways to step a batch: forward, backward, and the scratch space that a system asks for.
STEPS: dict[str, tuple[Any, Any, Any]] = {
    "step": (batches.step_each, batches.step_each_vjp, lambda problem, batch, m: 0),
    "step_batch": (
        batches.step_batch,
        batches.step_batch_vjp,
        lambda problem, batch, m: forward.scratch_size(problem.system, batch, m, problem.n_state, problem.n_control),
    ),
    "step_sample": (
        batches.step_samples,
        batches.step_samples_vjp,
        lambda problem, batch, m: forward.sample_scratch(problem.system),
    ),
}


def step_rule(problem: Any, name: str = "step") -> Rule:
    """Rule of one of the `STEPS`: in batches of several sizes, with scratch space of just the size asked for, full of NaN."""
    system, (run, run_vjp, size) = problem.system, STEPS[name]

    def scratch(x: np.ndarray, m: int = 1) -> np.ndarray:
        return np.full(size(problem, len(x), m), np.nan)

    def rows(inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
        return inputs["state"].reshape(-1, problem.n_state), inputs["control"].reshape(-1, problem.n_control)

    def write(inputs: Arrays, output: np.ndarray) -> None:
        x, c = rows(inputs)
        for part in _batches(len(x)):
            run(system, x[part], c[part], output[part], scratch(x[part]))

    def add(inputs: Arrays, cotangents: np.ndarray, bars: Arrays) -> None:
        (x, c), m = rows(inputs), len(cotangents)
        given = (cotangents, bars["state"], bars["control"])  # (m, B, ..); methods take (B, m, ..)
        arrays = [np.ascontiguousarray(values.reshape(m, len(x), -1).swapaxes(0, 1)) for values in given]
        x_next = np.zeros_like(x)
        write(inputs, x_next)
        for part in _batches(len(x)):
            run_vjp(system, x[part], x_next[part], c[part], *(values[part] for values in arrays), scratch(x[part], m))
        for values, changed in zip(given, arrays):
            values[:] = changed.swapaxes(0, 1).reshape(values.shape)

    names = {"output": "x_next", "state": "lam_x", "control": "lam_c"}
    return in_place(
        name, write, add, lambda inputs: rows(inputs)[0].shape, independent=frozenset(("state", "control")), names=names
    )


def _batches(count: int) -> Iterator[slice]:
    first, sizes = 0, cycle(BATCHES)
    while first < count:
        size = next(sizes)
        yield slice(first, first + size)
        first += size


def cost_rule(problem: Problem) -> Rule:
    """Rule of `cost`, state by state."""

    def rows(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, problem.n_state)

    def write(inputs: Arrays, output: np.ndarray) -> None:
        batches.costs(problem.loss_function, rows(inputs["state"]), output)

    def add(inputs: Arrays, cotangents: np.ndarray, bars: Arrays) -> None:
        for bar, x_bar in zip(cotangents, bars["state"]):
            batches.costs_vjp(problem.loss_function, rows(inputs["state"]), bar, rows(x_bar))

    names = {"output": "cost", "state": "x_bar"}
    return in_place(
        "cost", write, add, lambda inputs: rows(inputs["state"]).shape[:1], independent=frozenset(names), names=names
    )


def path_cost_rule(problem: Problem) -> Rule:
    """Rule of the mean cost of paths, for losses that are no function of the state alone."""
    loss, weights = problem.loss_function, problem.time_weights

    def forward(inputs: Arrays) -> np.ndarray:
        total = np.zeros(inputs["states"].shape[1])
        batches.path_costs(loss, weights, inputs["states"], inputs["controls"], total)
        return np.array(total.mean())

    def vjp(inputs: Arrays, bars: np.ndarray) -> Arrays:
        steps, batch, n_control = inputs["controls"].shape
        x_bar, c_bar = np.zeros_like(inputs["states"]), np.zeros((steps + 1, batch, 1, n_control))
        batches.path_costs_vjp(loss, weights, inputs["states"], inputs["controls"], x_bar, c_bar)
        each = bars.reshape(-1, 1, 1, 1)
        return {"states": each * x_bar, "controls": each * c_bar[:-1, :, 0]}

    return Rule("cost of a path", forward, vjp)


def observe_rule(problem: Problem) -> Rule:
    """Rule of `observe`, state by state, at time steps 0, 1, .."""

    def times(x: np.ndarray) -> np.ndarray:
        return np.arange(len(x)) % problem.steps

    def write(inputs: Arrays, output: np.ndarray) -> None:
        batches.observations(problem.observation, times(inputs["state"]), inputs["state"], output)

    def add(inputs: Arrays, cotangents: np.ndarray, bars: Arrays) -> None:
        for bar, x_bar in zip(cotangents, bars["state"]):
            batches.observations_vjp(problem.observation, times(inputs["state"]), inputs["state"], bar.copy(), x_bar)

    names = {"output": "seen", "state": "x_bar"}
    shape = lambda inputs: (len(inputs["state"]), problem.n_seen)  # noqa: E731
    return in_place("observe", write, add, shape, independent=frozenset(("state",)), names=names)


def _controls_shape(problem: Problem) -> Callable[[Arrays], tuple[int, ...]]:
    return lambda inputs: (len(inputs["state"]), problem.n_control)


def single_control_rule(problem: Problem) -> Rule:
    """Rule of `control`, state by state, each with its own parameters: inputs (B, n_state), (B, n_parameters)."""
    controller = problem.controller

    def write(inputs: Arrays, output: np.ndarray) -> None:
        batches.controls(controller, inputs["parameters"], inputs["state"], output)

    def add(inputs: Arrays, cotangents: np.ndarray, bars: Arrays) -> None:
        for c_bar, theta_bar, x_bar in zip(cotangents, bars["parameters"], bars["state"]):
            batches.controls_vjp(controller, inputs["parameters"], inputs["state"], c_bar, theta_bar, x_bar)

    names = {"output": "c", "state": "x_bar", "parameters": "theta_bar"}
    return in_place("control", write, add, _controls_shape(problem), independent=frozenset(names), names=names)


def control_rule(problem: Problem, *, unit: bool = False) -> Rule:
    """Rule of `control_batch`, the only function of a network; `unit`: the gradient uses unit cotangents (one control only)."""
    controller = problem.controller

    def run(inputs: Arrays, c: np.ndarray, adjoints: int) -> tuple[np.ndarray, Any]:
        n = len(inputs["state"])
        tape = forward.new_tape(controller, np.float64, rows=n, chunk=n, adjoints=adjoints, unit=unit)
        weights = aligned((forward.weight_count(controller),), np.float64)
        _control(controller, inputs["parameters"], weights, inputs["state"], c, tape)
        return weights, tape

    def add(inputs: Arrays, cotangents: np.ndarray, bars: Arrays) -> None:
        m, n = cotangents.shape[:2]
        weights, tape = run(inputs, np.zeros((n, problem.n_control)), m)
        x_bar, gradients = np.zeros((m, n, padded(problem.n_seen))), np.zeros((m, problem.n_parameters))
        x_bar[:, :, : problem.n_seen] = bars["state"]
        hidden = np.ones((1, n, problem.n_control)) if unit else cotangents
        _control_vjp(controller, weights, tape, inputs["state"], _Bars(cotangents, hidden, x_bar, gradients))
        bars["state"][:] = x_bar[:, :, : problem.n_seen]
        bars["parameters"] += gradients

    def write(inputs: Arrays, output: np.ndarray) -> None:
        run(inputs, output, 1)

    names = {"output": "c", "state": "x_bar", "parameters": "gradients"}
    name = "control (unit cotangents)" if unit else "control_batch" if isinstance(controller, Controller) else "control"
    return in_place(name, write, add, _controls_shape(problem), independent=frozenset(("state",)), names=names)


def rollout_rule(problem: Problem) -> Rule:
    """Rule of the loss of the whole rollout, with all gates open backwards (variant R)."""

    def forward(inputs: Arrays) -> np.ndarray:
        return np.array(problem.losses(inputs["parameters"], inputs["state"])[0].mean())

    def vjp(inputs: Arrays, bars: np.ndarray) -> Arrays:
        value = problem.gradient(inputs["parameters"], inputs["state"], "R").value
        return {"parameters": bars.reshape(-1, 1) * value}

    return Rule("whole rollout", forward, vjp)


@dataclass(frozen=True)
class _Subject:
    """A system without a problem around it."""

    system: System
    n_state: int
    n_control: int
    loss_function: None = None
    controller: None = None


def check_system(
    system: System, seed: int = 0, *, step: float | None = None, tolerance: float = TOLERANCE, states: Any = None,
    report: Callable[[Finding], None] | None = None,
) -> list[Finding]:  # fmt: skip
    """Test `step_vjp` of a system alone, at random states and controls and along rollouts from there.

    The system must define `state_shape` and `control_shape`. The parameters are those of `check`; states (n, *state_shape).

    Parameters
    ----------
    seed, step, tolerance, report : as in `check`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Pendulum
    >>> class Sized(Pendulum):
    ...     state_shape, control_shape = (2,), (1,)
    >>> all(found.passed for found in check_system(Sized(0.02, 9.8, 1.0, 1.0)))
    True
    """
    shapes: list[Any] = [getattr(system, name, None) for name in ("state_shape", "control_shape")]
    if None in shapes:
        raise ArgumentError(f"{type(system).__name__} has no state_shape and control_shape; define them in the class")
    random, how = np.random.default_rng(seed), _how(step, tolerance)
    state_shape, control_shape = (tuple(np.atleast_1d(shape).tolist()) for shape in shapes)
    subject = _Subject(cast(system, np.float64), int(np.prod(state_shape)), int(np.prod(control_shape)))
    given = None if states is None else adjoint_check_states.read_states(states, state_shape)
    tried = random.standard_normal((PLAIN, subject.n_state)) if given is None else given[:PLAIN]
    plain_python.try_problem(subject, tried)
    with plain_python.explained(subject, tried[0]):
        if given is None:
            inputs = adjoint_check_states.of_system(step_rule(subject).forward, (subject.n_state, subject.n_control), random)
        else:
            inputs = adjoint_check_states.of_states(given, subject.n_control, random)
        plain_python.try_problem(subject, inputs["state"][:MANY], (1,))
        return _reported(report, _check_steps(subject, inputs, random, how))


def check(
    problem: Problem, seed: int = 0, *, step: float | None = None, tolerance: float = TOLERANCE, states: Any = None,
    report: Callable[[Finding], None] | None = None,
) -> list[Finding]:  # fmt: skip
    """Test all adjoints of a float64 problem.

    Parameters
    ----------
    seed : of states, controls, parameters and directions
    step : size of the finite differences, relative to the larger of 1 and the perturbed number; by default the best of many
    tolerance : relative errors up to this one pass
    states : where to take derivatives: (n, *state_shape), or a file (.npy, a run file or one of `simulate`); by default along
        rollouts of the initial controller and of random ones, and near initial states
    report : called with every finding at once
    problem : in float64

    Raises
    ------
    ValueError
        If a user's function fails in plain Python: with its file and line.

    Examples
    --------
    >>> problem = sb.problem("pendulum", steps=5, hidden=(5,), dtype="float64")
    >>> all(found.passed for found in check(problem))
    True
    """
    random, how = np.random.default_rng(seed), _how(step, tolerance)
    theta = problem.init(seed)
    if states is None:
        usual = adjoint_check_states.along_rollout(problem, theta, seed)["state"]
        plain_python.try_problem(problem, random.permutation(usual)[:PLAIN])
        starts, inputs = problem.sample(ROLLED, seed), adjoint_check_states.of_problem(problem, random, seed)
    else:
        given = adjoint_check_states.read_states(states, problem.state_shape)
        plain_python.try_problem(problem, given[:PLAIN])
        starts = given[:ROLLED].reshape(-1, *problem.state_shape)
        inputs = adjoint_check_states.of_states(given, problem.n_control, random)
    plain_python.try_problem(problem, inputs["state"][:MANY], (1,))
    parts = (
        _check_steps(problem, inputs, random, how),
        _check_costs(problem, inputs["state"], theta, starts, random, how),
        _check_controls(problem, inputs["state"], theta, random, how),
        findings(rollout_rule(problem), {"state": starts, "parameters": theta}, random, **how),
    )
    with plain_python.explained(problem, inputs["state"][0]):
        return _reported(report, *parts)


def _reported(report: Callable[[Finding], None] | None, *parts: Iterator[Finding]) -> list[Finding]:
    found = []
    for finding in chain(*parts):
        found.append(finding)
        if report is not None:
            report(finding)
    return found


def _how(step: float | None, tolerance: float) -> dict[str, Any]:
    """Checked keywords for `findings`."""
    step = None if step is None else arguments.real("step", step, above=0)
    return {"step": step, "tolerance": arguments.real("tolerance", tolerance, above=0)}


def _check_steps(subject: Any, inputs: Arrays, random: np.random.Generator, how: dict[str, Any]) -> Iterator[Finding]:
    """Test all ways to step, and whether they agree with each other; without what varies between samples."""
    subject = dataclasses.replace(subject, system=type(subject.system).inside(subject.system))
    rule = step_rule(subject)
    yield from findings(rule, inputs, random, **how)
    expected = rule.forward(inputs)
    others = [step_rule(subject, "step_batch")]
    if plain_python.method(forward.step_sample, subject.system) is not forward.step_sample.methods[System]:
        others.append(step_rule(subject, "step_sample"))
    for other in others:
        yield from findings(other, inputs, random, **how)
        largest = np.maximum(np.abs(expected), np.abs(inputs["state"])).max(axis=1, keepdims=True)
        off = (np.abs(other.forward(inputs) - expected) / np.where(largest > 0, largest, 1.0))[np.isfinite(expected)]
        if not np.all(off <= SAME):
            yield Finding(other.name, "x_next", float(np.max(off)), note=f"{other.name} and step disagree")


def _check_costs(
    problem: Problem, states: np.ndarray, theta: np.ndarray, starts: np.ndarray, random: np.random.Generator, how: dict[str, Any]
) -> Iterator[Finding]:
    """Test the loss at states, or along rollouts from a few `starts` if it depends on more."""
    loss = problem.loss_function
    if is_of_states(loss):
        yield from findings(cost_rule(problem), {"state": states}, random, **how)
        return
    path = problem.follow(theta + 0.1 * random.standard_normal(theta.shape), starts)
    inputs = {
        "states": np.ascontiguousarray(path.states.reshape(len(starts), -1, problem.n_state).swapaxes(0, 1)),
        "controls": np.ascontiguousarray(path.controls.reshape(len(starts), -1, problem.n_control).swapaxes(0, 1)),
    }
    yield from findings(path_cost_rule(problem), inputs, random, **how)


def _check_controls(
    problem: Problem, states: np.ndarray, theta: np.ndarray, random: np.random.Generator, how: dict[str, Any]
) -> Iterator[Finding]:
    """Test the controller, at parameters near theta (n_parameters,)."""
    rows = random.permutation(states)
    if type(problem.observation) is not State:
        rule = observe_rule(problem)
        yield from findings(rule, {"state": rows}, random, **how)
        rows = rule.forward({"state": rows})
    if isinstance(problem.controller, Controller):
        rows = rows[: max(ROWS, adjoint_check_states.NUMBERS // problem.n_parameters)]
        thetas = theta + random.standard_normal((len(rows), problem.n_parameters))
        yield from findings(single_control_rule(problem), {"state": rows, "parameters": thetas}, random, **how)
    inputs = {"state": rows[:ROWS], "parameters": theta + 0.1 * random.standard_normal(theta.shape)}
    for unit in (False, True) if problem.n_control == 1 else (False,):
        yield from findings(control_rule(problem, unit=unit), inputs, random, **how)
