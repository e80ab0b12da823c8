"""Import path of version 0.1 for `stablebptt.kernels.core.dispatch`."""

from stablebptt.kernels.core.dispatch import block, generic, implements, inline, kernel, like  # noqa: F401
