"""Manners of both command lines: errors in one line, progress and tables on stderr or stdout, `--json`."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError
from pipeline.places import as_place
from pipeline.report import Stage, Step


class Place(click.ParamType[Path | str]):
    """A path of this machine, or a URL that fsspec knows."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:  # noqa: ARG002
        """See `pipeline.places.as_place`."""
        return as_place(str(value))


PLACE = Place()
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # and right to left


class Commands(click.Group):
    """A click group whose commands end a `UserError` in one line and its exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {_printable(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
            ctx.exit(0)
        except OSError as error:  # a full disk, a folder that may not be written
            click.echo(f"Error: {_printable(str(error))}", err=True)
            ctx.exit(1)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, with the same words everywhere."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def print_json(values: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(values, indent=2))


def print_table(
    title: str, rows: Sequence[Sequence[object]], header: Sequence[str] = (), *, err: bool = False
) -> None:
    """A table on stdout, or stderr; plain text where nobody looks or `NO_COLOR` is set."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=bool(header))
    for name in header or [""] * max(map(len, rows), default=1):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(str(cell))) for cell in row))
    # A pipe has no width of its own.
    stream = sys.stderr if err else sys.stdout
    console = Console(width=None if stream.isatty() else 120, stderr=err)
    console.print(Text(_printable(title), "bold"))
    console.print(table)


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no text, or that a terminal obeys."""
    shown = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.encode("utf-8", "backslashreplace").decode()


def warn(message: str) -> None:
    """A warning on stderr."""
    click.secho(f"Warning: {_printable(message)}", err=True, fg="yellow")


@contextmanager
def progress(unit: str) -> Iterator[Stage]:
    """A progress bar on stderr with rate and ETA; yields a function that opens a stage of the work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
    )
    bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=120)

    def stage(what: str, total: int) -> Step:
        bar.start()  # not before there is something to show
        for done in bar.task_ids:
            bar.remove_task(done)
        task_id = bar.add_task(what, total=total, rate="")

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
        bar.stop()


def human_bytes(count: float) -> str:
    """`1.9 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
