"""From a decoded picture to a stored frame: orientation, pixel shape and `--fit`. Pure arithmetic and slices."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.recipe import Recipe

MAX_PIXELS = 1 << 27  # of one picture, 134 million: 16384 × 8192
MOST_SCALED = 4  # times the wanted length, along one axis


@dataclass(frozen=True)
class Orientation:
    """How a picture is to be shown: rows and columns exchanged, then left and right, then top and bottom."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False


def orientation(matrix: Sequence[int]) -> Orientation:
    """Of a display matrix: 9 numbers, row by row (ISO 14496-12, 8.3.2), to the nearest quarter turn.

    The pixel (x, y) is shown at (a·x + c·y, b·x + d·y), where a, b, _, c, d, … are the numbers.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


@dataclass(frozen=True)
class Placement:
    """Cut `edges` (columns at left and right each, rows at top and bottom each) off the picture, scale it to
    `scaled` (width, height), turn it, then cut out or pad to `size` (width, height) around the centre."""

    scaled: tuple[int, int]
    turn: Orientation
    size: tuple[int, int]
    edges: tuple[int, int] = (0, 0)


def place(width: int, height: int, pixel_aspect: Fraction, turn: Orientation, recipe: Recipe) -> Placement:
    """Where a picture of `width` × `height` pixels goes in a frame of the recipe.

    `pixel_aspect`: width over height of one pixel. `stretch` fills the frame, whatever the shape;
    `crop` fills it and keeps the shape, losing the edges; `pad` shows everything, with black bars.
    """
    size = recipe.width, recipe.height
    shown = (width * pixel_aspect, Fraction(height))
    if turn.transposed:
        shown = shown[1], shown[0]
    if recipe.fit == "stretch":
        upright = size
    else:
        ratios = size[0] / shown[0], size[1] / shown[1]
        ratio = max(ratios) if recipe.fit == "crop" else min(ratios)
        upright = max(1, round(shown[0] * ratio)), max(1, round(shown[1] * ratio))
    (scaled_width, wanted_width), (scaled_height, wanted_height) = zip(upright, size, strict=True)
    if turn.transposed:
        scaled_width, scaled_height = scaled_height, scaled_width
        wanted_width, wanted_height = wanted_height, wanted_width
    left, across = _visible(width, scaled_width, wanted_width)
    top, down = _visible(height, scaled_height, wanted_height)
    return Placement((across, down), turn, size, (left, top))


def _visible(length: int, scaled: int, wanted: int) -> tuple[int, int]:
    """Along one axis: how much to cut off at both ends before scaling, and what the rest is scaled to.

    Nothing is cut off pictures of usual shapes: the scaler sees some pixels around the window, too. Where most
    of a strip would be scaled up for nothing, it is cut, at a multiple of 4 (chroma planes are coarser).
    """
    if scaled <= MOST_SCALED * wanted:
        return 0, scaled
    visible = -(-length * wanted // scaled)
    edge = max(0, (length - visible) // 2 - 2) // 4 * 4
    return edge, max(wanted, round(Fraction(scaled * (length - 2 * edge), length)))


def check_size(width: int, height: int) -> None:
    """Raises `DecodeError` for pictures that no camera takes: decoding one would fill the memory."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"pictures of {width}×{height} pixels; more than {MAX_PIXELS:,} are not decoded")


def finish(pixels: NDArray[Any], placement: Placement) -> NDArray[np.uint8]:
    """The scaled picture [h, w, 3], turned and cut or padded: [H, W, 3], contiguous."""
    turn = placement.turn
    turned = pixels.swapaxes(0, 1) if turn.transposed else pixels
    turned = turned[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1]
    width, height = placement.size
    if turned.shape[:2] != (height, width):
        turned = _centre(_centre(turned, 0, height), 1, width)
    return np.ascontiguousarray(turned, np.uint8)


def _centre(pixels: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    spare = pixels.shape[axis] - length
    if spare >= 0:
        return pixels.take(range(spare // 2, spare // 2 + length), axis=axis)
    widths = [(0, 0)] * pixels.ndim
    widths[axis] = (-spare // 2, -spare - (-spare // 2))
    return np.pad(pixels, widths)
