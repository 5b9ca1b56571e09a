"""`prep build-shards --dry-run`: what a build would make and take. Reads, writes nothing.

Frames are counted from the packets of a sample of the videos, time from decoding a few of them.
"""

import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.decode import get_decoder
from pipeline.errors import DecodeError
from pipeline.places import local_file
from pipeline.plan import Plan, identity
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.codec import get_codec
from pipeline.sources import Video

COUNTED = 300  # videos whose packets are read
DECODE_SECONDS = 6.0  # spent on finding out how fast this machine decodes them
START_SECONDS = 2.0  # until a cluster of this machine is there


@dataclass(frozen=True)
class Estimate:
    """A build before it is made. `seconds` and `decode` are of this run: what stands already is not made again;
    `warnings` are those that the build will end with."""

    videos: int
    unreadable: int
    decode: int
    hours: float
    frames: int
    bytes: int
    shards: int
    seconds: float
    warnings: tuple[str, ...] = ()


def estimate(videos: Sequence[Video], todo: Plan, recipe: Recipe, workers: int) -> Estimate:
    """From the videos, the plan of the build, and a sample that is the same at every call."""
    sample = sorted(videos, key=lambda video: identity(video.id))[:COUNTED]
    decoder = get_decoder(recipe.decoder)
    counts = []
    for video in sample:
        try:
            with local_file(video.path) as path:
                counts.append(decoder.count(path, recipe))
        except (DecodeError, OSError):
            continue
    share = len(videos) / len(sample)
    frames = sum(counts) * share
    parts = sum(-(-count // recipe.max_frames) for count in counts) * share
    to_decode = sum(1 for task in todo.tasks for item in task.items if not (item.reuse or item.rejected))
    each, ratio = _trial(sample, recipe) if to_decode or recipe.codec != "raw" else (0.0, 1.0)
    per_sample, per_shard = get_format(recipe.format).overhead(recipe)
    pixels = frames * recipe.height * recipe.width * 3
    return Estimate(
        videos=len(videos),
        unreadable=round((len(sample) - len(counts)) * share),
        decode=to_decode,
        hours=round(frames / float(recipe.fps) / 3600, 2),
        frames=round(frames),
        bytes=round(pixels * ratio + parts * per_sample + len(todo.names) * per_shard),
        shards=len(todo.names),
        seconds=round(to_decode * each / max(1, workers) + (START_SECONDS if workers and to_decode else 0), 1),
    )


def _trial(sample: Sequence[Video], recipe: Recipe) -> tuple[float, float]:
    """Seconds that one process takes for a video, hashing and writing left out (they are small beside it), and
    bytes in a shard for each byte of frames."""
    decoder, codec = get_decoder(recipe.decoder), get_codec(recipe)
    began, decoded, frame_bytes, stored = time.perf_counter(), 0, 0, 0
    for video in sample:
        if time.perf_counter() - began > DECODE_SECONDS:
            break
        # A bad video takes its time, too.
        with suppress(DecodeError, OSError), local_file(video.path) as path:
            frames = decoder.frames(path, recipe)
            while chunk := [frame.pixels for frame in itertools.islice(frames, codec.chunk)]:
                frame_bytes += sum(pixels.nbytes for pixels in chunk)
                stored += len(codec.encode(np.stack(chunk)))
        decoded += 1
    return (time.perf_counter() - began) / decoded, stored / frame_bytes if frame_bytes else 1.0
