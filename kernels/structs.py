"""Immutable typed structs that Numba knows, as Julia has them: data with a type to dispatch on.

    class Spring(Struct):
        stiffness: float
        dt: float

An instance holds NumPy scalars, integers or arrays. Its Numba type is (name, fingerprint, types of the fields), so
that two definitions of one name never share compiled code, and only strings and Numba types go into the cache.
"""

import dataclasses
import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed, impl_ret_new_ref, lower_constant
from numba.core.typing.templates import AttributeTemplate
from numba.core.typing.typeof import typeof
from numba.extending import (
    NativeValue,
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

PACKAGE = Path(__file__).parent.parent


class StructType(types.Type):
    """Numba type of a struct: its name, the fingerprint of its methods, the types of its fields."""

    def __init__(self, struct: str, fingerprint: str, fields: tuple[tuple[str, types.Type], ...]) -> None:
        self.struct, self.fingerprint, self.fields = struct, fingerprint, tuple(fields)
        listing = ", ".join(f"{name}: {kind}" for name, kind in self.fields)
        super().__init__(f"{struct}#{fingerprint}({listing})")

    @property
    def key(self) -> tuple:
        return self.struct, self.fingerprint, self.fields

    @property
    def mangling_args(self) -> tuple[str, tuple]:
        return f"{self.struct}_{self.fingerprint}", tuple(kind for _, kind in self.fields)


@register_model(StructType)
class StructModel(models.StructModel):
    def __init__(self, manager: Any, struct: StructType) -> None:
        super().__init__(manager, struct, list(struct.fields))


@infer_getattr
class StructAttribute(AttributeTemplate):
    key = StructType

    def generic_resolve(self, struct: Any, name: Any) -> Any:  # type: ignore[override]
        return dict(struct.fields).get(name)


@lower_getattr_generic(StructType)
def _lower_attribute(context: Any, builder: Any, struct: StructType, value: Any, name: str) -> Any:
    proxy = cgutils.create_struct_proxy(struct)(context, builder, value)
    return impl_ret_borrowed(context, builder, dict(struct.fields)[name], getattr(proxy, name))


@unbox(StructType)
def _unbox(struct: StructType, instance: Any, c: Any) -> NativeValue:
    proxy = cgutils.create_struct_proxy(struct)(c.context, c.builder)
    failed, cleanups = cgutils.false_bit, []
    for name, kind in struct.fields:
        item = c.pyapi.object_getattr_string(instance, name)
        native = c.unbox(kind, item)
        c.pyapi.decref(item)  # the instance itself keeps the field alive during the call
        setattr(proxy, name, native.value)
        failed = c.builder.or_(failed, native.is_error)
        if native.cleanup:
            cleanups.append(native.cleanup)

    def cleanup() -> None:
        for clean in reversed(cleanups):
            clean()

    return NativeValue(proxy._getvalue(), is_error=failed, cleanup=cleanup if cleanups else None)


@lower_constant(StructType)
def _lower_constant(context: Any, builder: Any, struct: StructType, instance: Any) -> Any:
    proxy = cgutils.create_struct_proxy(struct)(context, builder)
    for name, kind in struct.fields:
        setattr(proxy, name, context.get_constant_generic(builder, kind, getattr(instance, name)))
    return proxy._getvalue()


def _enable_construction(cls: type["Struct"]) -> None:
    """Let compiled code write ``Spring(stiffness, dt)``."""

    @intrinsic
    def construct(typing_context, arguments):
        values = [types.unliteral(kind) for kind in arguments]
        struct = StructType(cls.__qualname__, cls.fingerprint(), tuple(zip(cls.fields, values)))

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Any) -> Any:
            proxy = cgutils.create_struct_proxy(struct)(context, builder)
            for position, (name, kind) in enumerate(struct.fields):
                item = builder.extract_value(given[0], position)
                item = context.cast(builder, item, signature.args[0][position], kind)
                setattr(proxy, name, item)
                if context.enable_nrt:
                    context.nrt.incref(builder, kind, item)
            return impl_ret_new_ref(context, builder, struct, proxy._getvalue())

        return struct(arguments), generate

    def constructor(*arguments):
        return lambda *arguments: construct(arguments)

    overload(cls, strict=False, jit_options={"forceinline": True})(constructor)


@dataclass_transform(frozen_default=True, eq_default=False)
class Struct:
    """Base of all systems, controllers, losses and workspaces; subclasses list their fields with annotations."""

    fields: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[dict[tuple[str, str], type["Struct"]]] = {}
    _methods: ClassVar[list] = []
    _print: ClassVar[str | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls.fields = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        cls._methods, cls._print = [], None
        _enable_construction(cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{f}={getattr(self, f)!r}' for f in self.fields)})"

    @classmethod
    def add_method(cls, function: Any) -> None:
        """Note a method, so that an edit of it changes the fingerprint."""
        cls._methods.append(function)
        cls._print = None

    @classmethod
    def fingerprint(cls) -> str:
        """Hash of the methods' sources (of their whole files, outside this package): 12 hex digits."""
        if cls._print is None:
            digest = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}{cls.fields}".encode())
            files = set()
            for base in cls.__mro__:
                for function in base.__dict__.get("_methods", ()):
                    digest.update(_source(function))
                    files.add(getattr(sys.modules.get(function.__module__), "__file__", None))
            for file in sorted(file for file in files if file and PACKAGE not in Path(file).resolve().parents):
                digest.update(Path(file).read_bytes())
            cls._print = digest.hexdigest()[:12]
            Struct.classes[cls.__qualname__, cls._print] = cls
        return cls._print

    @property
    def _numba_type_(self) -> StructType:
        fingerprint = type(self).fingerprint()
        known = self.__dict__.get("_known_type")
        if known is None or known.fingerprint != fingerprint:
            kinds = tuple((name, typeof(getattr(self, name))) for name in self.fields)
            known = StructType(type(self).__qualname__, fingerprint, kinds)
            object.__setattr__(self, "_known_type", known)
        return known


def _source(function: Any) -> bytes:
    """Source text of a method; its byte code where there is no text (an interactive session)."""
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return function.__code__.co_code + repr(function.__code__.co_consts).encode()


@typeof_impl.register(Struct)
def _typeof(instance: Struct, context: Any) -> StructType:
    return instance._numba_type_
