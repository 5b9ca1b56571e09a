"""What `train watch` shows in a terminal, as a terminal shows it."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

import pytest
from rich.live import Live

from train.watch import State, Tally
from train.watch_view import draw, live_view

TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
EVENT = {
    "kind": "start",
    "event": 1,
    "clip": "events/event-0001.mp4",
    "label": "cats",
    "source": "rtsp://camera/live",
}
LINE = '{"kind": "start", "event": 1, "clip": "events/event-0001.mp4", "label": "cats", "source": "rtsp://camera/live"}'


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, *streams: str) -> Iterator[list[str]]:
    """A terminal as stdout, stderr or both; afterwards the list holds what was written."""
    written, pieces = list[str](), list[bytes]()
    ours, its = os.openpty()
    reader = threading.Thread(target=lambda: pieces.extend(iter(lambda: _read(ours), b"")))
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(Live, "update", partialmethod(Live.update, refresh=True))  # else five times a second
    with open(its, "w", buffering=1) as stream:
        for name in streams:
            monkeypatch.setattr(sys, name, stream)
        yield written
    reader.join()
    os.close(ours)
    written.append(b"".join(pieces).decode())


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def screen(written: str) -> list[str]:
    """The lines that a terminal shows of it."""
    rows, y, x = [""], 0, 0
    for amount, command, move, text in TOKEN.findall(written):
        if command == "A":
            y -= int(amount or 1)
        elif command == "K":
            rows[y] = ""
        elif move == "\r":
            x = 0
        elif move == "\n":
            y += 1
            rows += [""] * (y + 1 - len(rows))
        elif text:
            rows[y] = rows[y][:x].ljust(x) + text + rows[y][x + len(text) :]
            x += len(text)
    return [row.rstrip() for row in rows if row.strip()]


def tally() -> Tally:
    counts = Tally()
    counts.latency.append(0.05)
    return counts


def test_event_lines_are_whole_beside_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stdout", "stderr") as written, live_view("cats") as view:
        view.show(State(1.0, 0.25, False), tally(), 0)
        view.tell(EVENT)
        view.show(State(1.2, 0.75, True), tally(), 3)
        view.say("the camera is back")
        view.tell(EVENT)
        view.show(State(1.4, 0.75, True), tally(), 3)
    assert screen(written[0]) == [LINE, "the camera is back", LINE]  # the view itself is gone at the end


def test_the_view_shows_the_newest_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stderr") as written, live_view("cats") as view:
        view.show(State(61.0, 0.25, True), tally(), 3)
    assert "● cats 0.250" in written[0] and "50 ms latency   0 clips skipped   3 frames dropped" in written[0]


def test_events_go_to_a_stdout_that_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal(monkeypatch, "stderr") as written, live_view("cats") as view:
        view.show(State(1.0, 0.25, False), tally(), 0)
        view.tell(EVENT)
    assert capsys.readouterr().out == f"{LINE}\n" and "event-0001" not in written[0]


def test_a_pipe_gets_lines_and_no_view(capsys: pytest.CaptureFixture[str]) -> None:
    with live_view("cats") as view:
        view.show(State(1.0, 0.25, False), tally(), 0)
        view.say("rtsp://[camera]/:smile:\x1b[2J is back")
    assert capsys.readouterr().err == "rtsp://[camera]/:smile:\\x1b[2J is back\n"


def test_a_label_cannot_command_the_terminal() -> None:
    drawn = draw("\x1b[2Jcats", State(1.0, 0.25, False), tally(), 0, [0.25])
    assert "\x1b" not in str(drawn.renderables[0]) and "\\x1b[2Jcats" in str(drawn.renderables[0])
