"""Labelled arrays in HDF5 files that are also valid netCDF-4. They are written as a whole and read with distrust.

A file is built in memory, so a full disk can only affect a plain write. It is written beside its name, synced and renamed, so a
reader finds either the old file or the new one. A trailer after the HDF5 image holds its SHA-256. HDF5 ignores the trailer, and
`read` compares it before HDF5 sees a byte. Files without a trailer (edited with other tools) are checked piece by piece.
"""

import hashlib
import io
import os
import stat
import tokenize
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stablebptt.data.atomic import expanded, replacing
from stablebptt.data.errors import FileFormatError

TRAILER = b"stablebptt-sha2\n"
SIGNATURE, NPY = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"
LARGEST_FILE = 1 << 30
LARGEST_DATASET = 1 << 30
LARGEST_CONTENT = 2 << 30
LARGEST_CHUNK = 64 << 20
LARGEST_RATIO = 100  # unpacked bytes over the size of the file, checked above LARGEST_CHUNK bytes
MOST_OBJECTS = 10_000
DEEPEST = 8
LONGEST_NAME = 200  # bytes; netCDF keeps 256, and axes are named after variables
NAME_RULE = f"printable, of at most {LONGEST_NAME} bytes, beginning with a letter, a digit or _, without a space at the end"
# Attributes that dimension scales and netCDF-4 add.
INTERNAL = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}


@dataclass(frozen=True)
class Variable:
    """A labelled array of real numbers, with one name in `dims` per axis."""

    values: np.ndarray
    dims: tuple[str, ...]
    units: str
    long_name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, words in (("units", self.units), ("long_name", self.long_name)):
            if not isinstance(words, str):
                raise TypeError(f"{name} is {words!r}; it must be a word or a few")
        if self.values.dtype.kind not in "fiu":
            raise TypeError(f"{self.long_name}: values of type {self.values.dtype}; only real numbers can be kept")
        if self.values.ndim == 0 or self.values.ndim != len(self.dims):
            raise ValueError(f"{self.long_name}: {self.values.ndim} axes with the names {self.dims}")


Group = dict[str, Variable]


def is_name(word: str) -> bool:
    """Whether netCDF accepts a word as the name of a variable or a group, as `NAME_RULE` says."""
    if not word.isprintable() or word != word.strip() or "/" in word:
        return False
    return (word[:1].isalnum() or word[:1] == "_") and len(word.encode()) <= LONGEST_NAME


def encode(attributes: Mapping[str, str | int | float], groups: Mapping[str, Group]) -> bytes:
    """Content of a file, trailer included.

    Parameters
    ----------
    attributes : of the root
    groups : by path, such as "controller/dense_0". A variable with one axis, of the variable's own name, is the scale of that
        axis in its group. Axes without a scale get an index.

    Raises
    ------
    ValueError
        If two axes of one name in one group differ in length, or `read` would refuse the file.
    """
    sizes = [variable.values.nbytes for group in groups.values() for variable in group.values()]
    size, largest = sum(sizes), max(sizes, default=0)
    image = _image(attributes, groups, 4)
    if size > LARGEST_CHUNK and size > LARGEST_RATIO * len(image):
        image = _image(attributes, groups, 0)  # for example many zeros, packed so well that `read` would refuse the file
    if largest > LARGEST_DATASET or size > LARGEST_CONTENT or len(image) > LARGEST_FILE - 1024:
        raise ValueError(f"a file of {len(image)} bytes that unpacks into {size} could not be read again; keep less in it")
    return image + TRAILER + hashlib.sha256(image).digest()


def _image(attributes: Mapping[str, str | int | float], groups: Mapping[str, Group], level: int) -> bytes:
    """An HDF5 file with datasets packed by gzip at the given level."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        file.attrs.update(attributes)
        for path, group in groups.items():
            place = file
            for part in path.split("/"):
                place = place[part] if part in place else place.create_group(part, track_order=True)
            _write_group(place, path, group, level)
        objects: list[str] = []
        file.visit(objects.append)
    if len(objects) > MOST_OBJECTS or max((path.count("/") for path in objects), default=0) > DEEPEST:
        raise ValueError(f"a file of {len(objects)} objects could not be read again; keep less in it")
    return buffer.getvalue()


def _write_group(place: h5py.Group, path: str, group: Group, level: int) -> None:
    lengths: dict[str, int] = {}
    for name, variable in group.items():
        for dim, length in zip(variable.dims, variable.values.shape):
            if lengths.setdefault(dim, length) != length:
                raise ValueError(f"{path}/{name}: axis {dim} has length {length}, elsewhere {lengths[dim]}")
    scales = {dim: group.get(dim, _index(dim, length)) for dim, length in lengths.items()}
    for dim, variable in scales.items():
        if variable.dims != (dim,):
            raise ValueError(f"{path}/{dim} bears the name of an axis, so {dim} must be its only axis")
        _write(place, dim, variable, level).make_scale(dim)
    for name, variable in group.items():
        if name not in scales:
            dataset = _write(place, name, variable, level)
            for axis, dim in enumerate(variable.dims):
                dataset.dims[axis].attach_scale(place[dim])


def _index(dim: str, length: int) -> Variable:
    return Variable(np.arange(length, dtype=np.int32), (dim,), "1", f"index along {dim}")


def _write(place: h5py.Group, name: str, variable: Variable, level: int) -> h5py.Dataset:
    shape = variable.values.shape
    empty = {"maxshape": (None,) * len(shape), "chunks": tuple(max(1, min(n, 256)) for n in shape)} if 0 in shape else {}
    packed = {"compression": "gzip", "compression_opts": level, "shuffle": True, "fletcher32": True}
    dataset = place.create_dataset(name, data=variable.values, track_times=False, **packed, **empty)
    dataset.attrs.update({"units": variable.units, "long_name": variable.long_name, **variable.attributes})
    return dataset


def write(path: str | Path, content: bytes, *, rehearsal: bool = False) -> None:
    """Write a file as a whole. On any failure, and in a `rehearsal`, the old file stays and no other file remains.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with replacing(expanded(path), rehearsal=rehearsal) as beside:
        beside.write_bytes(content)


def read(path: str | Path, formats: Collection[str] | None = None) -> tuple[dict[str, Any], dict[str, Group]]:
    """Root attributes and groups of a file.

    Parameters
    ----------
    formats : accepted values of the root attribute "format"; by default any HDF5 file of numbers is accepted

    Raises
    ------
    FileFormatError
        If the file is damaged, hostile or of another format.
    OSError
        If the file is missing or may not be read.
    """
    content = _content(expanded(path))
    if not content.startswith(SIGNATURE):
        raise FileFormatError(f"{path} is not an HDF5 file")
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            attributes = _attributes(file)
            if formats is not None and attributes.get("format") not in formats:
                found = repr(attributes["format"]) if "format" in attributes else "missing"
                wanted = " or ".join(map(repr, sorted(formats)))
                raise FileFormatError(f"{path} is not a file of this package: its format is {found}, not {wanted}")
            return attributes, _groups(file, len(content))
    except FileFormatError as error:
        message = " ".join(str(error).split())
        raise FileFormatError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except MemoryError:
        raise FileFormatError(f"{path} asks for more memory than there is") from None
    except Exception as error:  # HDF5 answers damage with many kinds of error
        detail = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{path} is damaged ({detail})") from None


def is_npy(path: str | Path) -> bool:
    """Whether a file begins as .npy files do."""
    _check_kind(path, os.stat(path))
    with open(path, "rb") as file:
        return file.read(len(NPY)) == NPY


def array_of(path: str | Path) -> np.ndarray:
    """The array in a .npy file; it takes no more memory than the file, and loads no objects.

    Raises
    ------
    FileFormatError
        If the file is damaged or holds no array of numbers.
    """
    try:
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError, tokenize.TokenError) as error:
        raise FileFormatError(f"{path} is damaged, or holds no array of numbers: {error}") from None


def _content(path: str | Path) -> bytes:
    """Bytes of a regular file of sensible size. A trailer is checked and left out."""
    _check_kind(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        _check_kind(path, status)
        content = file.read(status.st_size)
    if not content:
        raise FileFormatError(f"{path} is empty")
    end = len(content) - len(TRAILER) - hashlib.sha256().digest_size
    if end > 0 and content[end : end + len(TRAILER)] == TRAILER:
        if hashlib.sha256(content[:end]).digest() != content[end + len(TRAILER) :]:
            raise FileFormatError(f"{path} is damaged (its checksum does not fit)")
        return content[:end]
    return content


def _check_kind(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{path} is not a regular file")
    if status.st_size > LARGEST_FILE:
        raise FileFormatError(f"{path} has {status.st_size} bytes; no file of this package has more than {LARGEST_FILE}")


def _attributes(item: Any) -> dict[str, Any]:
    """Attributes that are words, numbers or short lists of numbers."""
    if len(item.attrs) > MOST_OBJECTS:
        raise FileFormatError("it has too many attributes")
    found = {}
    for name in item.attrs:
        if name in INTERNAL:
            continue
        kind = item.attrs.get_id(name)
        if kind.dtype.kind not in "fiu" and kind.shape != ():
            continue  # a list of strings: foreign, and its size is known only after reading
        size = int(np.prod(kind.shape, dtype=np.float64)) * kind.dtype.itemsize
        if size > LARGEST_CHUNK:
            raise FileFormatError(f"attribute {name} of {item.name} has {size} bytes")
        value = item.attrs[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            value = value.tolist()
        if isinstance(value, str | int | float | list):
            found[name] = value
    return found


def _groups(file: h5py.File, stored: int) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    total = 0
    for count, (path, item) in enumerate(_walk(file, "", 0), 1):
        if count > MOST_OBJECTS:
            raise FileFormatError(f"it has more than {MOST_OBJECTS} objects")
        place, _, name = path.rpartition("/")
        if isinstance(item, h5py.Dataset):
            total += _check_dataset(item)
            if total > LARGEST_CONTENT or (total > LARGEST_CHUNK and total > LARGEST_RATIO * stored):
                raise FileFormatError(f"its {stored} bytes would unpack into {total} or more")
            groups.setdefault(place, {})[name] = _variable(item)
    return groups


def _walk(group: h5py.Group, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """All groups and datasets; links to other places are refused."""
    if depth > DEEPEST:
        raise FileFormatError(f"its groups are nested more than {DEEPEST} deep")
    if len(group) > MOST_OBJECTS:
        raise FileFormatError(f"{group.name} has more than {MOST_OBJECTS} entries")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise FileFormatError(f"{path}/{name} is a link to another place, which is not followed")
        item = group[name]
        place = f"{path}/{name}" if path else name
        if not isinstance(item, h5py.Group | h5py.Dataset):
            raise FileFormatError(f"{place} is neither a group nor a dataset")
        yield place, item
        if isinstance(item, h5py.Group):
            yield from _walk(item, place, depth + 1)


def _check_dataset(item: h5py.Dataset) -> int:
    """Size of a dataset [bytes]; raises an error, before a byte is unpacked, if no file of this package holds such a dataset."""
    if item.dtype.kind not in "fiu":
        raise FileFormatError(f"{item.name} holds {item.dtype}, not real numbers")
    if item.external or item.is_virtual:
        raise FileFormatError(f"{item.name} keeps its data in another file, which is not opened")
    size = int(np.prod(item.shape, dtype=np.float64)) * item.dtype.itemsize if item.shape else item.dtype.itemsize
    if size > LARGEST_DATASET:
        raise FileFormatError(f"{item.name} claims {size} bytes")
    chunk = int(np.prod(item.chunks, dtype=np.float64)) * item.dtype.itemsize if item.chunks else 0
    if chunk > LARGEST_CHUNK:
        raise FileFormatError(f"{item.name} has chunks of {chunk} bytes")
    return size


def _variable(item: h5py.Dataset) -> Variable:
    if item.shape is None or item.ndim == 0:
        raise FileFormatError(f"{item.name} is a single value, not an array")
    attributes = _attributes(item)
    units, long_name = str(attributes.pop("units", "")), str(attributes.pop("long_name", ""))
    values = np.asarray(item[()])
    return Variable(values.astype(values.dtype.newbyteorder("="), copy=False), _dims(item), units, long_name, attributes)


def _dims(item: h5py.Dataset) -> tuple[str, ...]:
    if item.is_scale:
        return (item.name.rpartition("/")[2],)
    return tuple(
        item.dims[axis][0].name.rpartition("/")[2] if len(item.dims[axis]) else f"axis_{axis}"
        for axis in range(item.ndim)
    )
