"""One optimisation per entry point.

Numba optimises every function that it compiles, and generates machine code for it and for everything it calls. Code five levels
below an entry point goes through that five times. Here a function without a wrapper, which only compiled code can call, is
merely linked into its callers. The entry point is then optimised once, as a whole.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target

# Options of functions that only compiled code calls.
NO_WRAPPERS: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
WRAPPERS = ("_ZN7cpython", "cfunc")
ENVIRONMENT = "_ZN08NumbaEnv"
SMALL = 40_000  # characters of LLVM text; a step of the cart-pole has 15,000


class LinkedLibrary(JITCodeLibrary):
    """Code of one function. It is made executable only if it has a wrapper.

    Small functions are optimised separately as well. That costs nothing, and their last bits do not depend on their callers.
    """

    def _optimize_final_module(self) -> None:
        self._is_entry = any(f.name.startswith(WRAPPERS) for f in self._final_module.functions if not f.is_declaration)
        if self._is_entry or len(str(self._final_module)) < SMALL:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        if self._is_entry:
            super()._finalize_final_module()
            return
        self._finalize_dynamic_globals()
        self._environments = _declared(self._final_module)
        self._codegen._add_module(self._environments)
        self._codegen._engine.finalize_object()
        self._finalized = True


def _declared(module: Any) -> Any:
    """A module that declares only the globals Numba writes to: pointers to the Python side of the functions in `module`."""
    word = f"i{8 * ctypes.sizeof(ctypes.c_void_p)}"
    names = [variable.name for variable in module.global_variables if variable.name.startswith(ENVIRONMENT)]
    declared = llvm.parse_assembly("\n".join(f'@"{name}" = common global {word} 0' for name in names))
    declared.triple, declared.data_layout = module.triple, module.data_layout
    return declared


@contextlib.contextmanager
def _linked_libraries() -> Iterator[None]:
    codegen = cpu_target.target_context.codegen()
    before = codegen._library_class
    codegen._library_class = LinkedLibrary
    try:
        yield
    finally:
        codegen._library_class = before


def optimise_once(dispatcher: Any) -> None:
    """Make Numba compile this entry point that way. Numba holds its compiler lock during the call."""
    compile_one: Callable = dispatcher._compiler.compile

    def compile_linked(arguments: Any, return_type: Any) -> Any:
        with _linked_libraries():
            return compile_one(arguments, return_type)

    dispatcher._compiler.compile = compile_linked
