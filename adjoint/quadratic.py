"""Adjoint of the quadratic cost; mirror image of `stablebptt.kernels.quadratic`."""

from stablebptt.adjoint.generics import cost_batch_vjp
from stablebptt.kernels.core.dispatch import implements
from stablebptt.kernels.quadratic import Quadratic, reference_at


@implements(cost_batch_vjp, Quadratic)
def _cost_batch_vjp(loss, t, weights, batch, states, controls, x_bar, lam_c):
    steps, samples, n_control = controls.shape
    row, kind = reference_at(loss, t), x_bar.dtype.type
    weight = kind(weights[t] / batch)
    after = kind(weights[t + 1] / batch) if t + 1 < steps else kind(0.0)
    factor = weight * loss.final if t == steps else weight
    for b in range(samples):
        for k in range(states.shape[2]):
            x_bar[b, k] += factor * loss.state[k] * (states[t, b, k] - loss.reference[row, k])
        if t < steps:
            for q in range(n_control):
                c = controls[t, b, q]
                c_bar = weight * loss.control[q] * (c - loss.rest[q])
                if t > 0:
                    c_bar += weight * loss.rate[q] * (c - controls[t - 1, b, q])
                if after != 0:
                    c_bar += after * loss.rate[q] * (c - controls[t + 1, b, q])
                for v in range(lam_c.shape[1]):
                    lam_c[b, v, q] += c_bar
