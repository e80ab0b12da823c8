"""How functions of the compiled core are called: few arguments by position, switches by name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("kernels", "adjoint") for path in (ROOT / room).rglob("*.py"))
MOST = 6

USERS = "what users implement"
# Functions that take more by position, and why.
LONGER = {
    "adjoint/cartpole.py": {"pole_vjp": "a scalar vjp takes the inputs and the cotangents of the outputs, numbers all of them"},
    "adjoint/c_interface.py": {"function": "called from C, whose arrays do not know their sizes"},
    "adjoint/generics.py": dict.fromkeys(
        (
            *("step_sample_vjp", "step_batch_vjp", "_step_sample_vjp", "running_cost_vjp", "_running_cost_each_vjp"),
            *("cost_batch_vjp", "_cost_batch_vjp", "cost_each_vjp", "_cost_each_vjp"),
        ),
        USERS,
    ),
    "adjoint/in_lanes.py": dict.fromkeys(("step_all_vjp", "_step_all_vjp", "_registers", "_step_batch_vjp"), USERS),
    "adjoint/later.py": {"_running_cost_vjp": USERS},
    "adjoint/linked.py": dict.fromkeys(("step_vjp_entry", "_step_batch_vjp", "cost_vjp_entry", "_cost_batch_vjp"), USERS),
    "adjoint/quadratic.py": {"_cost_batch_vjp": USERS},
    "adjoint/quantum.py": {"_step_sample_vjp": USERS},
    "adjoint/varied.py": dict.fromkeys(("_step_batch_vjp", "_step_sample_vjp"), USERS),
}
# Functions of Python that know no names.
PYTHON = ("getattr",)


def nodes(source, kind):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kind)]


def longer(source):
    """Names of functions with too many positional parameters."""
    return {f.name for f in nodes(source, ast.FunctionDef) if len(f.args.posonlyargs) + len(f.args.args) > MOST}


def is_switch(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def switches(source):
    """Where booleans are given or taken by position."""
    calls = [call for call in nodes(source, ast.Call) if ast.unparse(call.func) not in PYTHON]
    found = [ast.unparse(call) for call in calls if any(map(is_switch, call.args))]
    for f in nodes(source, ast.FunctionDef):
        flags = [a.arg for a in (*f.args.posonlyargs, *f.args.args) if a.annotation and ast.unparse(a.annotation) == "bool"]
        found += [f"{f.name}({', '.join(flags)})"] if flags or any(map(is_switch, f.args.defaults)) else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_few_arguments_by_position(path):
    source = path.read_text()
    assert longer(source) == set(LONGER.get(path.relative_to(ROOT).as_posix(), {}))
    assert switches(source) == []


def test_the_count_finds_what_it_looks_for():
    assert longer("def f(a, b, c, d, e, f, g): pass\ndef g(a, b, c, d, e, f, *, h, i): pass") == {"f"}
    assert switches("f(1, True); f(a=True); getattr(a, 'b', False)") == ["f(1, True)"]
    assert switches("def f(a: bool): pass\ndef g(a=False): pass\ndef h(*, a: bool = True): pass") == ["f(a)", "g()"]
