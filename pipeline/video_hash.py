"""Hashes of short pieces of video in space and time, and the search for pieces that look and move alike. Pure.

A frame is reduced as in pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
2010): grey, small, low frequencies of its DCT, without the first, which is brightness. A window of 1.2 s is
hashed by the signs of a DCT over time of these numbers, as in B. Coskun, B. Sankur and N. Memon,
"Spatio-Temporal Transform Based Video Hashing", IEEE Trans. Multimedia 8(6), 2006. Time's constant term, the still
picture, is kept apart from its slowest changes, the motion: clips of one fixed camera share the first and not
the second. Windows start at every frame, so a trimmed copy has windows in common with its source; slow changes
hardly mind that its frames fall between those of the source.

Candidates are windows that agree in all of a few signs (locality-sensitive hashing: P. Indyk and R. Motwani,
"Approximate Nearest Neighbors", STOC 1998); what they propose is then measured frame by frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.report import Stage, no_stage

Coefficients = NDArray[np.float32]  # [frames, 63]: one row a frame
Numbers = NDArray[np.int64]

RATE = 5.0  # frames a second are compared, of sets that hold more
WINDOW_SECONDS = 1.2
SMALL = 16  # pixels: the side of the picture that is transformed
KEPT = 8  # frequencies in each direction
SLOW = 3  # frequencies in time
MOTION_BITS = 21 * SLOW  # signs that fit a 64-bit code
TABLES = 12
KEY_PICTURE, KEY_MOTION = 10, 10  # signs in which candidates agree, drawn from …
LOW_PICTURE, LOW_MOTION = 30, 24  # … so many of the lowest frequencies, which copies hardly change
MOTION_LIMIT = 22  # of the 63 signs of motion may differ; unrelated windows differ in 31
CHUNK = 1 << 20  # pairs looked at in one go
STILL = 0.25  # grey levels: a window that moves less shows little but compression
BITS_SET = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _dct(size: int, kept: int) -> NDArray[np.float32]:
    """[kept, size]: the first rows of the orthonormal DCT-II."""
    angle = np.pi / size * np.outer(np.arange(kept), np.arange(size) + 0.5)
    rows = np.cos(angle) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


def _basis() -> NDArray[np.float32]:
    """[SMALL · SMALL, 63]: pixels to frequencies, the lowest first, without the constant."""
    one = _dct(SMALL, KEPT)
    order = np.argsort(np.add.outer(np.arange(KEPT), np.arange(KEPT)).ravel(), kind="stable")
    return np.ascontiguousarray(np.kron(one, one)[order[1:]].T)


BASIS = _basis()


def coefficients(frames: NDArray[np.uint8]) -> Coefficients:
    """uint8 RGB [N, H, W, 3] to [N, 63]: low frequencies of each frame's grey picture."""
    small = np.empty((len(frames), SMALL, SMALL), np.float32)
    for at, frame in enumerate(frames):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        small[at] = cv2.resize(grey, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    return np.asarray(small.reshape(len(frames), SMALL * SMALL) @ BASIS, np.float32)


def frame_step(fps: Fraction) -> int:
    """Every how many stored frames are compared."""
    return max(1, round(float(fps) / RATE))


def window_frames(fps: Fraction) -> int:
    """How many compared frames make a window."""
    return max(SLOW + 1, round(WINDOW_SECONDS * float(fps) / frame_step(fps)))


def rms(changes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square in grey levels, over the last two axes (frames, frequencies), of `changes`."""
    total = np.square(changes).sum((-2, -1)) / (changes.shape[-2] * SMALL * SMALL)
    return np.asarray(np.sqrt(total), np.float32)


@dataclass(frozen=True)
class Windows:
    """The moving windows of all videos: number i is the same window in each array.

    video [n], start [n] (its first frame), motion [n] (uint64, 63 signs), low [n, LOW_PICTURE + LOW_MOTION] (the
    signs from which keys are drawn).
    """

    video: NDArray[np.int32]
    start: NDArray[np.int32]
    motion: NDArray[np.uint64]
    low: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.video)


def hash_windows(videos: Sequence[Coefficients], length: int) -> Windows:
    """The windows of `length` frames of all videos, at every start, that show motion."""
    parts = [_of_one(number, video, length) for number, video in enumerate(videos) if len(video) >= length]
    parts = parts or [_of_one(0, np.zeros((length, BASIS.shape[1]), np.float32), length)]
    columns = zip(*((part.video, part.start, part.motion, part.low) for part in parts), strict=True)
    return Windows(*(np.concatenate(column) for column in columns))


def _of_one(number: int, video: Coefficients, length: int) -> Windows:
    over_time = _dct(length, SLOW + 1)
    pieces = np.lib.stride_tricks.sliding_window_view(video, length, axis=0)  # [n, 63, length]
    spectrum = pieces @ over_time.T  # [n, 63, 1 + SLOW]
    moves = rms((pieces - pieces.mean(-1, keepdims=True)).swapaxes(1, 2)) >= STILL
    picture, motion = spectrum[moves, :, 0] > 0, spectrum[moves, :, 1:] > 0
    signs = motion[:, : MOTION_BITS // SLOW].reshape(-1, MOTION_BITS)
    codes = np.packbits(np.pad(signs, ((0, 0), (0, 64 - MOTION_BITS))), axis=1).view(np.uint64)[:, 0]
    slowest = motion[:, : LOW_MOTION // 2, :2].reshape(-1, LOW_MOTION)
    start = np.flatnonzero(moves).astype(np.int32)
    low = np.concatenate([picture[:, :LOW_PICTURE], slowest], axis=1)
    return Windows(np.full(len(start), number, np.int32), start, codes, low)


def candidates(windows: Windows, stage: Stage = no_stage) -> Iterator[tuple[int, int, int]]:
    """Pairs of videos that may share a piece: (a, b, shift), a < b, each pair once.

    Frame i of `a` is frame i - shift of `b`, judged by their most similar windows. Memory: some 24 bytes a
    window and a candidate.
    """
    videos = len(np.unique(windows.video))
    step = stage("comparing", videos)
    draw = np.random.default_rng(0)
    best = np.empty((0, 4), np.int64)  # a, b, shift, signs that differ
    for table in range(TABLES):
        picture = draw.choice(LOW_PICTURE, KEY_PICTURE, replace=False)
        motion = LOW_PICTURE + draw.choice(LOW_MOTION, KEY_MOTION, replace=False)
        keys = windows.low[:, np.concatenate([picture, motion])] @ (1 << np.arange(KEY_PICTURE + KEY_MOTION))
        for first, second in _same_key(keys):
            best = _closest(np.concatenate([best, _similar(windows, first, second)]))
        step((table + 1) * videos // TABLES - table * videos // TABLES)
    for a, b, shift, _ in best.tolist():
        yield a, b, shift


def _same_key(keys: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """All pairs of places with equal keys, about CHUNK at a time."""
    order = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[order], keys[order], side="right")
    partners = ends - np.arange(len(keys)) - 1  # that follow in the same bucket
    total = np.cumsum(partners)
    at = 0
    while at < len(keys):
        done = total[at - 1] if at else 0
        until = max(at + 1, int(np.searchsorted(total, done + CHUNK, side="right")))
        count = partners[at:until]
        first = np.repeat(np.arange(at, until), count)
        within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        if len(first):
            yield order[first], order[first + 1 + within]
        at = until


def _similar(windows: Windows, first: Numbers, second: Numbers) -> Numbers:
    """[n, 4] (a, b, shift, signs that differ) of those pairs of windows that are of two videos and move alike."""
    two = windows.video[first] != windows.video[second]
    first, second = first[two], second[two]
    differ = BITS_SET[(windows.motion[first] ^ windows.motion[second]).view(np.uint16).reshape(-1, 4)].sum(1)
    near = differ <= MOTION_LIMIT
    first, second, differ = first[near], second[near], differ[near]
    swap = windows.video[first] > windows.video[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    shift = windows.start[first] - windows.start[second]
    return np.stack([windows.video[first], windows.video[second], shift, differ], axis=1).astype(np.int64)


def _closest(found: Numbers) -> Numbers:
    """For each pair of videos the row whose signs differ least."""
    found = found[np.lexsort((found[:, 3], found[:, 1], found[:, 0]))]
    new = np.ones(len(found), bool)
    new[1:] = (found[1:, :2] != found[:-1, :2]).any(1)
    return found[new]


def distance(a: Coefficients, b: Coefficients, shift: int, at_least: int) -> float:
    """How unlike two videos are where they overlap, `b` moved by `shift` frames: 0 (a copy) to 2.

    1 minus a correlation: that of the mean pictures or that of the changes against them, whichever is lower.
    An overlap of fewer than `at_least` frames proves nothing: 2.
    """
    begin_a, begin_b = max(shift, 0), max(-shift, 0)
    length = min(len(a) - begin_a, len(b) - begin_b)
    if length < at_least:
        return 2.0
    piece_a, piece_b = a[begin_a : begin_a + length], b[begin_b : begin_b + length]
    mean_a, mean_b = piece_a.mean(0), piece_b.mean(0)
    motion = _correlation(piece_a - mean_a, piece_b - mean_b)
    return 1 - min(_correlation(mean_a, mean_b), motion)


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.vdot(one, other)) / norms if norms else 0.0
