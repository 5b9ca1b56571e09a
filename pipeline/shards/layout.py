"""Whether a sidecar can be true: its place in the set, and where it says that samples are. No shard is opened."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.codec import Raw, get_codec
from pipeline.shards.sidecar import Sample, Sidecar

DIGITS = 8  # of a CRC-32C


def check_place(sidecar: Sidecar, stem: str, recipe: Recipe) -> None:
    """Raises `UserError` where the sidecar is not of the shard `stem` (`train-000003`) of such a set."""
    if f"{sidecar.split}-{sidecar.bucket:06d}" != stem or sidecar.bucket >= sidecar.buckets:
        raise UserError(f"is of bucket {sidecar.bucket} of {sidecar.buckets} in {sidecar.split}")
    if sidecar.shard != get_format(recipe.format).name(stem):
        raise UserError(f"is of the shard {sidecar.shard}")


def check_layout(sidecar: Sidecar, recipe: Recipe) -> None:
    """Raises `UserError` for a sample that `find_impossible` finds."""
    if impossible := find_impossible([sidecar], recipe):
        raise UserError(impossible[1])


def find_impossible(sidecars: Sequence[Sidecar], recipe: Recipe) -> tuple[int, str] | None:
    """A sample that is longer than the recipe allows, has another number of chunks or checksums than its frames
    need, ends behind its shard's end, or shares bytes with another: the place of its sidecar, and what is wrong.
    Of several, one with the problem that is looked for first.

    Many sidecars at once: arrays of a hundred samples take as long as those of thousands.
    """
    samples = [sample for sidecar in sidecars for sample in sidecar.samples]
    owner = np.repeat(np.arange(len(sidecars)), [len(sidecar.samples) for sidecar in sidecars])
    size = np.array([sidecar.bytes for sidecar in sidecars], np.uint64)[owner]
    for wrong, problem in _problems(samples, owner, size, recipe) if samples else ():
        if wrong.any():
            place = int(wrong.argmax())
            sample = samples[place]
            return int(owner[place]), (
                f"sample {sample.key}: {problem} (frames {sample.frames}, offset {sample.offset}, shard of "
                f"{size[place]} bytes)"
            )
    return None


def _problems(
    samples: Sequence[Sample], owner: NDArray[np.int64], size: NDArray[np.uint64], recipe: Recipe
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Which samples have which problem. What comes later holds only where nothing was wrong before."""
    frames = np.array([sample.frames for sample in samples], np.uint64)
    offset = np.array([sample.offset for sample in samples], np.uint64)
    checksums = np.array([len(sample.crc32c) for sample in samples], np.uint64)
    yield frames > np.uint64(recipe.max_frames), f"has more frames than the recipe's {recipe.max_frames}"
    codec, in_tar = get_codec(recipe), recipe.format == "webdataset"
    chunk = np.uint64(codec.chunk)
    begin = np.zeros_like(frames) if in_tar else offset % chunk  # of the sample in its first chunk
    chunks = (begin + frames + chunk - np.uint64(1)) // chunk
    unlike = checksums != chunks * np.uint64(DIGITS)
    yield (checksums > 0) & unlike, "has another number of checksums than chunks"
    length = frames
    if in_tar and isinstance(codec, Raw):
        length = frames * np.uint64(recipe.width * recipe.height * 3)
    pieces = [sample.sizes for sample in samples]
    if in_tar and not isinstance(codec, Raw):
        yield np.array(list(map(len, pieces)), np.uint64) != chunks, "has another number of sizes than chunks"
        totals = list(map(sum, pieces))
        yield np.array(list(map(int.__gt__, totals, size.tolist()))), "is larger than the shard"
        length = np.array(totals, np.uint64)
    else:
        yield np.array(list(map(bool, pieces))), "has sizes of chunks, which no raw shard has"
    stop = offset + length  # below 2**64: an offset is below 2**63, a length far below
    yield stop > size, "ends behind the end of the shard"
    order = np.lexsort((offset, owner))
    before, after = order[:-1], order[1:]
    shared = np.zeros(len(samples), bool)
    shared[after] = (stop[before] > offset[after]) & (owner[before] == owner[after])
    yield shared, "begins inside another sample"
