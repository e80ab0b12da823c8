"""Bars of tqdm, in a terminal or a notebook."""

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from stablebptt.tasks import arguments

Tell = Callable[[int, int, str], None]
Item = TypeVar("Item")


def in_notebook() -> bool:
    """Whether a notebook runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def in_session() -> bool:
    """Whether a person types what this process runs: in a notebook, in IPython, at Python's prompt."""
    return in_notebook() or hasattr(sys, "ps1")


@contextmanager
def bar(patience: float = 0.0) -> Iterator[Tell]:
    """Something to tell how many of how many are done, and a few words, the most important ones first, separated by ", ".

    It is drawn when it is told something for the first time after `patience` [s], below what was said before.
    """
    begin = time.time()
    drawn: Any = None

    def tell(done: int, total: int, words: str) -> None:
        nonlocal drawn
        if drawn is None:
            if time.time() - begin < patience:
                return
            drawn = _tqdm()(total=total, initial=done, file=sys.stderr, dynamic_ncols=True, bar_format="{percentage:3.0f}%")
            drawn.start_t = begin
        drawn.bar_format = _format(drawn, done, words)
        drawn.update(done - drawn.n)

    try:
        yield tell
    finally:
        if drawn is not None:
            drawn.bar_format = drawn.bar_format.replace("<{remaining}", "")
            drawn.close()


def _format(drawn: Any, done: int, words: str) -> str:
    """What fits into the columns that there are: all of it, fewer words, no bar, the percentage alone."""
    known = drawn.format_dict
    pieces = ["{percentage:3.0f}%", "{n_fmt}/{total_fmt}", "[{elapsed}<{remaining}]", *filter(None, words.split(", "))]
    kinds = [f"{pieces[0]}|{{bar}}| {pieces[1]} {', '.join(pieces[2:k])}" for k in range(len(pieces), 2, -1)]
    kinds += [" ".join(pieces[:k]) for k in (3, 2)]
    facts = {**known, "n": done, "ncols": None}
    for kind in kinds:
        if len(drawn.format_meter(**facts | {"bar_format": kind.replace("{bar}", " ")})) <= (known["ncols"] or math.inf):
            return kind
    return pieces[0]


@contextmanager
def compiling(say: Callable[[str], Any]) -> Iterator[None]:
    """Say so, once, if code has to be compiled."""
    from numba.core import event

    class Told(event.Listener):
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                say("compiling, once for this kind of problem: 10 to 60 s ...")
            self.told = True

        def on_end(self, event: Any) -> None:
            """The next thing that is said shows it."""

    with event.install_listener("numba:compile", Told()):
        yield


def in_session_compiling() -> AbstractContextManager[None]:
    """Say so to a person who waits, if code has to be compiled; a script hears nothing."""
    return _compiling_for_a_person() if in_session() else nullcontext()


@contextmanager
def _compiling_for_a_person() -> Iterator[None]:
    """Say so if code has to be compiled; an interrupt leaves the compiler's calls behind, which IPython shows for seconds."""
    try:
        with compiling(lambda line: print(line, file=sys.stderr)):
            yield
    except KeyboardInterrupt as stop:
        short = KeyboardInterrupt(*stop.args)
        for note in getattr(stop, "__notes__", ()):
            short.add_note(note)
        raise short from None


def each(items: Sequence[Item], tell: Tell | None, words: str = "") -> Iterator[Item]:
    """Items, telling how many are done."""
    for done, item in enumerate(items, 1):
        yield item
        if tell is not None:
            tell(done, len(items), words)


def last_loss(progress: Any) -> str:
    """The last test loss of a `Progress` in words; empty before the first."""
    return "" if progress.test_loss is None else f"test loss {progress.test_loss:.5g}"


@contextmanager
def epochs(report: Callable[..., Any] | None, progress: bool | None, total: int) -> Iterator[Callable[..., Any] | None]:
    """What is called after every epoch, with a `Progress` at last: the user's `report`, and a bar, by default in a notebook."""
    if not (in_notebook() and report is None if progress is None else arguments.flag("progress", progress)):
        with in_session_compiling() if progress is None else nullcontext():
            yield report
        return
    done: dict[tuple[Any, ...], int] = {}
    with _compiling_for_a_person(), bar() as tell:

        def both(*given: Any) -> Any:
            done[given[:-1]] = given[-1].epoch
            tell(sum(done.values()), total, last_loss(given[-1]))
            return None if report is None else report(*given)

        yield both


def _tqdm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets a bar of letters
        from tqdm.auto import tqdm
    return tqdm
