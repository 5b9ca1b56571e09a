"""WebDataset shards: a plain tar in which each sample is `<key>.frames.npy` and `<key>.json`.

Members are contiguous and a `.npy` header is short, so a raw shard can be mapped and sliced in place. The tar
is written here rather than by `webdataset.TarWriter` because importing that package imports torch, because the
offsets are needed, and because the same samples must give the same bytes.
"""

import io
import json
import mmap
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import Frames, ShardReader, ShardWriter
from pipeline.shards.sidecar import Sample

FRAMES_SUFFIX = ".frames.npy"
META_SUFFIX = ".json"
NPY_HEADER = 128  # bytes, for every array that fits this contract; the tests hold NumPy to it


class WebDataset:
    """See `pipeline.shards.ShardFormat`."""

    extension = ".tar"

    def create(self, path: Path, recipe: Recipe) -> ShardWriter:  # noqa: ARG002
        """See `pipeline.shards.ShardFormat.create`."""
        return TarWriter(path)

    def open(self, path: Path, recipe: Recipe) -> ShardReader:
        """See `pipeline.shards.ShardFormat.open`."""
        return TarReader(path, recipe)


class TarWriter:
    """See `pipeline.shards.ShardWriter`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def add(self, key: str, frames: Frames, meta: dict[str, Any]) -> int:
        """See `pipeline.shards.ShardWriter.add`."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(frames))
        pixels = np.ascontiguousarray(frames).data.cast("B")
        offset = self._member(key + FRAMES_SUFFIX, header.getvalue(), pixels)
        self._member(key + META_SUFFIX, b"", memoryview(json.dumps(meta).encode()))
        return offset

    def _member(self, name: str, head: bytes, body: memoryview) -> int:
        """One file of the tar; returns where its body starts. No times, owners or modes of this machine."""
        info = tarfile.TarInfo(name)
        info.size = len(head) + len(body)
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(head)
        offset = self._file.tell()
        self._file.write(body)
        self._file.write(bytes(-info.size % tarfile.BLOCKSIZE))
        return offset

    def mark(self) -> int:
        """See `pipeline.shards.ShardWriter.mark`."""
        return self._file.tell()

    def rewind(self, mark: int) -> None:
        """See `pipeline.shards.ShardWriter.rewind`."""
        self._file.seek(mark)
        self._file.truncate()

    def close(self) -> None:
        """See `pipeline.shards.ShardWriter.close`."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class TarReader:
    """See `pipeline.shards.ShardReader`. Frames are views of the mapped file: no copy, no allocation."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._path = path
        self._frame = (recipe.height, recipe.width, 3)
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); build the set again") from error

    def frames(self, sample: Sample) -> Frames:
        """See `pipeline.shards.ShardReader.frames`."""
        shape = (sample.frames, *self._frame)
        if sample.offset + int(np.prod(shape)) > len(self._map):
            raise UserError(f"{self._path}: {sample.key} ends behind the end of the file; the shard is damaged")
        name = (sample.key + FRAMES_SUFFIX).encode()
        member = sample.offset - NPY_HEADER - tarfile.BLOCKSIZE
        if self._map[max(member, 0) : member + len(name)] != name:
            raise UserError(f"{self._path}: {sample.key} is not where its sidecar says; was the set built anew?")
        return np.ndarray(shape, np.uint8, self._map, sample.offset)

    def meta(self, sample: Sample) -> dict[str, Any]:
        """See `pipeline.shards.ShardReader.meta`: the member that follows the sample's frames."""
        end = sample.offset + sample.frames * int(np.prod(self._frame))
        start = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        try:
            info = tarfile.TarInfo.frombuf(self._map[start : start + tarfile.BLOCKSIZE], "utf-8", "strict")
            start += tarfile.BLOCKSIZE
            meta = json.loads(self._map[start : start + info.size])
        except (tarfile.HeaderError, ValueError) as error:
            raise UserError(f"{self._path}: no description behind {sample.key}: {error}") from error
        if info.name != sample.key + META_SUFFIX or not isinstance(meta, dict):
            raise UserError(f"{self._path}: {info.name} stands where {sample.key}{META_SUFFIX} should be")
        return meta

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the file. Views that are still in use keep their map alive; nothing is cut from under them."""
        del self._map
