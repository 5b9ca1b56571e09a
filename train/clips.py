"""Which clip comes next: pure functions of (index, seed, epoch). No file, no device.

A clip is T frames of one sample at the stored rate. Order, starts and batches are the same on any machine and for
any number of ranks, so a stopped epoch goes on from an integer: how many of its clips are done.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
KINDS = ("window", "uniform")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a sample make a clip.

    `window`: `frames` of them, `stride` apart, from a start that is drawn; `uniform`: `frames` of them, spread
    evenly from the sample's first to its last. A sample too short for its window is sampled uniformly.
    Raises `ValueError` for values that make no sense.
    """

    frames: int
    kind: str = "window"
    stride: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no sampling is called {self.kind!r}; there are {', '.join(KINDS)}")
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"a clip of {self.frames} frames with stride {self.stride}; both are 1 or more")
        if self.kind == "uniform" and self.stride != 1:
            raise ValueError("uniform sampling has no stride: the length of the sample gives it")

    @cached_property
    def span(self) -> int:
        """How many frames a window reaches over."""
        return (self.frames - 1) * self.stride + 1

    def latest(self, lengths: Ints) -> Ints:
        """The last possible start in samples of these lengths."""
        return np.maximum(lengths - self.span, 0) if self.kind == "window" else np.zeros_like(lengths)


@dataclass(frozen=True)
class Clips:
    """Clips in order: number i is cut from sample `sample[i]`, from frame `start[i]` on."""

    sample: Ints
    start: Ints

    def __len__(self) -> int:
        return len(self.sample)


def as_sampling(clip: Sampling | int) -> Sampling:
    """A number of frames stands for a window of so many consecutive ones."""
    return clip if isinstance(clip, Sampling) else Sampling(clip)


def training_clips(
    frames: Ints,
    clip: Sampling | int,
    seed: int,
    epoch: int,
    *,
    weights: Floats | None = None,
    repeats: int = 1,
    arrival: Ints | None = None,
    window: int = 1,
) -> Clips:
    """One clip of every sample, in a true permutation over all of them, each from a random start.

    `frames` [n]: the length of each sample. Draws depend on seed and epoch alone.

    `weights` [n]: instead of each sample once, n draws with replacement, as often as the weights say.
    `repeats`: so many clips of each sample, one after the other, each from a start of its own (repeated
    augmentation, Hoffer et al., arXiv:1901.09335).
    `arrival` [n]: the place of each sample's shard in the order in which shards come to this machine. The order
    is then shuffled over a moving window: a clip of shard k comes after all of those up to shard k - `window`.
    """
    rng = np.random.default_rng([seed, epoch])
    count = len(frames)
    order = rng.permutation(count) if weights is None else rng.choice(count, count, p=weights / weights.sum())
    if arrival is not None:
        order = order[np.argsort(_moments(arrival[order], window, rng), kind="stable")]
    latest = as_sampling(clip).latest(frames)
    if weights is None and repeats == 1:
        start = (rng.random(count) * (latest + 1)).astype(np.int64)
        return Clips(order, start[order])
    order = np.repeat(order, repeats)
    return Clips(order, (rng.random(len(order)) * (latest[order] + 1)).astype(np.int64))


def _moments(arrival: Ints, window: int, rng: np.random.Generator) -> Floats:
    """When a clip is due, in shards: a clip of shard i between i - window + 1 and i + 1, and not before 0."""
    earliest = np.maximum(arrival - window + 1, 0)
    return earliest + rng.random(len(arrival)) * (arrival + 1 - earliest)


def balanced_weights(label: Ints) -> Floats:
    """Weights [n] with which every class is drawn equally often."""
    counts = np.bincount(label)
    return 1.0 / counts[label]


def checked_weights(weights: Floats | str | None, label: Ints) -> Floats | None:
    """The weights [n] with which samples of these labels [n] are drawn; "balanced": those that make classes equal.

    Raises `ValueError` for what are no weights.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights != "balanced":
            raise ValueError(f'weights {weights!r}: must be "balanced", or an array')
        return balanced_weights(label)
    found = np.asarray(weights, np.float64)
    if found.shape != label.shape:
        raise ValueError(f"weights of shape {found.shape} for {len(label)} samples: each needs one")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("weights must be finite, none of them below 0, and one above it")
    return found


def evaluation_clips(frames: Ints, clip: Sampling | int, clips: int) -> Clips:
    """Up to `clips` clips of every sample, evenly spaced from its first frame to its last; one: the middle.

    A sample with fewer different starts than that gives each of them once; uniform sampling knows only one.
    """
    latest = as_sampling(clip).latest(frames)
    places = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])
    starts = np.rint(latest[:, None] * places).astype(np.int64)  # [n, clips]
    fresh = np.ones_like(starts, dtype=bool)
    fresh[:, 1:] = starts[:, 1:] != starts[:, :-1]
    sample = np.repeat(np.arange(len(frames)), fresh.sum(1))
    return Clips(sample, starts[fresh])


def clip_frames(length: int, clip: Sampling | int, start: int) -> slice | Ints:
    """The frames of one clip: a slice of a sample that is long enough, else frames spread evenly over it.

    The course's `uniform_sample`: 16 of 10 frames are 0 1 1 2 2 3 4 4 5 5 6 7 7 8 8 9.
    """
    sampling = as_sampling(clip)
    if sampling.kind == "window" and length >= (span := sampling.span):
        return slice(start, start + span, sampling.stride)
    return np.rint(np.linspace(0, length - 1, sampling.frames)).astype(np.int64)


def batch_bounds(
    clips: int, batch_size: int, begin: int = 0, *, repeats: int = 1, drop_last: bool = False
) -> list[int]:
    """Where the global batches of an epoch of `clips` clips start, from clip `begin` on, and where the last ends.

    All have `batch_size` clips, but where that does not divide them, the last two share what is left evenly (in
    multiples of `repeats`), so that no rank is ever left with nothing; `drop_last` leaves it out instead.
    The same bounds come out from whichever of them one begins.
    """
    if batch_size < 1 or repeats < 1 or batch_size % repeats:
        raise ValueError(f"batch_size {batch_size} is not a multiple of {repeats} repeats")
    left = clips - begin
    whole = left // batch_size
    if drop_last:
        return [begin + batch_size * number for number in range(whole + 1)]
    if left % batch_size and whole:
        whole -= 1
    bounds = [begin + batch_size * number for number in range(whole + 1)]
    rest = clips - bounds[-1]
    if rest > batch_size:
        bounds.append(bounds[-1] + -(-rest // (2 * repeats)) * repeats)
    if rest:
        bounds.append(clips)
    return bounds


def rank_part(begin: int, stop: int, rank: int, ranks: int, unit: int = 1) -> slice:
    """The rank's part of the global batch from clip `begin` to `stop`: parts differ by one clip at most.

    `unit`: so many neighbours that are not parted, from the first on; parts then differ by as many at most.
    """
    units = -(-(stop - begin) // unit)
    first, after = (units * number // ranks * unit for number in (rank, rank + 1))
    return slice(begin + first, min(begin + after, stop))
