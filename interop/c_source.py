"""A policy as one C99 file, which is C++, too: static weights, one function, nothing allocated.

Every kind of stage has a function that writes it: the arrays of its numbers, and lines that make `y` of `x`.
"""

import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.policies import SHARE_A, SHARE_B, Layer, Limited, Policy, Scaled, Seen
from stablebptt.version import __version__

WIDTH = 110
# What stands behind the sum z of a layer; `f` is the suffix of functions and numbers of the precision.
ACTIVATIONS = {
    "identity": "z",
    "tanh": "tanh{f}(z)",
    "relu": "z < 0 ? 0 : z",
    "gelu": f"z * ((1 + tanh{{f}}(z * ({SHARE_A!r}{{f}} + {SHARE_B!r}{{f}} * z * z))) / 2)",
    "silu": "z * ((1 + tanh{f}(z / 2)) / 2)",
    "softplus": "(z > 0 ? z : 0) + log1p{f}(exp{f}(-fabs{f}(z)))",
    "sin": "sin{f}(z)",
}
TURNS = ("{}", "sin{f}({})", "cos{f}({})")  # of `Seen`


class Real(NamedTuple):
    """A precision: its type in C, the suffix of its functions and numbers, and digits that read back bit for bit."""

    type: str
    suffix: str
    digits: int


REALS = {np.dtype(np.float32): Real("float", "f", 9), np.dtype(np.float64): Real("double", "", 17)}


class Part(NamedTuple):
    """A stage in C: arrays in front of the function, and lines in it."""

    arrays: list[str]
    lines: list[str]


def function_name(name: str) -> str:
    """The function in a file of this name: ``policy_control`` in policy.c. No word of C or C++ has this ending."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return f"{words if words[:1].isalpha() else f'policy_{words}'.strip('_')}_control"


def source(policy: Policy, name: str) -> str:
    """The text of a file with this name, without its ending."""
    real = REALS[policy.dtype]
    arrays, lines, x, size = [], [], "state", policy.n_state
    for number, stage in enumerate(policy.stages, 1):
        size, y = stage.outputs(size), "control" if number == len(policy.stages) else f"x{number}"
        part = _PARTS[type(stage)](stage, number, x, y, real)
        arrays += part.arrays
        lines += [f"{real.type} {y}[{size}];"] if y != "control" else []
        lines += part.lines
        x = y
    declaration = f"void {function_name(name)}(const {real.type} *state, {real.type} *control)"
    body = "\n".join(f"    {line}" for line in lines)
    return "\n".join([
        _head(policy, real), "", "#include <math.h>", "",
        "#ifdef __cplusplus", 'extern "C"', "#endif", f"{declaration};", "",
        *arrays, "", declaration, "{", body, "}", "",
    ])  # fmt: skip


def _head(policy: Policy, real: Real) -> str:
    title = re.sub(r"[^A-Za-z0-9 ,.()=-]", " ", policy.title)  # nothing of it may end the comment
    return textwrap.dedent(f"""\
        /* The controller of: {title}.
         * Written by stablebptt {__version__}.
         * state: {_shape(policy.state_shape)} numbers ({real.type}), control: {_shape(policy.control_shape)}; in rows, as in C.
         * The two must not overlap. Nothing is allocated, and nothing but the control is written.
         */""")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _layer(stage: Layer, number: int, x: str, y: str, real: Real) -> Part:
    """A layer. Its kernel is written the other way round, so that its numbers are read one after the other.

    The sums are in double: in float, one after the other, those of long rows would lose a digit.
    """
    window, outputs = stage.kernel.shape
    kernel, bias = f"kernel{number}", f"bias{number}"
    many = stage.windows > 1
    above, below = (f"{outputs} * w + j", f"{stage.stride} * w + i") if many else ("j", "i")
    lines = [
        f"for (int j = 0; j < {outputs}; j++) {{",
        f"    double sum = {bias}[j];",
        f"    for (int i = 0; i < {window}; i++) sum += (double){kernel}[j][i] * (double){x}[{below}];",
        f"    const {real.type} z = ({real.type})sum;",
        f"    {y}[{above}] = {ACTIVATIONS[stage.activation].format(f=real.suffix)};",
        "}",
    ]
    around = [f"for (int w = 0; w < {stage.windows}; w++) {{", *(f"    {line}" for line in lines), "}"] if many else lines
    return Part([_array(kernel, stage.kernel.T, real), _array(bias, stage.bias, real)], around)


def _seen(stage: Seen, number: int, x: str, y: str, real: Real) -> Part:
    seen = [TURNS[turn].format(f"{x}[{place}]", f=real.suffix) for place, turn in zip(stage.places, stage.turns)]
    return Part([], [f"{y}[{j}] = {value};" for j, value in enumerate(seen)])


def _scaled(stage: Scaled, number: int, x: str, y: str, real: Real) -> Part:
    shift, factor = f"shift{number}", f"factor{number}"
    line = f"for (int j = 0; j < {len(stage.shift)}; j++) {y}[j] = ({x}[j] - {shift}[j]) * {factor}[j];"
    return Part([_array(shift, stage.shift, real), _array(factor, stage.factor, real)], [line])


def _limited(stage: Limited, number: int, x: str, y: str, real: Real) -> Part:
    centre, reach = f"centre{number}", f"reach{number}"
    value = f"{centre}[j] + {reach}[j] * tanh{real.suffix}({x}[j])"
    line = f"for (int j = 0; j < {len(stage.centre)}; j++) {y}[j] = {value};"
    return Part([_array(centre, stage.centre, real), _array(reach, stage.reach, real)], [line])


_PARTS: dict[type, Callable[..., Part]] = {Layer: _layer, Seen: _seen, Scaled: _scaled, Limited: _limited}


def _array(name: str, values: np.ndarray, real: Real) -> str:
    """A static array, with one or two axes."""
    if not np.isfinite(values).all():
        raise ArgumentError("the policy has numbers that are not finite; C has no words for them")
    sizes = "".join(f"[{size}]" for size in values.shape)
    rows = ",\n".join(_row(row, real) for row in np.atleast_2d(values))
    return f"static const {real.type} {name}{sizes} =" + (f" {{\n{rows}}};" if values.ndim == 2 else f"\n{rows};")


def _row(values: np.ndarray, real: Real) -> str:
    numbers = ", ".join(_number(value, real) for value in values)
    return textwrap.fill(numbers, WIDTH, initial_indent="    {", subsequent_indent="     ") + "}"


def _number(value: Any, real: Real) -> str:
    digits = f"{value:.{real.digits}g}"
    return f"{digits}{'' if set('.e') & set(digits) else '.0'}{real.suffix}"
