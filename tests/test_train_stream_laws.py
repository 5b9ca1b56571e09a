"""The laws of the loader, by its own batches: no clip lost, none twice, whoever reads and wherever one stops."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import LateShards

from pipeline.shards.index import SplitIndex, read_set
from train.clips import batch_bounds
from train.stream import Batch, ClipStream

Clip = tuple[int, int, int]  # sample, label, checksum of the frames


@dataclass(frozen=True)
class Reading:
    """What is read, but for who reads it."""

    clips: int
    epoch: int
    windowed: bool
    options: dict[str, Any]

    @property
    def bounds(self) -> list[int]:
        size, repeats = self.options["batch_size"], self.options["repeats"]
        return batch_bounds(self.clips * repeats, size, repeats=repeats, drop_last=self.options["drop_last"])

    @property
    def most_ranks(self) -> int:
        smallest = min([stop - begin for begin, stop in pairwise(self.bounds)], default=1)
        return int(np.ceil(smallest / self.options["unit"]))


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    repeats, clips = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    weights = draw(st.sampled_from([None, "balanced", "array"]))
    options = {
        "repeats": repeats, "batch_size": repeats * draw(st.integers(1, 7)), "drop_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)), "unit": draw(st.integers(1, 2)),
        "frames_per_clip": draw(st.integers(1, 5)),
        "weights": np.arange(1.0, clips + 1) if weights == "array" else weights,
    }  # fmt: skip
    return Reading(clips, draw(st.integers(0, 1)), draw(st.booleans()), options)


def read(
    index: SplitIndex, reading: Reading, ranks: int, far: bool, state: dict[str, int] | None, most: int | None
) -> tuple[list[list[Clip]], dict[str, int]]:
    """The global batches, put together from those of all ranks, and the state after `most` of them."""
    parts = []
    for rank in range(ranks):
        shards = LateShards(index) if far else None
        with ClipStream(index, rank=rank, ranks=ranks, shards=shards, **reading.options) as stream:
            if state is not None:
                stream.load_state_dict(state)
            parts.append([clips_of(batch) for batch in islice(stream.epoch(reading.epoch), most)])
            found = stream.state_dict()
    return [list(chain.from_iterable(batch)) for batch in zip(*parts, strict=True)], found


def clips_of(batch: Batch) -> list[Clip]:
    sums = [crc32(clip.numpy().tobytes()) for clip in batch.frames]
    return list(zip(batch.samples.tolist(), batch.labels.tolist(), sums, strict=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(readings(), st.data())
def test_no_clip_is_lost_or_twice_whatever_the_ranks_and_wherever_one_stops(
    many: Path, reading: Reading, data: st.DataObject
) -> None:
    whole = read_set(many).split("train")
    index = whole.select(np.arange(len(whole)) < reading.clips)
    alone, _ = read(index, reading, 1, reading.windowed, None, None)
    assert [len(batch) for batch in alone] == [stop - begin for begin, stop in pairwise(reading.bounds)]
    if reading.options["weights"] is None and not reading.options["drop_last"]:
        times = Counter(sample for batch in alone for sample, *_ in batch)
        assert times == dict.fromkeys(range(reading.clips), reading.options["repeats"])

    ranks = st.integers(1, min(4, reading.most_ranks))
    stop = data.draw(st.integers(0, len(alone)))
    first, state = read(index, reading, data.draw(ranks), reading.windowed, None, stop)
    if stop == 0:  # nothing was asked for: the stream does not know its epoch
        state |= {"epoch": reading.epoch}
    ended = state["epoch"] > reading.epoch or stop == len(alone)
    rest = [] if ended else read(index, reading, data.draw(ranks), data.draw(st.booleans()), state, None)[0]
    assert first + rest == alone
