"""Sets larger than any disk: what plain `webdataset` needs to stream their tars in order, without a cache.

docs/elsewhere.md has the loop. The samples of a shard stand in the order of a hash, so shards are shuffled inside;
an order over a whole epoch, and resuming at a batch, are what this gives up.
"""

import itertools

import numpy as np

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import Frames
from pipeline.shards.checks import checksum
from pipeline.shards.codec import decode_part, get_codec
from pipeline.shards.index import ShardSet
from pipeline.shards.layout import DIGITS
from pipeline.shards.sidecar import Sample, crc32c
from pipeline.shards.webdataset import cut_sizes


def shard_urls(shard_set: ShardSet, split: str) -> list[str]:
    """The split's tars that have samples. Raises `UserError` for another format."""
    if shard_set.recipe.format != "webdataset":
        raise UserError(f"{shard_set.folder}: only tars are streamed; its format is {shard_set.recipe.format}")
    chosen = (sidecar for sidecar in shard_set.sidecars if sidecar.split == split and sidecar.samples)
    return [f"{shard_set.folder}/{sidecar.shard}" for sidecar in chosen]


def member_frames(recipe: Recipe, sample: Sample, member: bytes) -> Frames:
    """uint8 [N, H, W, 3] of a sample whose file in the tar has these bytes. Raises `UserError` on damage."""
    codec, frames = get_codec(recipe), np.empty((sample.frames, recipe.height, recipe.width, 3), np.uint8)
    data = memoryview(member)[len(codec.head((sample.frames, *frames.shape[1:]))) :]
    sizes = sample.sizes or cut_sizes(sample.frames, codec.chunk, frames[0].nbytes)
    starts = list(itertools.accumulate(sizes, initial=0))
    try:
        for number in range(len(sample.crc32c) // DIGITS):
            if crc32c(data[starts[number] : starts[number + 1]]) != checksum(sample, number):
                raise ValueError(f"CRC-32C of chunk {number}")
        decode_part(codec, lambda i: data[starts[i] : starts[i + 1]], sample.frames, 0, frames)
    except (ValueError, IndexError) as error:
        raise UserError(f"{sample.key}: is damaged: {error}") from error
    return frames
