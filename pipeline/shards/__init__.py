"""Shards on disk: what is written once and read by everybody. The contract is docs/format.md.

Adding a format: one file here, one line in FORMATS.
"""

from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.sidecar import Sample

Frames = NDArray[np.uint8]


class ShardWriter(Protocol):
    """Fills one new shard file, sample by sample."""

    def add(self, key: str, frames: Frames, meta: dict[str, Any]) -> int:
        """Write uint8 `frames` [N, H, W, 3] and what is known of them; returns the offset for the sidecar."""
        ...

    def mark(self) -> int:
        """A place to `rewind` to."""
        ...

    def rewind(self, mark: int) -> None:
        """Forget everything added since `mark`."""
        ...

    def close(self) -> None:
        """Finish the file and flush it to disk."""
        ...


class ShardReader(Protocol):
    """Reads the samples of one shard."""

    def frames(self, sample: Sample) -> Frames:
        """uint8 [N, H, W, 3]; mapped, not copied, where the format allows. Raises `UserError` on damage."""
        ...

    def meta(self, sample: Sample) -> dict[str, Any]:
        """What the shard itself says of the sample: label, source, pts and so on."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ShardFormat(Protocol):
    """A way to lay samples out in a file."""

    extension: str

    def create(self, path: Path, recipe: Recipe) -> ShardWriter:
        """A new shard file at `path`."""
        ...

    def open(self, path: Path, recipe: Recipe) -> ShardReader:
        """A shard file to read. Raises `UserError` where it is missing."""
        ...


FORMATS = {
    "webdataset": "pipeline.shards.webdataset:WebDataset",
}


def get_format(name: str) -> ShardFormat:
    """The format of that name. Raises `UserError` for an unknown one."""
    if name not in FORMATS:
        raise UserError(f"no shard format is called {name!r}; there are {', '.join(FORMATS)}")
    module, _, cls = FORMATS[name].partition(":")
    shard_format: ShardFormat = getattr(import_module(module), cls)()
    return shard_format
