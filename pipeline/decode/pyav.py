"""The default decoder: exact frames by pts, decoding as little as that allows.

Packets carry their presentation times before anything is decoded. So: demux, choose what to keep, and tell
the codec for each packet that nobody wants to drop it if no other frame leans on it (`skip_frame = NONREF`);
leave out whole groups of pictures without a kept frame; stop after the last one. Every kept frame is bit for
bit what a full decode gives. Where a stream's times cannot be trusted beforehand, or a chosen frame does not
come out, the file is decoded again in full, and the choice made as the frames come.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from pipeline.decode import DecodeError, Frame
from pipeline.decode.container import demux, open_video, period_of, reason_of, time_base_of
from pipeline.decode.convert import converter
from pipeline.recipe import Recipe
from pipeline.sampling import BestGuess, displays, end_of, keep_displayed, needed_packets

# Files up to this size are kept, as packets, between choosing and decoding; larger ones are read twice.
HELD_BYTES = 4 << 20
PACKET_BYTES = 512  # that a packet takes beside its content
# Codecs that deliver nothing, rather than something wrong, when decoding starts in the middle: only theirs
# are the groups of pictures that may be left out. (A GIF's "keyframes" paint on what was there before.)
SEEKABLE_CODECS = {"h264", "hevc", "vp8", "vp9", "av1"}
# These hold times of decoding; where frames are displayed in another order, FFmpeg's demuxer makes their pts up.
DECODING_TIMES_ONLY = {"avi", "ogg"}
# In AVI they look sound until they go back, so they are never believed. For Ogg we do as FFmpeg's players do.
PTS_NEVER_BELIEVED = {"avi"}


class PyAV:
    """See `pipeline.decode.Decoder`."""

    def version(self) -> str:
        """PyAV's version and that of the FFmpeg library inside."""
        codec = ".".join(map(str, av.library_versions["libavcodec"]))
        return f"pyav {av.__version__}, libavcodec {codec}"

    def count(self, path: str, recipe: Recipe) -> int:
        """See `pipeline.decode.Decoder.count`."""
        try:
            with open_video(path) as (container, stream):
                times = _Times()
                for packet in demux(container, stream):
                    times.add(packet)
                return sum(_choose(times, stream, recipe).values())
        except (_CannotChoose, av.FFmpegError):
            return sum(1 for _ in _decode_all(path, recipe))

    def frames(self, path: str, recipe: Recipe) -> Iterator[Frame]:
        """See `pipeline.decode.Decoder.frames`."""
        delivered = 0
        try:
            for frame in _decode_chosen(path, recipe):
                yield frame
                delivered += 1
            return
        except (_CannotChoose, av.FFmpegError):
            pass  # the full decode below delivers the rest, or raises the reason
        for index, frame in enumerate(_decode_all(path, recipe)):
            if index >= delivered:
                yield frame


class _CannotChoose(Exception):
    """The times of the packets do not tell which frames will come out."""


class _Times:
    """What packets say of their frames, in order of decoding: 10 bytes a packet, also in a ten-hour video."""

    def __init__(self) -> None:
        self.pts = array("q")
        self.keyframe = bytearray()
        self.discarded = bytearray()  # by an edit list
        self.last = (-(2**63), 0)  # pts of the last frame that is displayed, and its duration; 0: unknown

    def add(self, packet: Any) -> None:
        """The next packet. Raises `_CannotChoose` where it has no time."""
        if packet.pts is None:
            raise _CannotChoose
        self.pts.append(packet.pts)
        self.keyframe.append(packet.is_keyframe)
        self.discarded.append(packet.is_discard)
        if not packet.is_discard:
            self.last = max(self.last, (packet.pts, packet.duration or 0))

    def displayed(self) -> "array[int]":
        """The pts of the frames that are displayed, in that order."""
        pts = np.array(self.pts)
        if any(self.discarded):
            pts = pts[np.array(self.discarded) == 0]
        pts.sort()
        return array("q", pts.tobytes())


def _decode_chosen(path: str, recipe: Recipe) -> Iterator[Frame]:
    """Choose from the packets' times, then decode only what those frames need."""
    with open_video(path) as (container, stream):
        held: list[Any] | None = [] if container.size <= HELD_BYTES else None
        bytes_held = 0
        times = _Times()
        for packet in demux(container, stream):
            times.add(packet)
            bytes_held += packet.size + PACKET_BYTES
            if held is not None:
                held.append(packet)
                held = held if bytes_held <= HELD_BYTES else None
        slots = _choose(times, stream, recipe)
        if held is not None:
            yield from _decode_needed(held, times, slots, stream, recipe)
            return
    with open_video(path) as (container, stream):
        yield from _decode_needed(demux(container, stream), times, slots, stream, recipe)


def _choose(times: _Times, stream: VideoStream, recipe: Recipe) -> dict[int, int]:
    """How many slots each kept pts fills, in order of display."""
    pts = times.displayed()
    if not pts or any(before == after for before, after in pairwise(pts)):
        raise _CannotChoose
    if _has_invented_pts(stream, DECODING_TIMES_ONLY):
        raise _CannotChoose
    end = end_of(*times.last, pts[-2] if len(pts) > 1 else None, period_of(stream))
    counts = displays(pts, end, time_base_of(stream), recipe.fps)
    return {p: count for p, count in zip(pts, counts, strict=True) if count}


def _has_invented_pts(stream: VideoStream, containers: set[str]) -> bool:
    return stream.codec_context.has_b_frames and stream.container.format.name in containers


def _decode_needed(
    packets: Iterable[Any],
    times: _Times,
    slots: dict[int, int],
    stream: VideoStream,
    recipe: Recipe,
) -> Iterator[Frame]:
    codec = stream.codec_context
    convert = converter(stream, recipe)
    waiting = iter(slots.items())
    expected = next(waiting, None)
    latest: int | None = None
    for frame in _decode_skipping(packets, times, slots, stream):
        if latest is not None and frame.pts is not None and frame.pts <= latest:
            raise _CannotChoose  # the order of display is not that of the packets' times
        latest = frame.pts
        if frame.pts not in slots:
            continue
        if expected is None or frame.pts != expected[0]:
            raise _CannotChoose  # an earlier chosen frame did not come out
        yield from [convert(frame, frame.pts)] * expected[1]
        expected = next(waiting, None)
        if expected is None:
            codec.flush_buffers()
            return
    raise _CannotChoose


def _decode_skipping(
    packets: Iterable[Any],
    times: _Times,
    slots: dict[int, int],
    stream: VideoStream,
) -> Iterator[av.VideoFrame]:
    codec = stream.codec_context
    if codec.name in SEEKABLE_CODECS or codec.codec.canonical_name in SEEKABLE_CODECS:
        needed = needed_packets(times.pts, times.keyframe, slots.keys())
    else:
        needed = bytearray(b"\1") * len(times.pts)
    gap = restarted = False
    for packet, is_needed in zip(packets, needed, strict=False):
        if not is_needed:
            gap = True
            continue
        if gap:
            yield from codec.decode(None)
            codec.flush_buffers()
            gap, restarted = False, True
        codec.skip_frame = "DEFAULT" if packet.pts in slots else "NONREF"
        decoded = codec.decode(packet)
        if restarted and decoded and not decoded[0].key_frame:
            raise _CannotChoose  # what the container calls a keyframe is none
        restarted = restarted and not decoded
        yield from decoded
    yield from codec.decode(None)


def _decode_all(path: str, recipe: Recipe) -> Iterator[Frame]:
    """Decode every frame, past errors as players do, and choose as they come."""
    errors: list[str] = []
    count = 0
    with open_video(path, quick=False) as (container, stream):
        for kept, slots in decode_displayed(
            _past_errors(demux(container, stream), errors), stream, recipe, errors
        ):
            for _ in range(slots):
                count += 1
                yield kept
    if errors:
        raise DecodeError(f"breaks while decoding ({errors[0]}); {count} frames came out")
    if not count:
        raise DecodeError("no frame could be decoded")


def decode_displayed(
    packets: Iterable[Any], stream: VideoStream, recipe: Recipe, errors: list[str]
) -> Iterator[tuple[Frame, int]]:
    """Decode every packet as it comes; the frames that fill a slot, and how many slots each fills.

    A frame is told once the next one has come: not before is it known which is the last before a slot's time.
    Packets that cannot be decoded are passed over, as players do, and their reasons go to `errors`.
    """
    convert = converter(stream, recipe)
    frames = _decode_past_errors(packets, stream, errors)
    timed = _timed(frames, period_of(stream), not _has_invented_pts(stream, PTS_NEVER_BELIEVED))
    for pts, frame, slots in keep_displayed(timed, time_base_of(stream), recipe.fps, period_of(stream)):
        yield convert(frame, pts), slots


def _past_errors(packets: Iterable[Any], errors: list[str]) -> Iterator[Any]:
    """The packets up to one that cannot be read."""
    try:
        yield from packets
    except av.FFmpegError as error:
        errors.append(reason_of(error))


def _decode_past_errors(packets: Iterable[Any], stream: VideoStream, errors: list[str]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        try:
            yield from stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            errors.append(reason_of(error))
    try:
        yield from stream.codec_context.decode(None)
    except av.FFmpegError as error:
        errors.append(reason_of(error))


def _timed(
    frames: Iterable[av.VideoFrame], period: int, believe_pts: bool
) -> Iterator[tuple[int, int | None, av.VideoFrame]]:
    """Each frame with its pts, else its dts; a frame without both comes a period after the one before it."""
    latest: int | None = None
    guess = BestGuess()
    for frame in frames:
        pts = guess.time(frame.pts if believe_pts else None, frame.dts)
        if pts is None:
            pts = 0 if latest is None else latest + period
        latest = pts
        yield pts, frame.duration or None, frame
