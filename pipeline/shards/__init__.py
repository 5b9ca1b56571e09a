"""Shards on disk: what is written once and read by everybody. The contract is docs/format.md.

Adding a format: one file here, one line in FORMATS.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.sidecar import Place, Sample

Frames = NDArray[np.uint8]
Mark = tuple[Any, ...]


class ShardWriter(Protocol):
    """Fills one new shard, sample by sample."""

    def frame(self, pixels: Frames) -> None:
        """Write the next frame, uint8 [H, W, 3], of the sample in the making; at most a chunk waits in memory."""
        ...

    def finish(self, key: str, meta: dict[str, Any]) -> Place:
        """End the sample of the frames since the last one; returns where it is, for the sidecar."""
        ...

    def copy(self, key: str, reader: "ShardReader", sample: Sample, meta: dict[str, Any]) -> Place:
        """A sample that stands in another shard of the same recipe: the very same frames, lossy or not."""
        ...

    def mark(self) -> Mark:
        """A place to `rewind` to."""
        ...

    def rewind(self, mark: Mark) -> None:
        """Forget everything written since `mark`, which stands between two samples."""
        ...

    def close(self) -> None:
        """Finish the shard and flush it to disk."""
        ...

    def checksums(self, sample: Sample) -> str:
        """`Sample.crc32c` of a sample, once the shard is closed."""
        ...


class ShardReader(Protocol):
    """Reads the samples of one shard."""

    def frames(self, sample: Sample) -> Frames:
        """uint8 [N, H, W, 3]; mapped, not copied, where the codec allows. Raises `UserError` on damage."""
        ...

    def clip(self, sample: Sample, first: int, out: Frames) -> None:
        """Fill contiguous uint8 `out` [T, H, W, 3] with the sample's frames from `first` on, first + T ≤ N.

        Safe to call from several threads at once. Raises `UserError` on damage.
        """
        ...

    def expect(self, sample: Sample, first: int, count: int) -> None:
        """`count` frames from `first` on will be read soon: the system may fetch them from the disk meanwhile."""
        ...

    def chunks(self, sample: Sample) -> Iterable[memoryview]:
        """The sample as it is encoded, where its chunks are its own."""
        ...

    def stored(self, sample: Sample, number: int) -> memoryview:
        """The stored chunk `number` of those that the sample's frames are in. Raises `UserError` on damage."""
        ...

    def skipped(self, sample: Sample) -> int:
        """How many frames of others stand in the sample's first stored chunk before it."""
        ...

    def meta(self, sample: Sample) -> dict[str, Any]:
        """What the shard itself says of the sample: label, source, pts and so on."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ShardFormat(Protocol):
    """A way to lay samples out in a shard: a file, or a folder of files."""

    codecs: tuple[str, ...]

    def name(self, stem: str) -> str:
        """Where in the set the shard `stem` stands."""
        ...

    def around(self, recipe: Recipe) -> dict[str, str]:
        """Other files of a set of this format, with their texts: the same whatever is in it."""
        ...

    def most_frames(self, recipe: Recipe) -> int | None:
        """How many frames a sample may have; None where there is no limit that can be told beforehand."""
        ...

    def overhead(self, recipe: Recipe) -> tuple[int, int]:
        """About how many bytes a sample and a shard have beside the frames."""
        ...

    def create(self, path: Path, recipe: Recipe) -> ShardWriter:
        """A new shard at `path`."""
        ...

    def open(self, path: Path, recipe: Recipe) -> ShardReader:
        """A shard to read. Raises `UserError` where it is missing."""
        ...


FORMATS = {
    "webdataset": "pipeline.shards.webdataset:WebDataset",
    "zarr": "pipeline.shards.zarr:Zarr",
}


def get_format(name: str) -> ShardFormat:
    """The format of that name. Raises `UserError` for an unknown one."""
    if name not in FORMATS:
        raise UserError(f"no shard format is called {name!r}; there are {', '.join(FORMATS)}")
    module, _, cls = FORMATS[name].partition(":")
    shard_format: ShardFormat = getattr(import_module(module), cls)()
    return shard_format
