"""Frames against the checksums that their sidecar has of them: each chunk once, when it is first used.

The SHA-256 of a shard would have to be read whole before its first clip; the CRC-32C of a chunk costs a fraction
of reading it. After the first epoch there is nothing left to check.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.shards import ShardReader
from pipeline.shards.layout import DIGITS
from pipeline.shards.sidecar import Sample, crc32c


def check_sample(reader: ShardReader, sample: Sample) -> None:
    """Compare all stored chunks of a sample with their checksums, if it has any. Raises `UserError`."""
    for number in range(len(sample.crc32c) // DIGITS):
        _check(reader, sample, number)


def checksum(sample: Sample, number: int) -> str:
    """Of the sample's stored chunk `number`."""
    return sample.crc32c[DIGITS * number : DIGITS * (number + 1)]


def _check(reader: ShardReader, sample: Sample, number: int) -> None:
    if crc32c(reader.stored(sample, number)) != checksum(sample, number):
        raise UserError(
            f"{reader}: the frames of {sample.key} are damaged (CRC-32C of chunk {number}); `prep verify` names "
            "all that is, and --repair makes it anew"
        )


class FirstUse:
    """Which chunks of the samples of an index were compared already, by this process.

    `frames` [n]: of each sample; `chunk`: frames in a stored chunk. Safe to use from several threads at once.
    `done` [n]: 1 where nothing of a sample is left to compare; whoever looks there first saves the call.
    """

    def __init__(self, frames: NDArray[np.int64], chunk: int) -> None:
        self._chunk = chunk
        room = frames // chunk + 2  # chunks that a sample may touch, wherever in one it starts
        self._begin = np.concatenate([[0], np.cumsum(room)])
        self._seen = bytearray(int(self._begin[-1]))
        self.done = bytearray(len(frames))

    def check(self, reader: ShardReader, place: int, sample: Sample, chosen: slice | NDArray[np.int64]) -> None:
        """Compare the chunks of the `chosen` frames of `sample`, number `place` of the index, that were not yet.

        Raises `UserError` where one is damaged. A sample of an old set, without checksums, passes.
        """
        if not sample.crc32c:
            self.done[place] = 1
            return
        skipped, begin = reader.skipped(sample), int(self._begin[place])
        numbers: Iterable[int]
        if isinstance(chosen, slice):
            first, last = (chosen.start + skipped) // self._chunk, (chosen.stop - 1 + skipped) // self._chunk
            if self._seen.find(0, begin + first, begin + last + 1) < 0:
                return
            numbers = range(first, last + 1)
        else:
            numbers = np.unique((chosen + skipped) // self._chunk).tolist()
        for number in numbers:
            if not self._seen[begin + number]:
                _check(reader, sample, number)
                self._seen[begin + number] = 1
        if self._seen.find(0, begin, begin + len(sample.crc32c) // DIGITS) < 0:
            self.done[place] = 1
