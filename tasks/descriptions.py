"""Problems in words and numbers, as in files, and the differences between two of them.

Everything is compared by content: arrays by type, shape and hash, and likewise the numbers that methods read from globals and
closures.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stablebptt.kernels.core.fingerprints import describe, is_hashed
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import State

# How a problem was made does not count when two are compared.
MAKERS_OWN = ("source", "arguments")
MOST_NAMED = 3
# Fingerprints are comparable within one version of Python, and since version 0.2: before, they covered methods of ours.
BASIS = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "since": "0.2"}


def of_part(part: Struct) -> dict[str, Any]:
    """A struct by content: its class, its fields, and the constants that its methods read from globals and closures.

    A network of this package is described by its layers. Their memory layout is not part of the problem.
    """
    kind = type(part)
    if is_hashed(kind) and hasattr(part, "layout"):
        layers = {name: list(shape) for name, shape in part.layout().items()}
        activation = type(part.activation).__qualname__
        return {"layers": layers} | ({} if activation == "Tanh" or len(part.layers()) == 1 else {"activation": activation})
    fields = {name: _field(getattr(part, name)) for name in kind.fields}
    return {"class": kind.__qualname__, "fields": fields, "constants": dict(sorted(kind.constants().items()))}


def code(parts: Mapping[str, Struct]) -> dict[str, str]:
    """Fingerprints of the user's code among the parts; comparable on the same `BASIS`."""
    own = {name: type(part).fingerprint() for name, part in parts.items() if not is_hashed(type(part))}
    return {**BASIS, **own}


def facts(problem: Any) -> dict[str, Any]:
    """Everything that decides the results of a problem."""
    names = ("steps", "dt", "regularization", "output_init")
    parts = {"system": problem.system, "controller": problem.controller, "loss": problem.loss_function}
    if type(problem.observation) is not State:
        parts["observation"] = problem.observation
    more = {} if problem.limits is None else {"limits": describe(problem.limits)}
    more |= {} if problem.first == 0 else {"first": problem.first}
    more |= {f"disturb.{name}": describe(np.asarray(value)) for name, value in problem.disturbance.items()}
    return {
        **{name: getattr(problem, name) for name in names},
        "dtype": np.dtype(problem.dtype).name,
        "time_weights": describe(problem.time_weights),
        **{name: of_part(part) for name, part in parts.items()},
        **more,
    }


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], words: tuple[str, str] = ("in the file", "given")
) -> list[str]:
    """Differences between two configurations, options or facts, one line each: "poles: 2 in the file, 3 given"."""
    first, second = dict(_flat("", _comparable(there, here))), dict(_flat("", _comparable(here, there)))
    names = dict.fromkeys((*first, *second))
    if first.get("task") != second.get("task"):
        names = {"task": None}  # everything else differs with it
    found = []
    for name in names:
        before, after = first.get(name), second.get(name)
        if before != after:
            found.append(f"{name}: {_short(before)} {words[0]}, {_short(after)} {words[1]}")
    return found


def refusal(what: str, found: list[str], advice: str) -> str:
    """One line that names the differences."""
    more = f" (and {len(found) - MOST_NAMED} more)" if len(found) > MOST_NAMED else ""
    return f"{what}: {'; '.join(found[:MOST_NAMED])}{more}; {advice}"


def _field(value: Any) -> Any:
    return of_part(value) if isinstance(value, Struct) else describe(value)


def _comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `one`, without those that do not count or cannot be compared with `other`."""
    options = one["options"] if isinstance(one.get("options"), Mapping) else one
    others = other["options"] if isinstance(other.get("options"), Mapping) else other
    compared = {name: value for name, value in options.items() if name not in MAKERS_OWN}
    codes = [given.get("code") for given in (options, others)]
    if not all(isinstance(given, Mapping) and BASIS.items() <= given.items() for given in codes):
        compared.pop("code", None)
    parts = [given.get("parts") for given in (options, others)]
    if any(isinstance(given, list) for given in parts):
        compared["parts"] = _numbers(*parts)
    compared.update(compared.pop("parts", None) or {})
    if options is one:
        return compared
    return {"backend": "cpu", **{name: value for name, value in one.items() if name != "options"}, **compared}


def _numbers(parts: Any, others: Any) -> dict[str, Any]:
    """Numbers of system and loss that both have. Version 0.1 stored printed parts, and printed its networks differently."""
    found = {}
    for place, name in ((0, "system"), (2, "loss")):
        one, other = (_printed(given[place]) if isinstance(given, list) else _noted(given[name]) for given in (parts, others))
        found[name] = {key: value for key, value in one.items() if key in other}
    return found


def _printed(part: str) -> dict[str, Any]:
    """Class and numbers of a printed part such as "Spring(stiffness=np.float32(2.0), dt=0.05)"."""
    kind, _, fields = part.partition("(")
    numbers = re.findall(r"(\w+)=(?:np\.\w+\()?(-?[\d.]+(?:e[+-]?\d+)?)(?=[,)])", fields)
    return {"class": kind, **{name: float(np.float32(number)) for name, number in numbers}}


def _noted(part: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in part.get("fields", {}).items() if isinstance(value, int | float)}
    return {"class": part.get("class"), **{name: float(np.float32(value)) for name, value in numbers.items()}}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables, with dotted names."""
    if isinstance(value, Mapping) and not {"dtype", "sha256"} <= set(value):
        for name, item in value.items():
            inner = prefix if name in ("fields", "constants", "layers") else f"{prefix}.{name}".lstrip(".")
            yield from _flat(inner, item)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):  # parts of an optimizer
        yield from _flat(prefix, {str(place): item for place, item in enumerate(value)})
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['dtype']} array of shape {tuple(value['shape'])} ({value['sha256']})"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
