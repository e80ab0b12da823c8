"""Machine code that is called by its address, so that callers need not be compiled with it.

    address = address_of(entry, types)         in Python: compile the kernel `entry` for arguments of these Numba types
    call(address, arguments)                   in compiled code; an error inside is raised here
"""

from typing import Any

from numba import types
from numba.extending import intrinsic


def address_of(entry: Any, kinds: tuple[types.Type, ...]) -> int:
    """Address of the machine code of a kernel that returns nothing. It is valid as long as the kernel exists."""
    getattr(entry, "compile", entry)(kinds)  # without the compiler, the kernel itself says so
    compiled = entry.overloads[kinds]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


@intrinsic
def call(typing_context, address, arguments):
    """Call the kernel at an address. Its arguments must have the types it was compiled for; an address passes for a reference."""
    kinds = types.Tuple([types.unliteral(kind) for kind in arguments])

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        convention = context.call_conv
        kind = convention.get_function_type(types.none, kinds.types)
        callee = builder.inttoptr(given[0], kind.as_pointer())
        values = [builder.extract_value(given[1], k) for k in range(len(kinds))]
        status, _ = convention.call_function(builder, callee, types.none, kinds.types, values)
        with builder.if_then(status.is_error, likely=False):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.none(types.intp, kinds), generate
