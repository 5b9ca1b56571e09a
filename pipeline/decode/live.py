"""A stream that is still going on, as the frames a shard would hold: a camera, a network stream, a file played.

Frames are decoded, chosen and scaled by the code of the default decoder; what is added here is the clock on the
wall: when a frame arrived, when a file's next one is due, and what to do when a stream breaks off.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.decode import DecodeError, Frame
from pipeline.decode.container import best_stream, demux, reason_of, time_base_of
from pipeline.decode.pyav import decode_displayed
from pipeline.recipe import Recipe

SILENCE = 5.0  # seconds without a byte, after which a stream counts as broken off
SEGMENTS = 30.0  # the same for HLS, whose bytes come a segment at a time, ten seconds or more apart
REPLAYED = 120.0  # seconds of HLS that a new connection may show again: playlists begin in the past
OPENING = 10.0  # seconds for a stream to show a first picture
CLOCKLESS = 0x80  # AVFMT_NOTIMESTAMPS in libavformat/avformat.h: MJPEG over HTTP, raw H.264; FFmpeg says 25 fps
FROZEN = 2.0  # seconds without a new frame, after which a clip must not reach over the hole
BACKOFF = (0.5, 8.0)  # seconds to wait before the first attempt to connect again, and at most; doubled each time
USER = re.compile(r"(?<=://)[^/?#]*@")  # and password, as FFmpeg reads a URL
HLS, RTSP = "hls", {"rtsp", "sdp"}  # FFmpeg's names of the formats
TICK = Fraction(1, 90_000)  # of the clock of a stream that has none
# For cameras: TCP where there is a choice (UDP loses packets), a buffer that may overflow, a short look first.
NETWORK = {"rtsp_flags": "prefer_tcp", "overrun_nonfatal": "1", "analyzeduration": "2000000"}


@dataclass(frozen=True)
class LiveFrame:
    """A frame of the stored rate: `pixels` [H, W, 3] uint8 RGB; `seconds`: the stream's time, from its first frame
    on; `arrived`: when it was there, by the clock of the `Source`, in seconds."""

    pixels: NDArray[np.uint8]
    seconds: float
    arrived: float


@dataclass(frozen=True)
class Gap:
    """Here frames are missing, or another connection begins: nothing may reach over it."""

    reason: str


@dataclass
class Source:
    """What is watched, and by which clock.

    `place`: a path, a device or a URL of FFmpeg's. `in_time`: a recording's frames come when they are due, else as
    fast as they can be had. `clock` gives seconds, `stopped` ends the stream at its next frame. `damaged` counts
    packets that could not be decoded, `connections` how often the stream was opened; `recorded`: it has an
    end, so it is not opened again. `began`, `reached` and `newest` let a new connection go on from the last.
    """

    place: str
    in_time: bool = True
    clock: Callable[[], float] = time.monotonic
    stopped: Event = field(default_factory=Event)
    damaged: int = 0
    connections: int = 0
    recorded: bool = False
    began: float | None = None  # arrival of the very first frame
    reached: float = 0.0  # the stream's time after its latest frame
    newest: float | None = None  # dts in seconds of the latest packet of HLS

    @property
    def name(self) -> str:
        """The place as it may be shown: without a camera's user and password."""
        return USER.sub("***@", self.place)

    def wait(self, seconds: float) -> None:
        """Sleep, unless stopped."""
        self.stopped.wait(seconds)


def read_stream(source: Source, recipe: Recipe) -> Iterator[LiveFrame | Gap]:
    """One connection's frames until it ends: the frame displayed at t0 + k/fps for k = 0, 1, …

    t0 is the first frame's pts. A live stream without a new picture for `FROZEN` seconds yields a `Gap` rather
    than copies of the last one. A live stream always ends by raising `DecodeError`; a recording only where it
    cannot be opened or breaks.
    """
    container = _connect(source)
    with container:
        if source.recorded and source.connections:
            return  # HLS that was live, and is over
        source.connections += 1
        connection = _Connection(source, container, best_stream(container))
        yield from connection.frames(recipe)
    reason = connection.reason or ("" if source.recorded else "the stream ended")
    if reason:
        raise DecodeError(reason)


def follow(
    connect: Callable[[], Iterator[LiveFrame | Gap]],
    source: Source,
    patience: float,
    say: Callable[[str], None],
) -> Iterator[LiveFrame | Gap]:
    """The frames of a stream that is opened again whenever it breaks off, with growing pauses.

    Raises `DecodeError` for one that never gave a frame, and for one without a frame for `patience` seconds.
    A recording ends with its end.
    """
    seen = False
    last = source.clock()
    pause = BACKOFF[0]
    while not source.stopped.is_set():
        try:
            for item in connect():
                if isinstance(item, LiveFrame):
                    if pause > BACKOFF[0] or not seen:
                        say(f"watching {source.name}" if not seen else f"{source.name} is back")
                    seen, last, pause = True, source.clock(), BACKOFF[0]
                yield item
            return
        except DecodeError as error:
            if source.stopped.is_set():
                return
            left = patience - (source.clock() - last)
            if not seen or left <= 0 or source.recorded:
                raise
            say(f"{source.name}: {error}; trying again in {pause:.1f} s")
            yield Gap(str(error))
        source.wait(min(pause, left))
        pause = min(2 * pause, BACKOFF[1])


def _connect(source: Source) -> InputContainer:
    """The opened stream. Raises `DecodeError`."""
    place = source.place
    path = Path(place)
    try:
        if path.is_char_device():
            return av.open(place, format="v4l2", timeout=(OPENING, SILENCE))
        if path.exists():
            source.recorded = path.is_file()  # a pipe is live
            return av.open(f"file:{place}", options={} if source.recorded else dict(NETWORK))
        if ":" not in place:
            raise DecodeError("there is no such file or device; a URL would start with rtsp://, http://, udp:// …")
        container = av.open(place, options=dict(NETWORK), timeout=(OPENING, SILENCE))
        if container.format.name == HLS:
            container.close()
            container = av.open(place, options=dict(NETWORK), timeout=(OPENING, SEGMENTS))
    except av.error.ExitError:
        raise DecodeError(f"no picture within {OPENING:.0f} seconds") from None
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"cannot be opened as a video: {reason_of(error)}") from None  # it names the password
    # A server's file ends, too. RTSP may tell a length, but keeps its own time and may be a camera.
    source.recorded = bool(container.duration) and container.format.name not in RTSP
    return container


class _Connection:
    """Packets to frames with their times, and the reason of the end."""

    def __init__(self, source: Source, container: InputContainer, stream: VideoStream) -> None:
        self._source, self._container, self._stream, self._recorded = source, container, stream, source.recorded
        self._arrivals: dict[int, float] = {}  # by pts, of packets whose frame is still to come
        self._opened = source.clock()
        self._clockless = not source.recorded and bool(container.format.flags & CLOCKLESS)
        if self._clockless:
            stream.time_base = TICK
        self._segmented = not source.recorded and container.format.name == HLS
        self._began: float | None = None  # when a packet of second 0 would have been due
        self.reason = ""

    def frames(self, recipe: Recipe) -> Iterator[LiveFrame | Gap]:
        errors: list[str] = []
        slot = 0
        longest = max(1, int(FROZEN * recipe.fps))
        origin = 0.0
        last: float | None = None  # arrival
        for frame, slots in decode_displayed(self._packets(), self._stream, recipe, errors):
            self._source.damaged += len(errors)
            errors.clear()
            arrived = self._arrived(frame)
            if last is None or (not self._recorded and arrived - last > FROZEN):
                if last is not None:
                    yield Gap(f"no picture for {arrived - last:.1f} seconds")
                origin = self._origin(arrived) - float(slot / recipe.fps)
            last = arrived
            frozen = not self._recorded and slots > longest
            for repeat in range(1 if frozen else slots):
                due = min(arrived + float(repeat / recipe.fps), self._source.clock())
                seconds = origin + float((slot + repeat) / recipe.fps)
                self._source.reached = seconds + float(1 / recipe.fps)
                yield LiveFrame(frame.pixels, seconds, due)
            slot += slots
            if frozen:
                yield Gap(f"no picture for {float(slots / recipe.fps):.1f} seconds")
        self._source.damaged += len(errors)

    def _origin(self, arrived: float) -> float:
        """The stream's time of a connection's first frame: time goes on while there is no connection."""
        if self._source.began is None:
            self._source.began = arrived
        return 0.0 if self._recorded else max(arrived - self._source.began, self._source.reached)

    def _arrived(self, frame: Frame) -> float:
        arrived = self._arrivals.get(frame.pts, self._source.clock())
        for pts in [pts for pts in self._arrivals if pts <= frame.pts]:
            del self._arrivals[pts]
        return arrived

    def _packets(self) -> Iterator[Any]:
        """As they come, or are due; until the stream ends, breaks, or is stopped."""
        source = self._source
        try:
            for packet in demux(self._container, self._stream, live=not self._recorded):
                if self._clockless:
                    self._stamp(packet)
                if self._segmented and self._seen(packet):
                    continue
                self._wait(packet)
                if source.stopped.is_set():
                    return
                shown = packet.dts if packet.pts is None else packet.pts
                if shown is not None:
                    self._arrivals[shown] = source.clock()
                yield packet
        except av.error.ExitError:
            self.reason = f"silent for {SEGMENTS if self._segmented else SILENCE:.0f} seconds"
        except av.FFmpegError as error:
            self.reason = reason_of(error)

    def _stamp(self, packet: Any) -> None:
        """The time of a picture that has none is that of its arrival; as dts, for in which order pictures are
        displayed only the decoder can say."""
        packet.pts, packet.dts = None, round((self._source.clock() - self._opened) / TICK)

    def _seen(self, packet: Any) -> bool:
        """Whether a segment was shown by the connection before this one: also by a server whose camera is gone."""
        seconds, newest = self._seconds(packet), self._source.newest
        if seconds is None or newest is None or not newest - REPLAYED < seconds <= newest:
            self._source.newest = newest if seconds is None else seconds
            return False
        return True

    def _wait(self, packet: Any) -> None:
        """Until a packet of a recording or a segment is due. A late segment delays what follows, as players do."""
        seconds, source = self._seconds(packet), self._source
        if seconds is None or not (self._segmented or (self._recorded and source.in_time)):
            return
        late = source.clock() - seconds
        if self._began is None or (self._segmented and late > self._began):
            self._began = late
        source.wait(max(0.0, self._began + seconds - source.clock()))

    def _seconds(self, packet: Any) -> float | None:
        stamp = packet.pts if packet.dts is None else packet.dts
        return None if stamp is None else float(stamp * time_base_of(self._stream))
