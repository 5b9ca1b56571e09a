"""Which frame is "the frame at 5 fps"? Pure time arithmetic, exact: integers and fractions, no files.

The frame kept for slot k is the one displayed at t0 + k/fps, where t0 is the first frame's pts: the last
frame whose pts is not later than that time. A frame with pts p is therefore displayed from slot
ceil((p - t0) · time_base · fps) until the slot in which the next one appears.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence, Set
from fractions import Fraction
from typing import TypeVar

from pipeline.errors import DecodeError

FrameT = TypeVar("FrameT")
LONGEST_SECONDS = 3600  # that one frame may be displayed: beyond, a clock has jumped


def slot(ticks: int, time_base: Fraction, fps: Fraction) -> int:
    """The first slot whose time is at or after `ticks` (pts minus t0, in units of `time_base` seconds)."""
    scale = time_base * fps
    return -(-ticks * scale.numerator // scale.denominator)


def displays(pts: Sequence[int], end: int, time_base: Fraction, fps: Fraction) -> list[int]:
    """How many slots each frame fills.

    `pts`: strictly increasing, in units of `time_base` seconds; `end`: when the last frame disappears.
    Zero: nobody keeps that frame. Two or more: the video is slower than `fps` and the frame repeats, as a
    player shows it. The first frame always fills at least one slot. Raises `DecodeError` where a frame would be
    shown for longer than `LONGEST_SECONDS`.
    """
    if not pts:
        return []
    starts = (slot(p - pts[0], time_base, fps) for p in pts)
    stop = max(1, slot(max(pts[-1], end) - pts[0], time_base, fps))
    edges = itertools.chain(starts, [stop])
    return [_plausible(after - start, fps) for start, after in itertools.pairwise(edges)]


def _plausible(slots: int, fps: Fraction) -> int:
    """One jump of a camera's clock must not fill a disk with the same frame. Raises `DecodeError`."""
    if slots > 1 and slots > LONGEST_SECONDS * fps:
        raise DecodeError(f"its timestamps jump: one frame would be shown for {float(slots / fps):,.0f} seconds")
    return slots


def end_of(last: int, duration: int | None, before: int | None, period: int) -> int:
    """When the last frame disappears, in ticks.

    Its own `duration` says so; else the gap to the frame `before` it; else one `period` of the stream's rate.
    """
    if duration:
        return last + duration
    return last + (last - before if before is not None else period)


def keep_displayed(
    frames: Iterable[tuple[int, int | None, FrameT]], time_base: Fraction, fps: Fraction, period: int
) -> Iterator[tuple[int, FrameT, int]]:
    """`displays` for a stream whose pts are known only as it is decoded.

    Takes (pts, duration or None, frame) in the order of display; yields (pts, frame, slots) of those that
    fill a slot. A frame whose pts does not move forward replaces the one before it, as on a player's screen.
    """
    origin: int | None = None
    before: int | None = None
    held: tuple[int, int | None, FrameT] | None = None
    for pts, duration, frame in frames:
        if held is None:
            origin = pts
        elif pts > held[0]:
            assert origin is not None
            slots = _plausible(slot(pts - origin, time_base, fps) - slot(held[0] - origin, time_base, fps), fps)
            if slots:
                yield held[0], held[2], slots
            before = held[0]
        held = (max(pts, held[0]) if held else pts, duration, frame)
    if held is not None and origin is not None:
        end = end_of(held[0], held[1], before, period)
        first = slot(held[0] - origin, time_base, fps)
        slots = _plausible(max(1, first, slot(end - origin, time_base, fps)) - first, fps)
        if slots:
            yield held[0], held[2], slots


def needed_packets(pts: Sequence[int], keyframe: Sequence[int], wanted: Set[int]) -> bytearray:
    """Which packets must be decoded (1) so that every wanted frame comes out; pure, in order of decoding.

    A group of pictures without a wanted frame is left out whole, unless frames that follow the next keyframe
    in the stream but are displayed before it (an open group's leading frames) are wanted: they lean on it.
    """
    needed = bytearray(len(pts))
    leading_wanted = False
    stop = len(pts)
    for start in reversed(range(len(pts))):
        if start and not keyframe[start]:
            continue
        group = pts[start:stop]
        if leading_wanted or any(p in wanted for p in group):
            needed[start:stop] = b"\1" * (stop - start)
        leading_wanted = any(p in wanted and p < pts[start] for p in group)
        stop = start
    return needed


class ContinuedClock:
    """One clock for a stream that sets its own anew, as where recordings were joined end to end.

    The rule of the ffmpeg command (`ts_discontinuity_detect` in fftools/ffmpeg_demux.c): where the dts goes back
    by more than a tenth of a second, or is more than ten seconds away from where it was to be, the stream goes
    on without a gap. A counter that overflows is a jump like any other.
    """

    def __init__(self, time_base: Fraction, period: int) -> None:
        """`period`: the ticks of a packet that does not say how long it lasts."""
        self._longest, self._back, self._period = 10 / time_base, Fraction(1, 10) / time_base, period
        self._offset = 0
        self._last: int | None = None
        self._next = 0

    def offset(self, dts: int | None, duration: int | None) -> int:
        """The ticks to be added to pts and dts of the next packet, in order of decoding."""
        if dts is None:
            return self._offset
        dts += self._offset
        if self._last is not None:
            jump = dts - self._next
            if abs(jump) > self._longest or dts + self._back < self._last:
                self._offset -= jump
                dts = self._next
        self._last, self._next = dts, dts + (duration or self._period)
        return self._offset


class BestGuess:
    """The time of a decoded frame, from its packet's pts and dts: the rule of FFmpeg's own players.

    Frames come in the order of display, so times that go back are wrong; whichever clock has gone back less
    often is believed (`guess_correct_pts` in libavcodec/decode.c).
    """

    def __init__(self) -> None:
        self._last_pts = self._last_dts = -(2**63)
        self._faulty_pts = self._faulty_dts = 0

    def time(self, pts: int | None, dts: int | None) -> int | None:
        """In the ticks of the stream; None where the packet has neither."""
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        return pts if pts is not None and (dts is None or self._faulty_pts <= self._faulty_dts) else dts
