"""Clips of events: what they show, and what becomes of them when the disk is full or the program is killed."""

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode.live import Gap, LiveFrame
from train.clips import Sampling
from train.event_clips import LONGEST, EventClips
from train.events import EventDetector, Hysteresis
from train.watch import Watcher

FPS = 5
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


class Recording(EventClips):
    """`EventClips` that is shown numbered frames [16, 16, 3], and keeps what is said."""

    def __init__(self, folder: Path, before: float = 1.0) -> None:
        self.said: list[str] = []
        super().__init__(folder, before, Fraction(FPS), self.said.append)

    def play(self, numbers: range) -> None:
        for number in numbers:
            self.see(frame(number))


def frame(number: int) -> LiveFrame:
    return LiveFrame(np.full((16, 16, 3), number % 256, np.uint8), number / FPS, number / FPS)


def times_of(clip: Path | str | None) -> list[float]:
    """When each picture of a clip is shown, in seconds from its first."""
    with av.open(str(clip)) as container:
        return [picture.time or 0.0 for picture in container.decode(video=0)]


@pytest.mark.parametrize(("before", "frames"), [(0, 1), (1, 5), (3, 10)])
def test_a_clip_begins_so_many_seconds_before_its_alarm(tmp_path: Path, before: float, frames: int) -> None:
    clips = Recording(tmp_path, before)
    clips.play(range(10))
    clip = clips.begin(1, MOMENT)
    clips.end()
    assert times_of(clip) == pytest.approx([k / FPS for k in range(frames)], abs=1e-3)


def test_what_was_before_is_held_by_seconds_where_frames_were_dropped(tmp_path: Path) -> None:
    clips = Recording(tmp_path)
    for number in (0, 1, 2, 30, 33):
        clips.see(frame(number))
    clip = clips.begin(1, MOMENT)
    clips.end()
    assert times_of(clip) == pytest.approx([0, 3 / FPS], abs=1e-3)


def watcher_with(clips: Recording, lines: list[dict[str, Any]]) -> Watcher:
    """To whom every clip is an event."""
    detector = EventDetector(Hysteresis(min_seconds=0.4))
    return Watcher(lambda _clip: 0.9, Sampling(4), 4, 1, detector, lambda: 0.0, lines.append, clips)


def test_an_event_is_told_also_where_its_clip_cannot_be_written(tmp_path: Path) -> None:
    clips, lines = Recording(tmp_path / "gone"), list[dict[str, Any]]()
    watcher = watcher_with(clips, lines)
    for number in range(10):
        watcher.see([frame(number)])
    watcher.finish()
    assert [line["kind"] for line in lines] == ["watching", "start", "end"]
    assert "clip" not in lines[1] and clips.failed == 1


def test_no_clip_reaches_over_a_gap(tmp_path: Path) -> None:
    clips, lines = Recording(tmp_path, before=3), list[dict[str, Any]]()
    watcher = watcher_with(clips, lines)
    watcher.see([frame(number) for number in range(20)])
    watcher.see([Gap("cut")])
    for number in range(3000, 3010):
        watcher.see([frame(number)])
    watcher.finish()
    (start,) = [line for line in lines if line["kind"] == "start"]
    assert times_of(start["clip"]) == pytest.approx([k / FPS for k in range(10)], abs=1e-3)


def test_a_clip_has_an_end_also_where_its_event_has_none(tmp_path: Path) -> None:
    clips = Recording(tmp_path)
    clips.play(range(10))
    clip = clips.begin(1, MOMENT)
    clips.play(range(10, 400))
    assert len(times_of(clip)) == LONGEST * FPS


@pytest.mark.parametrize("full_from", ["start", "middle"])
def test_a_full_disk_costs_the_clip_and_not_the_watch(tmp_path: Path, full_from: str) -> None:
    clips = Recording(tmp_path)
    clips.play(range(10))
    if full_from == "start":
        (tmp_path / f"event-0001-{MOMENT:%Y%m%dT%H%M%SZ}.mp4").symlink_to("/dev/full")
        assert clips.begin(1, MOMENT) is None
        clips.play(range(10, 12))
    else:
        clips.begin(1, MOMENT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clips, "_write", full)
            clips.play(range(10, 12))
    clips.play(range(12, 15))
    clips.end()
    assert clips.failed == 1 and len(clips.said) == 1 and "No space left on device" in clips.said[0]
    clip = clips.begin(2, MOMENT)
    clips.end()
    assert len(times_of(clip)) == 5  # there is room again


def full(_frame: LiveFrame) -> None:
    raise OSError(28, "No space left on device")


def test_a_clip_plays_to_its_last_second_at_any_moment_that_the_program_is_killed(tmp_path: Path) -> None:
    clips = Recording(tmp_path)
    clips.play(range(10))
    clip = clips.begin(1, MOMENT)
    for number in range(10, 30):
        clips.see(frame(number))
        assert len(times_of(clip)) > number - 5 - FPS  # as the system has it, whatever becomes of us
    clips.end()
