"""What `train watch` shows in a terminal: the probability now and lately, the alarm, and how well it keeps up."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipeline.console import make_console, printable
from train.timeline import clock
from train.watch import State, Tally

BARS = " ▁▂▃▄▅▆▇█"
LATELY = 60  # decisions in the curve


@dataclass(frozen=True)
class View:
    """How to `show` a decision with the frames dropped so far, to `say` a line on stderr, to `tell` an event on
    stdout."""

    show: Callable[[State, Tally, int], None]
    say: Callable[[str], None]
    tell: Callable[[dict[str, Any]], None]


@contextmanager
def live_view(label: str) -> Iterator[View]:
    """Decisions are drawn on stderr, lines stand above them. Where that is no terminal, nothing but lines is
    printed."""
    console = make_console(err=True)

    def say(line: str) -> None:
        console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def tell(event: dict[str, Any]) -> None:
        click.echo(json.dumps(event))

    if not sys.stderr.isatty():
        yield View(lambda _state, _tally, _dropped: None, say, tell)
        return
    lately: deque[float] = deque(maxlen=LATELY)
    with Live(console=console, transient=True, refresh_per_second=5, redirect_stdout=False) as live:

        def show(state: State, tally: Tally, dropped: int) -> None:
            lately.append(state.probability)
            live.update(draw(label, state, tally, dropped, list(lately)))

        # What is written to the same terminal past the console would be painted over.
        yield View(show, say, (lambda event: say(json.dumps(event))) if sys.stdout.isatty() else tell)


def draw(label: str, state: State, tally: Tally, dropped: int, lately: list[float]) -> Group:
    """Two lines: label, probability and its curve; time, latency and counts."""
    style = "bold red" if state.alarm else "bold green"
    curve = "".join(BARS[round(value * (len(BARS) - 1))] for value in lately)
    first = Text.assemble(
        ("● " if state.alarm else "○ ", style),
        (printable(label), style),
        f" {state.probability:5.3f} ",
        (curve, style),
    )
    first.no_wrap = True
    second = (
        f"  {clock(state.seconds)}   {tally.events} events   {1000 * tally.latency[-1]:.0f} ms latency   "
        f"{tally.clips_skipped} clips skipped   {dropped} frames dropped"
    )
    return Group(first, Text(second, "dim", no_wrap=True))
