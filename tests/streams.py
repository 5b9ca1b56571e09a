"""Streams of small sets, shards that come late, and what a stream holds."""

import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipeline.errors import UserError
from pipeline.shards.index import SplitIndex, read_set
from train.stream import ClipStream

SIZE = 16


def stream_of(root: Path, batch_size: int = 5) -> ClipStream:
    return ClipStream(read_set(root).split("train"), frames_per_clip=SIZE, batch_size=batch_size)


def contents(stream: ClipStream, epoch: int) -> list[tuple[list[int], Tensor]]:
    return [(batch.samples.tolist(), batch.frames.clone()) for batch in stream.epoch(epoch)]


class LateShards:
    """Shards that arrive one by one, each only when the loader waits for it."""

    def __init__(self, index: SplitIndex) -> None:
        self.index, self.here, self.closed = index, list[int](), False
        self.interrupted = threading.Event()
        self.order: list[int] = []
        self.coming = len(index.shards)

    def fetch(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.interrupted.clear()

    def interrupt(self) -> None:
        self.interrupted.set()

    def path(self, shard: int) -> Path:
        if self.order.index(shard) >= self.coming:
            self.interrupted.wait()
            raise UserError(f"shard {shard} did not come")
        while shard not in self.here:
            self.here.append(self.order[len(self.here)])
        return self.index.shards[shard]

    def arrived(self) -> list[int]:
        return self.here

    def renew(self, _: int) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def held(root: Path) -> tuple[int, int, list[str]]:
    """Open files, maps of the set's files, and the loader's threads, of this process."""
    gc.collect()  # what the errors of other tests hold
    maps = Path("/proc/self/maps").read_text().count(str(root))
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("clip-")]
    return len(os.listdir("/proc/self/fd")), maps, threads


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
