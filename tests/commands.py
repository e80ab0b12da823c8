"""Commands in this process."""

import signal

from stablebptt import cli


def call(*words):
    """Run a command; its exit code."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        cli.main([str(word) for word in words])
    except SystemExit as leave:
        return leave.code or 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0
