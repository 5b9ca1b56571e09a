"""From a decoded picture to a stored frame: orientation, pixel shape and `--fit`. Pure arithmetic and slices."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import Recipe


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
    """Scale the picture to `scaled` (width, height), turn it, then cut out or pad to `size` (width, height)
    around the centre."""

    scaled: tuple[int, int]
    turn: Orientation
    size: tuple[int, int]


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
    scaled = (upright[1], upright[0]) if turn.transposed else upright
    return Placement(scaled, turn, size)


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
