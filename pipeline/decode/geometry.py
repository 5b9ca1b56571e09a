"""From a decoded picture to a stored frame: rotation, pixel shape and `--fit`. Pure arithmetic and slices."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Placement:
    """Scale the picture to `scaled` (width, height), turn it `quarter_turns` × 90° counterclockwise, then
    cut out or pad to `size` (width, height) around the centre."""

    scaled: tuple[int, int]
    quarter_turns: int
    size: tuple[int, int]


def place(width: int, height: int, pixel_aspect: Fraction, quarter_turns: int, recipe: Recipe) -> Placement:
    """Where a picture of `width` × `height` pixels goes in a frame of the recipe.

    `pixel_aspect`: width over height of one pixel. `stretch` fills the frame, whatever the shape;
    `crop` fills it and keeps the shape, losing the edges; `pad` shows everything, with black bars.
    """
    size = recipe.width, recipe.height
    shown = (width * pixel_aspect, Fraction(height))
    if quarter_turns % 2:
        shown = shown[1], shown[0]
    if recipe.fit == "stretch":
        upright = size
    else:
        ratios = size[0] / shown[0], size[1] / shown[1]
        ratio = max(ratios) if recipe.fit == "crop" else min(ratios)
        upright = max(1, round(shown[0] * ratio)), max(1, round(shown[1] * ratio))
    scaled = (upright[1], upright[0]) if quarter_turns % 2 else upright
    return Placement(scaled, quarter_turns % 4, size)


def finish(pixels: NDArray[Any], placement: Placement) -> NDArray[np.uint8]:
    """The scaled picture [h, w, 3], turned and cut or padded: [H, W, 3], contiguous."""
    turned = np.rot90(pixels, placement.quarter_turns)
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
