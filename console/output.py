"""What commands say: records on stdout, progress on stderr."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click


def short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show(data: dict[str, Any], *, as_json: bool) -> None:
    """A record on stdout: as JSON, or one "key: value" per line."""
    if as_json:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
        click.echo(json.dumps(clean))
        return
    for key, value in data.items():
        click.echo(f"{key.replace('_', ' ')}: {short(value)}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def learned(run: Any) -> dict[str, Any]:
    """What a training came to."""
    from stablebptt.data.run_file import best

    losses, (epoch, lowest) = run.history["test_loss"], best(run.history)
    return {"epochs": len(losses), "test_loss": float(losses[-1]), "best_test_loss": lowest, "best_epoch": epoch}


def epoch_record(progress: Any) -> dict[str, Any]:
    from stablebptt.tasks.runs import HISTORY

    return dict(zip(HISTORY, progress.history[-1]))


@contextmanager
def progress(epochs: int, *, quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report epochs to: a bar on a terminal, now and then a line elsewhere."""
    from stablebptt.tasks.runs import HISTORY

    if quiet and not as_json:
        yield lambda progress: None
        return
    bar = sys.stderr.isatty() and not quiet
    shown = 0.0

    def line(progress: Any) -> None:
        nonlocal shown
        row = epoch_record(progress)
        if as_json:
            show(row, as_json=True)
        ended, now = progress.epoch == epochs, time.monotonic()
        if quiet or (now - shown < (0.1 if bar else 10.0) and not ended):
            return
        shown = now
        text = f"epoch {progress.epoch}/{epochs}  test loss {row['test_loss']:.5g}"
        recent = [entry[HISTORY.index("seconds")] for entry in progress.history[1:][-50:]]
        if recent:  # the first epoch may have compiled
            text += f"  {_duration(sum(recent) / len(recent) * (epochs - progress.epoch))} left"
        if bar:
            filled = progress.epoch * 30 // epochs
            click.echo(f"\r[{'#' * filled}{'-' * (30 - filled)}] {text}\x1b[K", nl=ended, err=True)
        else:
            click.echo(text, err=True)

    try:
        yield line
    finally:
        if bar and shown:
            click.echo("", err=True)


def findings(found: list[Any], *, as_json: bool) -> None:
    """A table of findings, and an error if one is wrong."""
    if not as_json:
        click.echo(f"{'function':<26}{'argument':<12}{'step':>8}{'sure to':>9}{'error':>10}")
    for finding in found:
        if as_json:
            record = {"function": finding.rule, "argument": finding.argument, "error": finding.error, "step": finding.step}
            record |= {"certainty": finding.certainty, "verdict": finding.verdict, "note": finding.note}
            show(record | {"passed": finding.passed}, as_json=True)
        else:
            numbers = f"{finding.step:>8.0e}{finding.certainty:>9.0e}{finding.error:>10.1e}"
            click.echo(f"{finding.rule:<26}{finding.argument:<12}{numbers}  {finding.verdict}")
    for verdict, words in (("WRONG", "these derivatives disagree"), ("unsure", "no differences are good enough to judge")):
        named = [f"{f.rule} ({f.argument}{': ' * bool(f.note)}{f.note})" for f in found if f.verdict == verdict]
        if named:
            hint = "; try other --states or another --step" if verdict == "unsure" else ""
            raise click.ClickException(f"{words}: {', '.join(named)}{hint}")


def dry_run(seconds: dict[str, float], jobs: int, *, as_json: bool) -> None:
    for name, estimate in seconds.items():
        show({"run": name, "seconds": estimate}, as_json=True) if as_json else click.echo(f"{name:<70} {_duration(estimate)}")
    total = sum(seconds.values())
    summary = {"runs": len(seconds), "core_seconds": total, "jobs": jobs, "seconds": total / min(jobs, max(len(seconds), 1))}
    if as_json:
        show(summary, as_json=True)
    else:
        click.echo(f"{len(seconds)} runs, about {_duration(total)} on one core, {_duration(summary['seconds'])} with {jobs} jobs")


def event(outcome: Any) -> dict[str, Any]:
    return {"event": "ended", **{name: value for name, value in asdict(outcome).items() if value != ""}}


@contextmanager
def sweep_progress(*, quiet: bool, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Something to report a sweep to: a line on a terminal, now and then one elsewhere."""
    live = sys.stderr.isatty() and not quiet
    shown = -math.inf

    def line(progress: Any) -> None:
        nonlocal shown
        done, bad = progress.count("complete"), progress.count("failed", "diverged")
        facts = {"done": done, "running": progress.running, "failed": bad, "total": progress.total}
        if as_json and progress.ended is not None:
            show(event(progress.ended) | facts | {"seconds_left": progress.seconds_left}, as_json=True)
        now = time.monotonic()
        if quiet or (now - shown < (0.2 if live else 10.0) and done + bad < progress.total):
            return
        shown = now
        left = f", {_duration(progress.seconds_left)} left" if math.isfinite(progress.seconds_left) else ""
        text = f"{done} of {progress.total} runs done, {progress.running} running, {bad} failed or diverged{left}"
        click.echo(f"\r{text}\x1b[K" if live else text, nl=not live, err=True)

    try:
        yield line
    finally:
        if live and shown > 0:
            click.echo("", err=True)


def sweep_table(outcomes: list[Any], *, as_json: bool) -> None:
    if as_json:
        statuses = sorted({outcome.status for outcome in outcomes})
        show({"event": "finished"} | {s: sum(o.status == s for o in outcomes) for s in statuses}, as_json=True)
        return
    width = max(len(outcome.name) for outcome in outcomes)
    click.echo(f"{'run':<{width}}  {'status':<11} {'epochs':>6} {'test loss':>10} {'best':>10} {'seconds':>8}")
    for o in outcomes:
        numbers = f"{o.epochs:>6} {o.test_loss:>10.4g} {o.best_test_loss:>10.4g} {o.seconds:>8.1f}"
        click.echo(f"{o.name:<{width}}  {o.status:<11} {numbers}  {o.message}".rstrip())


def sweep_verdict(outcomes: list[Any]) -> None:
    from stablebptt.tasks.errors import DivergedError

    counts = {status: sum(o.status == status for o in outcomes) for status in ("failed", "busy", "interrupted", "diverged")}
    if counts["failed"] or counts["busy"]:
        first = next(o for o in outcomes if o.status in ("failed", "busy"))
        others = counts["failed"] + counts["busy"]
        raise click.ClickException(f"{others} of {len(outcomes)} runs failed; the first: {first.name}: {first.message}")
    if counts["interrupted"]:
        raise KeyboardInterrupt
    if counts["diverged"]:
        raise DivergedError(f"{counts['diverged']} of {len(outcomes)} runs diverged")
