"""Which clip comes next: pure functions of (index, seed, epoch). No file, no device.

A clip is T frames of one sample at the stored rate. Order and starts are the same on any machine, so a
stopped epoch goes on from an integer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """Clips in order: number i is `frames_per_clip` frames of sample `sample[i]`, from frame `start[i]` on."""

    sample: Ints
    start: Ints

    def __len__(self) -> int:
        return len(self.sample)


def training_clips(frames: Ints, frames_per_clip: int, seed: int, epoch: int) -> Clips:
    """One clip of every sample, in a true permutation over all of them, each from a random start.

    `frames` [n]: the length of each sample. Draws depend on seed, epoch and the sample alone.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(frames))
    latest = np.maximum(frames - frames_per_clip, 0)
    start = (rng.random(len(frames)) * (latest + 1)).astype(np.int64)
    return Clips(order, start[order])


def evaluation_clips(frames: Ints, frames_per_clip: int, clips: int) -> Clips:
    """Up to `clips` clips of every sample, evenly spaced from its first frame to its last; one: the middle.

    A sample with fewer different starts than that gives each of them once.
    """
    latest = np.maximum(frames - frames_per_clip, 0)
    places = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])
    starts = np.rint(latest[:, None] * places).astype(np.int64)  # [n, clips]
    fresh = np.ones_like(starts, dtype=bool)
    fresh[:, 1:] = starts[:, 1:] != starts[:, :-1]
    sample = np.repeat(np.arange(len(frames)), fresh.sum(1))
    return Clips(sample, starts[fresh])


def clip_frames(length: int, frames_per_clip: int, start: int) -> slice | Ints:
    """The frames of one clip: a slice of a sample that is long enough, else frames spread evenly over it.

    The course's `uniform_sample`: 16 of 10 frames are 0 1 1 2 2 3 4 4 5 5 6 7 7 8 8 9.
    """
    if length >= frames_per_clip:
        return slice(start, start + frames_per_clip)
    return np.rint(np.linspace(0, length - 1, frames_per_clip)).astype(np.int64)
