"""Zarr shards: `frames.zarr` is a group of version 3 with one array [frames, H, W, 3] per shard.

The array is one file of chunks of 16 frames (the sharding codec): `zarr` and `dask.array` read it as it is. It
is written here, not through `zarr`, because a video's frames come one after the other, because raw chunks that
follow each other can be mapped, and because the same samples must give the same bytes whatever version wrote them.
Specification: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import google_crc32c
import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.foreign import MOST_TEXT, check_room, limited, open_plain
from pipeline.recipe import Recipe
from pipeline.shards import Frames, Mark, ShardReader, ShardWriter
from pipeline.shards.codec import Raw, decode_part, get_codec
from pipeline.shards.description import Description, decode
from pipeline.shards.sidecar import Count, Place, Sample, crc32c
from pipeline.shards.webdataset import map_file, unreadable, will_need

GROUP = "frames.zarr"
META = "zarr.json"
CHUNKS = "c.0.0.0.0"  # the only shard of the array, with "." between the places in the grid
SAMPLE_BYTES = 1024  # about so many describe a sample, or the array
EMPTY = 2**64 - 1  # how the index says that a chunk is not there
CHECKSUM = 4  # bytes behind the index
KindT = TypeVar("KindT")
CODECS: dict[str, list[dict[str, Any]]] = {
    "raw": [{"name": "bytes"}],
    "zstd": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
}


class Zarr:
    """See `pipeline.shards.ShardFormat`. No JPEG: plain zarr could not read it."""

    codecs = tuple(CODECS)

    def name(self, stem: str) -> str:
        """See `pipeline.shards.ShardFormat.name`."""
        return f"{GROUP}/{stem}"

    def around(self, recipe: Recipe) -> dict[str, str]:
        """See `pipeline.shards.ShardFormat.around`: the group's metadata."""
        about = "Frames of videos, an array [frame, row, column, channel] per shard; `samples` says which"
        attributes = {"description": about, "recipe": recipe.as_dict(), "fingerprint": recipe.fingerprint}
        return {f"{GROUP}/{META}": _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})}

    def most_frames(self, recipe: Recipe) -> int | None:  # noqa: ARG002
        """See `pipeline.shards.ShardFormat.most_frames`: samples have no files of their own."""
        return None

    def overhead(self, recipe: Recipe) -> tuple[int, int]:
        """See `pipeline.shards.ShardFormat.overhead`: the last chunk is filled up, half of it on average."""
        black = (get_codec(recipe).chunk - 1) * recipe.height * recipe.width * 3 // 2
        return SAMPLE_BYTES, SAMPLE_BYTES + (black if recipe.codec == "raw" else 0)

    def create(self, path: Path, recipe: Recipe) -> ShardWriter:
        """See `pipeline.shards.ShardFormat.create`."""
        return ArrayWriter(path, recipe)

    def open(self, path: Path, recipe: Recipe) -> ShardReader:
        """See `pipeline.shards.ShardFormat.open`."""
        return ArrayReader(path, recipe)


class ArrayWriter:
    """See `pipeline.shards.ShardWriter`. Samples follow each other without gaps; a chunk may hold parts of two."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        path.mkdir()
        self._path, self._recipe, self._codec = path, recipe, get_codec(recipe)
        self._file = (path / CHUNKS).open("wb")
        self._sizes: list[int] = []  # of the chunks written
        self._crcs: list[str] = []  # likewise
        self._waiting: list[Frames] = []  # frames of the chunk that is not full
        self._samples: list[dict[str, Any]] = []

    @property
    def _frames(self) -> int:
        return len(self._sizes) * self._codec.chunk + len(self._waiting)

    def frame(self, pixels: Frames) -> None:
        """See `pipeline.shards.ShardWriter.frame`."""
        self._waiting.append(pixels)
        if len(self._waiting) == self._codec.chunk:
            self._flush()

    def finish(self, key: str, meta: dict[str, Any]) -> Place:
        """See `pipeline.shards.ShardWriter.finish`."""
        start = self._samples[-1]["stop"] if self._samples else 0
        self._samples.append({"key": key, "start": start, "stop": self._frames, **meta})
        return Place(start)

    def copy(self, key: str, reader: ShardReader, sample: Sample, meta: dict[str, Any]) -> Place:
        """See `pipeline.shards.ShardWriter.copy`: no codec here loses anything."""
        for pixels in reader.frames(sample):
            self.frame(pixels)
        return self.finish(key, meta)

    def _flush(self) -> None:
        data = self._codec.encode(np.stack(self._waiting))
        self._sizes.append(self._file.write(data))
        self._crcs.append(crc32c(data))
        self._waiting = []

    def mark(self) -> Mark:
        """See `pipeline.shards.ShardWriter.mark`."""
        return self._file.tell(), len(self._sizes), list(self._waiting), len(self._samples)

    def rewind(self, mark: Mark) -> None:
        """See `pipeline.shards.ShardWriter.rewind`."""
        place, chunks, self._waiting, samples = mark
        self._file.seek(place)
        self._file.truncate()
        del self._sizes[chunks:], self._crcs[chunks:], self._samples[samples:]

    def close(self) -> None:
        """See `pipeline.shards.ShardWriter.close`."""
        frames = self._frames
        if self._waiting:  # a chunk is always whole
            black = np.zeros_like(self._waiting[0])
            self._waiting += [black] * (self._codec.chunk - len(self._waiting))
            self._flush()
        starts = np.cumsum([0, *self._sizes[:-1]])
        index = np.column_stack([starts, self._sizes]) if self._sizes else np.array([[EMPTY, EMPTY]], np.uint64)
        data = index.astype("<u8").tobytes()
        self._file.write(data + google_crc32c.value(data).to_bytes(CHECKSUM, "little"))
        with (self._path / META).open("w", encoding="utf-8") as meta:
            meta.write(_json(self._about(frames)))
            for file in (meta, self._file):
                file.flush()
                os.fsync(file.fileno())
        self._file.close()

    def checksums(self, sample: Sample) -> str:
        """See `pipeline.shards.ShardWriter.checksums`."""
        chunk = self._codec.chunk
        return "".join(self._crcs[sample.offset // chunk : (sample.offset + sample.frames - 1) // chunk + 1])

    def _about(self, frames: int) -> dict[str, Any]:
        """The array's metadata. Keys as the specification has them."""
        picture = [self._recipe.height, self._recipe.width, 3]
        chunk = self._codec.chunk
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [chunk, *picture], "codecs": CODECS[self._recipe.codec], "index_codecs": index,
            "index_location": "end",
        }  # fmt: skip
        whole = [max(1, len(self._sizes)) * chunk, *picture]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [frames, *picture],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": whole}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["frame", "row", "column", "channel"],
            "attributes": {"fps": str(self._recipe.fps), "samples": self._samples},
        }


class ArrayReader:
    """See `pipeline.shards.ShardReader`. Raw frames are views of the mapped file: no copy, no allocation."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._path = path
        self._frame = (recipe.height, recipe.width, 3)
        self._codec = get_codec(recipe)
        self._samples = {item.key: item for item in _described(path / META, _Arrays[_Extent])}
        self._about: dict[str, Description] = {}
        self._map = map_file(path / CHUNKS)
        self._index = self._read_index()

    def _read_index(self) -> NDArray[np.uint64]:
        """[chunks, 2]: start and bytes of each. Raises `UserError` where the file does not hold what its index
        says."""
        frames = max((extent.stop for extent in self._samples.values()), default=0)
        chunks = max(1, -(-frames // self._codec.chunk))
        data = self._map[-16 * chunks - CHECKSUM :]
        index, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
        if len(index) != 16 * chunks or google_crc32c.value(index) != int.from_bytes(checksum, "little"):
            raise UserError(f"{self._path / CHUNKS}: its index is damaged; build the set again")
        pairs = np.frombuffer(index if frames else b"", "<u8").astype(np.uint64).reshape(-1, 2)
        start, size = pairs.T
        room = np.uint64(len(self._map))
        if ((size > room) | (start > room) | (start + np.minimum(size, room) > room)).any():
            raise UserError(
                f"{self._path / CHUNKS}: a chunk ends behind the end of the file; the shard is damaged"
            )
        whole = self._codec.chunk * int(np.prod(self._frame))
        follow = np.arange(len(pairs), dtype=np.uint64) * np.uint64(whole)
        if isinstance(self._codec, Raw) and not ((start == follow) & (size == whole)).all():
            raise UserError(f"{self._path / CHUNKS}: raw chunks do not follow each other; build the set again")
        return pairs

    def frames(self, sample: Sample) -> Frames:
        """See `pipeline.shards.ShardReader.frames`."""
        if isinstance(self._codec, Raw):
            self._check(sample)
            start = sample.offset * int(np.prod(self._frame))
            return np.ndarray((sample.frames, *self._frame), np.uint8, self._map, start)
        size = sample.frames * int(np.prod(self._frame))
        check_room(size, f"{self._path}: {sample.key}", "smaller samples take a smaller --max-frames")
        out = np.empty((sample.frames, *self._frame), np.uint8)
        self.clip(sample, 0, out)
        return out

    def clip(self, sample: Sample, first: int, out: Frames) -> None:
        """See `pipeline.shards.ShardReader.clip`."""
        if isinstance(self._codec, Raw):
            out[...] = self.frames(sample)[first : first + len(out)]
            return
        self._check(sample)
        length = len(self._index) * self._codec.chunk
        with memoryview(self._map) as data:

            def chunk(number: int) -> memoryview:
                start, size = self._index[number].tolist()
                return data[start : start + size]

            try:
                decode_part(self._codec, chunk, length, sample.offset + first, out)
            except ValueError as error:
                raise UserError(f"{self._path}: {sample.key} is damaged: {error}") from error

    def expect(self, sample: Sample, first: int, count: int) -> None:
        """See `pipeline.shards.ShardReader.expect`."""
        begin, stop = sample.offset + first, sample.offset + first + count
        wanted = self._index[begin // self._codec.chunk : -(-stop // self._codec.chunk)]
        if len(wanted):
            will_need(self._map, int(wanted[:, 0].min()), int(wanted.sum(axis=1).max()))

    def chunks(self, sample: Sample) -> Iterator[memoryview]:
        """See `pipeline.shards.ShardReader.chunks`: two samples may share one, so there are none to give."""
        raise NotImplementedError(f"{self._path}: chunks of {sample.key} are not its own")

    def stored(self, sample: Sample, number: int) -> memoryview:
        """See `pipeline.shards.ShardReader.stored`: a chunk of the array, which others may share."""
        self._check(sample)
        start, size = self._index[sample.offset // self._codec.chunk + number].tolist()
        return memoryview(self._map)[start : start + size]

    def skipped(self, sample: Sample) -> int:
        """See `pipeline.shards.ShardReader.skipped`."""
        return sample.offset % self._codec.chunk

    def meta(self, sample: Sample) -> dict[str, Any]:
        """See `pipeline.shards.ShardReader.meta`: an entry of the array's attribute `samples`."""
        self._check(sample)
        if not self._about:
            self._about = {item.key: item for item in _described(self._path / META, _Arrays[Description])}
        return self._about[sample.key].as_dict()

    def _check(self, sample: Sample) -> None:
        """The sample is where its sidecar says. Raises `UserError`."""
        extent = self._samples.get(sample.key)
        if extent is None or (extent.start, extent.stop) != (sample.offset, sample.offset + sample.frames):
            raise UserError(f"{self._path}: {sample.key} is not where its sidecar says; was the set built anew?")

    def __str__(self) -> str:
        return str(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the file. Views that are still in use keep their map alive; nothing is cut from under them."""
        del self._map


class _Extent(msgspec.Struct, frozen=True, gc=False):
    key: str
    start: Count
    stop: Count


class _Samples(msgspec.Struct, Generic[KindT]):
    samples: list[KindT]


class _Arrays(msgspec.Struct, Generic[KindT]):
    """What is read of an array's metadata; all else is passed over without being made."""

    attributes: _Samples[KindT]


def _described(path: Path, kind: type[_Arrays[KindT]]) -> list[KindT]:
    """What the array says of its samples. Raises `UserError`."""
    try:
        with open_plain(path) as file:
            found: _Arrays[KindT] = decode(limited(file.read(MOST_TEXT + 1), path.name), kind)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return found.attributes.samples


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
