"""WebDataset shards: a plain tar in which each sample is `<key>.frames.npy` and `<key>.json`.

Members are contiguous and a `.npy` header is short, so a raw shard can be mapped and sliced in place. The tar
is written here rather than by `webdataset.TarWriter` because importing that package imports torch, because the
offsets are needed, and because the same samples must give the same bytes.
"""

import errno
import itertools
import json
import mmap
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.errors import UserError
from pipeline.foreign import check_room, open_plain
from pipeline.recipe import Recipe
from pipeline.shards import Frames, Mark, ShardReader, ShardWriter
from pipeline.shards.codec import Raw, decode_part, get_codec
from pipeline.shards.description import Description, decode
from pipeline.shards.sidecar import Place, Sample, crc32c

META_SUFFIX = ".json"
LARGEST_MEMBER = 8**11 - 1  # bytes: a ustar header has eleven octal digits for them
SAMPLE_BYTES = 2560  # about so many are headers, description and padding of a sample


class WebDataset:
    """See `pipeline.shards.ShardFormat`."""

    codecs = ("raw", "zstd", "jpeg")

    def name(self, stem: str) -> str:
        """See `pipeline.shards.ShardFormat.name`."""
        return f"{stem}.tar"

    def around(self, recipe: Recipe) -> dict[str, str]:  # noqa: ARG002
        """See `pipeline.shards.ShardFormat.around`: none."""
        return {}

    def most_frames(self, recipe: Recipe) -> int | None:
        """See `pipeline.shards.ShardFormat.most_frames`: 8 GiB of raw ones."""
        head = len(Raw().head((1, recipe.height, recipe.width, 3)))
        room = (LARGEST_MEMBER - head) // (recipe.height * recipe.width * 3)
        return room if recipe.codec == "raw" else None

    def overhead(self, recipe: Recipe) -> tuple[int, int]:  # noqa: ARG002
        """See `pipeline.shards.ShardFormat.overhead`."""
        return SAMPLE_BYTES, 2 * tarfile.BLOCKSIZE

    def create(self, path: Path, recipe: Recipe) -> ShardWriter:
        """See `pipeline.shards.ShardFormat.create`."""
        return TarWriter(path, recipe)

    def open(self, path: Path, recipe: Recipe) -> ShardReader:
        """See `pipeline.shards.ShardFormat.open`."""
        return TarReader(path, recipe)


class TarWriter:
    """See `pipeline.shards.ShardWriter`."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._file = path.open("wb")
        self._codec, self._frame = get_codec(recipe), (recipe.height, recipe.width, 3)
        self._start: int | None = None  # of the sample in the making
        self._length = 0  # its frames
        self._sizes: list[int] = []  # of its chunks
        self._crcs: list[str] = []  # likewise
        self._checksums: dict[int, str] = {}  # of the samples, by offset
        self._waiting: list[Frames] = []  # frames of the chunk that is not full

    def frame(self, pixels: Frames) -> None:
        """See `pipeline.shards.ShardWriter.frame`."""
        self._waiting.append(pixels)
        if len(self._waiting) == self._codec.chunk:
            self._flush()

    def _flush(self) -> None:
        frames, self._waiting = np.stack(self._waiting), []
        self._chunk(self._codec.encode(frames), len(frames))

    def _chunk(self, data: bytes | memoryview, frames: int) -> None:
        if self._start is None:
            self._start = self._file.tell()
            self._file.write(bytes(self._head))  # written when name and length are known
        self._sizes.append(self._file.write(data))
        self._crcs.append(crc32c(data))
        self._length += frames

    @property
    def _head(self) -> int:
        return tarfile.BLOCKSIZE + len(self._codec.head((1, *self._frame)))

    def finish(self, key: str, meta: dict[str, Any]) -> Place:
        """See `pipeline.shards.ShardWriter.finish`."""
        if self._waiting:
            self._flush()
        assert self._start is not None, "a sample without frames"
        place = Place(self._start + self._head, () if isinstance(self._codec, Raw) else tuple(self._sizes))
        head = self._codec.head((self._length, *self._frame))
        self._member(self._start, key + self._codec.suffix, head)
        self._checksums[place.offset] = "".join(self._crcs)
        self._start, self._length, self._sizes, self._crcs = None, 0, [], []
        start = self._file.tell()
        self._file.write(bytes(tarfile.BLOCKSIZE) + json.dumps(meta).encode())
        self._member(start, key + META_SUFFIX)
        return place

    def copy(self, key: str, reader: ShardReader, sample: Sample, meta: dict[str, Any]) -> Place:
        """See `pipeline.shards.ShardWriter.copy`."""
        left = sample.frames
        for chunk in reader.chunks(sample):
            frames = min(left, self._codec.chunk)
            self._chunk(chunk, frames)
            left -= frames
        return self.finish(key, meta)

    def _member(self, start: int, name: str, head: bytes = b"") -> None:
        """Make what was written since `start` a file of the tar. No times, owners or modes of this machine."""
        end = self._file.tell()
        info = tarfile.TarInfo(name)
        info.size = end - start - tarfile.BLOCKSIZE
        if info.size > LARGEST_MEMBER:
            raise UserError(
                f"{name}: its {info.size} bytes are more than a tar takes; give a smaller --max-frames"
            )
        self._file.seek(start)
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT) + head)
        self._file.seek(end)
        self._file.write(bytes(-info.size % tarfile.BLOCKSIZE))

    def mark(self) -> Mark:
        """See `pipeline.shards.ShardWriter.mark`."""
        return (self._file.tell(),)

    def rewind(self, mark: Mark) -> None:
        """See `pipeline.shards.ShardWriter.rewind`."""
        self._file.seek(*mark)
        self._file.truncate()
        self._start, self._length, self._sizes, self._crcs, self._waiting = None, 0, [], [], []

    def close(self) -> None:
        """See `pipeline.shards.ShardWriter.close`."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def checksums(self, sample: Sample) -> str:
        """See `pipeline.shards.ShardWriter.checksums`."""
        return self._checksums[sample.offset]


class TarReader:
    """See `pipeline.shards.ShardReader`. Raw frames are views of the mapped file: no copy, no allocation."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._path = path
        self._frame = (recipe.height, recipe.width, 3)
        self._frame_bytes = recipe.height * recipe.width * 3
        self._codec = get_codec(recipe)
        self._raw = isinstance(self._codec, Raw)
        self._head = tarfile.BLOCKSIZE + len(self._codec.head((1, *self._frame)))
        self._map = map_file(path)

    def frames(self, sample: Sample) -> Frames:
        """See `pipeline.shards.ShardReader.frames`."""
        if self._raw:
            self._check(sample)
            return np.ndarray((sample.frames, *self._frame), np.uint8, self._map, sample.offset)
        size = sample.frames * int(np.prod(self._frame))
        check_room(size, f"{self._path}: {sample.key}", "smaller samples take a smaller --max-frames")
        out = np.empty((sample.frames, *self._frame), np.uint8)
        self.clip(sample, 0, out)
        return out

    def clip(self, sample: Sample, first: int, out: Frames) -> None:
        """See `pipeline.shards.ShardReader.clip`."""
        if self._raw:
            out[...] = self.frames(sample)[first : first + len(out)]
            return
        self._check(sample)
        starts = list(itertools.accumulate(sample.sizes, initial=sample.offset))
        with memoryview(self._map) as data:
            try:
                decode_part(self._codec, lambda i: data[starts[i] : starts[i + 1]], sample.frames, first, out)
            except ValueError as error:
                raise UserError(f"{self._path}: {sample.key} is damaged: {error}") from error

    def expect(self, sample: Sample, first: int, count: int) -> None:
        """See `pipeline.shards.ShardReader.expect`."""
        chunk, sizes = self._codec.chunk, sample.sizes
        start, stop = first * self._frame_bytes, (first + count) * self._frame_bytes
        if not self._raw:
            start, stop = sum(sizes[: first // chunk]), sum(sizes[: -(-(first + count) // chunk)])
        will_need(self._map, sample.offset + start, sample.offset + stop)

    def chunks(self, sample: Sample) -> Iterator[memoryview]:
        """See `pipeline.shards.ShardReader.chunks`."""
        self._check(sample)
        start = sample.offset
        with memoryview(self._map) as data:
            sizes = sample.sizes or cut_sizes(sample.frames, self._codec.chunk, self._frame_bytes)
            for size in sizes:
                yield data[start : start + size]
                start += size

    def stored(self, sample: Sample, number: int) -> memoryview:
        """See `pipeline.shards.ShardReader.stored`: a chunk of its own."""
        self._check(sample)
        if self._raw:
            whole = self._codec.chunk * self._frame_bytes
            start, size = number * whole, min(whole, self._length(sample) - number * whole)
        else:
            start, size = sum(sample.sizes[:number]), sample.sizes[number]
        return memoryview(self._map)[sample.offset + start : sample.offset + start + size]

    def skipped(self, sample: Sample) -> int:  # noqa: ARG002
        """See `pipeline.shards.ShardReader.skipped`: a sample's chunks are its own."""
        return 0

    def _length(self, sample: Sample) -> int:
        """Bytes of the sample's frames in the file."""
        return sample.frames * self._frame_bytes if self._raw else sum(sample.sizes)

    def _check(self, sample: Sample) -> None:
        """The sample is inside the file and where its sidecar says. Raises `UserError`."""
        if sample.offset + self._length(sample) > len(self._map):
            raise UserError(f"{self._path}: {sample.key} ends behind the end of the file; the shard is damaged")
        if not self._raw and len(sample.sizes) != -(-sample.frames // self._codec.chunk):
            raise UserError(
                f"{self._path}: {sample.key} has {len(sample.sizes)} chunks for {sample.frames} frames"
            )
        name = (sample.key + self._codec.suffix).encode()
        member = sample.offset - self._head
        if member < 0 or self._map[member : member + len(name)] != name:
            raise UserError(f"{self._path}: {sample.key} is not where its sidecar says; was the set built anew?")
        head = self._codec.head((sample.frames, *self._frame))
        if self._map[sample.offset - len(head) : sample.offset] != head:
            raise UserError(f"{self._path}: {sample.key} does not begin as {sample.frames} frames of this recipe")

    def meta(self, sample: Sample) -> dict[str, Any]:
        """See `pipeline.shards.ShardReader.meta`: the member that follows the sample's frames."""
        size = self._length(sample) + self._head - tarfile.BLOCKSIZE
        start = sample.offset + self._length(sample) + -size % tarfile.BLOCKSIZE
        try:
            info = tarfile.TarInfo.frombuf(self._map[start : start + tarfile.BLOCKSIZE], "utf-8", "strict")
            start += tarfile.BLOCKSIZE
            if info.name != sample.key + META_SUFFIX:
                raise ValueError(f"{info.name!r} stands there")
            with memoryview(self._map) as data:
                meta: Description = decode(data[start : start + max(info.size, 0)], Description)
        except (tarfile.HeaderError, ValueError) as error:
            raise UserError(f"{self._path}: no description behind {sample.key}: {error}") from error
        return meta.as_dict()

    def __str__(self) -> str:
        return str(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the file. Views that are still in use keep their map alive; nothing is cut from under them."""
        del self._map


def cut_sizes(frames: int, chunk: int, frame_bytes: int) -> list[int]:
    """Bytes of each chunk of raw frames."""
    return [min(chunk, frames - start) * frame_bytes for start in range(0, frames, chunk)]


def map_file(path: Path) -> mmap.mmap:
    """The file, mapped. Raises `UserError` where it is missing or empty."""
    try:
        with open_plain(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def will_need(data: mmap.mmap, start: int, stop: int) -> None:
    """Let the system fetch these bytes of a map, as far as there are any, from the disk in the background."""
    begin, end = start // mmap.PAGESIZE * mmap.PAGESIZE, min(stop, len(data))
    if begin < end:
        data.madvise(mmap.MADV_WILLNEED, begin, end - begin)


def unreadable(path: Path, error: OSError | ValueError) -> UserError:
    """What a user is told of a file that cannot be read."""
    full = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    way_out = "allow more open files (ulimit -n)" if full else "build the set again"
    return UserError(f"{path}: cannot be read ({error}); {way_out}")
