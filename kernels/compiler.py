"""Where version 0.1 kept what is now in `stablebptt.kernels.core.dispatch`."""

from stablebptt.kernels.core.dispatch import block, generic, implements, inline, kernel, like  # noqa: F401
