"""Compilation of kernels, and generic functions that dispatch on the type of a struct at compile time."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import config
from numba.core.compiler import Flags
from numba.core.errors import TypingError
from numba.core.target_extension import current_target
from numba.core.targetconfig import ConfigStack
from numba.core.typing.templates import builtin_registry
from numba.extending import overload

from stablebptt.kernels.core import quick_start  # noqa: F401  (before the first kernel)
from stablebptt.kernels.core.cache import KernelCache
from stablebptt.kernels.core.linking import NO_WRAPPERS, optimise_once
from stablebptt.kernels.core.structs import ReferenceType, Struct, StructType

# Reassociation and contraction let loops vectorise. Without `nnan` and `ninf`, NaN and Inf stay visible.
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}
OPTIONS: Any = {"fastmath": FASTMATH, "error_model": "numpy"}
ENTRY: Any = {"nogil": True, "no_cfunc_wrapper": True, **OPTIONS}


def kernel(function: Callable) -> Any:
    """Compile an entry point. Its machine code, with everything it calls, is stored on disk.

    Parameters
    ----------
    function : the Python function, which calls functions of this package

    Examples
    --------
    The code is compiled at the first call:

    >>> @kernel
    ... def total(values):
    ...     result = 0.0
    ...     for value in values:
    ...         result += value
    ...     return result
    >>> callable(total)
    True
    """
    if vars(config)["DISABLE_JIT"]:
        return _uncompiled(function)
    dispatcher = njit(**ENTRY)(function)
    dispatcher._cache = KernelCache(function)
    optimise_once(dispatcher)
    return dispatcher


def _uncompiled(function: Callable) -> Callable:
    @functools.wraps(function)
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("the kernels need Numba's compiler, which NUMBA_DISABLE_JIT switches off; unset that variable")

    return refuse


def inline(function: Callable) -> Callable:
    """Let compiled code call a small function, which is compiled into its callers. In Python the function is unchanged.

    Examples
    --------
    >>> @inline
    ... def squared(number):
    ...     return number * number
    >>> squared(3.0)
    9.0
    """
    return compiled_as(function, lambda *arguments: function, forceinline=True)


def block(function: Callable) -> Callable:
    """`inline` for larger functions: they are compiled once and called.

    Parameters
    ----------
    function : a Python function of numbers, arrays and structs

    Examples
    --------
    >>> @block
    ... def double(values):
    ...     for k in range(values.size):
    ...         values[k] *= 2
    >>> values = np.ones(2)
    >>> double(values)
    >>> values.tolist()
    [2.0, 2.0]
    """
    return compiled_as(function, lambda *arguments: function, forceinline=False)


def compiled_as(function: Callable, resolve: Callable, *, forceinline: bool) -> Callable:
    """Let compiled code call `function`; `resolve` takes the types and returns the function to compile.

    CUDA devices get no fast-math flags: any flag lets them use approximate sines, and they contract anyway.
    `function.templates` hold what was compiled; see `fingerprints`.
    """
    targets: dict[str, Any] = {"cpu": {**OPTIONS, **NO_WRAPPERS}, "cuda": {}}
    templates = []
    for target, options in targets.items():

        def resolve_on(*arguments: Any, target: str = target) -> Any:
            return resolve(*arguments) if current_target() == target else None

        template = _overload(function, resolve_on, {"forceinline": forceinline, **options})
        if target == "cpu":
            _compile_once(template)
        templates.append(template)
    function.compiled, function.templates = True, templates  # type: ignore[attr-defined]
    return function


def also(function: Any, resolve: Callable) -> None:
    """Let `function`, one of Python's or NumPy's, take types of ours: `resolve` returns what to compile for them, or None."""
    _compile_once(_overload(function, resolve, {"forceinline": True, **OPTIONS, **NO_WRAPPERS}))


def _overload(function: Any, resolve: Callable, options: Any) -> Any:
    overload(function, jit_options=options, strict=False)(resolve)
    return builtin_registry.globals[-1][1].templates[0]


def _compile_once(template: Any) -> None:
    """Compile a function once per types: Numba would compile it anew for every set of flags that its callers have."""
    find, flags = template._get_impl, Flags()
    flags.nrt = True  # type: ignore[assignment, misc]

    def find_once(self: Any, arguments: Any, keywords: Any) -> Any:
        with ConfigStack().enter(flags):
            return find(self, arguments, keywords)

    template._get_impl = find_once


def generic(declaration: Callable) -> Any:
    """Declare a generic function. The struct type of its first argument selects the method, in compiled code and in Python.

    The body of the declaration never runs. `implements` adds the methods, which are compiled into their callers.

    Examples
    --------
    >>> @generic
    ... def energy(system, x):
    ...     pass
    >>> class Spring(System):
    ...     stiffness: float
    >>> @implements(energy, Spring)
    ... def _energy(system, x):
    ...     return 0.5 * system.stiffness * x * x
    >>> energy(Spring(2.0), 3.0)
    9.0
    """
    return _generic(declaration, forceinline=True)


def generic_block(declaration: Callable) -> Any:
    """`generic` for larger methods: they are compiled once and called."""
    return _generic(declaration, forceinline=False)


def _generic(declaration: Callable, *, forceinline: bool) -> Any:
    methods: dict[type, Callable] = {}
    name = declaration.__name__

    def method_of(cls: type) -> Callable:
        for base in cls.__mro__:
            if base in methods:
                return methods[base]
        raise TypeError(
            f"{cls.__name__} has no method for {name}{_arguments(declaration)}; "
            f"write one and mark it with @implements({name}, {cls.__name__})"
        )

    @functools.wraps(declaration)
    def function(instance: Any, *arguments: Any) -> Any:
        form = function.forms.get(1 + len(arguments))  # type: ignore[attr-defined]
        return method_of(type(instance))(instance, *arguments) if form is None else form(instance, *arguments)

    def resolve(instance, *arguments):
        instance = instance.struct if isinstance(instance, ReferenceType) else instance
        if not isinstance(instance, StructType):
            raise TypingError(f"the first argument of {name} must be a Struct, not {instance}")
        form = function.forms.get(1 + len(arguments), function)
        try:
            return form.method_of(class_of(instance))
        except TypeError as error:
            raise TypingError(str(error)) from None

    function.methods, function.method_of, function.forms = methods, method_of, {}  # type: ignore[attr-defined]
    return compiled_as(function, resolve, forceinline=forceinline)


def implements(function: Any, cls: type[Struct]) -> Callable[[Callable], Callable]:
    """Register the decorated function as the method of a generic function for struct type `cls`.

    A generic function may have another form, which methods with another number of parameters belong to; see `has_form`.

    Examples
    --------
    >>> class Drift(System):
    ...     rate: float
    >>> @implements(step, Drift)
    ... def _step(system, x, c, x_next):
    ...     x_next[0] = x[0] + system.rate
    >>> x_next = np.empty(1)
    >>> step(Drift(0.5), np.zeros(1), np.zeros(1), x_next)
    >>> x_next.round(5).tolist()
    [0.5]
    """

    def register(method: Callable) -> Callable:
        form = function.forms.get(method.__code__.co_argcount, function) if hasattr(method, "__code__") else function
        form.methods[cls] = method
        cls.add_method(form, method)
        for changed in (cls, *_subclasses(cls)):
            changed.forget_fingerprint()
        return method

    return register


def has_form(function: Any, form: Any) -> None:
    """Let `implements(function, ..)` register methods with as many parameters as `form` has as methods of `form`."""
    function.forms[form.__wrapped__.__code__.co_argcount] = form


def class_of(kind: Any) -> type[Struct]:
    """The class of a struct, from its Numba type or that of a reference to it."""
    kind = kind.struct if isinstance(kind, ReferenceType) else kind
    return Struct.classes[kind.struct, kind.fingerprint]


def _subclasses(cls: type[Struct]) -> list[type[Struct]]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]


def _arguments(function: Callable) -> str:
    code = function.__code__
    return f"({', '.join(code.co_varnames[: code.co_argcount])})"


def like(x: Any, value: float) -> Any:
    """The constant `value` in the precision of `x` (a bare literal would promote float32 to float64).

    Examples
    --------
    >>> like(np.zeros(2, np.float32), 0.5)
    np.float32(0.5)
    """
    return np.asarray(x).dtype.type(value)


@overload(like, jit_options={"forceinline": True}, inline="always")
def _like(x, value):
    kind = x if isinstance(x, types.Float) else getattr(x, "dtype", None)
    return (lambda x, value: kind(value)) if kind is not None else None
