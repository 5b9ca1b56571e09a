"""What `-v` shows: log lines on stderr, above a progress bar where there is one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pipeline.console import printable

ROOMS = ("pipeline", "models", "train")


class Lines(logging.Handler):
    """Each record a line on whatever stderr is at the moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        click.echo(printable(self.format(record)), err=True)


@contextmanager
def log_lines(*, everything: bool) -> Iterator[None]:
    """Show what this program logs, at INFO; or `everything`, libraries at DEBUG, too."""
    root, lines = logging.getLogger(), Lines()
    lines.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    loggers = [root] if everything else [logging.getLogger(room) for room in ROOMS]
    levels = [logger.level for logger in loggers]
    root.addHandler(lines)
    for logger in loggers:
        logger.setLevel(logging.DEBUG if everything else logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(lines)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
