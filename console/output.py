"""What commands say: records on stdout, progress on stderr."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import click

LINE_SECONDS = 10.0  # between lines, where there is no bar
PATIENCE = 1.0  # what takes less shows no bar [s]


def short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def say(text: str, *, err: bool = False) -> None:
    """Write a line. Where nobody reads on (| head), what is left is not shown; a training is not ended by that."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), (sys.stderr if err else sys.stdout).fileno())


def show(data: dict[str, Any], *, as_json: bool) -> None:
    """A record on stdout: as JSON, or one "key: value" per line."""
    if as_json:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
        say(json.dumps(clean))
        return
    for key, value in data.items():
        say(f"{key.replace('_', ' ')}: {short(value)}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def learned(run: Any) -> dict[str, Any]:
    """What a training came to."""
    from stablebptt.data.run_file import best, last

    (_, loss), (epoch, lowest) = last(run.history), best(run.history)
    return {"epochs": len(run.history["epoch"]), "test_loss": loss, "best_test_loss": lowest, "best_epoch": epoch}


def finished(record: dict[str, Any]) -> dict[str, Any]:
    return {"event": "finished", **record}


def epoch_record(progress: Any) -> dict[str, Any]:
    from stablebptt.data.run_file import COUNTS, HISTORY

    row = dict(zip(HISTORY, progress.history[-1]))
    return row | {name: int(row[name]) for name in COUNTS}


def _is_live(*, as_json: bool) -> bool:
    """Whether a bar has a place: a terminal that can redraw a line and shows no records."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not (as_json and sys.stdout.isatty())


@contextmanager
def counter(
    line: str, *, quiet: bool, as_json: bool = False, patience: float = PATIENCE
) -> Iterator[Callable[[int, int, str], None]]:
    """Something to tell how many of how many are done: a bar on a terminal, now and then a `line` elsewhere.

    If code has to be compiled, that is said. What takes less than `patience` [s] is not shown.
    """
    with compiling(quiet=quiet):
        if not quiet and _is_live(as_json=as_json):
            from stablebptt.tasks import bars

            with bars.bar(patience) as tell:
                yield tell
        else:
            yield _nothing if quiet or as_json else _lines(line, at_once=patience == 0)


def _nothing(done: int, total: int, words: str) -> None:
    """Records are shown instead, or it was not asked for."""


def _lines(line: str, *, at_once: bool) -> Callable[[int, int, str], None]:
    begin = time.monotonic()
    shown = -math.inf if at_once else begin
    first: tuple[int, float] | None = None

    def tell(done: int, total: int, words: str) -> None:
        nonlocal shown, first
        now = time.monotonic()
        first = first or (done, now)  # before it, code may have been compiled, or a file read
        if now - shown < LINE_SECONDS and (done < total or shown == begin):
            return
        shown = now
        pace = (now - first[1]) / (done - first[0]) if done > first[0] else math.nan
        rest = f"{_duration(pace * (total - done))} left" if done < total and math.isfinite(pace) else ""
        say("  ".join(filter(None, (line.format(done, total), words, rest))), err=True)

    return tell


@contextmanager
def compiling(*, quiet: bool) -> Iterator[None]:
    """Say so, once, if code has to be compiled."""
    if quiet or "numba" not in sys.modules:  # a command that needs none
        yield
        return
    from stablebptt.tasks import bars

    with bars.compiling(partial(say, err=True)):
        yield


@contextmanager
def progress(epochs: int, *, quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report epochs to."""
    from stablebptt.tasks.bars import last_loss

    with counter("epoch {}/{}", quiet=quiet, as_json=as_json, patience=0) as tell:

        def report(progress: Any) -> None:
            if as_json:
                show({"event": "epoch"} | epoch_record(progress), as_json=True)
            tell(progress.epoch, epochs, last_loss(progress))

        yield report


def diagnosis(found: Any, *, as_json: bool) -> None:
    """A table of layers, a few numbers, and what they say."""
    rows, numbers = found.table(), found.numbers()
    if as_json:
        for row in rows:
            show({"event": "layer", **row}, as_json=True)
        show({"event": "finished", **numbers, "advice": found.advice}, as_json=True)
        return
    say(f"{'layer':<20}{'cosine':>8}{'same sign':>11}{'C zeroes':>10}")
    for row in rows:
        say(f"{row['layer']:<20}{row['cosine']:>8.3f}{row['same_sign']:>11.3f}{row['zeroed']:>10.3f}")
    show(numbers, as_json=False)
    say(found.advice)


def findings(check: Callable[..., list[Any]], *, as_json: bool) -> None:
    """A table of findings, row by row, and an error if one is wrong. `check` is called with what to report one to."""
    shown: list[Any] = []

    def show_row(finding: Any) -> None:
        if not (as_json or shown):
            say(f"{'function':<26}{'argument':<12}{'step':>8}{'sure to':>9}{'error':>10}")
        shown.append(finding)
        if as_json:
            record: dict[str, Any] = {"event": "finding", "function": finding.rule, "argument": finding.argument}
            record |= {"error": finding.error, "step": finding.step}
            record |= {"certainty": finding.certainty, "verdict": finding.verdict, "note": finding.note}
            show(record | {"passed": finding.passed}, as_json=True)
        else:
            numbers = f"{finding.step:>8.0e}{finding.certainty:>9.0e}{finding.error:>10.1e}"
            say(f"{finding.rule:<26}{finding.argument:<12}{numbers}  {finding.verdict}")

    found = check(report=show_row)
    for verdict, words in (("WRONG", "these derivatives disagree"), ("unsure", "no differences are good enough to judge")):
        named = [f"{f.rule} ({f.argument}{': ' * bool(f.note)}{f.note})" for f in found if f.verdict == verdict]
        if named:
            hint = "; try other --states or another --step" if verdict == "unsure" else ""
            raise click.ClickException(f"{words}: {', '.join(named)}{hint}")


def in_vectors(steps: Iterable[tuple[str, str]], *, as_json: bool) -> None:
    """Which of a user's steps compute registers full of samples, and why others do not."""
    for name, reason in steps:
        if as_json:
            show({"event": "compiled", "function": name, "in_vectors": not reason, "reason": reason or None}, as_json=True)
        else:
            say(f"{name} computes {'one sample at a time: ' + reason if reason else 'many samples at once'}")


def dry_run(estimate: Any, jobs: int, *, as_json: bool) -> None:
    """The runs that are left, and what they and compiling their code take."""
    runs = estimate.runs
    for name, seconds in runs.items():
        if as_json:
            show({"event": "planned", "run": name, "seconds": seconds}, as_json=True)
        else:
            say(f"{name:<70} {_duration(seconds)}")
    work, compiling = sum(runs.values()), estimate.compiling
    facts = {"runs": len(runs), "core_seconds": work + compiling, "jobs": jobs, "compile_seconds": compiling}
    total = work / min(jobs, max(len(runs), 1)) + compiling
    if as_json:
        show({"event": "estimated"} | facts | {"seconds": total}, as_json=True)
        return
    times = f"about {_duration(work + compiling)} on one core, {_duration(total)} with {_counted(jobs, 'job')}"
    say(f"{_counted(len(runs), 'run')}, {times}, {_duration(compiling)} of it for compiling")


def event(outcome: Any) -> dict[str, Any]:
    return {"event": "ended", **{name: value for name, value in asdict(outcome).items() if value != ""}}


@contextmanager
def sweep_progress(*, quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report a sweep to; an interrupt carries a note of what is done."""
    done = total = 0
    with counter("{} of {} runs done", quiet=quiet, as_json=as_json, patience=0) as tell:

        def report(progress: Any) -> None:
            nonlocal done, total
            done, total, bad = progress.count("complete"), progress.total, progress.count("failed", "diverged")
            facts = {"done": done, "running": progress.running, "failed": bad, "total": total}
            if as_json and progress.ended is not None:
                show(event(progress.ended) | facts | {"seconds_left": progress.seconds_left}, as_json=True)
            tell(done + bad, total, f"{progress.running} running at {progress.share:.0%}, {bad} failed or diverged")

        try:
            yield report
        except KeyboardInterrupt as stop:
            if total:
                stop.add_note(_saved(done, total))
            raise


def _saved(complete: int, total: int) -> str:
    return f"{complete} of {total} runs complete, all epochs saved; go on with resume=True"


def sweep_table(outcomes: list[Any], *, as_json: bool) -> None:
    if as_json:
        statuses = sorted({outcome.status for outcome in outcomes})
        show({"event": "finished"} | {s: sum(o.status == s for o in outcomes) for s in statuses}, as_json=True)
        return
    width = max(len(outcome.name) for outcome in outcomes)
    say(f"{'run':<{width}}  {'status':<11} {'epochs':>6} {'test loss':>10} {'best':>10} {'seconds':>8}")
    for o in outcomes:
        numbers = f"{o.epochs:>6} {o.test_loss:>10.4g} {o.best_test_loss:>10.4g} {o.seconds:>8.1f}"
        say(f"{o.name:<{width}}  {o.status:<11} {numbers}  {o.message}".rstrip())


def sweep_verdict(outcomes: list[Any]) -> None:
    from stablebptt.tasks.errors import DivergedError

    counts = {status: sum(o.status == status for o in outcomes) for status in ("failed", "busy", "interrupted", "diverged")}
    if counts["failed"] or counts["busy"]:
        first = next(o for o in outcomes if o.status in ("failed", "busy"))
        others = counts["failed"] + counts["busy"]
        raise click.ClickException(f"{others} of {len(outcomes)} runs failed; the first: {first.name}: {first.message}")
    if counts["interrupted"]:
        stop = KeyboardInterrupt()
        stop.add_note(_saved(sum(o.status == "complete" for o in outcomes), len(outcomes)))
        raise stop
    if counts["diverged"]:
        raise DivergedError(f"{counts['diverged']} of {len(outcomes)} runs diverged")
