"""From shards to batches at the speed of memory.

Shards are mapped, clips are slices of the map, and a thread copies them into a few reused batch buffers ahead
of the model: no worker processes, no pickling, no allocation. Frames stay uint8 until they are on the device.
"""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
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


Filled = tuple[Tensor, Tensor, Tensor]  # frames, labels, samples


class _Filler:
    """A thread that fills buffers ahead of the caller: takes them from `free`, puts them into `ready`.

    What `ready` gives last is None, or the error that ended the thread.
    """

    def __init__(self, fill: Callable[[Tensor, int], Filled], batches: range, buffers: list[Tensor]) -> None:
        self.free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[Filled | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        for buffer in buffers:
            self.free.put(buffer)
        self._thread = threading.Thread(target=self._run, args=(fill, batches), name="clip-stream", daemon=True)
        self._thread.start()

    def _run(self, fill: Callable[[Tensor, int], Filled], batches: range) -> None:
        try:
            for number in batches:
                buffer = self.free.get()
                if self._stopped.is_set():
                    return
                self.ready.put(fill(buffer, number))
            self.ready.put(None)
        except BaseException as error:  # the caller's thread raises it
            self.ready.put(error)

    def stop(self) -> None:
        """End the thread, and the iteration of whoever still asks for batches."""
        self._stopped.set()
        self.free.put(torch.empty(0))  # wakes a thread that waits for a buffer
        self._thread.join()
        self.ready.put(None)


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
        self._filler: _Filler | None = None
        self._format = get_format(index.recipe.format)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        shape = (batch_size, frames_per_clip, index.recipe.height, index.recipe.width, 3)
        pin = self.device.type == "cuda"
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pin) for _ in range(BUFFERS)]

    def batches(self, clips: Clips, first: int = 0) -> Iterator[Batch]:
        """The clips in order, `batch_size` at a time (the last batch may be smaller), from batch `first` on.

        One epoch at a time: the buffers are shared. Raises `UserError` where a shard is missing or damaged.
        """
        if self._filler is not None:
            raise RuntimeError("this stream is in the middle of an epoch; close that iterator first")

        def fill(buffer: Tensor, number: int) -> Filled:
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            samples = clips.sample[part]
            self._gather(buffer.numpy(), samples, clips.start[part])
            return buffer, torch.from_numpy(self.index.label[samples]), torch.from_numpy(samples)

        filler = self._filler = _Filler(fill, range(first, -(-len(clips) // self.batch_size)), self._buffers)
        try:
            while True:
                began = time.perf_counter()
                got = filler.ready.get()
                self.waited += time.perf_counter() - began
                if got is None:
                    return
                if isinstance(got, BaseException):
                    raise got
                buffer, labels, samples = got
                yield self._to_device(buffer[: len(labels)], labels, samples)
                filler.free.put(buffer)
        finally:
            filler.stop()
            if self._filler is filler:
                self._filler = None

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
        """Stop the thread, let go of all shards and buffers. An iterator that is still held ends."""
        if self._filler is not None:
            self._filler.stop()
            self._filler = None
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
