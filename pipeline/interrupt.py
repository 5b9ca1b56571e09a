"""Ctrl-C: what a command that was stopped by it says, and which processes do not hear it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

EXIT_CODE = 128 + signal.SIGINT  # as shells have it


@contextmanager
def resumable(how: str = "the same command again") -> Iterator[None]:
    """Work of which nothing is lost: who stops it is told to run `how`, which goes on from there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"run {how}, and it goes on from there") from stop


@contextmanager
def unheard() -> Iterator[None]:
    """Threads and processes begun within, and those that they begin, never hear Ctrl-C.

    A terminal sends it to every process; it is for the first one to end the others. Blocked and not ignored:
    threads other than the main one begin processes, too, and cannot say what is ignored.
    """
    resource_tracker.ensure_running()  # whoever starts it first hears Ctrl-C again: it unblocks what it blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
