"""Draws the picture of README.md: `python docs/pictures/flow.py` writes flow.svg beside this file.

Its frames are real: sample videos, and what `prep build-shards` would store of them.
"""

import base64
import runpy
import tempfile
from pathlib import Path

import cv2
import numpy as np

from pipeline.decode import get_decoder
from pipeline.recipe import Recipe
from pipeline.sample_videos import Picture, draw_meeting, write_video

HERE = Path(__file__).parent
STYLE = runpy.run_path(str(HERE.parent / "models" / "draw.py"))["STYLE"]
WIDTH, HEIGHT, MARGIN = 880, 300, 20
RATE = 25  # of the video that is drawn: every fifth frame is kept
SEEDS = (11, 4, 27)  # of the videos in the batch; the first is drawn whole


def stored(seed: int, folder: Path) -> tuple[list[Picture], list[Picture]]:
    """All frames of a sample video, and those that a set of 5 fps and 112 pixels keeps of it."""
    frames = draw_meeting(np.random.default_rng(seed), RATE)
    video = folder / f"{seed}.mp4"
    write_video(video, frames, RATE)
    return frames, [frame.pixels for frame in get_decoder("pyav").frames(str(video), Recipe())]


def image(picture: Picture, x: float, y: float, width: int, height: int) -> str:
    """A picture at a place, in twice the pixels that it takes."""
    small = cv2.resize(picture, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    text = base64.b64encode(data.tobytes()).decode()
    return f'<image x="{x:g}" y="{y:g}" width="{width}" height="{height}" href="data:image/jpeg;base64,{text}"/>'


def text(x: float, y: float, words: str, kind: str = "quiet") -> str:
    """A line of text whose left end, or middle, is at x."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def card(x: float, y: float, width: float, height: float, kind: str = "card") -> str:
    """A box with round corners."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def arrow(x: float, y: float, to: float) -> str:
    """From left to right."""
    tip = f'<path class="tip" d="M{to:g} {y:g}l-9 -5v10z"/>'
    return f'<path class="line" d="M{x:g} {y:g}H{to - 7:g}"/>{tip}'


def film(frames: list[Picture]) -> list[str]:
    """The whole video as a strip, what is kept marked and led down to where it is kept."""
    parts = [text(MARGIN, 26, "a video, 25 frames a second", "name")]
    for number, frame in enumerate(frames[:21]):
        x = MARGIN + 40 * number
        parts.append(image(frame, x + 1, 40, 38, 30))
        if number % 5 == 0:
            below = MARGIN + 48 + 80 * (number // 5)
            parts.append(f'<rect x="{x}" y="39" width="40" height="32" fill="none" class="backbone kept"/>')
            parts.append(f'<path class="line dash" d="M{x + 20} 73C{x + 20} 105 {below} 95 {below} 141"/>')
    return parts


def shard(kept: list[Picture]) -> list[str]:
    """What is stored of it."""
    parts = [card(MARGIN, 124, 416, 134), text(MARGIN + 12, 250, "in a shard: 5 a second, 112×112, uint8")]
    parts += [image(frame, MARGIN + 12 + 80 * number, 144, 72, 72) for number, frame in enumerate(kept[:5])]
    parts += [text(MARGIN + 48 + 80 * number, 232, f"{number / 5:g} s", "quiet mid") for number in range(5)]
    return [*parts, text(MARGIN, 284, "prep build-shards: once, offline", "name")]


def batch(clips: list[list[Picture]]) -> list[str]:
    """Clips of several videos, as a model gets them."""
    parts = [arrow(442, 190, 484), text(490, 284, "train run: every epoch", "name")]
    for row, clip in enumerate(clips):
        x, y = 490 + 8 * row, 124 + 44 * row
        parts.append(card(x, y, 176, 46))
        parts += [image(frame, x + 5 + 42 * number, y + 3, 40, 40) for number, frame in enumerate(clip[2:6])]
    parts += [arrow(690, 190, 732), card(738, 162, 122, 58, "box backbone")]
    return [*parts, text(799, 186, "model", "name mid"), text(799, 207, "[B, T, C, H, W]", "quiet mid")]


def draw() -> str:
    """The picture as SVG."""
    with tempfile.TemporaryDirectory() as folder:
        videos = [stored(seed, Path(folder)) for seed in SEEDS]
    parts = [*film(videos[0][0]), *shard(videos[0][1]), *batch([kept for _, kept in videos])]
    label = "A video's frames at 5 fps go into a shard, once; batches of clips come from shards in every epoch"
    style = STYLE + "  .kept { stroke-width: 3; fill: none }\n"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    )
    whole = [head, f"<style>{style}</style>", card(0.5, 0.5, WIDTH - 1, HEIGHT - 1), *parts, "</svg>\n"]
    return "\n".join(whole)


if __name__ == "__main__":
    (HERE / "flow.svg").write_text(draw(), encoding="utf-8")
