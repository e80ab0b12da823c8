"""The generic functions of the forward pass. A system, controller or loss is a struct with methods for them.

Shapes: B samples in a batch, n rows (samples, or samples x time steps), states of n_state and controls of n_control
numbers, flat. Methods write their outputs completely.
"""

from stablebptt.kernels.compiler import generic, generic_block, implements
from stablebptt.kernels.structs import Struct


class System(Struct):
    """Base of all systems."""

    def scratch_size(self, batch: int, variants: int) -> int:
        """Numbers of scratch space that `step_batch` and `step_batch_vjp` want for a batch and m cotangents."""
        return 0


@generic
def step(system, x, c, x_next):
    """One time step of one sample: ``x_next = S(x, c)``; x, x_next (n_state,), c (n_control,)."""


@generic
def step_batch(system, x, c, x_next, scratch):
    """One time step of a batch: x, x_next (B, n_state), c (B, n_control); scratch (scratch_size,)."""


@generic
def cost(loss, x):
    """Loss l(x) of one state (n_state,); a number."""


@generic_block
def pack(controller, theta, weights):
    """Arrange theta (n_parameters,), in the users' order, into the padded arena `weights`."""


@generic
def control(controller, weights, x, c, tape, row):
    """Controls c (n, n_control) of states x (n, n_state); activations go to rows row .. row + n of the tape."""


@implements(step_batch, System)
def _step_each(system, x, c, x_next, scratch):
    for b in range(x.shape[0]):
        step(system, x[b], c[b], x_next[b])
