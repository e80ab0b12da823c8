"""Import this before the first kernel: a process that only loads kernels then begins a quarter of a second sooner.

When Numba compiles or loads its first function, it imports `scipy.linalg`, only to see that it is there. SciPy is a dependency of
this package, so that is known. Functions that use linear algebra import it when they are compiled, as ever.
"""

import sys

from numba.np import linalg

if "numba.np.arraymath" not in sys.modules and hasattr(linalg, "ensure_blas"):
    _ensure_blas, linalg.ensure_blas = linalg.ensure_blas, lambda: None
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        linalg.ensure_blas = _ensure_blas
