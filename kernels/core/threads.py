"""A computation in phases, each in parts that threads share.

    share_out(team, phases, parts, function, arguments)        function(part, *arguments)

Parts of one phase are independent; a phase begins when the one before is complete. Nothing depends on who computes what: the
calling thread takes its part, then whatever nobody has taken. So a thread that comes late, or never, costs time, not results.

    words    job | function data phases parts base before | finished | parked | failed | yield | taken ..      a cache line each

A job is published by its number. Phases have numbers that only grow, so a part is taken once, also if a thread still reads an
old job. Threads wait in a loop for a while; then they leave the processor to others and wait for Python to wake them.
"""

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, overload, register_model

from stablebptt.kernels.core.dispatch import OPTIONS, block, inline, kernel
from stablebptt.kernels.core.linking import NO_WRAPPERS
from stablebptt.kernels.core.simd import pointer
from stablebptt.kernels.core.structs import Struct, borrowed

MOST_THREADS = 256
LINE = 8  # words per cache line
JOB, FIELDS, FINISHED, PARKED, FAILED, YIELD, TAKEN = (LINE * k for k in range(7))
FUNCTION, DATA, PHASES, PARTS, BASE, BEFORE = range(FIELDS, FIELDS + 6)
OVER = -1  # a job that ends the threads
# Rounds of waiting: first in a loop, then letting others have the processor; a thread without a job parks after the last.
SPINS, ROUNDS = 200, 2000
# The processor's hint for loops of waiting: an intrinsic function of LLVM, and its arguments.
HINTS: dict[str, tuple[str, tuple[int, ...]]] = {"x86_64": ("llvm.x86.sse2.pause", ()), "aarch64": ("llvm.aarch64.hint", (1,))}


class Part(Struct):
    """One part of some work: number `index` of `count`, of a phase."""

    index: int
    count: int
    phase: int


class Job(Struct):
    """Addresses of a native function and its data; phases and parts; number of the first phase; parts finished before."""

    function: int
    data: int
    phases: int
    parts: int
    base: int
    before: int


WHOLE = Part(0, 1, 0)


@inline
def cut(n, part):
    """First and end of a part of n items."""
    return n * part.index // part.count, n * (part.index + 1) // part.count


def shared(function: Any) -> Any:
    """Make a function (part, *arguments) one for `share_out`."""
    inline(function)

    def compute(phase, index, count, box):
        function(Part(index, count, phase), *_content(box))

    return njit(**OPTIONS, **NO_WRAPPERS)(compute)


def share_out(team, phases, parts, function, arguments):
    """Compute all parts of all phases of a `shared` function, with the threads of a team."""
    raise NotImplementedError("for compiled code only")


@overload(share_out, jit_options={"forceinline": True, **OPTIONS, **NO_WRAPPERS})
def _share_out(team, phases, parts, function, arguments):
    def run(team, phases, parts, function, arguments):
        box = _boxed(arguments)
        if parts > 1 and team.size > 0 and _lead(team, parts, phases, *_addresses(function, box)):
            return
        for phase in range(phases):  # an error in the user's code is raised here
            for index in range(parts):
                function(phase, index, parts, box)

    return run


class Box(types.Type):
    """Address of arguments that lie on the stack. As arguments themselves, large structs would be copied in every call."""

    def __init__(self, content: Any) -> None:
        self.content = content
        super().__init__(f"Box({content})")


@register_model(Box)
class BoxModel(models.PrimitiveModel):
    """A pointer."""

    def __init__(self, manager: Any, box: Box) -> None:
        super().__init__(manager, box, manager.lookup(box.content).get_value_type().as_pointer())


@intrinsic
def _boxed(typing_context, arguments):
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return cgutils.alloca_once_value(builder, given[0])

    return Box(arguments)(arguments), generate


@intrinsic
def _content(typing_context, box):
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return borrowed(context, builder, box.content, given[0])

    return box.content(box), generate


@intrinsic
def _addresses(typing_context, function, box):
    """Addresses of a native function (data, phase, index, count), which returns whether `function` failed, and of the data."""
    kinds = (types.intp, types.intp, types.intp, box)
    function.get_call_type(typing_context, kinds, {})

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word, flag, data = context.get_value_type(types.intp), ir.IntType(8), given[1]
        compiled = function.dispatcher.get_compile_result(types.none(*kinds))
        context.active_code_library.add_linking_library(compiled.library)
        kind = ir.FunctionType(flag, [data.type, word, word, word])
        native = ir.Function(builder.module, kind, builder.module.get_unique_name("part"))
        native.linkage = "internal"
        inside = ir.IRBuilder(native.append_basic_block())
        numbers = [*native.args[1:], native.args[0]]
        status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, numbers)
        inside.ret(inside.zext(status.is_error, flag))
        return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(native, word), builder.ptrtoint(data, word)])

    return types.UniTuple(types.intp, 2)(function, box), generate


@inline
def _lead(words, parts, phases, function, data):
    """Publish a job, take part in it, and wait for its end."""
    w = pointer(words)
    base, before = read(w, BASE) + read(w, PHASES), read(w, FINISHED)
    write(w, JOB, 0)
    write(w, FUNCTION, function)
    write(w, DATA, data)
    write(w, PHASES, phases)
    write(w, PARTS, parts)
    write(w, BASE, base)
    write(w, BEFORE, before)
    write(w, FAILED, 0)
    for s in range(parts):
        write(w, TAKEN + s * LINE, base - 1)
    write(w, JOB, base)
    _work(w, 0, Job(function, data, phases, parts, base, before))
    return read(w, FAILED) == 0


@block
def _work(w, own, job):
    """Compute parts of a job until it is done, one's own first. The data may be read only after taking a part."""
    for phase in range(job.phases):
        for j in range(job.parts):
            s = (own + j) % job.parts
            if take(w, TAKEN + s * LINE, job.base + phase - 1, job.base + phase):
                if invoke(job.function, job.data, phase, s, job.parts):
                    write(w, FAILED, 1)
                add(w, FINISHED, 1)
        rounds = 0
        while read(w, FINISHED) < job.before + (phase + 1) * job.parts:
            rounds += 1
            _wait(w, rounds)


@inline
def _wait(w, rounds):
    if rounds > SPINS:
        leave(read(w, YIELD))
    else:
        pause()


@kernel
def serve(words, own):
    """Work for a team as thread number `own`, until it is over (False), or there has been nothing to do for a while (True)."""
    w = pointer(words)
    last, rounds = 0, 0
    while rounds < ROUNDS:
        number = read(w, JOB)
        if number == OVER:
            return False
        if number not in (0, last):
            addresses = read(w, FUNCTION), read(w, DATA)
            job = Job(*addresses, read(w, PHASES), read(w, PARTS), read(w, BASE), read(w, BEFORE))
            if read(w, JOB) == number:  # the fields are those of this job
                last, rounds = number, 0
                if own < job.parts:
                    _work(w, own, job)
        rounds += 1
        _wait(w, rounds)
    return True


@intrinsic
def read(typing_context, base, k):
    """Word k, with all that was written before it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load_atomic(builder.gep(given[0], [given[1]]), "seq_cst", 8)

    return types.intp(base, types.intp), generate


@intrinsic
def write(typing_context, base, k, value):
    """Set word k after all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store_atomic(given[2], builder.gep(given[0], [given[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(base, types.intp, types.intp), generate


@intrinsic
def add(typing_context, base, k, value):
    """Add to word k."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.atomic_rmw("add", builder.gep(given[0], [given[1]]), given[2], "seq_cst")
        return context.get_dummy_value()

    return types.void(base, types.intp, types.intp), generate


@intrinsic
def take(typing_context, base, k, old, new):
    """Replace word k if it is `old`; returns whether it was."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address = builder.gep(given[0], [given[1]])
        return builder.extract_value(builder.cmpxchg(address, given[2], given[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(base, types.intp, types.intp, types.intp), generate


@intrinsic
def invoke(typing_context, function, data, phase, index, count):
    """Call the native function at an address; returns whether it failed."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = given[0].type
        kind = ir.FunctionType(ir.IntType(8), [word] * 4)
        failed = builder.call(builder.inttoptr(given[0], kind.as_pointer()), given[1:])
        return builder.icmp_unsigned("!=", failed, ir.Constant(failed.type, 0))

    return types.boolean(*[types.intp] * 5), generate


@intrinsic
def leave(typing_context, function):
    """Let other threads have the processor, by the system's function at an address."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(given[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def pause(typing_context):
    """Tell the processor that this is a loop of waiting."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        hint = next((hint for prefix, hint in HINTS.items() if str(builder.module.triple).startswith(prefix)), None)
        if hint is not None:
            name, numbers = hint
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)] * len(numbers))
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [ir.Constant(ir.IntType(32), number) for number in numbers])
        return context.get_dummy_value()

    return types.void(), generate


def _yield_address() -> int:
    """Address of the system's function that lets other threads have the processor."""
    if sys.platform == "win32":
        function = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _processor() -> int:
    """Number of the processor that runs this thread; -1 if unknown."""
    return int(_sched_getcpu()) if _sched_getcpu is not None else -1


_sched_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


class Crew:
    """The threads of this process, and the memory they share. A thread begins when it is first needed."""

    def __init__(self) -> None:
        self.words = np.zeros(MOST_THREADS * LINE + TAKEN, np.int64)
        self.words[[YIELD, BASE]] = _yield_address(), 1
        self.threads: list[threading.Thread] = []
        self.bells: list[Any] = []
        self.busy, self.parking = threading.Lock(), threading.Lock()
        self.wanted = 0  # threads that the caller wants
        self.place = -1  # its processor when it last woke some

    def call(self, parts: int, function: Any, *arguments: Any) -> Any:
        """Call a compiled function (*arguments, team) whose phases have `parts` parts, with a thread for each.

        While the threads work for another caller, this one works alone; the result is the same.
        """
        if parts == 1 or vars(config)["DISABLE_JIT"] or not self.busy.acquire(blocking=False):
            return function(*arguments, NOBODY)
        try:
            self._wake(parts - 1)
            return function(*arguments, self.words)
        finally:
            self.busy.release()

    def _wake(self, count: int) -> None:
        """Begin or wake threads. If the system refuses some, the others do their parts."""
        self.wanted = count
        if self.words[PARKED] or len(self.threads) < count:
            self.place = _processor()
        with contextlib.suppress(RuntimeError):
            while len(self.threads) < count:
                self._begin_thread()
        if self.words[PARKED]:
            for bell in self.bells[:count]:
                with contextlib.suppress(RuntimeError):  # awake
                    bell.release()

    def _begin_thread(self) -> None:
        bell, number = threading.Lock(), len(self.threads) + 1
        bell.acquire()
        thread = threading.Thread(target=self._serve, args=(number, bell), name=f"stablebptt-{number}", daemon=True)
        thread.start()
        self.bells.append(bell)
        self.threads.append(thread)

    def _serve(self, number: int, bell: Any) -> None:
        self._move(number)
        while serve(self.words, number):
            with self.parking:
                self.words[PARKED] += 1
            if not (self.busy.locked() and number <= self.wanted):  # otherwise the caller has looked already, and counts on it
                bell.acquire()
                self._move(number)
            with self.parking:
                self.words[PARKED] -= 1

    def _move(self, number: int) -> None:
        """Leave the caller's processor: Linux wakes a thread where it was called from, and may let both wait for each other."""
        if hasattr(os, "sched_setaffinity"):
            allowed = os.sched_getaffinity(0)
            if others := sorted(allowed - {self.place}):
                os.sched_setaffinity(0, {others[(number - 1) % len(others)]})
                os.sched_setaffinity(0, allowed)

    def end(self) -> None:
        """End the threads. Compiled code must not run while Python ends."""
        self.words[JOB] = OVER
        for bell, thread in zip(self.bells, self.threads):
            with contextlib.suppress(RuntimeError):
                bell.release()
            thread.join(1.0)


NOBODY = np.zeros(0, np.int64)
crew = Crew()


def _new_crew() -> None:
    """Begin anew in a forked process: threads are not copied."""
    global crew
    crew = Crew()


def call(parts: int, function: Any, *arguments: Any) -> Any:
    """`Crew.call` of this process."""
    return crew.call(parts, function, *arguments)


_limits = threading.local()


@contextlib.contextmanager
def limit(count: int | None) -> Iterator[None]:
    """Within this context, computations that this thread begins use at most so many threads; None changes nothing."""
    before = getattr(_limits, "count", None)
    _limits.count = count or before
    try:
        yield
    finally:
        _limits.count = before


def available() -> int:
    """Threads that a computation uses: the limit, `STABLEBPTT_THREADS`, or the processors that this process may use."""
    if limited := getattr(_limits, "count", None):
        return int(limited)
    given = os.environ.get("STABLEBPTT_THREADS", "")
    if not given:
        return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_THREADS)
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= MOST_THREADS):
        raise ValueError(f"STABLEBPTT_THREADS is {given!r}; give a whole number from 1 to {MOST_THREADS}")
    return int(given)


atexit.register(lambda: crew.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_crew)
