"""A video file as PyAV opens it: its best stream, and the packets of that on one clock. Nothing is decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.decode import DecodeError
from pipeline.decode.geometry import MAX_PIXELS, check_size
from pipeline.sampling import ContinuedClock

# FFmpeg decodes a picture or more when it opens a file, to learn what the decoder will find out again: a tenth
# of the work on a short clip. Not needed where the container itself tells rate, delay and times of the frames.
QUICK_OPENING = {"skip_frame": "all", "probesize": "32"}
QUICK_CONTAINER = "mov,mp4,m4a,3gp,3g2,mj2"
QUICK_CODECS = {"h264", "hevc"}
CLOCK_MAY_BE_SET_ANEW = 0x200  # AVFMT_TS_DISCONT in libavformat/avformat.h: MPEG-TS and -PS, Ogg

av.logging.set_level(None)  # reasons come as exceptions; FFmpeg's own chatter belongs to nobody


@contextmanager
def open_video(path: str, quick: bool = True) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its best video stream. `quick`: without FFmpeg's trial decoding, where that can be done."""
    try:
        # `file:` keeps a name with a colon, or one that starts with a dash, from being taken for a protocol.
        container = av.open(f"file:{path}", options=QUICK_OPENING if quick else {})
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"cannot be opened as a video: {reason_of(error)}") from error
    with container:
        if not quick or _tells_all(container):
            yield container, best_stream(container)
            return
    with open_video(path, quick=False) as opened:
        yield opened


def best_stream(container: InputContainer) -> VideoStream:
    """The best video stream, ready to be decoded. Raises `DecodeError` where there is none, or a monstrous one."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise DecodeError("holds no video stream")
    codec = stream.codec_context
    check_size(codec.width, codec.height)
    codec.options = {**codec.options, "max_pixels": str(MAX_PIXELS)}  # for a change on the way
    codec.thread_count = 1  # parallel over videos; and skipping must be exact
    return stream


def _tells_all(container: InputContainer) -> bool:
    """Whether trial decoding would tell nothing that is used here."""
    streams = container.streams.video  # of several, the best is found by trying them
    return (
        container.format.name == QUICK_CONTAINER
        and len(streams) == 1
        and streams[0].codec_context.name in QUICK_CODECS
        and streams[0].average_rate is not None
    )


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system says went wrong, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def demux(container: InputContainer, stream: VideoStream, live: bool = False) -> Iterator[Any]:
    """The stream's packets, on one clock from the first to the last: everything below sees only those times.

    `live`: the clock may be set anew whatever the format is.
    """
    packets = (packet for packet in container.demux(stream) if packet.size)
    if not live and not container.format.flags & CLOCK_MAY_BE_SET_ANEW:
        yield from packets
        return
    clock = ContinuedClock(time_base_of(stream), period_of(stream))
    for packet in packets:
        if offset := clock.offset(packet.dts, packet.duration):
            packet.pts = None if packet.pts is None else packet.pts + offset
            packet.dts = None if packet.dts is None else packet.dts + offset
        yield packet


def time_base_of(stream: VideoStream) -> Fraction:
    """Seconds of one tick of the stream's clock."""
    return stream.time_base or Fraction(1, 1000)


def period_of(stream: VideoStream) -> int:
    """The ticks of one frame at the stream's own rate."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return max(1, round(1 / (rate * time_base_of(stream))))
