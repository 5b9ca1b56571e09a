"""The pictures of an event as a video: the frames that the model saw, with some seconds before."""

from collections import deque
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from pipeline.decode.live import LiveFrame

TICKS = Fraction(1, 1000)  # of a clip's clock


class EventClips:
    """Writes `folder/event-<number>-<UTC time>.mp4` (H.264) while an event goes on; only the frames of `before`
    seconds are held. A clip plays at the speed of the stream, also where frames were dropped."""

    def __init__(self, folder: Path, before: float, fps: Fraction) -> None:
        self._folder, self._fps = folder, fps
        self._last: deque[LiveFrame] = deque(maxlen=max(1, round(Fraction(before) * fps)))
        self._output: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._origin = 0.0

    def see(self, frame: LiveFrame) -> None:
        """The next frame."""
        self._last.append(frame)
        if self._output is not None:
            self._write(frame)

    def begin(self, number: int, moment: datetime) -> Path:
        """Start a clip with the frames before the event."""
        path = self._folder / f"event-{number:04}-{moment:%Y%m%dT%H%M%SZ}.mp4"
        height, width = self._last[-1].pixels.shape[:2]
        self._output = av.open(str(path), "w")
        stream = self._output.add_stream("libx264", rate=self._fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width + width % 2, height + height % 2  # most players want even sides
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TICKS
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", "preset": "veryfast"}
        self._stream, self._origin = stream, self._last[0].seconds
        for frame in self._last:
            self._write(frame)
        return path

    def end(self) -> None:
        """Finish the clip."""
        if self._output is not None and self._stream is not None:
            self._output.mux(self._stream.encode(None))
            self._output.close()
        self._output = self._stream = None

    def _write(self, frame: LiveFrame) -> None:
        assert self._output is not None and self._stream is not None
        height, width = frame.pixels.shape[:2]
        even = np.pad(frame.pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        picture = av.VideoFrame.from_ndarray(even, "rgb24")
        picture.pts, picture.time_base = round((frame.seconds - self._origin) / TICKS), TICKS
        self._output.mux(self._stream.encode(picture))
