"""Copies the frames of clips from shards into the rows of a batch: mapped ones as they are, others decoded."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.shards import Frames, ShardReader, get_format
from pipeline.shards.checks import FirstUse
from pipeline.shards.codec import get_codec
from pipeline.shards.index import SplitIndex
from train.clips import Ints, Sampling, clip_frames

AT_A_TIME = 16  # frames that are decoded together with others that nobody wants: a chunk has no more
OPEN_SHARDS = 400  # kept open at most, each with a file descriptor
SHARE = 4  # of the descriptors that a process may have, one in so many is for one stream's shards


class _Shard(NamedTuple):
    """An open shard, and the samples of it that were looked up and checked already."""

    reader: ShardReader
    frames: dict[int, Frames]


Job = tuple[Frames, _Shard, int, int]  # where a clip goes, and its shard, sample and start


class Gatherer:
    """Fills rows with clips of one split. `path` says where a shard stands on this machine.

    `renew` is asked about a shard that cannot be read: whether it was damaged on this machine, and `path` brings
    it anew. It is read once more then.

    `threads`: how many copy or decode clips of a batch, the caller's among them; where it is not given, all
    processors decode, and one thread copies. Who waits for a batch may `help`, instead of doing nothing.
    """

    def __init__(
        self,
        index: SplitIndex,
        sampling: Sampling,
        threads: int | None,
        path: Callable[[int], Path],
        renew: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._index, self._sampling, self._path, self._renew = index, sampling, path, renew
        self._renewing = threading.Lock()
        self._format = get_format(index.recipe.format)
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._most = max(1, min(OPEN_SHARDS, _descriptors() // SHARE))
        self._chunk = get_codec(index.recipe).chunk
        self._first_use = FirstUse(index.frames, self._chunk)
        raw = index.recipe.codec == "raw"
        self._do = self._copy if raw else self._decode
        self._left: Iterator[Job] = iter(())  # of the batch at hand: clips that nobody has begun
        self._helping = threading.Lock()
        self._failed: Exception | None = None
        self._threads = threads or (1 if raw else len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clip-fill")

    def fill(self, rows: Sequence[Frames], samples: Ints, starts: Ints) -> None:
        """Copy clip i, from frame `starts[i]` of sample `samples[i]` on, into `rows[i]` [T, H, W, C].

        Raises `UserError` where a shard is missing or damaged.
        """
        for begin in range(0, len(samples), self._most):  # so many clips have no more shards than may be open
            part = slice(begin, begin + self._most)
            self._fill(rows[part], samples[part], starts[part])

    def _fill(self, rows: Sequence[Frames], samples: Ints, starts: Ints) -> None:
        shards = map(self._shard, self._index.shard[samples].tolist())  # opened here: the threads share them
        jobs = list(zip(rows, shards, samples.tolist(), starts.tolist(), strict=False))
        self._expect(jobs)
        # Each thread takes the next one: a task for every clip would cost as much as copying it.
        left = self._left = iter(jobs)
        others = []
        try:
            for _ in range(min(self._threads, len(jobs)) - 1):
                others.append(self._pool.submit(self._work, left))
            self._work(left)
        finally:
            self._left = iter(())
            wait(others)
            with self._helping:  # until who helps is through with the last one
                failed, self._failed = self._failed, None
        for other in others:
            other.result()
        if failed is not None:
            raise failed

    def _expect(self, jobs: Sequence[Job]) -> None:
        """Have clips that are used for the first time fetched from disk all at once, while the first are copied.
        Not where frames are spread over a whole sample, which may be long."""
        for _, shard, sample, start in jobs:
            if not self._first_use.done[sample]:
                entry = self._index.samples[sample]
                chosen = clip_frames(entry.frames, self._sampling, start)
                if isinstance(chosen, slice):
                    shard.reader.expect(entry, chosen.start, chosen.stop - chosen.start)

    def help(self) -> None:
        """Copy or decode clips that another thread's `fill` is at, until none of them is left: a batch, or the
        part of a large one whose shards are open. What goes wrong is raised by that `fill`."""
        with self._helping:
            try:
                self._work(self._left)
            except Exception as error:
                self._failed = error

    def _work(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            try:
                self._do(*job)
            except UserError as error:
                self._do_again(*job, error)

    def _do_again(self, row: Frames, shard: _Shard, sample: int, start: int, error: UserError) -> None:
        """From the shard that came anew, if it did. Raises the error otherwise."""
        number = int(self._index.shard[sample])
        with self._renewing:
            if self._shards[number] is shard:  # else another thread has renewed it meanwhile
                if not self._renew(number):
                    raise self._named(number, error) from error
                self._shards[number] = _Shard(self._open(number, again=False), {})  # others may still use the old
        self._do(row, self._shards[number], sample, start)

    def _shard(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            while len(self._shards) >= self._most:
                _, oldest = self._shards.popitem(last=False)
                oldest.reader.__exit__(None, None, None)
            shard = self._shards[number] = _Shard(self._open(number), {})
        self._shards.move_to_end(number)
        return shard

    def _open(self, number: int, *, again: bool = True) -> ShardReader:
        """Raises `UserError`; `again`: not before it was tried to renew the shard."""
        path = self._path(number)
        try:
            return self._format.open(path, self._index.recipe)
        except UserError as error:
            if again and self._renew(number):
                return self._open(number, again=False)
            raise self._named(number, error) from error

    def _named(self, number: int, error: UserError) -> UserError:
        """The error with the shard's place in its set, where a copy of it was read."""
        place = f"{self._index.folder}/{self._index.sidecars[number].shard}"
        return type(error)(str(error).replace(str(self._path(number)), place))

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


def _descriptors() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_SHARDS * SHARE if soft == resource.RLIM_INFINITY else soft
