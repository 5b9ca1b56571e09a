"""Decoding against the loop that everybody writes: same videos, same frames, one process, CPU time.

    python benchmarks/build.py videos.csv            # or a folder of <label>/*.mp4
    python benchmarks/build.py videos.csv --rounds 5 --every 3

The peer is `cv2.VideoCapture.read` for every frame and `cv2.resize` for those kept: once with INTER_AREA, which
averages as we do, and once with OpenCV's default, INTER_LINEAR, which is cheaper and aliases. Rounds are
interleaved, one after the other on the same clips; the ratio is taken round by round and its median is quoted.
The limit decodes only what the kept frames need and converts nothing.

Last result: see docs/architecture.md.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import cv2

from pipeline.decode import get_decoder
from pipeline.decode.pyav import _choose, _decode_skipping, _demux, _open, _Times
from pipeline.recipe import Recipe
from pipeline.sources import list_videos

RECIPE = Recipe()


def usual_loop(path: str, interpolation: int = cv2.INTER_AREA) -> int:
    """Read every frame; resize those that our decoder keeps, so that both make the same frames."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = kept_numbers(path)
    number, kept = 0, 0
    while True:
        read, image = capture.read()
        if not read:
            break
        if number in wanted:
            small = cv2.resize(image, (RECIPE.width, RECIPE.height), interpolation=interpolation)
            cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
            kept += wanted[number]
        number += 1
    capture.release()
    return kept


@cache
def kept_numbers(path: str) -> dict[int, int]:
    """Number of each kept frame in the video -> how often it is kept. Filled before the clock starts."""
    kept = Counter(frame.pts for frame in get_decoder("pyav").frames(path, RECIPE))
    with _open(path) as (container, stream):
        pts = sorted(packet.pts for packet in _demux(container, stream) if not packet.is_discard)
    return {number: kept[time] for number, time in enumerate(pts) if time in kept}


def ours(path: str) -> int:
    """The default decoder, as `prep build-shards` uses it."""
    return sum(1 for _ in get_decoder("pyav").frames(path, RECIPE))


def opencv_decoder(path: str) -> int:
    """Our second decoder: OpenCV under the same contract."""
    return sum(1 for _ in get_decoder("opencv").frames(path, RECIPE))


def limit(path: str) -> int:
    """Only the needed frames decoded, none converted."""
    with _open(path) as (container, stream):
        packets = list(_demux(container, stream))
        times = _Times()
        for packet in packets:
            times.add(packet)
        slots = _choose(times, stream, RECIPE)
        left = len(slots)
        for frame in _decode_skipping(packets, times, slots, stream):
            left -= frame.pts in slots
            if not left:
                break
        return sum(slots.values())


METHODS: dict[str, Callable[[str], int]] = {
    "usual OpenCV loop": usual_loop,
    "… with INTER_LINEAR": partial(usual_loop, interpolation=cv2.INTER_LINEAR),
    "opencv decoder": opencv_decoder,
    "pyav decoder": ours,
    "limit": limit,
}


@click.command()
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--every", default=3, show_default=True, help="Take every n-th video.")
@click.option("--json", "as_json", is_flag=True)
def main(videos: Path, rounds: int, every: int, as_json: bool) -> None:
    """Print CPU seconds and the ratio to the usual loop."""
    cv2.setNumThreads(1)
    paths = [video.path for video in list_videos(videos)][::every]
    for path in paths:
        kept_numbers(path)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    frames: dict[str, int] = {}
    for _ in range(rounds):
        for name, method in METHODS.items():
            began = time.process_time()
            frames[name] = sum(map(method, paths))
            seconds[name].append(time.process_time() - began)
    rows: dict[str, dict[str, Any]] = {}
    base = seconds["usual OpenCV loop"]
    for name, taken in seconds.items():
        ratios = sorted(usual / mine for usual, mine in zip(base, taken, strict=True))
        rows[name] = {
            "frames": frames[name],
            "cpu_seconds": round(statistics.median(taken), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        }
    if as_json:
        print(json.dumps({"videos": len(paths), "rounds": rounds, "methods": rows}, indent=2))
        return
    print(f"{len(paths)} videos, {rounds} interleaved rounds, one process")
    print(f"{'':20}{'frames':>8}{'CPU s':>9}{'× usual':>9}   (least to most)")
    for name, row in rows.items():
        low, high = row["ratio_range"]
        print(f"{name:20}{row['frames']:>8}{row['cpu_seconds']:>9}{row['ratio']:>9}   ({low} to {high})")


if __name__ == "__main__":
    main()
