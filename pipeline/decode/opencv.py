"""The second decoder, for machines where PyAV is not to be had: plain `cv2.VideoCapture`, same contract.

OpenCV tells a frame's time only once it is decoded, so every frame is; only the kept ones are scaled. It does
not say when a file is damaged: such a video ends early, or goes on with what was concealed, and nobody is told.
"""

from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import DecodeError, Frame
from pipeline.decode.geometry import Orientation, check_size, finish, place
from pipeline.recipe import Recipe
from pipeline.sampling import keep_displayed

TIME_BASE = Fraction(1, 1_000_000)  # OpenCV gives milliseconds as a float; microseconds hold them


class OpenCV:
    """See `pipeline.decode.Decoder`."""

    def version(self) -> str:
        """OpenCV's version."""
        return f"opencv {cv2.__version__}"

    def count(self, path: str, recipe: Recipe) -> int:
        """See `pipeline.decode.Decoder.count`. OpenCV tells no times without decoding."""
        return sum(1 for _ in self.frames(path, recipe))

    def frames(self, path: str, recipe: Recipe) -> Iterator[Frame]:
        """See `pipeline.decode.Decoder.frames`."""
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise DecodeError("cannot be opened as a video by OpenCV")
        try:
            width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
            check_size(int(width), int(height))
            count = 0
            rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
            # A millisecond short: containers round times to it, and rounding must not move the end of a video
            # past the slot that it ends on.
            period = max(1, int(1e6 / rate) - 1000)
            aspect = _pixel_aspect(capture)
            for pts, image, slots in keep_displayed(_timed(capture, period), TIME_BASE, recipe.fps, period):
                kept = Frame(pts, TIME_BASE, _convert(image, aspect, recipe))
                for _ in range(slots):
                    count += 1
                    yield kept
            if not count:
                raise DecodeError("no frame could be decoded")
        finally:
            capture.release()


def _timed(capture: "cv2.VideoCapture", period: int) -> Iterator[tuple[int, int | None, NDArray[np.uint8]]]:
    latest: int | None = None
    while True:
        read, image = capture.read()
        if not read:
            return
        pts = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1000)
        if latest is not None and pts <= latest:  # a container without times: OpenCV repeats itself
            pts = latest + period
        latest = pts
        yield pts, period, np.asarray(image, np.uint8)


def _pixel_aspect(capture: "cv2.VideoCapture") -> Fraction:
    over, under = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    return Fraction(int(over), int(under)) if over >= 1 and under >= 1 else Fraction(1)


def _convert(image: NDArray[np.uint8], aspect: Fraction, recipe: Recipe) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    placement = place(width, height, aspect, Orientation(), recipe)  # OpenCV has turned it already
    shrinks = placement.scaled[0] <= width and placement.scaled[1] <= height
    left, top = placement.edges
    image = image[top : height - top, left : width - left]
    small = cv2.resize(image, placement.scaled, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return finish(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), placement)
