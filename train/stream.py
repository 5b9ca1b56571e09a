"""From shards to batches at the speed of memory.

Shards are mapped, clips are slices of the map, and a thread copies them into a few reused batch buffers ahead
of the model: no worker processes, no pickling, no allocation. Frames stay uint8 until they are on the device.
"""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shards import ShardReader, get_format
from pipeline.shards.index import SplitIndex
from train.clips import Clips, Ints, clip_frames

OPEN_SHARDS = 256  # maps kept open: each holds a file descriptor
BUFFERS = 3  # one with the model, one ready, one being filled


@dataclass(frozen=True)
class Batch:
    """`frames` uint8 [B, T, H, W, C], `labels` int64 [B], `samples` int64 [B] (places in the index).

    On a CPU `frames` is the loader's own buffer: it holds until the next batch is asked for.
    """

    frames: Tensor
    labels: Tensor
    samples: Tensor


class ClipStream:
    """Batches of clips from one split of a shard set.

    Use it as a context manager, or `close()` it: nothing outlives that. `waited` is the time in seconds that
    the caller has spent waiting for batches.
    """

    def __init__(
        self, index: SplitIndex, *, frames_per_clip: int, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.index = index
        self.frames_per_clip = frames_per_clip
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.waited = 0.0
        self._format = get_format(index.recipe.format)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        shape = (batch_size, frames_per_clip, index.recipe.height, index.recipe.width, 3)
        pin = self.device.type == "cuda"
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pin) for _ in range(BUFFERS)]

    def batches(self, clips: Clips, first: int = 0) -> Iterator[Batch]:
        """The clips in order, `batch_size` at a time (the last batch may be smaller), from batch `first` on.

        Raises `UserError` where a shard is missing or damaged.
        """
        free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        ready: queue.SimpleQueue[tuple[Tensor, Tensor, Tensor] | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        for buffer in self._buffers:
            free.put(buffer)

        def fill() -> None:
            try:
                for begin in range(first * self.batch_size, len(clips), self.batch_size):
                    buffer = free.get()
                    if stop.is_set():
                        return
                    part = slice(begin, begin + self.batch_size)
                    samples = clips.sample[part]
                    self._gather(buffer.numpy(), samples, clips.start[part])
                    labels = torch.from_numpy(self.index.label[samples])
                    ready.put((buffer, labels, torch.from_numpy(samples)))
                ready.put(None)
            except BaseException as error:  # the caller's thread raises it
                ready.put(error)

        thread = threading.Thread(target=fill, name="clip-stream", daemon=True)
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                got = ready.get()
                self.waited += time.perf_counter() - began
                if got is None:
                    return
                if isinstance(got, BaseException):
                    raise got
                buffer, labels, samples = got
                yield self._to_device(buffer[: len(labels)], labels, samples)
                free.put(buffer)
        finally:
            stop.set()
            free.put(self._buffers[0])  # wakes a thread that waits for a buffer
            thread.join()

    def _gather(self, buffer: NDArray[np.uint8], samples: Ints, starts: Ints) -> None:
        """Copy each clip's frames from its mapped shard into the buffer."""
        for row, sample, start in zip(buffer, samples.tolist(), starts.tolist(), strict=False):
            frames = self._reader(int(self.index.shard[sample])).frames(self.index.samples[sample])
            chosen = clip_frames(len(frames), self.frames_per_clip, start)
            if isinstance(chosen, slice):
                row[...] = frames[chosen]
            else:
                np.take(frames, chosen, axis=0, out=row)

    def _reader(self, shard: int) -> ShardReader:
        reader = self._readers.get(shard)
        if reader is None:
            path: Path = self.index.shards[shard]
            reader = self._readers[shard] = self._format.open(path, self.index.recipe)
            if len(self._readers) > OPEN_SHARDS:
                _, oldest = self._readers.popitem(last=False)
                oldest.__exit__(None, None, None)
        self._readers.move_to_end(shard)
        return reader

    def _to_device(self, frames: Tensor, labels: Tensor, samples: Tensor) -> Batch:
        if self.device.type == "cpu":
            return Batch(frames, labels, samples)
        # Blocking: the buffer is filled anew as soon as this batch is done with.
        return Batch(frames.to(self.device), labels.to(self.device), samples)

    def close(self) -> None:
        """Let go of all shards and buffers."""
        for reader in self._readers.values():
            reader.__exit__(None, None, None)
        self._readers.clear()
        self._buffers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
