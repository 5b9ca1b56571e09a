"""The embedded default: synthetic videos whose two classes differ in motion alone.

Two figures walk towards each other (`meet`). Played backwards, the same film is of the class `part`: the
frames of both classes are distributed alike, in any one frame and in any bag of frames, and only their order
tells them apart. Size, speed, rate, background, noise, length, camera and passers-by vary. It is night and
the figures are lit: with any colour on any ground, a network needs far more than a few hundred films.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.report import Stage, no_stage

LABELS = ("meet", "part")
RATES = (10, 12, 15, 24, 25, 30)
SIZES = ((160, 120), (192, 144), (240, 180), (256, 144), (320, 240))
LIT, DARK = (150, 256), (10, 110)
SUBPIXEL = 4  # bits: cv2 draws at 1/16 of a pixel, so that slow motion is smooth

Picture = NDArray[np.uint8]
Generator = np.random.Generator
Colour = tuple[int, int, int]


def make_sample_videos(
    root: Path,
    videos: int,
    splits: list[str],
    seed: int,
    *,
    overwrite: bool = False,
    stage: Stage = no_stage,
) -> int:
    """Write `<root>/<split>/<label>/sample-*.mp4`; returns how many. The same seed gives the same videos.

    The first split gets four fifths, the others share the rest. Raises `UserError` for splits that are not
    train, val or test, and where `root` holds something that an earlier call did not make.
    """
    plan = _plan(videos, [name.strip() for name in splits])
    _clear(root, overwrite)
    step = stage("drawing", len(plan))

    def make(number: int, split: str, label: str) -> None:
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, number])
        rate = int(rng.choice(RATES))
        frames = draw_meeting(rng, rate)
        write_video(folder / f"sample-{number:05d}.mp4", frames if label == "meet" else frames[::-1], rate)
        step(1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # drawing and encoding release the GIL
        list(pool.map(make, *zip(*plan, strict=True)))
    return len(plan)


def _plan(videos: int, splits: list[str]) -> list[tuple[int, str, str]]:
    known = {"train", "val", "test"}
    if not splits or not set(splits) <= known or len(set(splits)) < len(splits):
        raise UserError(f"--splits {','.join(splits)}: name each of train, val, test at most once")
    if videos < 2 * len(splits):
        raise UserError(f"--videos {videos}: too few for two labels in each of {len(splits)} splits")
    rest = len(splits) - 1
    later = max(2, videos // 5 // max(rest, 1)) if rest else 0
    counts = [videos - later * rest, *[later] * rest]
    names = [split for split, count in zip(splits, counts, strict=True) for _ in range(count)]
    return [(number, split, LABELS[number % 2]) for number, split in enumerate(names)]


def _clear(root: Path, overwrite: bool) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f"{root}: is a file; give a folder")
    ours = set(root.glob("*/*/sample-*.mp4"))
    others = [path for path in root.rglob("*") if path.is_file() and path not in ours]
    if others:
        raise UserError(f"{root}: holds other files ({others[0].relative_to(root)}); give an empty folder")
    if ours and not overwrite:
        raise UserError(f"{root}: holds {len(ours)} sample videos; pass --overwrite to replace them")
    for path in ours:
        path.unlink()


def draw_meeting(rng: Generator, rate: int) -> list[Picture]:
    """The frames [H, W, 3] of two figures that walk towards each other."""
    width, height = SIZES[rng.integers(len(SIZES))]
    count = int(rng.uniform(2.6, 6.0) * rate)
    time = np.linspace(0, 1, count)
    far, near = rng.uniform(0.42, 0.66), rng.uniform(0.06, 0.14)
    bend = rng.uniform(0.7, 1.4)  # hurrying at the start, or at the end
    gap = far + (near - far) * time**bend
    middle = rng.uniform(0.42, 0.58) + rng.uniform(-0.1, 0.1) * (time - 0.5)
    tall = rng.uniform(0.24, 0.5, 2) * height
    ground = rng.uniform(0.62, 0.85) + rng.uniform(-0.04, 0.04, 2)
    colours = [_colour(rng, LIT), _colour(rng, LIT)]
    steps = rng.uniform(1.0, 2.2, 2) * count / rate
    passers = [_passer(rng, time) for _ in range(rng.integers(0, 3))]
    background = _background(rng, width, height)
    pan = np.outer(time - 0.5, rng.uniform(-0.04, 0.04, 2) * (width, height))
    noise = rng.uniform(0, 8)
    frames = []
    for i in range(count):
        picture = _shift(background, pan[i])
        for x, y, size, colour in (passer(i) for passer in passers):
            _figure(picture, (x * width, y * height), size * height, colour, 6 * time[i])
        for side in (0, 1):
            x = (middle[i] + (side - 0.5) * gap[i]) * width
            _figure(picture, (x, ground[side] * height), tall[side], colours[side], steps[side] * time[i])
        frames.append(_with_noise(picture, noise, rng))
    return frames


def write_video(path: Path, frames: list[Picture], rate: int) -> None:
    """Encode RGB frames [H, W, 3] as h264 in mp4. One thread: the same frames give the same bytes."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        # Short groups: how sharp a frame is must not tell how far into the film it stands.
        # No macroblock tree: with it, x264's AVX-512 code gives other bytes from one run to the next.
        stream.options = {"crf": "19", "preset": "veryfast", "g": "12", "x264-params": "mbtree=0"}
        for picture in frames:
            planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")))
        container.mux(stream.encode(None))


def _colour(rng: Generator, brightness: tuple[int, int]) -> Colour:
    red, green, blue = rng.integers(*brightness, 3)
    return int(red), int(green), int(blue)


def _passer(rng: Generator, time: NDArray[np.float64]) -> Callable[[int], tuple[float, float, float, Colour]]:
    """Somebody who crosses the picture and has nothing to do with the two."""
    start, stop = rng.uniform(-0.1, 1.1, 2)
    y, size, colour = rng.uniform(0.5, 0.95), rng.uniform(0.12, 0.3), _colour(rng, LIT)
    return lambda i: (start + (stop - start) * time[i], y, size, colour)


def _background(rng: Generator, width: int, height: int) -> Picture:
    corners = rng.uniform(*DARK, (2, 2, 3)).astype(np.float32)
    picture = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for _ in range(rng.integers(3, 9)):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(8, width // 3), rng.integers(8, height // 3)
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), _colour(rng, DARK), -1)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3)), np.uint8)


def _shift(picture: Picture, by: NDArray[np.float64]) -> Picture:
    matrix = np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float64)
    size = picture.shape[1], picture.shape[0]
    return np.asarray(cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


def _figure(picture: Picture, feet: tuple[float, float], tall: float, colour: Colour, phase: float) -> None:
    """A figure of height `tall` that stands at `feet` (x, y), with legs swinging by `phase` (in steps)."""
    x, y = feet

    def at(dx: float, dy: float) -> tuple[int, int]:
        return round((x + dx * tall) * 2**SUBPIXEL), round((y + dy * tall) * 2**SUBPIXEL)

    def length(part: float) -> int:
        return max(1, int(part * tall * 2**SUBPIXEL))

    swing = 0.14 * np.sin(2 * np.pi * phase)
    thick = max(1, round(0.06 * tall))
    for side in (-1, 1):
        cv2.line(picture, at(0, -0.42), at(side * swing, 0), colour, thick, cv2.LINE_AA, SUBPIXEL)
    cv2.ellipse(picture, at(0, -0.6), (length(0.11), length(0.24)), 0, 0, 360, colour, -1, cv2.LINE_AA, SUBPIXEL)
    cv2.circle(picture, at(0, -0.92), length(0.09), colour, -1, cv2.LINE_AA, SUBPIXEL)


def _with_noise(picture: Picture, strength: float, rng: Generator) -> Picture:
    noise = rng.normal(0, strength, picture.shape[:2]).astype(np.float32)
    noisy: Picture = np.clip(picture + noise[..., None], 0, 255).astype(np.uint8)
    return noisy
