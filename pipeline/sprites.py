"""A clip as one JPEG that any browser plays: its frames below each other, stepped through by a line of script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
MOST_FRAMES = 24
# Frames, longest side in px, JPEG quality: the first sheet that fits its budget is taken, and the last one anyway.
LADDER = (
    (24, 160, 80), (24, 160, 65), (24, 128, 60), (16, 128, 60), (16, 112, 50), (12, 96, 50), (12, 80, 45),
    (8, 80, 40), (6, 64, 40), (4, 48, 35), (2, 32, 30), (1, 16, 20),
)  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """`frames` pictures of `width` × `height` px below each other, as a JPEG."""

    frames: int
    width: int
    height: int
    jpeg: bytes

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """What the page's player takes: a data URL, and how long the clip is."""
        url = "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()
        return {"n": self.frames, "w": self.width, "h": self.height, "url": url, "seconds": round(seconds, 3)}


def spread(frames: int, count: int) -> list[int]:
    """At most `count` places, evenly from the first of `frames` to the last."""
    return [int(place) for place in np.rint(np.linspace(0, frames - 1, min(count, frames)))]


def make_sheet(frames: Sequence[Pixels], budget: int) -> Sheet:
    """The best sheet of frames [H, W, 3] RGB that has at most `budget` bytes; if none has, the smallest."""
    for count, side, quality in LADDER:
        sheet = _encode([frames[place] for place in spread(len(frames), count)], side, quality)
        if len(sheet.jpeg) <= budget:
            break
    return sheet


def _encode(frames: Sequence[Pixels], side: int, quality: int) -> Sheet:
    high, wide = frames[0].shape[:2]
    scale = min(1.0, side / max(high, wide))
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    if size != (wide, high):
        frames = [np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8) for frame in frames]
    sheet = np.concatenate(list(frames))
    _, jpeg = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Sheet(len(frames), size[0], size[1], jpeg.tobytes())
