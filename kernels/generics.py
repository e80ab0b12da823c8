"""The generic functions of the forward pass. A system, controller or loss is a struct with methods for them.

Shapes: B samples in a batch, n rows (samples, or samples x time steps), states of n_state and controls of n_control
numbers, flat. Methods write their outputs completely.
"""

import math
from typing import Any

import numpy as np

from stablebptt.kernels.core.dispatch import class_of, compiled_as, generic, generic_block, has_form, implements, like
from stablebptt.kernels.core.simd import PAD
from stablebptt.kernels.core.structs import Struct


class System(Struct):
    """Base of all systems.

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> system = pendulum(0.02)
    >>> isinstance(system, System), system.parameter_names()
    (True, ('dt', 'gravity', 'mass', 'length'))
    """

    def scratch_size(self, batch: int, variants: int) -> int:
        """Numbers of scratch space that a `step_batch` of its own needs for a batch and m = `variants` cotangents.

        Parameters
        ----------
        batch : samples B
        variants : cotangents m
        """
        return 0

    def sample_scratch(self) -> int:
        """Numbers of scratch space that `step_sample` and `step_sample_vjp` need."""
        return 0

    def value_count(self) -> int:
        """Numbers per sample that `draw` writes."""
        return 0

    def inside(self) -> "System":
        """The system itself, or the one that this is around."""
        return self

    def parameter_names(self) -> tuple[str, ...]:
        """Names of the fields that `step_parameters_vjp` gives cotangents of: all that hold one floating-point number."""
        cls = type(self)
        return tuple(name for name in cls.fields if isinstance(getattr(self, name), float | np.floating))

    @classmethod
    def register_type(cls, kind: Any, dtype: Any) -> Any:
        """Numba type of the system of a register full of samples.

        Parameters
        ----------
        kind : Numba type of the system
        dtype : Numba type of the numbers in the register
        """
        return kind


class Controller(Struct):
    """Base of controllers that compute one state at a time. They define `layout`, `control` and `control_vjp`.

    The networks of this package define the functions on batches instead.

    Examples
    --------
    >>> class Feedback(Controller):
    ...     def layout(self):
    ...         return {"gain": (2,)}
    >>> Feedback().layout()
    {'gain': (2,)}
    """

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order of theta."""
        raise NotImplementedError(f"{type(self).__name__} has no layout(): give the names and shapes of its parameters")


class Loss(Struct):
    """Base of all losses. They define `cost` and `cost_vjp`, of a state or of time, state and control; see `running_cost`.

    Examples
    --------
    >>> class Effort(Loss):
    ...     weight: float
    >>> @implements(cost, Effort)
    ... def _effort(loss, t, x, c):
    ...     return loss.weight * c[0] * c[0]
    >>> cost(Effort(0.5), 0, np.zeros(2), np.array([2.0]))
    np.float64(2.0)
    """


class Observation(Struct):
    """Base of what a controller sees of a state. They define `size`, `observe` and `observe_vjp`.

    Examples
    --------
    >>> class Rate(Observation):
    ...     def size(self, n_state):
    ...         return 1
    >>> Rate().size(2)
    1
    """

    def size(self, n_state: int) -> int:
        """Numbers that the controller sees, n_seen.

        Parameters
        ----------
        n_state : numbers of a state
        """
        raise NotImplementedError(f"{type(self).__name__} has no size(n_state): return how many numbers the controller sees")

    def noise(self, n_state: int) -> np.ndarray:
        """Standard deviations (n_seen,) of the noise on what the controller sees.

        Parameters
        ----------
        n_state : numbers of a state
        """
        return np.zeros(type(self).size(self, n_state))


class State(Observation):
    """The state itself."""

    def size(self, n_state: int) -> int:
        """Numbers of a state."""
        return n_state


class ControllerSums(Struct):
    """Sums of the gradients of a `Controller`: gradient (groups, m, n_parameters)."""

    gradient: np.ndarray


class ControllerTape(Struct):
    """Tape of a `Controller`: only the sums of the gradients, and the bounds (groups + 1,) of the groups of samples."""

    sums: ControllerSums
    groups: np.ndarray


# Fields of a struct may have any name, so these functions ask the class.


def scratch_size(system: System, batch: int, variants: int, n_state: int, n_control: int) -> int:
    """Numbers that `step_batch` and its vjp need: what the system asks for, or what a register full of samples takes."""
    numbers = 2 * n_state + n_control + variants * (2 * n_state + n_control) + sample_scratch(system)
    values = batch * type(system).value_count(system)
    return values + max(type(system).scratch_size(system, batch, variants), PAD * numbers)


def sample_scratch(system: System) -> int:
    """`System.sample_scratch` of a system."""
    return type(system).sample_scratch(system)


def parameter_count(controller: Any) -> int:
    """Numbers in theta, n_parameters."""
    return sum(math.prod(shape) for shape in controller.layout().values())


def weight_count(controller: Any) -> int:
    """Numbers in the arena that `pack` fills, n_weights."""
    return parameter_count(controller) if isinstance(controller, Controller) else controller.n_weights


def tape_width(controller: Any) -> int:
    """Numbers per row of the tape."""
    return 0 if isinstance(controller, Controller) else controller.tape_width()


def new_sums(controller: Any, dtype: Any, *, groups: int, adjoints: int) -> Any:
    """Space for the parameter gradients of m = `adjoints`, summed over groups of samples."""
    if isinstance(controller, Controller):
        return ControllerSums(np.zeros((groups, adjoints, parameter_count(controller)), dtype))
    return controller.sums(dtype, groups=groups, adjoints=adjoints)


def new_tape(
    controller: Any, dtype: Any, *, rows: int, chunk: int, adjoints: int, unit: bool, groups: Any = None, sums: Any = None
) -> Any:
    """Tape from the forward to the backward pass: `rows` stored rows, `chunk` rows per backward step, m = `adjoints`.

    unit : the tape holds the cotangents inside the network for the cotangent 1 of the only control; all adjoints share them
    groups (groups + 1,) : samples groups[k] .. groups[k+1] of each time step form a group; by default, all rows form one
    sums : of the gradients of these groups
    """
    if sums is None:
        sums, groups = new_sums(controller, dtype, groups=1, adjoints=adjoints), np.array([0, chunk])
    if isinstance(controller, Controller):
        return ControllerTape(sums, groups)
    return controller.tape(dtype, rows=rows, chunk=chunk, adjoints=adjoints, unit=unit, groups=groups, sums=sums)


@generic
def step(system, x, c, x_next):
    """One time step of one sample: ``x_next = S(x, c)``; x, x_next (n_state,), c (n_control,).

    Parameters
    ----------
    system : struct with a method for `step`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> x_next = np.empty(2)
    >>> step(pendulum(0.02), np.array([0.0, 0.0]), np.array([1.0]), x_next)
    >>> x_next.round(5).tolist()
    [0.0012, 0.06]
    """


@generic
def step_sample(system, x, c, x_next, scratch):
    """`step` without allocating: x, x_next (n_state,), c (n_control,), scratch (sample_scratch,).

    Parameters
    ----------
    system : struct with a method for `step` or `step_sample`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> x_next = np.empty(2)
    >>> step_sample(pendulum(0.02), np.zeros(2), np.ones(1), x_next, np.empty(0))
    >>> x_next.round(5).tolist()
    [0.0012, 0.06]
    """


@generic
def step_batch(system, x, c, x_next, scratch):
    """One time step of a batch: x, x_next (B, n_state), c (B, n_control); scratch (scratch_size,).

    Parameters
    ----------
    system : struct with a method for `step`

    Examples
    --------
    >>> from stablebptt.kernels.generics import scratch_size
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> system, x_next = pendulum(0.02), np.empty((2, 2))
    >>> scratch = np.empty(scratch_size(system, batch=2, variants=1, n_state=2, n_control=1))
    >>> step_batch(system, np.zeros((2, 2)), np.ones((2, 1)), x_next, scratch)
    >>> x_next.round(5).tolist()
    [[0.0012, 0.06], [0.0012, 0.06]]
    """


@generic
def draw(system, keys, scratch):
    """Draw what differs between samples, by their keys (B,), into the scratch space of a batch (scratch_size,)."""


@generic
def cost(loss, x):
    """Loss l(x) of one state x (n_state,); a number.

    Parameters
    ----------
    loss : struct with a method for `cost`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Standing
    >>> float(cost(Standing(), np.array([np.pi, 0.0])))
    2.0
    """


@generic
def running_cost(loss, t, x, c):
    """Cost of time step t, from state x (n_state,) to the next, with control c (n_control,); a number.

    It is the form of `cost` with four parameters. A loss with it may define `final_cost` for the last state.
    """


has_form(cost, running_cost)


@generic
def final_cost(loss, x):
    """Cost of the last state x (n_state,) of a loss with `running_cost`; a number, by default 0.

    Parameters
    ----------
    loss : struct with a method for `cost` of time, state and control

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Standing
    >>> float(final_cost(Standing(), np.zeros(2)))
    0.0
    """


@generic
def cost_batch(loss, t, weights, states, controls, total):
    """Add the weighted cost of time step t = 0 .. T of every sample to total (B,).

    weights (T+1,), states (T+1, B, n_state), controls (T, B, n_control)
    """


@generic
def observe(observation, t, x, seen):
    """What a controller sees, seen (n_seen,), of the state x (n_state,) at time step t.

    Parameters
    ----------
    observation : struct with a method for `observe`

    Examples
    --------
    >>> from stablebptt.kernels.seen import Angles
    >>> seen = np.empty(3)
    >>> observe(Angles(np.array([1, 0])), 0, np.array([np.pi / 2, 3.0]), seen)
    >>> seen.round(3).tolist()
    [1.0, 0.0, 3.0]
    """


@generic
def observe_batch(observation, t, x, seen):
    """`observe` for a batch: x (B, n_state), seen (B, n_seen)."""


@generic_block
def pack(controller, theta, weights):
    """Arrange theta (n_parameters,), in the users' order, in the padded arena `weights` (n_weights,).

    Parameters
    ----------
    controller : struct; a `Controller` keeps the order of theta

    Examples
    --------
    >>> weights = np.empty(2)
    >>> pack(Controller(), np.array([1.0, 2.0]), weights)
    >>> weights.tolist()
    [1.0, 2.0]
    """


@generic
def control(controller, theta, x, c):
    """Control c (n_control,) of one state x (n_state,), with parameters theta (n_parameters,).

    Parameters
    ----------
    controller : struct with a method for `control`

    Examples
    --------
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control, Gain)
    ... def _control(gain, theta, x, c):
    ...     c[0] = theta[0] * x[0]
    >>> c = np.empty(1)
    >>> control(Gain(), np.array([3.0]), np.array([2.0]), c)
    >>> c.tolist()
    [6.0]
    """


@generic
def control_batch(controller, weights, x, c, tape, row):
    """Controls c (n, n_control) of states x (n, n_state); activations go to rows row .. row + n of the tape.

    Parameters
    ----------
    controller : struct; a `Controller` needs a method for `control` only
    weights : what `pack` made of theta

    Examples
    --------
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control, Gain)
    ... def _control(gain, theta, x, c):
    ...     c[0] = theta[0] * x[0]
    >>> c = np.empty((2, 1))
    >>> control_batch(Gain(), np.array([3.0]), np.array([[2.0], [4.0]]), c, None, 0)
    >>> c.tolist()
    [[6.0], [12.0]]
    """


@implements(draw, System)
def _nothing_differs(system, keys, scratch):
    pass


@implements(step_sample, System)
def _step_sample(system, x, c, x_next, scratch):
    step(system, x, c, x_next)


def is_running(cls: type) -> bool:
    """Whether a loss has costs of time, state and control, and not of states alone."""
    known = [base for base in cls.__mro__ if base in running_cost.methods or base in cost.methods]
    return bool(known) and known[0] in running_cost.methods


def is_of_states(loss: Any) -> bool:
    """Whether a loss is a function of the state alone, at every time step."""
    own = next((cost_batch.methods[base] for base in type(loss).__mro__ if base in cost_batch.methods), None)
    return own is cost_batch.methods[Struct] and not is_running(type(loss))


@implements(final_cost, Struct)
def _no_final_cost(loss, x):
    return like(x, 0.0)


def cost_each(loss, t, weights, states, controls, total):
    """`cost_batch` of any loss."""
    form = _running_cost_each if is_running(type(loss)) else _cost_each
    form(loss, t, weights, states, controls, total)


def _cost_each(loss, t, weights, states, controls, total):
    for b in range(states.shape[1]):
        total[b] += weights[t] * cost(loss, states[t, b])


def _running_cost_each(loss, t, weights, states, controls, total):
    for b in range(states.shape[1]):
        if t < controls.shape[0]:
            total[b] += weights[t] * running_cost(loss, t, states[t, b], controls[t, b])
        else:
            total[b] += weights[t] * final_cost(loss, states[t, b])


compiled_as(cost_each, lambda loss, *_: _running_cost_each if is_running(class_of(loss)) else _cost_each, forceinline=True)


@implements(cost_batch, Struct)
def _cost_batch(loss, t, weights, states, controls, total):
    cost_each(loss, t, weights, states, controls, total)


@implements(observe_batch, Observation)
def _observe_each(observation, t, x, seen):
    for b in range(x.shape[0]):
        observe(observation, t, x[b], seen[b])


@implements(observe, State)
def _see_the_state(observation, t, x, seen):
    seen[:] = x


@implements(observe_batch, State)
def _see_the_states(observation, t, x, seen):
    pass  # they are the same array


@implements(pack, Controller)
def _copy(controller, theta, weights):
    weights[:] = theta


@implements(control_batch, Controller)
def _control_each(controller, weights, x, c, tape, row):
    for r in range(x.shape[0]):
        control(controller, weights, x[r], c[r])
