"""Immutable typed structs for Numba, as in Julia: data with a type to dispatch on.

    class Spring(Struct):
        stiffness: float
        dt: float

An instance holds NumPy scalars, integers or arrays. Its Numba type is (name, fingerprint, types of the fields). Two definitions
of one name therefore never share compiled code, and the cache holds only strings and Numba types.

A field may have any name, because the package asks the class (``type(part).fields``) and never the instance.
"""

import dataclasses
import inspect
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, dataclass_transform

import numpy as np
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
from numba.np.arrayobj import make_array

from stablebptt.kernels.core import fingerprints


class StructType(types.Type):
    """Numba type of a struct: its name, the fingerprint of its methods, the types of its fields."""

    def __init__(self, struct: str, fingerprint: str, fields: tuple[tuple[str, types.Type], ...]) -> None:
        self.struct, self.fingerprint, self.fields = struct, fingerprint, tuple(fields)
        listing = ", ".join(f"{name}: {kind}" for name, kind in self.fields)
        super().__init__(f"{struct}#{fingerprint}({listing})")

    @property
    def key(self) -> tuple:
        """What makes two types equal."""
        return self.struct, self.fingerprint, self.fields

    @property
    def mangling_args(self) -> tuple[str, tuple]:
        """Name and types for the symbols in machine code."""
        return f"{self.struct}_{self.fingerprint}", tuple(kind for _, kind in self.fields)


@register_model(StructType)
class StructModel(models.StructModel):
    """The fields of a struct, in order."""

    def __init__(self, manager: Any, struct: StructType) -> None:
        super().__init__(manager, struct, list(struct.fields))


@infer_getattr
class StructAttribute(AttributeTemplate):
    """Type of an attribute: that of the field."""

    key = StructType

    def generic_resolve(self, struct: Any, name: Any) -> Any:  # type: ignore[override]
        """The type of a field; None if there is none of this name."""
        return dict(struct.fields).get(name)


@lower_getattr_generic(StructType)
def _lower_attribute(context: Any, builder: Any, struct: StructType, value: Any, name: str) -> Any:
    item = context.data_model_manager[struct].get(builder, value, name)  # no copy of the whole struct on the stack
    return impl_ret_borrowed(context, builder, dict(struct.fields)[name], item)


class ReferenceType(types.Type):
    """Numba type of a struct in native memory."""

    def __init__(self, struct: StructType) -> None:
        self.struct = struct
        super().__init__(f"Reference({struct})")


class StructArrayType(ReferenceType):
    """Numba type of a `StructArray`."""

    def __init__(self, struct: StructType) -> None:
        super().__init__(struct)
        self.name = f"StructArray({struct})"


@register_model(ReferenceType)
@register_model(StructArrayType)
class ReferenceModel(models.PrimitiveModel):
    """Address of the struct, or of the first one."""

    def __init__(self, manager: Any, kind: ReferenceType) -> None:
        super().__init__(manager, kind, manager.lookup(kind.struct).get_value_type().as_pointer())


class StructArray:
    """Structs of one type in native memory. Compiled code refers to one by its number, and unpacks none when it is called.

    Their fields hold arrays, numbers, truth values, tuples of them, such structs, and arrays of structs.
    """

    kind: ClassVar[type[ReferenceType]] = StructArrayType

    def __init__(self, structs: "Sequence[Struct]") -> None:
        kinds = [typeof(struct) for struct in structs]
        if len(set(kinds)) > 1:
            raise TypeError("the structs of a StructArray must have one type")
        self.structs = tuple(structs)
        self._memory = np.array([_native(struct) for struct in structs], _layout(kinds[0]))
        self.address = self._memory.ctypes.data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.structs)

    def __getattr__(self, name: str) -> Any:
        """Compute the Numba type once; see `Struct`."""
        if name != "_numba_type_":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _store_type(self, self.kind(typeof(self.structs[0])))


class Reference(StructArray):
    """One struct in native memory. In compiled code it stands for the struct itself; a field is read where it is used."""

    kind = ReferenceType

    def __init__(self, struct: "Struct") -> None:
        super().__init__([struct])
        self.struct: Any = struct


def _layout(kind: Any) -> np.dtype:
    """What a value of a Numba type looks like in memory."""
    if isinstance(kind, StructType):
        return np.dtype([(name, _layout(field)) for name, field in kind.fields], align=True)
    if isinstance(kind, types.BaseTuple):
        parts: Any = kind
        return np.dtype([(f"f{k}", _layout(each)) for k, each in enumerate(parts)], align=True)
    if isinstance(kind, types.Array):
        numbers = [(name, np.intp) for name in ("meminfo", "parent", "items", "itemsize", "data")]
        return np.dtype([*numbers, ("shape", np.intp, (kind.ndim,)), ("strides", np.intp, (kind.ndim,))], align=True)
    if isinstance(kind, ReferenceType):
        return np.dtype(np.intp)
    if isinstance(kind, types.Number | types.Boolean):
        return np.dtype(str(kind))
    raise TypeError(f"native memory cannot hold {kind}; give numbers, arrays, structs, or tuples of them")


def _native(value: Any) -> Any:
    """The numbers of `_layout`. The structs keep the arrays alive."""
    if isinstance(value, Struct):
        return tuple(_native(getattr(value, name)) for name in type(value).fields)
    if isinstance(value, tuple):
        return tuple(_native(each) for each in value)
    if isinstance(value, np.ndarray):
        return 0, 0, value.size, value.itemsize, value.ctypes.data, value.shape, value.strides
    return value.address if isinstance(value, StructArray) else value


@unbox(ReferenceType)
@unbox(StructArrayType)
def _unbox_address(kind: ReferenceType, instance: Any, c: Any) -> NativeValue:
    expected = c.context.get_abi_sizeof(c.context.get_value_type(kind.struct))
    if _layout(kind.struct).itemsize != expected:
        raise TypeError(f"this Numba lays structs out in {expected} bytes, not {_layout(kind.struct).itemsize}")
    item = c.pyapi.object_getattr_string(instance, "address")
    address = c.unbox(types.intp, item)
    c.pyapi.decref(item)
    return NativeValue(c.builder.inttoptr(address.value, c.context.get_value_type(kind)), is_error=address.is_error)


@infer_getattr
class ReferenceAttribute(AttributeTemplate):
    """Type of an attribute: that of the field; a reference, if the field is a struct."""

    key = ReferenceType

    def generic_resolve(self, reference: Any, name: Any) -> Any:  # type: ignore[override]
        """The type of a field; None if there is none of this name."""
        kind = dict(reference.struct.fields).get(name)
        return ReferenceType(kind) if isinstance(kind, StructType) else kind


@lower_getattr_generic(ReferenceType)
def _lower_field(context: Any, builder: Any, reference: ReferenceType, address: Any, name: str) -> Any:
    names = [field for field, _ in reference.struct.fields]
    here, kind = cgutils.gep_inbounds(builder, address, 0, names.index(name)), dict(reference.struct.fields)[name]
    return here if isinstance(kind, StructType) else borrowed(context, builder, kind, here)


@intrinsic
def struct_at(typing_context, array, index):
    """A reference to number `index` of a StructArray."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.gep(given[0], [given[1]])

    return ReferenceType(array.struct)(array, types.intp), generate


def row_reference(cls: "type[Struct]") -> Any:
    """Make a function (table, index): a row of a table (rows, fields) of whole numbers, as a reference to a `cls`."""

    @intrinsic
    def reference(typing_context, table, index):
        kind = ReferenceType(StructType(cls.__qualname__, cls.fingerprint(), tuple((name, table.dtype) for name in cls.fields)))

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            first = builder.mul(given[1], ir.Constant(given[1].type, len(cls.fields)))
            row = builder.gep(make_array(table)(context, builder, given[0]).data, [first])
            return builder.bitcast(row, context.get_value_type(kind))

        return kind(table, types.intp), generate

    return reference


@intrinsic
def loaded(typing_context, reference):
    """The struct behind a reference, number by number. Its arrays are borrowed."""
    if not isinstance(reference, ReferenceType):
        return reference(reference), lambda context, builder, signature, given: given[0]

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return borrowed(context, builder, reference.struct, given[0])

    return reference.struct(reference), generate


def borrowed(context: Any, builder: Any, kind: Any, address: Any) -> Any:
    """Load a value of a Numba type number by number, so that what is not used is not loaded, and without owners of arrays.

    Somebody else keeps the arrays alive. So there are no references to count, and the compiler has less to do.
    """
    if isinstance(kind, types.Array):
        array = make_array(kind)(context, builder)
        here = make_array(kind)(context, builder, ref=address)
        for name in ("data", "shape", "strides", "nitems"):
            setattr(array, name, getattr(here, name))
        array.itemsize = ir.Constant(array.itemsize.type, kind.dtype.bitwidth // 8)
        array.meminfo, array.parent = (ir.Constant(part.type, None) for part in (array.meminfo, array.parent))
        return array._getvalue()
    if isinstance(kind, StructType | types.BaseTuple):
        inside: Any = [field for _, field in kind.fields] if isinstance(kind, StructType) else kind
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for k, each in enumerate(inside):
            item = borrowed(context, builder, each, cgutils.gep_inbounds(builder, address, 0, k))
            value = builder.insert_value(value, item, k)
        return value
    return builder.load(address)


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
            value = ir.Constant(context.get_value_type(struct), ir.Undefined)
            for position, (_, kind) in enumerate(struct.fields):
                item = builder.extract_value(given[0], position)
                item = context.cast(builder, item, signature.args[0][position], kind)
                value = builder.insert_value(value, item, position)
                if context.enable_nrt:
                    context.nrt.incref(builder, kind, item)
            return impl_ret_new_ref(context, builder, struct, value)

        return struct(arguments), generate

    def constructor(*arguments):
        return lambda *arguments: construct(arguments)

    overload(cls, strict=False, jit_options={"forceinline": True})(constructor)


@dataclass_transform(frozen_default=True, eq_default=False)
class Struct:
    """Base of all systems, controllers, losses and work spaces. Subclasses list their fields with annotations.

    Examples
    --------
    >>> class Spring(Struct):
    ...     stiffness: float
    ...     damping: float = 0.1
    >>> Spring(2.0)
    Spring(stiffness=2.0, damping=0.1)
    """

    fields: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[dict[tuple[str, str], type["Struct"]]] = {}
    _methods: ClassVar[dict[Any, Any]] = {}
    _print: ClassVar[fingerprints.Fingerprint | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        hiding = [name for name in inspect.get_annotations(cls) if _is_asked_for(cls, name)]
        for name in hiding:
            if name not in cls.__dict__:  # otherwise the base's attribute of this name would be its default
                setattr(cls, name, dataclasses.field())
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        fields = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        if hidden := next((name for name in fields if name.startswith("_")), None):
            raise TypeError(f"{cls.__qualname__}.{hidden} cannot be a field; give it a name that begins with a letter")
        for name in hiding:
            if name in cls.__dict__:  # a default, which the constructor already has
                delattr(cls, name)
        cls.fields, cls._methods, cls._print = fields, {}, None
        _enable_construction(cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{f}={getattr(self, f)!r}' for f in type(self).fields)})"

    @classmethod
    def add_method(cls, generic: Any, method: Any) -> None:
        """Note a method of a generic function; an edit of the method changes the fingerprint."""
        cls._methods[generic] = method

    @classmethod
    def fingerprint(cls, *, renew: bool = False) -> str:
        """Hash of everything that decides the machine code of the methods; `renew` reads it again."""
        if cls._print is None or renew:
            before, cls._print = cls._print, fingerprints.of_struct(cls)
            if before is None or before.text != cls._print.text:
                _forget_types()
            if cls._print.unknown:
                _warn_unkept(cls.__qualname__, cls._print.unknown[0])
            Struct.classes[cls.__qualname__, cls._print.text] = cls
        return cls._print.text

    @classmethod
    def forget_fingerprint(cls) -> None:
        """Discard the fingerprint: a method has changed, here or in a base."""
        cls._print = None
        _forget_types()

    @classmethod
    def constants(cls) -> dict[str, Any]:
        """Numbers and arrays that the methods read from globals and closures, described by content."""
        cls.fingerprint()
        assert cls._print is not None
        return cls._print.constants

    def __getattr__(self, name: str) -> Any:
        """Compute the Numba type once and store it in the instance, where Numba reads it without running Python.

        Numba reads the type in every call of a kernel. It would mistake an interrupt in Python code there for a missing type.
        """
        if name != "_numba_type_":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        kinds = tuple((field, typeof(getattr(self, field))) for field in type(self).fields)
        return _store_type(self, StructType(type(self).__qualname__, type(self).fingerprint(), kinds))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_numba_type_"}


# Instances that store their type.
_typed: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _store_type(instance: Any, kind: types.Type) -> types.Type:
    object.__setattr__(instance, "_numba_type_", kind)
    _typed.add(instance)
    return kind


def _forget_types() -> None:
    """Discard all stored types: structs may hold structs, so a new type of one may change others."""
    while _typed:
        vars(_typed.pop()).pop("_numba_type_", None)


def _is_asked_for(cls: type[Struct], name: str) -> bool:
    """Whether a base has an attribute of this name that is not a field. The class must keep it."""
    return any(name in vars(base) and name not in getattr(base, "fields", ()) for base in cls.__mro__[1:])


_told: set[tuple[str, str]] = set()


def _warn_unkept(name: str, reason: str) -> None:
    if (name, reason) not in _told:
        _told.add((name, reason))
        warnings.warn(f"{name} is compiled anew in every process: {reason} cannot be fingerprinted", stacklevel=3)


@typeof_impl.register(Struct)
def _typeof(instance: Struct, context: Any) -> StructType:
    return instance._numba_type_
