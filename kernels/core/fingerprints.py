"""Digests of what decides the machine code of a function: its bytecode and the content of everything it reads.

Numba compiles the bytecode of a function and of everything it calls, and treats globals and closure cells as constants. The
digest does the same. Comments and docstrings do not count. A helper or a number in another module, a closure or a notebook cell
does. The rooms `kernels` and `adjoint` are hashed as a whole (`cache.source_hash`), so their functions count by name. The digest
names whatever it cannot cover; such code must not be stored on disk.
"""

import dis
import enum
import functools
import hashlib
import math
import secrets
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import types as numba_types
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

DIGITS = 12
# Rooms whose sources are hashed as a whole.
ROOMS = ("kernels", "adjoint")
HASHED = tuple(f"stablebptt.{room}" for room in ROOMS)
# Packages whose functions count by name. Every cache file's key holds their versions.
LIBRARIES = {"numba", "numpy", *sys.stdlib_module_names} - {"__main__"}
LIBRARY_KINDS = (types.FunctionType, types.BuiltinFunctionType, type, np.ufunc, type(np.sum))
LIBRARY_FOLDERS = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {Path(np.__file__).resolve().parent, Path(numba.__file__).resolve().parent}
)
# Prefix of the fingerprint of code that every process compiles anew.
UNKEPT = "unkept" + secrets.token_hex(6)

_seen: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Fingerprint:
    """Digest of some functions, the constants they read (by name), and what could not be fingerprinted."""

    digest: str
    constants: dict[str, Any]
    unknown: tuple[str, ...]

    @property
    def text(self) -> str:
        """The digest; it differs between processes if the code must not be stored."""
        return (UNKEPT if self.unknown else "") + self.digest


def of_function(function: Callable) -> Fingerprint:
    """Fingerprint of one function."""
    walk = _Walk()
    return walk.result(walk.callable(function))


def of_struct(cls: type) -> Fingerprint:
    """Fingerprint of a struct type: its name, fields and methods."""
    walk = _Walk()
    return walk.result(walk.struct(cls))


def describe(value: Any) -> Any:
    """A value by content, ready for JSON: numbers and words as they are, arrays by type, shape and hash."""
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": content}
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


class _Walk:
    """One walk over everything that some functions reach."""

    def __init__(self) -> None:
        self.done: dict[int, str] = {}
        self.alive: list[Any] = []  # an id stays unique while its item lives
        self.constants: dict[str, Any] = {}
        self.unknown: dict[str, None] = {}

    def result(self, digest: str) -> Fingerprint:
        return Fingerprint(digest, self.constants, tuple(self.unknown))

    def once(self, item: Any, name: str, digest: Callable[[], str]) -> str:
        """The digest of an item, computed once; inside itself (recursion) it counts by name."""
        if id(item) not in self.done:
            self.alive.append(item)
            self.done[id(item)] = name
            self.done[id(item)] = digest()
            _renew(item, self.done[id(item)])
        return self.done[id(item)]

    def callable(self, function: Any) -> str:
        """A Python function or one of Numba's dispatchers."""
        if isinstance(function, Dispatcher):
            options = repr(sorted((key, _option(value)) for key, value in function.targetoptions.items()))
            return self.once(function, _name(function), lambda: _hash(self.callable(function.py_func), options))
        if is_hashed(function):
            return _name(function)
        return self.once(function, _name(function), lambda: _hash(_name(function), *self.parts(function)))

    def parts(self, function: Any) -> Iterator[str]:
        """The code, closure cells and defaults of a function."""
        code, where = function.__code__, function.__name__
        yield from self.code(code, function.__globals__)
        for name, cell in zip(code.co_freevars, function.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # not filled yet
            yield f"{name} = {self.value(content, f'{where}.{name}')}"
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()):
            yield self.value(default, f"{where}, default")

    def code(self, code: types.CodeType, names: dict[str, Any]) -> Iterator[str]:
        """Instructions and the globals they read, without line numbers and docstrings."""
        yield repr((code.co_argcount, code.co_varnames, code.co_flags & 0xF))
        instructions = list(dis.get_instructions(code))
        for place, instruction in enumerate(instructions):
            operand = instruction.argval
            if isinstance(operand, types.CodeType):
                yield from self.code(operand, names)
                continue
            yield f"{instruction.opname} {_literal(operand)}"
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and operand in names:
                found = names[operand]
                if isinstance(found, types.ModuleType) and _of_library(found.__name__):
                    yield found.__name__  # the next instructions name what is loaded from it
                else:
                    yield self.value(*_attribute(found, operand, instructions[place + 1 :]))

    def struct(self, cls: Any) -> str:
        """A struct type with its methods, inherited ones included, but not those of this package, whose sources are hashed."""
        methods: dict[Any, Any] = {}
        for base in reversed(cls.__mro__):
            methods |= base.__dict__.get("_methods", {})

        def digest() -> str:
            own = [(generic, method) for generic, method in methods.items() if not is_hashed(method)]
            listing = sorted(f"{_name(generic)}: {self.callable(method)}" for generic, method in own)
            return _hash(cls.__qualname__, repr(cls.fields), *listing)

        return self.once(cls, cls.__qualname__, digest)

    def value(self, value: Any, name: str) -> str:
        """A global or the content of a closure cell."""
        if _is_plain(value):
            self.note(name, value)
            return _literal(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self.note(name, value)
            return f"{value.dtype.descr} {value.shape} {_hash(value.tobytes().hex())}"
        if isinstance(value, tuple | list):
            return f"{_name(type(value))}({', '.join(self.value(v, f'{name}[{k}]') for k, v in enumerate(value))})"
        if isinstance(value, dict):
            return f"dict({', '.join(_literal(key) + self.value(v, name + str(key)) for key, v in value.items())})"
        if isinstance(value, type):
            return self.type(value, name)
        if hasattr(type(value), "_methods"):
            fields = (self.value(getattr(value, field), f"{name}.{field}") for field in type(value).fields)
            return f"{self.struct(type(value))}({', '.join(fields)})"
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name} {self.value(value.value, f'{name}.value')}"
        if isinstance(value, numba_types.Type | np.dtype):
            return f"{_name(type(value))} {value}"
        return self.reached(value, name)

    def type(self, cls: Any, name: str) -> str:
        """A class that compiled code uses."""
        if hasattr(cls, "_methods"):
            return self.struct(cls)
        if issubclass(cls, enum.Enum):  # with its aliases
            members = (key + self.value(member.value, f"{name}.{key}") for key, member in cls.__members__.items())
            return f"{_name(cls)}({', '.join(members)})"
        if issubclass(cls, BaseException | tuple) or _is_library(cls):
            return f"{_name(cls)} {getattr(cls, '_fields', '')}"
        return self.cannot(cls, name)

    def reached(self, value: Any, name: str) -> str:
        """Something that compiled code calls."""
        if isinstance(value, Dispatcher) or getattr(value, "compiled", False):
            return _name(value) if hasattr(value, "methods") else self.callable(value)
        if is_hashed(value) or _is_library(value):
            return _name(value)
        return self.cannot(value, name)

    def note(self, name: str, value: Any) -> None:
        """Note a constant, for descriptions."""
        described = describe(value)
        while self.constants.setdefault(name, described) != described:
            name = f"{name}'"  # the same name in another module

    def cannot(self, value: Any, name: str) -> str:
        self.unknown[f"{name} ({type(value).__name__})"] = None
        return name


def _renew(item: Any, digest: str) -> None:
    """Discard the compiled code of a helper that has changed: Numba reads its globals only once."""
    try:
        before = _seen.get(item)
        _seen[item] = digest
    except TypeError:
        return
    if isinstance(item, Dispatcher):
        if isinstance(item._cache, FunctionCache):  # type: ignore[attr-defined]  # it does not see edits in other files
            item._cache.disable()  # type: ignore[attr-defined]
        if sum(item.stats.cache_hits.values()) or before not in (None, digest):
            item.recompile()
    elif before not in (None, digest):
        for template in getattr(item, "templates", ()):
            template._impl_cache.clear()


def _attribute(value: Any, name: str, following: Iterable[dis.Instruction]) -> tuple[Any, str]:
    """What the code uses of a global: if it is a module, the attribute that the next instructions load."""
    for instruction in following:
        if not isinstance(value, types.ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD", "CACHE"):
            break
        if instruction.opname != "CACHE":
            value, name = getattr(value, instruction.argval, None), f"{name}.{instruction.argval}"
    return value, name


def _is_plain(value: Any) -> bool:
    return value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str | bytes | np.generic)


def _option(value: Any) -> str:
    """An option of a dispatcher as text; a set of words has another order in every process."""
    return _literal(value) if isinstance(value, set | frozenset) else str(value)


def _literal(value: Any) -> str:
    """A constant as text, with its type."""
    if isinstance(value, frozenset | set):
        return f"{type(value).__name__}({sorted(map(_literal, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return f"{type(value).__name__} {value!r}"


def _name(item: Any) -> str:
    """The name of an item, with its module where only the name counts."""
    name = str(getattr(item, "__qualname__", None) or getattr(item, "__name__", None) or repr(item))
    return f"{item.__module__}.{name}" if hasattr(item, "__module__") and (is_hashed(item) or _is_library(item)) else name


def _is_library(item: Any) -> bool:
    """Whether an item is a function or class of a library, not an object that a library made."""
    return isinstance(item, LIBRARY_KINDS) and _of_library(getattr(item, "__module__", None) or type(item).__module__)


@functools.cache
def _of_library(module: str) -> bool:
    """Whether a module belongs to one of the libraries, and is not the user's module of the same name."""
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    return top in LIBRARIES and (file is None or any(folder in Path(file).resolve().parents for folder in LIBRARY_FOLDERS))


def is_hashed(item: Any) -> bool:
    """Whether a function or class lies in a room whose sources are hashed as a whole."""
    module = str(getattr(item, "__module__", ""))
    return any(module == room or module.startswith(f"{room}.") for room in HASHED)
