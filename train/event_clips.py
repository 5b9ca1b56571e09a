"""The pictures of an event as a video: the frames that the model saw, with some seconds before."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from pipeline.decode.container import reason_of
from pipeline.decode.live import LiveFrame

TICKS = Fraction(1, 1000)  # of a clip's clock
LONGEST = 60.0  # seconds of a clip; an event may go on for a night
EPSILON = 1e-6  # seconds that times may be off by: they are sums of 1/fps
# Whole to the last second also where the program is killed: each second is a fragment, written at once.
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
TROUBLE = (OSError, av.FFmpegError)  # a full disk, a folder that is gone


class EventClips:
    """Writes `folder/event-<number>-<UTC time>.mp4` (H.264) while an event goes on, for at most `LONGEST` seconds;
    only the frames of `before` seconds are held. A clip plays at the speed of the stream, also where frames were
    dropped.

    A clip that cannot be written is told to `say` and counted in `failed`; the watch goes on.
    """

    def __init__(self, folder: Path, before: float, fps: Fraction, say: Callable[[str], None]) -> None:
        self.failed = 0
        self._folder, self._before, self._fps, self._say = folder, before, fps, say
        self._last: deque[LiveFrame] = deque()
        self._path: Path | None = None  # of the clip that is being written
        self._output: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._origin = 0.0  # the stream's time of the clip's first frame

    def see(self, frame: LiveFrame) -> None:
        """The next frame."""
        self._last.append(frame)
        while len(self._last) > 1 and frame.seconds - self._last[0].seconds > self._before - EPSILON:
            self._last.popleft()
        if self._output is None:
            return
        if frame.seconds - self._origin > LONGEST - EPSILON:
            self.end()
        else:
            self._try(lambda: self._write(frame))

    def gap(self) -> None:
        """Frames are missing here: no clip shows what was before."""
        self.end()
        self._last.clear()

    def begin(self, number: int, moment: datetime) -> Path | None:
        """Start a clip with the frames before the event; None if that cannot be done."""
        self._path = self._folder / f"event-{number:04}-{moment:%Y%m%dT%H%M%SZ}.mp4"
        self._try(self._begin)
        return self._path

    def end(self) -> None:
        """Finish the clip."""
        if self._output is not None:
            self._try(self._finish)
        self._output = self._stream = self._path = None

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TROUBLE as error:
            self.failed += 1
            self._say(f"{self._path}: cannot be written: {reason_of(error)}; going on without this clip")
            self._abandon()

    def _abandon(self) -> None:
        if self._output is not None:
            with suppress(*TROUBLE):
                self._output.close()
        self._output = self._stream = self._path = None

    def _begin(self) -> None:
        self._output = av.open(str(self._path), "w", container_options=FRAGMENTED)
        stream = self._output.add_stream("libx264", rate=self._fps)
        assert isinstance(stream, VideoStream)
        height, width = self._last[-1].pixels.shape[:2]
        stream.width, stream.height = width + width % 2, height + height % 2  # most players want even sides
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TICKS
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = max(1, round(self._fps))  # a fragment is as long
        stream.options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
        self._stream, self._origin = stream, self._last[0].seconds
        for frame in self._last:
            self._write(frame)

    def _write(self, frame: LiveFrame) -> None:
        assert self._output is not None and self._stream is not None
        height, width = frame.pixels.shape[:2]
        even = np.pad(frame.pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        picture = av.VideoFrame.from_ndarray(even, "rgb24")
        picture.pts, picture.time_base = round((frame.seconds - self._origin) / TICKS), TICKS
        self._output.mux(self._stream.encode(picture))

    def _finish(self) -> None:
        assert self._output is not None and self._stream is not None
        self._output.mux(self._stream.encode(None))
        self._output.close()
