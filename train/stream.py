"""From shards to batches at the speed of memory. Stands on its own: docs/loader.md shows it in a plain loop.

Raw shards are mapped, clips are slices of the map, and a thread copies them into two reused batch buffers ahead
of the model: no worker processes, no pickling, no allocation. Compressed shards are decoded into the same buffers
by several threads. Who has to wait for a batch helps to fill it. Frames stay uint8 until they are on the device.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.foreign import check_room
from pipeline.shards.cache import cache_for
from pipeline.shards.index import SplitIndex, read_set
from train.clips import Clips, Floats, Ints, Sampling, batch_bounds, checked_weights, rank_part, training_clips
from train.gather import Gatherer
from train.inputs import to_clips
from train.prefetch import Buffer, Filled, Filler

BUFFERS = 2  # one with the model, one being filled or ready: more of them would leave the processor's cache
LARGEST_WINDOW = 16  # shards
ROW = 200  # bytes of what stands for a clip of a buffer, beside its frames


class ShardSource(Protocol):
    """Brings shards that lie elsewhere to this machine. They are numbered as in the index's `shards`."""

    def path(self, shard: int) -> Path:
        """Where the shard stands on this machine; waits until it is there. Raises `UserError`."""
        ...

    def fetch(self, order: Sequence[int]) -> None:
        """Begin to fetch these shards, in this order, in the background."""
        ...

    def interrupt(self) -> None:
        """End all waiting in `path`, now and until the next `fetch`, by an error; fetching goes on."""
        ...

    def renew(self, shard: int) -> bool:
        """Of a shard that cannot be read: whether it was damaged on this machine, and `path` brings it anew."""
        ...

    def arrived(self) -> list[int]:
        """The shards that are on this machine."""
        ...

    def close(self) -> None:
        """Stop fetching."""
        ...


@dataclass(frozen=True)
class Batch:
    """`frames` uint8 [B, T, H, W, C], `labels` int64 [B], `samples` int64 [B] (places in the index).

    They are the clips from `first` on of a global batch of `size`, which is all of it where one rank is alone.
    On a CPU `frames` is the loader's own buffer: it holds until the next batch is asked for.
    """

    frames: Tensor
    labels: Tensor
    samples: Tensor
    first: int
    size: int

    def to_float(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
        """The clips as a model wants them: normalised float32 [B, T, C, H, W], a tensor of its own."""
        return to_clips(self.frames, mean, std)


class ClipStream:
    """Batches of clips from one split of a shard set.

    `epoch(n)` gives the batches of training epoch n, in an order that is a function of `seed` and n; `batches`
    those of any other list of clips. Use it as a context manager, or `close()` it: nothing outlives that.

    `frames_per_clip`, `sampling`, `stride`: see `train.clips.Sampling`.
    `batch_size`: of the global batch. Rank `rank` of `ranks` gets its even part of each: the same number of
    batches on every rank, their sizes differing by one at most; `drop_last`: see `train.clips.batch_bounds`.
    `unit`: so many neighbours in a batch go to the same rank; sizes then differ by as many at most.
    `weights`: "balanced", or one for each sample of the index: clips are then drawn with replacement, so that an
    epoch has as many clips as ever, but not each of them once.
    `repeats`: so many clips of each sample in the same batch (repeated augmentation).
    `threads`: that fill a batch together; by default, one copies raw frames, and all processors decode others. A
    caller who waits for a batch helps them.
    `shards`: brings shards that lie elsewhere. Epoch 0 is then shuffled over a moving window of shards instead of
    all of them, so that it can start when the first are there; `say` is told so. It is closed with the stream.
    Raises `ValueError` for options that make no sense, `UserError` where batches do not fit into this machine's
    memory.
    `waited` is the time in seconds that the caller has spent waiting for batches.
    """

    def __init__(
        self,
        index: SplitIndex,
        *,
        frames_per_clip: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        sampling: str = "window",
        stride: int = 1,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        unit: int = 1,
        drop_last: bool = False,
        weights: Literal["balanced"] | Floats | None = None,
        repeats: int = 1,
        threads: int | None = None,
        shards: ShardSource | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not 0 <= rank < ranks or -(-batch_size // unit) < ranks:
            raise ValueError(f"rank {rank} of {ranks} with a global batch of {batch_size}: each needs a clip")
        self.index, self.device, self.seed = index, torch.device(device), seed
        self.frames_per_clip, self.batch_size = frames_per_clip, batch_size
        self.rank, self.ranks, self.unit = rank, ranks, unit
        self.drop_last, self.repeats = drop_last, repeats
        self.sampling = Sampling(frames_per_clip, sampling, stride)
        batch_bounds(0, batch_size, repeats=repeats)  # raises where they don't fit together
        self.weights = checked_weights(weights, index.label)
        self.waited = 0.0
        self._epoch, self._done = 0, 0  # the epoch at hand or to come, and how many of its clips are done
        self._goes_on = False  # the next epoch begins there: a state was loaded
        self._closed = False
        self._starting = threading.RLock()  # an epoch, while another thread closes the stream
        self._source, self._say = shards, say
        self._windowed = shards is not None  # the order of epoch 0, or of the one that a loaded state began
        self._filler: Filler | None = None
        path = shards.path if shards else index.shards.__getitem__
        shape = self._shape(-(-batch_size // (unit * ranks)) * unit)
        renew = shards.renew if shards else lambda _: False
        self._gatherer = Gatherer(index, self.sampling, threads, path, renew)
        self._buffers = [Buffer(shape, self.device) for _ in range(BUFFERS)]

    def _shape(self, clips: int) -> tuple[int, int, int, int, int]:
        """Of a buffer for so many clips. Raises `UserError` where this machine has no room for two: their number
        comes from a command line, the size of a frame from a stranger's recipe."""
        height, width = self.index.recipe.height, self.index.recipe.width
        size = clips * (self.frames_per_clip * height * width * 3 + ROW)
        clip = f"{self.frames_per_clip} frames of {width}×{height}"
        what = f"{BUFFERS} batches of {clips} clips of {clip}"
        check_room(BUFFERS * size, what, "ask for fewer clips a batch, or frames a clip")
        return clips, self.frames_per_clip, height, width, 3

    @classmethod
    def open(
        cls,
        place: Path | str,
        split: str = "train",
        *,
        cache: Path | None = None,
        cache_size: int | None = None,
        **options: Any,
    ) -> Self:
        """The stream of a split of the set at `place`; `options` as the class has them. Raises `UserError`.

        The shards of a set behind a URL come to the folder `cache` (`default_cache`, where it is not given), of at
        most `cache_size` bytes.
        """
        index = read_set(place).split(split)
        return cls(index, shards=cache_for(index, cache, cache_size), **options)

    def clips(self, epoch: int) -> Clips:
        """The clips of a training epoch, of all ranks, in order."""
        return training_clips(
            self.index.frames, self.sampling, self.seed, epoch, weights=self.weights, repeats=self.repeats,
            arrival=self._arrival() if self._windowed and epoch == 0 else None, window=self._window,
        )  # fmt: skip

    @property
    def _window(self) -> int:
        """Shards over which epoch 0 is shuffled: a twentieth of them, so that it starts early."""
        return min(LARGEST_WINDOW, max(1, len(self.index.shards) // 20))

    def _arrival(self) -> Ints:
        """The place of each sample's shard in the order in which epoch 0 wants them."""
        places = np.random.default_rng([self.seed, len(self.index.shards)]).permutation(len(self.index.shards))
        return np.asarray(places[self.index.shard], np.int64)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of training epoch `number`; the first time after `load_state_dict`, what is left of it.

        Raises `ValueError` where a batch has fewer clips than there are ranks, `UserError` where a shard is
        missing or damaged, `RuntimeError` where the stream is closed or in the middle of an epoch.
        """
        self._check_free()
        clips = self.clips(number)
        begin = self._done if self._goes_on and number == self._epoch else 0
        bounds = batch_bounds(len(clips), self.batch_size, begin, repeats=self.repeats, drop_last=self.drop_last)
        self._epoch, self._done = number, begin
        if self._source is not None and number == 0:
            here, of = len(self._source.arrived()), len(self.index.shards)
            over = (
                f"a window of {self._window} while the others arrive" if self._windowed else "all, as they began"
            )
            self._say(f"first epoch: {here} of {of} shards are here; clips are shuffled over {over}")
        for batch, stop in zip(self._iterate(clips, bounds), bounds[1:], strict=False):
            # Before it is given: a state saved in the loop's body comes after this batch.
            self._done, self._goes_on = stop, False
            yield batch
        if self._done == bounds[-1]:  # not where the stream was closed in the middle
            self._epoch, self._done = number + 1, 0

    def batches(self, clips: Clips, first: int = 0) -> Iterator[Batch]:
        """This rank's part of the clips in order, `batch_size` at a time for all ranks, from batch `first` on.

        One epoch at a time: the buffers are shared. Raises as `epoch` does.
        """
        return self._iterate(clips, batch_bounds(len(clips), self.batch_size)[first:])

    def state_dict(self) -> dict[str, int]:
        """Where the stream is: the epoch, and how many of its clips all ranks together have been given.

        `windowed`: whether epoch 0 is shuffled over a window of shards.
        """
        return {"seed": self.seed, "epoch": self._epoch, "clips": self._done, "windowed": self._windowed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next epoch go on at the very next batch; the number of ranks may be another one, and shards may
        lie elsewhere now, or not any more.

        Raises `ValueError` for what is no state of this stream.
        """
        seed, epoch, done = place = [state.get(name, -1) for name in ("seed", "epoch", "clips")]
        clips = len(self.index) * self.repeats
        if not all(isinstance(value, int) and value >= 0 for value in place) or done > clips:
            raise ValueError(f"no state of this stream, whose epochs have {clips} clips: {state}")
        self.seed, self._epoch, self._done, self._goes_on = seed, epoch, done, True
        self._windowed = bool(state.get("windowed", self._windowed))  # states of older releases do not say

    def _check_free(self) -> None:
        if self._closed:
            raise RuntimeError("this stream is closed; open another one")
        if self._filler is not None:
            raise RuntimeError("this stream is in the middle of an epoch; close that iterator first")

    def _iterate(self, clips: Clips, bounds: list[int]) -> Iterator[Batch]:
        self._check_free()
        parts = [rank_part(begin, stop, self.rank, self.ranks, self.unit) for begin, stop in pairwise(bounds)]
        if any(-(-(stop - begin) // self.unit) < self.ranks for begin, stop in pairwise(bounds)):
            raise ValueError(f"the last batches have fewer clips than {self.ranks} ranks; use drop_last")
        filler = self._start_filling(clips, parts)
        try:
            for (begin, stop), part in zip(pairwise(bounds), parts, strict=True):
                if (got := self._next(filler)) is None:
                    return
                (frames, labels), samples, buffer = got
                buffer.arrive(frames, labels)
                yield Batch(frames, labels, samples, part.start - begin, stop - begin)
                filler.free.put(buffer)
        finally:
            filler.stop()
            if self._filler is filler:
                self._filler = None

    def _start_filling(self, clips: Clips, parts: list[slice]) -> Filler:
        """Raises `RuntimeError` where the stream has been closed meanwhile."""

        def fill(buffer: Buffer, number: int) -> Filled:
            samples = clips.sample[parts[number]]
            self._gatherer.fill(buffer.rows, samples, clips.start[parts[number]])
            labels = torch.from_numpy(self.index.label[samples])
            return buffer.send(labels), torch.from_numpy(samples), buffer

        interrupt = self._source.interrupt if self._source else lambda: None
        with self._starting:
            self._check_free()
            if self._source is not None and parts:
                self._source.fetch(self._shards_in_order(clips, parts))
            self._filler = Filler(fill, range(len(parts)), self._buffers, interrupt)
            return self._filler

    def _next(self, filler: Filler) -> Filled | None:
        began = time.perf_counter()
        if filler.ready.empty():
            self._gatherer.help()
        got = filler.ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(got, BaseException):
            raise got
        return got

    def _shards_in_order(self, clips: Clips, parts: list[slice]) -> list[int]:
        """The shards that this rank needs, in the order of its first clip from each."""
        wanted = self.index.shard[np.concatenate([clips.sample[part] for part in parts])]
        shards, first = np.unique(wanted, return_index=True)
        return [int(shard) for shard in shards[np.argsort(first)]]

    def close(self) -> None:
        """Stop all threads, let go of all shards and buffers. An iterator that is still held ends.

        Not for a signal handler, which may have interrupted a copy that this waits for: let it raise instead.
        """
        with self._starting:
            self._closed = True
            filler, self._filler = self._filler, None
        if filler is not None:
            filler.stop()
        if self._source is not None:
            self._source.close()
        self._gatherer.close()
        self._buffers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
