"""The loader: right frames, right order, nothing left behind."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.shards import get_format
from pipeline.shards.index import read_set
from train.clips import Clips, clip_frames, training_clips
from train.stream import BUFFERS, ClipStream

SIZE = 16


def stream_of(root: Path, batch_size: int = 5) -> ClipStream:
    return ClipStream(read_set(root).split("train"), frames_per_clip=SIZE, batch_size=batch_size)


def everything(stream: ClipStream, clips: Clips, first: int = 0) -> list[tuple[bytes, list[int], list[int]]]:
    return [
        (batch.frames.numpy().tobytes(), batch.labels.tolist(), batch.samples.tolist())
        for batch in stream.batches(clips, first)
    ]


def test_batches_hold_the_frames_and_labels_of_their_clips(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        index = stream.index
        clips = training_clips(index.frames, SIZE, seed=1, epoch=0)
        seen: list[int] = []
        for batch in stream.batches(clips):
            for row, label, sample in zip(batch.frames, batch.labels, batch.samples.tolist(), strict=True):
                entry = index.samples[sample]
                with get_format("webdataset").open(index.shards[index.shard[sample]], index.recipe) as reader:
                    frames = reader.frames(entry)
                chosen = clip_frames(entry.frames, SIZE, int(clips.start[len(seen)]))
                assert np.array_equal(row.numpy(), frames[chosen])
                assert index.labels[int(label)] == entry.label
                seen.append(sample)
    assert sorted(seen) == list(range(len(index)))


def test_going_on_from_a_batch_equals_never_having_stopped(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        whole = everything(stream, clips)
        assert everything(stream, clips, first=2) == whole[2:]


def test_the_last_batch_may_be_smaller(small_set: Path) -> None:
    with stream_of(small_set, batch_size=7) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        assert [len(labels) for _, labels, _ in everything(stream, clips)] == [7, 5, 4]


def test_buffers_are_reused(small_set: Path) -> None:
    with stream_of(small_set, batch_size=2) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        places = {batch.frames.data_ptr() for batch in stream.batches(clips)}
    assert len(places) <= BUFFERS


def test_stopping_early_leaves_no_thread_and_the_stream_usable(small_set: Path) -> None:
    before = threading.active_count()
    with stream_of(small_set, batch_size=2) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        batches = stream.batches(clips)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
        assert len(everything(stream, clips)) == 8


def test_closing_in_the_middle_ends_the_iterator_and_the_thread(small_set: Path) -> None:
    before = threading.active_count()
    stream = stream_of(small_set, batch_size=1)
    batches = stream.batches(training_clips(stream.index.frames, SIZE, 0, 0))
    next(batches)
    stream.close()
    assert threading.active_count() == before
    assert len(list(batches)) <= BUFFERS


def test_a_second_epoch_at_the_same_time_is_refused(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        batches = stream.batches(clips)
        next(batches)
        with pytest.raises(RuntimeError, match="in the middle of an epoch"):
            next(stream.batches(clips))


def test_nothing_outlives_close(small_set: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with stream_of(small_set) as stream:
        everything(stream, training_clips(stream.index.frames, SIZE, 0, 0))
    assert len(os.listdir("/proc/self/fd")) == before


def test_few_open_shards_give_the_same_batches(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        expected = everything(stream, clips)
    monkeypatch.setattr("train.gather.OPEN_SHARDS", 1)
    with stream_of(small_set) as stream:
        assert everything(stream, clips) == expected


def test_a_damaged_shard_ends_the_epoch_with_its_name(set_copy: Path) -> None:
    with stream_of(set_copy) as stream:
        shard = stream.index.shards[0]
        os.truncate(shard, 1_000)
        with pytest.raises(UserError, match=shard.name):
            everything(stream, training_clips(stream.index.frames, SIZE, 0, 0))
