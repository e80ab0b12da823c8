"""Where version 0.1 kept what is now in `stablebptt.kernels.core.structs`."""

from stablebptt.kernels.core.structs import Struct  # noqa: F401
