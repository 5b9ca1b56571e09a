"""What `train watch` shows in a terminal: the probability now and lately, the alarm, and how well it keeps up."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipeline.console import make_console
from train.timeline import clock
from train.watch import State, Tally

BARS = " ▁▂▃▄▅▆▇█"
LATELY = 60  # decisions in the curve
Show = Callable[[State, Tally, int], None]


@contextmanager
def live_view(label: str) -> Iterator[tuple[Show, Callable[[str], None]]]:
    """Two functions, one to show a decision and one to say a line above it; on stderr. Where that is no terminal,
    nothing but lines is printed."""
    console = make_console(err=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not sys.stderr.isatty():
        yield (lambda _state, _tally, _dropped: None), say
        return
    lately: deque[float] = deque(maxlen=LATELY)
    with Live(console=console, transient=True, refresh_per_second=5, redirect_stdout=False) as live:

        def show(state: State, tally: Tally, dropped: int) -> None:
            lately.append(state.probability)
            live.update(draw(label, state, tally, dropped, list(lately)))

        yield show, say


def draw(label: str, state: State, tally: Tally, dropped: int, lately: list[float]) -> Group:
    """Two lines: label, probability and its curve; time, latency and counts."""
    style = "bold red" if state.alarm else "bold green"
    curve = "".join(BARS[round(value * (len(BARS) - 1))] for value in lately)
    first = Text.assemble(
        ("● " if state.alarm else "○ ", style), (label, style), f" {state.probability:5.3f} ", (curve, style)
    )
    first.no_wrap = True
    second = (
        f"  {clock(state.seconds)}   {tally.events} events   {1000 * tally.latency[-1]:.0f} ms latency   "
        f"{tally.clips_skipped} clips skipped   {dropped} frames dropped"
    )
    return Group(first, Text(second, "dim", no_wrap=True))
