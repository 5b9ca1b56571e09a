"""What is in a shard, against what its sidecar says of it: layout, frames, descriptions, presentation times.

The layout is read by the tools of others (`tarfile`, `zarr`), as a user without our code would.
"""

import re
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.foreign import read_text
from pipeline.plan import identity, sample_key
from pipeline.recipe import Recipe
from pipeline.shards import ShardReader, get_format
from pipeline.shards.checks import check_sample
from pipeline.shards.codec import get_codec
from pipeline.shards.sidecar import Sample, Sidecar
from pipeline.shards.webdataset import META_SUFFIX, map_file
from pipeline.shards.zarr import META as ARRAY_META

LATE = 1e-6  # seconds: rounding of times
END = 2 * tarfile.BLOCKSIZE  # bytes of zeros behind a tar
NESTED = 100  # brackets that an array may have in its description for each sample
TIME_BASE = re.compile(r"[0-9]{1,12}(?:/[0-9]{1,12})?")


def look_inside(path: Path, sidecar: Sidecar, recipe: Recipe) -> None:
    """Raises `UserError` for the first thing in the shard at `path` that is not as it should be."""
    if recipe.format == "webdataset":
        _check_tar(path, sidecar, recipe)
    else:
        _check_array(path, sidecar, recipe)
    if sidecar.samples:
        check_samples(path, sidecar, recipe)


def check_samples(path: Path, sidecar: Sidecar, recipe: Recipe, key_of: Callable[[str], str] = sample_key) -> None:
    """Decode all frames, and compare what the shard says of each sample with its sidecar. `key_of`: the key that a
    video's id gives. Raises `UserError`."""
    starts: dict[str, tuple[int, float]] = {}  # by video: the next slot, and t0
    with get_format(recipe.format).open(path, recipe) as reader:
        for sample in sidecar.samples:
            try:
                _check_frames(reader, sample, recipe)
                _check_key(sample, sidecar, key_of)
                _check_meta(reader.meta(sample), sample, sidecar, recipe, starts)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise UserError(f"{sample.key}: {type(error).__name__}: {error}") from error


def _check_tar(path: Path, sidecar: Sidecar, recipe: Recipe) -> None:
    """Header by header, as `tarfile` reads them, but no further than they are right: by itself it follows what a
    stranger writes into headers of other kinds, or unpacks it."""
    codec, place = get_codec(recipe), 0
    with map_file(path) as tar:
        for sample in sidecar.samples:
            head = codec.head((sample.frames, recipe.height, recipe.width, 3))
            length = sum(sample.sizes) if sample.sizes else sample.frames * recipe.height * recipe.width * 3
            for suffix in (codec.suffix, META_SUFFIX):
                member = _member(tar[place : place + tarfile.BLOCKSIZE], sample.key + suffix)
                place += tarfile.BLOCKSIZE
                if suffix == codec.suffix:
                    if (place + len(head), member.size) != (sample.offset, len(head) + length):
                        raise UserError(f"{sample.key} is not where the sidecar says")
                    if tar[place : place + len(head)] != head:
                        raise UserError(f"{member.name} does not begin as a file of its kind")
                place += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if tar[place : place + END + 1] != bytes(END):
            raise UserError("the members of the tar are more than the samples of the sidecar, or it has no end")


def _member(header: bytes, name: str) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise UserError(f"no tar: {error}") from error
    if member.name != name or member.type != tarfile.REGTYPE or member.size < 0:
        raise UserError(f"the members of the tar are not the samples of the sidecar: {member.name!r} for {name}")
    return member


def _check_array(path: Path, sidecar: Sidecar, recipe: Recipe) -> None:
    import zarr

    try:
        described = read_text(path / ARRAY_META)
        if described.count("[") + described.count("{") > NESTED * (len(sidecar.samples) + 1):
            raise ValueError("its zarr.json has far more in it than its samples need")
        array = zarr.open_array(str(path), mode="r")
        keys = [sample["key"] for sample in array.attrs["samples"]]  # type: ignore[index, union-attr, call-overload]
    except Exception as error:  # whatever zarr throws at what is no array
        raise UserError(f"zarr cannot open it: {type(error).__name__}: {error}") from error
    frames = sum(sample.frames for sample in sidecar.samples)
    if (array.shape, str(array.dtype)) != ((frames, recipe.height, recipe.width, 3), "uint8"):
        raise UserError(f"is an array of {array.dtype} {array.shape}, for {frames} frames")
    if keys != [sample.key for sample in sidecar.samples]:
        raise UserError("the samples of the array are not those of the sidecar")


def _check_frames(reader: ShardReader, sample: Sample, recipe: Recipe) -> None:
    chunk = get_codec(recipe).chunk
    check_sample(reader, sample)
    part = np.empty((min(chunk, sample.frames), recipe.height, recipe.width, 3), np.uint8)
    for first in range(0, sample.frames, chunk):
        reader.clip(sample, first, part[: min(chunk, sample.frames - first)])


def _check_key(sample: Sample, sidecar: Sidecar, key_of: Callable[[str], str]) -> None:
    if sample.key.partition("#")[0] != key_of(sample.video):
        raise UserError(f"{sample.key}: is not the key of {sample.video}")
    if identity(sample.video) % sidecar.buckets != sidecar.bucket:
        raise UserError(f"{sample.video} does not belong into bucket {sidecar.bucket} of {sidecar.buckets}")


def _check_meta(
    meta: dict[str, Any], sample: Sample, sidecar: Sidecar, recipe: Recipe, starts: dict[str, tuple[int, float]]
) -> None:
    said = (meta["key"], meta["video"], meta["label"], meta["group"], meta["split"], meta["source"]["sha256"])
    known = (sample.key, sample.video, sample.label, sample.group, sidecar.split, sample.source)
    if said != known:
        raise UserError(f"{sample.key}: the shard says {said}, the sidecar {known}")
    if meta["fps"] != str(recipe.fps):
        raise UserError(f"{sample.key}: fps is {meta['fps']!r}, the recipe's is {recipe.fps}")
    times = np.array(meta["pts"], np.int64) * _seconds(meta["time_base"])
    first, t0 = starts.get(sample.video, (0, float(times[0]) if len(times) else 0.0))
    if len(times) != sample.frames or meta["first"] != first:
        raise UserError(
            f"{sample.key}: {len(times)} times from slot {meta['first']} on, for {sample.frames} from {first} on"
        )
    slots = t0 + (first + np.arange(len(times))) / float(recipe.fps)
    if (np.diff(times) < 0).any() or (times > slots + LATE).any():
        raise UserError(f"{sample.key}: its presentation times go back, or come after their slots")
    starts[sample.video] = first + sample.frames, t0


def _seconds(time_base: str) -> float:
    if not TIME_BASE.fullmatch(time_base):  # Fraction would compute 1e999999999
        raise ValueError(f"time_base is {time_base[:40]!r}")
    return float(Fraction(time_base))
