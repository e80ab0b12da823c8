"""Where in the user's code an error arose. Needs no other package."""

import linecache
import sysconfig
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def of_library(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return any(folder in Path(file).resolve().parents for folder in LIBRARIES)


def users_line(error: BaseException, *, libraries: bool = True) -> tuple[types.CodeType, int] | None:
    """Function and line of the user's code that led to an error, or else, with `libraries`, of a library's."""
    frames = [(code, line) for name, code, line in _frames(error) if name not in ("stablebptt", "importlib")]
    users = [(code, line) for code, line in frames if not of_library(code.co_filename)]
    written = [(code, line) for code, line in users if code.co_filename != "<string>"]  # else a dataclass wrote it
    found = written or users or (frames if libraries else [])
    return found[-1] if found else None


def is_users(error: BaseException) -> bool:
    """Whether the user's own code raised an error."""
    name, code, _ = list(_frames(error))[-1]
    return name != "stablebptt" and not of_library(code.co_filename)


def _frames(error: BaseException) -> Iterator[tuple[str, types.CodeType, int]]:
    """Package, function and line of everything that an error passed, its origin last."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code, line


def where(error: BaseException, *, libraries: bool = True) -> str | None:
    """File and line of `users_line`, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    found = users_line(error, libraries=libraries)
    return found and f"{found[0].co_filename}:{found[1]}"


def behind(error: BaseException) -> str:
    """File and line of the user's own code, to be put behind a message; empty if it was not there."""
    found = where(error, libraries=False)
    return f" ({found})" if found else ""


def shown(code: types.CodeType, file: str, line: int) -> str:
    """File, number and text of a line of a function."""
    text = linecache.getline(file, line).strip()
    return f"{file}, line {line}, in {code.co_name}" + (f" ({text})" if text else "")
