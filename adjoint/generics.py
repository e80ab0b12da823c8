"""The generic functions of the backward pass; see `stablebptt.adjoint` for the contract."""

import numpy as np

from stablebptt.kernels.core.dispatch import class_of, compiled_as, generic, generic_block, has_form, implements
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.core.threads import cut
from stablebptt.kernels.generics import Controller, Observation, State, System, is_running


class Rows(Struct):
    """n rows that go backwards together.

    x (n, n_seen) : what the controller sees of their states
    row : rows row .. row + n of the tape hold their activations, from `control_batch`
    slot, start : rows start .. start + n of this slot of the tape receive their cotangents, from `control_batch_vjp`

    Examples
    --------
    >>> Rows(np.zeros((4, 2)), 0, 0, 0).x.shape
    (4, 2)
    """

    x: np.ndarray
    row: int
    slot: int
    start: int


@generic
def step_vjp(system, x, c, lam, lam_x, lam_c):
    """Add ``S_x^T lam`` to lam_x and ``S_c^T lam`` to lam_c, for m cotangents at once.

    x (n_state,), c (n_control,), lam and lam_x (m, n_state), lam_c (m, n_control).

    Parameters
    ----------
    system : struct with a method for `step_vjp`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> x, c, lam = np.zeros(2), np.zeros(1), np.array([[1.0, 0.0]])
    >>> lam_x, lam_c = np.zeros((1, 2)), np.zeros((1, 1))
    >>> step_vjp(pendulum(0.02), x, c, lam, lam_x, lam_c)
    >>> lam_x.round(5).tolist(), lam_c.round(5).tolist()
    ([[1.00588, 0.02]], [[0.0012]])
    """


@generic
def step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_vjp` without allocating: x_next (n_state,) from the step; scratch (sample_scratch,).

    Parameters
    ----------
    system, x, c, lam, lam_x, lam_c : as in `step_vjp`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> x, c, lam = np.zeros(2), np.zeros(1), np.array([[1.0, 0.0]])
    >>> lam_x, lam_c = np.zeros((1, 2)), np.zeros((1, 1))
    >>> step_sample_vjp(pendulum(0.02), x, np.zeros(2), c, lam, lam_x, lam_c, np.empty(0))
    >>> lam_c.round(5).tolist()
    [[0.0012]]
    """


@generic
def step_batch_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    """`step_vjp` of a batch.

    x, x_next (B, n_state), c (B, n_control), lam and lam_x (B, m, n_state), lam_c (B, m, n_control), scratch (scratch_size,);
    x_next comes from the step.

    Parameters
    ----------
    system : struct with a method for `step_vjp`

    Examples
    --------
    >>> from stablebptt.kernels.generics import scratch_size
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> system, x, c, lam = pendulum(0.02), np.zeros((2, 2)), np.ones((2, 1)), np.ones((2, 1, 2))
    >>> lam_x, lam_c = np.zeros((2, 1, 2)), np.zeros((2, 1, 1))
    >>> scratch = np.empty(scratch_size(system, batch=2, variants=1, n_state=2, n_control=1))
    >>> step_batch_vjp(system, x, np.zeros((2, 2)), c, lam, lam_x, lam_c, scratch)
    >>> lam_c.round(5).tolist()
    [[[0.0612]], [[0.0612]]]
    """


@generic
def cost_vjp(loss, x, cost_bar, x_bar):
    """Add cost_bar, a number, times the derivative of `cost` at x (n_state,) to x_bar (n_state,).

    Parameters
    ----------
    loss : struct with a method for `cost_vjp`

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Standing
    >>> x_bar = np.zeros(2)
    >>> cost_vjp(Standing(), np.array([np.pi / 2, 0.0]), 3.0, x_bar)
    >>> x_bar.tolist()
    [3.0, 0.0]
    """


@generic
def running_cost_vjp(loss, t, x, c, cost_bar, x_bar, c_bar):
    """Add cost_bar, a number, times the derivatives of `running_cost` to x_bar (n_state,) and c_bar (n_control,)."""


has_form(cost_vjp, running_cost_vjp)


@generic
def final_cost_vjp(loss, x, cost_bar, x_bar):
    """Add cost_bar, a number, times the derivative of `final_cost` at x (n_state,) to x_bar (n_state,).

    Parameters
    ----------
    loss : struct with a method for `final_cost_vjp`, if it has a final cost

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import Standing
    >>> x_bar = np.zeros(2)
    >>> final_cost_vjp(Standing(), np.zeros(2), 1.0, x_bar)
    >>> x_bar.tolist()
    [0.0, 0.0]
    """


@generic
def cost_batch_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    """Add the derivatives of the mean cost of a batch by x_t to x_bar (B, n_state), and by c_t to all of lam_c (B, m, n_control).

    t = 0 .. T, and x_T has no control; `batch` samples count in the mean. Other arguments as in `cost_batch`.
    """


@generic
def observe_vjp(observation, t, x, seen_bar, x_bar):
    """Add ``O_x^T seen_bar`` to x_bar (n_state,); seen_bar (n_seen,) may be overwritten.

    Parameters
    ----------
    observation : struct with a method for `observe_vjp`
    t, x (n_state,) : time step and state where the derivatives are taken

    Examples
    --------
    >>> from stablebptt.kernels.seen import Angles
    >>> x_bar = np.zeros(2)
    >>> observe_vjp(Angles(np.array([1, 0])), 0, np.zeros(2), np.ones(3), x_bar)
    >>> x_bar.tolist()
    [1.0, 1.0]
    """


@generic
def observe_batch_vjp(observation, t, x, seen_bar, x_bar):
    """`observe_vjp` of a batch: x, x_bar (B, n_state), seen_bar (B, padded n_seen)."""


@generic
def step_parameters_vjp(system, x, c, lam, p_bar):
    """Add the cotangents of the system's float fields, in their order, to p_bar (m, fields); lam (m, n_state).

    A system need not define it; see `Gradient.parameters`.

    Parameters
    ----------
    x (n_state,), c (n_control,) : where the derivatives are taken

    Examples
    --------
    >>> from stablebptt.kernels.pendulum import pendulum
    >>> x, c, lam = np.zeros(2), np.zeros(1), np.array([[1.0, 0.0]])
    >>> p_bar = np.zeros((1, 4))
    >>> step_parameters_vjp(pendulum(0.02), np.array([0.1, 1.0]), c, lam, p_bar)
    >>> p_bar.round(3).tolist()
    [[1.059, 0.0, 0.0, -0.001]]
    """


def has_parameters_vjp(cls: type) -> bool:
    """Whether a class of systems has `step_parameters_vjp`."""
    return any(base in step_parameters_vjp.methods for base in cls.__mro__)


def parameter_names(system: System) -> tuple[str, ...]:
    """Names of the fields that a system gives cotangents of; none, if it has no `step_parameters_vjp`."""
    inner = type(system).inside(system)
    return type(inner).parameter_names(inner) if has_parameters_vjp(type(inner)) else ()


@generic
def step_parameters_batch_vjp(system, x, c, lam, p_bar, scratch):
    """`step_parameters_vjp` of a batch: lam (B, m, n_state), p_bar (B, m, fields); nothing, if the system has none."""


@generic
def control_vjp(controller, theta, x, c_bar, theta_bar, x_bar):
    """Add ``N_theta^T c_bar`` to theta_bar (n_parameters,) and ``N_x^T c_bar`` to x_bar (n_state,), for one state.

    Parameters
    ----------
    controller : struct with a method for `control_vjp`
    theta (n_parameters,), x (n_state,) : where the derivatives are taken

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> theta_bar, x_bar = np.zeros(1), np.zeros(1)
    >>> control_vjp(Gain(), np.array([3.0]), np.array([2.0]), np.ones(1), theta_bar, x_bar)
    >>> theta_bar.tolist(), x_bar.tolist()
    ([2.0], [3.0])
    """


@generic_block
def control_batch_vjp(controller, weights, tape, rows, c_bar):
    """Write the cotangents inside the network, for c_bar (n, n_control), to the tape; `control_batch` wrote the activations.

    `state_vjp` and `parameter_vjp` read them.

    Parameters
    ----------
    controller : struct; for a `Controller` there is nothing to do
    weights (n_weights,) : what `pack` made of theta
    rows : `Rows` that go backwards together

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> from stablebptt.kernels.generics import new_tape
    >>> tape = new_tape(Gain(), float, rows=2, chunk=2, adjoints=1, unit=False)
    >>> weights, rows, c_bar = np.array([3.0]), Rows(np.array([[2.0], [4.0]]), 0, 0, 0), np.ones((1, 2, 1))
    >>> control_batch_vjp(Gain(), weights, tape, rows, c_bar[0])
    """


@generic_block
def state_vjp(controller, weights, tape, rows, c_bar, x_bar):
    """Add ``N_x^T c_bar`` to x_bar (n, padded n_state), after `control_batch_vjp` of the same rows and c_bar (n, n_control).

    Parameters
    ----------
    controller : struct; a `Controller` needs a method for `control_vjp` only
    weights (n_weights,) : what `pack` made of theta
    tape : of `new_tape`, in which `control_batch_vjp` left its cotangents
    rows : `Rows` that go backwards together

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> from stablebptt.kernels.generics import new_tape
    >>> tape = new_tape(Gain(), float, rows=2, chunk=2, adjoints=1, unit=False)
    >>> weights, rows, c_bar = np.array([3.0]), Rows(np.array([[2.0], [4.0]]), 0, 0, 0), np.ones((1, 2, 1))
    >>> x_bar = np.zeros((2, 1))
    >>> state_vjp(Gain(), weights, tape, rows, c_bar[0], x_bar)
    >>> x_bar.tolist()
    [[3.0], [3.0]]
    """


@generic_block
def parameter_vjp(controller, weights, tape, rows, c_bar):
    """Add ``N_theta^T c_bar`` to the tape's sums of gradients, for m cotangents: the first n rows of c_bar (m, .., n_control).

    The rows are whole time steps of the samples in the tape's groups.
    It follows `control_batch_vjp` of all n rows: for cotangent v in slot v, or, with a `unit` tape, for the cotangent 1 in
    slot 0.

    Parameters
    ----------
    controller : struct; a `Controller` needs a method for `control_vjp` only
    weights (n_weights,) : what `pack` made of theta

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> from stablebptt.kernels.generics import new_tape
    >>> tape = new_tape(Gain(), float, rows=2, chunk=2, adjoints=1, unit=False)
    >>> weights, rows, c_bar = np.array([3.0]), Rows(np.array([[2.0], [4.0]]), 0, 0, 0), np.ones((1, 2, 1))
    >>> parameter_vjp(Gain(), weights, tape, rows, c_bar)
    >>> tape.sums.gradient.tolist()
    [[[6.0]]]
    """


@generic_block
def clear(controller, tape):
    """Set the tape's sums of gradients to zero.

    Parameters
    ----------
    controller : struct whose `tape` it is

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> from stablebptt.kernels.generics import new_tape
    >>> tape = new_tape(Gain(), float, rows=2, chunk=2, adjoints=1, unit=False)
    >>> tape.sums.gradient[:] = 1
    >>> clear(Gain(), tape)
    >>> tape.sums.gradient.tolist()
    [[[0.0]]]
    """


@generic_block
def unpack(controller, sums, gradients, part):
    """Write a part of the total of the sums to gradients (m, n_parameters), in the users' order.

    The groups are added up in their order, in the first one.

    Parameters
    ----------
    controller : struct whose sums they are

    Examples
    --------
    >>> from stablebptt.kernels import Controller, implements
    >>> class Gain(Controller):
    ...     def layout(self):
    ...         return {"gain": (1,)}
    >>> @implements(control_vjp, Gain)
    ... def _control_vjp(gain, theta, x, c_bar, theta_bar, x_bar):
    ...     theta_bar[0] += c_bar[0] * x[0]
    ...     x_bar[0] += c_bar[0] * theta[0]
    >>> from stablebptt.kernels.core.threads import WHOLE
    >>> from stablebptt.kernels.generics import new_sums
    >>> sums, gradients = new_sums(Gain(), float, groups=1, adjoints=1), np.empty((1, 1))
    >>> sums.gradient[:] = 5
    >>> unpack(Gain(), sums, gradients, WHOLE)
    >>> gradients.tolist()
    [[5.0]]
    """


@implements(step_sample_vjp, System)
def _step_sample_vjp(system, x, x_next, c, lam, lam_x, lam_c, scratch):
    step_vjp(system, x, c, lam, lam_x, lam_c)


@implements(final_cost_vjp, Struct)
def _no_final_cost_vjp(loss, x, cost_bar, x_bar):
    pass


def cost_each_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    """`cost_batch_vjp` of any loss."""
    form = _running_cost_each_vjp if is_running(type(loss)) else _cost_each_vjp
    form(loss, t, weights, batch, states, controls, x_bar, lam_c)


def _cost_each_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    weight = x_bar.dtype.type(weights[t] / batch)
    if weight != 0:
        for b in range(x_bar.shape[0]):
            cost_vjp(loss, states[t, b], weight, x_bar[b])


def _running_cost_each_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    weight = x_bar.dtype.type(weights[t] / batch)
    for b in range(x_bar.shape[0] if weight != 0 else 0):
        if t == controls.shape[0]:
            final_cost_vjp(loss, states[t, b], weight, x_bar[b])
        else:
            running_cost_vjp(loss, t, states[t, b], controls[t, b], weight, x_bar[b], lam_c[b, 0])
            for v in range(1, lam_c.shape[1]):
                for q in range(lam_c.shape[2]):
                    lam_c[b, v, q] = lam_c[b, 0, q]


compiled_as(
    cost_each_vjp, lambda loss, *_: _running_cost_each_vjp if is_running(class_of(loss)) else _cost_each_vjp, forceinline=True
)


@implements(cost_batch_vjp, Struct)
def _cost_batch_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    cost_each_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c)


@implements(observe_batch_vjp, Observation)
def _observe_each_vjp(observation, t, x, seen_bar, x_bar):
    for b in range(x.shape[0]):
        observe_vjp(observation, t, x[b], seen_bar[b], x_bar[b])


@implements(observe_vjp, State)
def _see_the_state_vjp(observation, t, x, seen_bar, x_bar):
    for k in range(x.size):
        x_bar[k] += seen_bar[k]


@implements(observe_batch_vjp, State)
def _see_the_states_vjp(observation, t, x, seen_bar, x_bar):
    pass  # they are the same array


@implements(clear, Controller)
def _clear(controller, tape):
    tape.sums.gradient[:] = 0


@implements(unpack, Controller)
def _unpack(controller, sums, gradients, part):
    first, end = cut(gradients.shape[1], part)
    for v in range(gradients.shape[0]):
        for k in range(first, end):
            total = sums.gradient[0, v, k]
            for group in range(1, sums.gradient.shape[0]):
                total += sums.gradient[group, v, k]
            gradients[v, k] = total


@implements(control_batch_vjp, Controller)
def _control_batch_vjp(controller, weights, tape, rows, c_bar):
    pass


@implements(state_vjp, Controller)
def _state_each_vjp(controller, weights, tape, rows, c_bar, x_bar):
    x, unused = rows.x, np.zeros_like(weights)
    for r in range(x.shape[0]):
        control_vjp(controller, weights, x[r], c_bar[r], unused, x_bar[r, : x.shape[1]])


@implements(parameter_vjp, Controller)
def _parameters_each_vjp(controller, weights, tape, rows, c_bar):
    x, groups = rows.x, tape.groups
    unused, last = np.zeros_like(x[0]), groups.size - 1
    for group in range(last):
        for v in range(c_bar.shape[0]):
            for first in range(0, x.shape[0], groups[last]):
                for r in range(first + groups[group], first + groups[group + 1]):
                    control_vjp(controller, weights, x[r], c_bar[v, r], tape.sums.gradient[group, v], unused)
