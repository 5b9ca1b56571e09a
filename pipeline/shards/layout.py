"""Whether a sidecar can be true: its place in the set, and where it says that samples are. No shard is opened."""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.codec import Raw, get_codec
from pipeline.shards.sidecar import Sidecar

DIGITS = 8  # of a CRC-32C


def check_place(sidecar: Sidecar, stem: str, recipe: Recipe) -> None:
    """Raises `UserError` where the sidecar is not of the shard `stem` (`train-000003`) of such a set."""
    if f"{sidecar.split}-{sidecar.bucket:06d}" != stem or sidecar.bucket >= sidecar.buckets:
        raise UserError(f"is of bucket {sidecar.bucket} of {sidecar.buckets} in {sidecar.split}")
    if sidecar.shard != get_format(recipe.format).name(stem):
        raise UserError(f"is of the shard {sidecar.shard}")


def check_layout(sidecar: Sidecar, recipe: Recipe) -> None:
    """Raises `UserError` for the first sample that is longer than the recipe allows, has another number of chunks
    or checksums than its frames need, ends behind the shard's end, or shares bytes with another."""
    samples = sidecar.samples
    if not samples:
        return
    frames = np.fromiter([sample.frames for sample in samples], np.uint64)
    offset = np.fromiter([sample.offset for sample in samples], np.uint64)
    checksums = np.fromiter([len(sample.crc32c) for sample in samples], np.uint64)

    def refuse(wrong: NDArray[np.bool_], problem: str) -> None:
        if wrong.any():
            sample = samples[int(wrong.argmax())]
            raise UserError(f"sample {sample.key}: {problem} (frames {sample.frames}, offset {sample.offset})")

    refuse(frames > np.uint64(recipe.max_frames), f"has more frames than the recipe's {recipe.max_frames}")
    codec, in_tar = get_codec(recipe), recipe.format == "webdataset"
    chunk = np.uint64(codec.chunk)
    begin = np.zeros_like(frames) if in_tar else offset % chunk  # of the sample in its first chunk
    chunks = (begin + frames + chunk - np.uint64(1)) // chunk
    wanted = chunks * np.uint64(DIGITS)
    refuse((checksums > 0) & (checksums != wanted), "has another number of checksums than chunks")
    length = frames
    if in_tar and isinstance(codec, Raw):
        length = frames * np.uint64(recipe.width * recipe.height * 3)
    pieces = [sample.sizes for sample in samples] if in_tar and not isinstance(codec, Raw) else []
    if pieces:
        refuse(np.fromiter(map(len, pieces), np.uint64) != chunks, "has another number of sizes than chunks")
        totals = list(map(sum, pieces))
        refuse(np.array([total > sidecar.bytes for total in totals]), "is larger than the shard")
        length = np.array(totals, np.uint64)
    elif any(sample.sizes for sample in samples):
        refuse(np.array([bool(sample.sizes) for sample in samples]), "has sizes of chunks, which no raw shard has")
    stop = offset + length  # below 2**64: an offset is below 2**63, a length far below
    refuse(stop > np.uint64(sidecar.bytes), f"ends behind the {sidecar.bytes} bytes of the shard")
    order = np.argsort(offset, kind="stable")
    shared = np.zeros(len(samples), bool)
    shared[order[1:]] = stop[order[:-1]] > offset[order[1:]]
    refuse(shared, "begins inside another sample")
