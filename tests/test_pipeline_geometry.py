"""Orientation, pixel shape and fit of stored frames."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video
from numpy.typing import NDArray

from pipeline.decode import get_decoder
from pipeline.decode.geometry import Orientation, finish, orientation, place
from pipeline.recipe import Recipe

# (a, b, c, d) of a display matrix, and what a picture becomes
TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a telephone held upright
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],  # a front camera
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).swapaxes(0, 1),
}


def with_matrix(path: Path, numbers: tuple[int, int, int, int]) -> Path:
    """The MP4 with this display matrix in its track header (ISO 14496-12, 8.3.2)."""
    a, b, c, d = (number << 16 for number in numbers)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("numbers", TURNS)
def test_pictures_are_turned_and_mirrored_as_the_file_says(
    tmp_path: Path, numbers: tuple[int, int, int, int]
) -> None:
    picture: NDArray[np.uint8] = np.full((64, 64, 3), 40, np.uint8)
    picture[:32, :16] = 220  # a mark that no turn leaves where it was
    path = with_matrix(write_video(tmp_path / "a.mp4", frames=2, size=(64, 64), picture=picture), numbers)
    (frame,) = get_decoder("pyav").frames(str(path), Recipe(width=64, height=64))
    assert np.abs(frame.pixels.astype(int) - TURNS[numbers](picture)).mean() < 4


def test_a_matrix_of_another_angle_counts_as_the_nearest_quarter_turn() -> None:
    assert orientation([60000, 3000, 0, -3000, 60000, 0, 0, 0, 1]) == Orientation()


@pytest.mark.parametrize(
    ("fit", "shape", "transposed", "scaled"),
    [
        ("stretch", (320, 240), False, (112, 112)),
        ("crop", (320, 240), False, (149, 112)),
        ("pad", (320, 240), False, (112, 84)),
        ("pad", (320, 240), True, (112, 84)),
        ("crop", (240, 320), True, (112, 149)),
    ],
)
def test_placement_keeps_the_shape_that_fit_promises(
    fit: str, shape: tuple[int, int], transposed: bool, scaled: tuple[int, int]
) -> None:
    placement = place(*shape, Fraction(1), Orientation(transposed), Recipe(fit=fit))
    assert placement.scaled == scaled
    assert finish(np.ones((scaled[1], scaled[0], 3), np.uint8), placement).shape == (112, 112, 3)


@pytest.mark.parametrize("transposed", [False, True])
def test_only_the_visible_part_of_a_strip_is_scaled(transposed: bool) -> None:
    placement = place(16, 4000, Fraction(1), Orientation(transposed), Recipe(fit="crop"))
    left, top = placement.edges
    assert left == 0 and top % 4 == 0
    assert 16 <= 4000 - 2 * top <= 32
    assert placement.scaled == (112, (4000 - 2 * top) * 7)


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_a_strip_shows_its_middle(tmp_path: Path, decoder: str) -> None:
    picture: NDArray[np.uint8] = np.full((800, 16, 3), 40, np.uint8)
    picture[392:400], picture[400:408] = 120, 220
    path = write_video(tmp_path / "a.mp4", frames=2, size=(16, 800), picture=picture, options={"crf": "1"})
    pixels = next(get_decoder(decoder).frames(str(path), Recipe(width=32, height=32, fit="crop"))).pixels
    upper, lower = pixels[2:14].astype(int), pixels[18:30].astype(int)  # away from the edges
    assert np.abs(upper - 120).max() < 16 and np.abs(lower - 220).max() < 16


def test_padding_is_black_and_centred() -> None:
    placement = place(320, 160, Fraction(1), Orientation(), Recipe(fit="pad"))
    frame = finish(np.full((56, 112, 3), 9, np.uint8), placement)
    assert (frame[28:84] == 9).all()
    assert frame[:28].sum() + frame[84:].sum() == 0


def test_wide_pixels_make_a_wide_picture() -> None:
    assert place(160, 240, Fraction(2), Orientation(), Recipe(fit="pad")).scaled == (112, 84)
