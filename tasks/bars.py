"""Bars of tqdm, in a terminal or a notebook."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
AT_THE_END = FORMAT.replace("<{remaining}", "")


def in_notebook() -> bool:
    """Whether a notebook runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """Something to tell how many of how many are done, and a few words.

    It is drawn when it is told something for the first time, below what was said before.
    """
    begin = time.time()
    drawn: Any = None

    def tell(done: int, total: int, words: str) -> None:
        nonlocal drawn
        if drawn is None:
            drawn = _tqdm()(total=total, initial=done, file=sys.stderr, dynamic_ncols=True, bar_format=FORMAT)
            drawn.start_t = begin
        if done == total:
            drawn.bar_format = AT_THE_END
        drawn.set_postfix_str(words, refresh=False)
        drawn.update(done - drawn.n)

    try:
        yield tell
    finally:
        if drawn is not None:
            drawn.close()


def _tqdm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets a bar of letters
        from tqdm.auto import tqdm
    return tqdm
