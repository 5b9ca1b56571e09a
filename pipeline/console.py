"""How both command lines speak: tables and JSON on stdout, warnings and progress on stderr."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pipeline.report import Stage, Step

if TYPE_CHECKING:
    from rich.console import Console


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # and right to left


def print_json(values: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(values, indent=2))


def make_console(*, err: bool, width: int | None = None) -> "Console":
    """A console of rich's on stdout or stderr; plain text where nobody looks or `NO_COLOR` is set."""
    from rich.console import Console

    return Console(width=width, stderr=err, color_system=None if os.environ.get("NO_COLOR") else "auto")


def print_table(
    title: str, rows: Sequence[Sequence[object]], header: Sequence[str] = (), *, err: bool = False
) -> None:
    """A table on stdout, or stderr."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=bool(header))
    for name in header or [""] * max(map(len, rows), default=1):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    # A pipe has no width of its own.
    stream = sys.stderr if err else sys.stdout
    console = make_console(err=err, width=None if stream.isatty() else 120)
    console.print(Text(printable(title), "bold"))
    console.print(table)


def printable(text: str) -> str:
    """Text as it may be shown. Names of files may hold bytes that are no text, or that a terminal obeys."""
    shown = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.encode("utf-8", "backslashreplace").decode()


def warn(message: str) -> None:
    """A warning on stderr."""
    click.secho(f"Warning: {printable(message)}", err=True, fg="yellow")


@contextmanager
def progress(unit: str) -> Iterator[Stage]:
    """A progress bar on stderr with rate and ETA; yields a function that opens a stage of the work."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
    )
    bar = Progress(*columns, console=make_console(err=True), speed_estimate_period=120)

    def stage(what: str, total: int) -> Step:
        bar.start()  # not before there is something to show
        for done in bar.task_ids:
            bar.remove_task(done)
        task_id = bar.add_task(printable(what), total=total, rate="")

        def step(count: int) -> None:
            # A shard whose worker died is counted again from its start.
            done = next(task.completed for task in bar.tasks if task.id == task_id)
            bar.update(task_id, completed=min(done + count, total))
            speed = next(task.speed for task in bar.tasks if task.id == task_id)
            bar.update(task_id, rate=f"{speed:.1f} {unit}/s" if speed else "")

        return step

    try:
        yield stage
    finally:
        if bar.live.is_started:  # else `stop` leaves an empty line in a pipe
            bar.stop()


def counted(count: int, noun: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def human_bytes(count: float) -> str:
    """`1.9 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
