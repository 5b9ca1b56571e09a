"""Are copies found among real videos? Plants copies, builds a set, runs the finder: precision and recall.

    python benchmarks/leaks.py videos.csv            # or a folder of <label>/*.mp4
    python benchmarks/leaks.py videos.csv --each 15 --seed 0 --threshold 0.25
    python benchmarks/leaks.py --synthetic 20000     # no videos: seconds and memory of the search alone

Each kind of copy is made of `--each` videos, no video is copied twice; copies go to the other split. Pairs of two
originals that are found count as false: look at them before you believe that they are.

Last result, on 300 real surveillance clips of 46 recordings with 90 copies (15 of each kind):
seed 0: precision 1.0, recall 0.978; seed 1: precision 0.989, recall 0.989. Every missed copy is of a clip in which
next to nothing moves (`still`); the false pair is of one man in one doorway, ten seconds apart. No two of the 300
originals are copies. The limits of `pipeline/video_hash.py` were chosen on copies of every 4th clip.
Search alone, two busy cores: 20,000 videos of 200 cameras in 3.7 s, of one single camera in 28 s.
"""

import csv
import json
import random
import resource
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import click
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline import video_hash
from pipeline.driver import Wanted, build_set
from pipeline.leaks import THRESHOLD, find_leaks
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from pipeline.sources import Video, list_videos

KINDS: dict[str, dict[str, Any]] = {
    "recompressed": {"crf": 36},
    "rescaled": {"scale": 0.5},
    "brighter": {"brighter": 30},
    "trimmed 0.4 s": {"trim": 0.4},
    "trimmed 0.5 s": {"trim": 0.5},  # its frames fall between those of the source
    "all of it": {"crf": 32, "scale": 0.6, "brighter": 25, "trim": 0.4},
}


def copy_video(
    source: str, target: Path, *, crf: int = 23, scale: float = 1.0, brighter: int = 0, trim: float = 0.0
) -> None:
    """Encode a video again, worse, smaller, brighter (grey levels) or without its first `trim` seconds."""
    with av.open(source) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        encoder = output.add_stream("libx264", rate=stream.average_rate or 25, options=options)
        assert isinstance(encoder, VideoStream)
        encoder.width, encoder.height = (int(side * scale) // 2 * 2 for side in (stream.width, stream.height))
        encoder.pix_fmt, encoder.codec_context.time_base = "yuv420p", stream.time_base
        begin = None
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            begin = frame.pts if begin is None else begin
            if (frame.pts - begin) * stream.time_base < Fraction(str(trim)):
                continue
            pixels = _changed(frame.to_ndarray(format="rgb24"), (encoder.width, encoder.height), brighter)
            copy = av.VideoFrame.from_ndarray(pixels, "rgb24")
            copy.pts, copy.time_base = frame.pts, stream.time_base
            output.mux(encoder.encode(copy))
        output.mux(encoder.encode(None))


def _changed(picture: NDArray[Any], size: tuple[int, int], brighter: int) -> NDArray[np.uint8]:
    smaller = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.clip(smaller.astype(np.int16) + brighter, 0, 255).astype(np.uint8)


def plant(videos: Sequence[Video], folder: Path, each: int, seed: int) -> dict[str, tuple[str, str]]:
    """Write copies and `videos.csv`, originals in train and copies in val; returns copy → (kind, original)."""
    drawn = random.Random(seed).sample(list(videos), min(each * len(KINDS), len(videos)))
    planted = {}
    rows = [(video.path, video.label, "train", video.group, video.id) for video in videos]
    for number, video in enumerate(drawn):
        kind = list(KINDS)[number % len(KINDS)]
        key = f"copy {number}, {kind}: {video.id}"
        copy_video(video.path, folder / f"{number}.mp4", **KINDS[kind])
        rows.append((f"{number}.mp4", video.label, "val", key, key))
        planted[key] = (kind, video.id)
    with (folder / "videos.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([("path", "label", "split", "group", "key"), *rows])
    return planted


def measure(videos: Sequence[Video], each: int, seed: int, threshold: float) -> dict[str, Any]:
    """Precision and recall over the planted pairs, with the missed and the false ones by name."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        planted = plant(videos, folder, each, seed)
        build_set(Wanted(folder / "videos.csv", Recipe()), folder / "set")
        shard_set = read_set(folder / "set")
        began = time.perf_counter()
        leaks = find_leaks(shard_set, threshold)
        seconds = time.perf_counter() - began
    true = {tuple(sorted((copy, original))): kind for copy, (kind, original) in planted.items()}
    found = {(pair.a, pair.b): pair.distance for pair in leaks.pairs}
    hits = found.keys() & true.keys()
    return {
        "videos": leaks.videos,
        "planted": len(planted),
        "found": len(found),
        "precision": round(len(hits) / max(1, len(found)), 4),
        "recall": round(len(hits) / max(1, len(true)), 4),
        "recall_of": {
            kind: f"{sum(true[pair] == kind for pair in hits)} of {sum(k == kind for k in true.values())}"
            for kind in KINDS
        },
        "missed": sorted(copy for copy, _ in true.keys() - hits),
        "false": {f"{a} = {b}": found[a, b] for a, b in sorted(found.keys() - true.keys())},
        "still": leaks.still,
        "seconds": round(seconds, 1),
    }


def measure_search(videos: int, cameras: int, seed: int) -> dict[str, Any]:
    """Seconds and memory of hashing and searching videos of 11 frames, random motion before the still pictures of
    some cameras; every 20th is a noisy copy."""
    draw = np.random.default_rng(seed)
    rooms = draw.normal(0, 100, (cameras, 63))
    looks = [
        (draw.normal(0, 20, (11, 63)).cumsum(0) + rooms[number % cameras]).astype(np.float32)
        for number in range(videos)
    ]
    copies = {(number, number + 1) for number in range(0, videos - 1, 20)}
    for original, copy in copies:
        looks[copy] = (looks[original][2:] + draw.normal(0, 4, (9, 63))).astype(np.float32)
    began = time.perf_counter()
    length = video_hash.window_frames(Fraction(5))
    windows = video_hash.hash_windows(looks, length)
    found = list(video_hash.candidates(windows))
    near = {(a, b) for a, b, by in found if video_hash.distance(looks[a], looks[b], by, length) <= THRESHOLD}
    return {
        "videos": videos,
        "cameras": cameras,
        "windows": len(windows),
        "candidates": len(found),
        "pairs": len(near),
        "copies_found": f"{len(near & copies)} of {len(copies)}",
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


@click.command()
@click.argument("videos", type=click.Path(path_type=Path), required=False)
@click.option("--each", default=15, show_default=True, help="Copies of each kind.")
@click.option("--seed", default=0, show_default=True, help="Which videos are copied.")
@click.option("--threshold", default=THRESHOLD, show_default=True)
@click.option("--synthetic", default=0, metavar="N", help="Search N made-up videos instead.")
@click.option("--cameras", default=200, show_default=True, help="With --synthetic: so many still pictures.")
def main(videos: Path | None, each: int, seed: int, threshold: float, synthetic: int, cameras: int) -> None:
    """Print what was found as JSON."""
    if synthetic:
        print(json.dumps(measure_search(synthetic, cameras, seed), indent=2))
    elif videos is None or not videos.exists():
        print("no videos to copy; give a folder of <label>/*.mp4, or a CSV with path,label")
    else:
        print(json.dumps(measure(list_videos(videos.absolute()), each, seed, threshold), indent=2))


if __name__ == "__main__":
    main()
