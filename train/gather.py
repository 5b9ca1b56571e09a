"""Copies the frames of clips from shards into the rows of a batch: mapped ones as they are, others decoded."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.shards import Frames, ShardReader, get_format
from pipeline.shards.checks import FirstUse
from pipeline.shards.codec import get_codec
from pipeline.shards.index import SplitIndex
from train.clips import Ints, Sampling, clip_frames

AT_A_TIME = 16  # frames that are decoded together with others that nobody wants: a chunk has no more
OPEN_SHARDS = 400  # kept open, each with a file descriptor; a process may have 1024


class _Shard(NamedTuple):
    """An open shard, and the samples of it that were looked up and checked already."""

    reader: ShardReader
    frames: dict[int, Frames]


Job = tuple[Frames, _Shard, int, int]  # where a clip goes, and its shard, sample and start


class Gatherer:
    """Fills rows with clips of one split. `path` says where a shard stands on this machine.

    `threads`: how many copy or decode clips of a batch, the caller's among them; where it is not given, all
    processors decode, and one thread copies: memory is its limit, a second one gains little and takes a core.
    """

    def __init__(
        self, index: SplitIndex, sampling: Sampling, threads: int | None, path: Callable[[int], Path]
    ) -> None:
        self._index, self._sampling, self._path = index, sampling, path
        self._format = get_format(index.recipe.format)
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._chunk = get_codec(index.recipe).chunk
        self._first_use = FirstUse(index.frames, self._chunk)
        raw = index.recipe.codec == "raw"
        self._do = self._copy if raw else self._decode
        self._threads = threads or (1 if raw else len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clip-fill")

    def fill(self, rows: Sequence[Frames], samples: Ints, starts: Ints) -> None:
        """Copy clip i, from frame `starts[i]` of sample `samples[i]` on, into `rows[i]` [T, H, W, C].

        Raises `UserError` where a shard is missing or damaged.
        """
        shards = map(self._shard, self._index.shard[samples].tolist())  # opened here: the threads share them
        jobs = list(zip(rows, shards, samples.tolist(), starts.tolist(), strict=False))
        left = iter(jobs)  # each thread takes the next one: a task for every clip would cost as much as copying it
        others = [self._pool.submit(self._work, left) for _ in range(min(self._threads, len(jobs)) - 1)]
        try:
            self._work(left)
        finally:
            wait(others)
        for other in others:
            other.result()
        while len(self._shards) > OPEN_SHARDS:
            _, oldest = self._shards.popitem(last=False)
            oldest.reader.__exit__(None, None, None)

    def _work(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            self._do(*job)

    def _shard(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            shard = _Shard(self._format.open(self._path(number), self._index.recipe), {})
            self._shards[number] = shard
        self._shards.move_to_end(number)
        return shard

    def _copy(self, row: Frames, shard: _Shard, sample: int, start: int) -> None:
        frames = shard.frames.get(sample)
        if frames is None:  # looked up once as long as its shard is open
            frames = shard.frames[sample] = shard.reader.frames(self._index.samples[sample])
        chosen = clip_frames(len(frames), self._sampling, start)
        if not self._first_use.done[sample]:
            self._first_use.check(shard.reader, sample, self._index.samples[sample], chosen)
        if isinstance(chosen, slice):
            row[...] = frames[chosen]
        else:
            np.take(frames, chosen, axis=0, out=row, mode="clip")  # any other mode makes a copy first

    def _decode(self, row: Frames, shard: _Shard, sample: int, start: int) -> None:
        """Decode the frames of a clip: consecutive ones into their place, others `AT_A_TIME`, leaving out what
        lies in gaps of more than a chunk."""
        reader, entry = shard.reader, self._index.samples[sample]
        chosen = clip_frames(entry.frames, self._sampling, start)
        if not self._first_use.done[sample]:
            self._first_use.check(reader, sample, entry, chosen)
        if isinstance(chosen, slice):
            if chosen.step in (None, 1):
                reader.clip(entry, chosen.start, row)
                return
            chosen = np.arange(chosen.start, chosen.stop, chosen.step)
        steps, parts = np.diff(chosen), np.diff((chosen + reader.skipped(entry)) // AT_A_TIME)
        cuts = np.flatnonzero((steps > self._chunk) | (parts > 0)) + 1
        for begin, stop in zip([0, *cuts], [*cuts, len(chosen)], strict=True):
            first, last = int(chosen[begin]), int(chosen[stop - 1])
            decoded = np.empty((last - first + 1, *row.shape[1:]), np.uint8)
            reader.clip(entry, first, decoded)
            np.take(decoded, chosen[begin:stop] - first, axis=0, out=row[begin:stop], mode="clip")

    def close(self) -> None:
        """Let go of all shards and threads."""
        self._pool.shutdown()
        for shard in self._shards.values():
            shard.reader.__exit__(None, None, None)
        self._shards.clear()
