"""Import path of version 0.1 for `stablebptt.kernels.core.structs`."""

from stablebptt.kernels.core.structs import Struct  # noqa: F401
