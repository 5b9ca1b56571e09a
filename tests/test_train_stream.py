"""The loader: right frames, right order, nothing left behind."""

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from streams import SIZE, LateShards, contents, held, resident_bytes, stream_of

from pipeline.errors import UserError
from pipeline.shards import get_format
from pipeline.shards.index import SplitIndex, read_set
from train.clips import Clips, Sampling, clip_frames, training_clips
from train.folds import split_fold
from train.gather import Gatherer
from train.stream import BUFFERS, ClipStream


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


def slow(monkeypatch: pytest.MonkeyPatch, also: Callable[[], None]) -> None:
    """Copying a clip takes a while, and does something more."""
    copy = Gatherer._copy

    def slowly(self: Gatherer, *job: Any) -> None:
        also()
        time.sleep(0.005)
        copy(self, *job)

    monkeypatch.setattr(Gatherer, "_copy", slowly)


def test_who_waits_for_a_batch_helps_to_fill_it(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        alone = everything(stream, clips)
    busy = set[str]()
    slow(monkeypatch, lambda: busy.add(threading.current_thread().name))
    with stream_of(small_set) as stream:
        assert everything(stream, clips) == alone
    assert busy == {"clip-stream", threading.current_thread().name}


def test_what_goes_wrong_in_helping_ends_the_epoch(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {threading.current_thread()}

    def fail() -> None:
        if threading.current_thread() in failing:
            raise UserError("damaged")

    slow(monkeypatch, fail)
    with stream_of(small_set) as stream:
        with pytest.raises(UserError, match="damaged"):
            list(stream.epoch(0))
        failing.clear()
        assert list(stream.epoch(0))  # the stream lives on


def test_going_on_from_a_batch_equals_never_having_stopped(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        whole = everything(stream, clips)
        assert everything(stream, clips, first=2) == whole[2:]


def test_the_last_two_batches_share_what_is_left(small_set: Path) -> None:
    with stream_of(small_set, batch_size=7) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        assert [len(labels) for _, labels, _ in everything(stream, clips)] == [7, 5, 4]


def test_buffers_are_reused(small_set: Path) -> None:
    with stream_of(small_set, batch_size=2) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        places = {batch.frames.data_ptr() for batch in stream.batches(clips)}
    assert len(places) <= BUFFERS


def test_stopping_early_ends_the_filling_and_leaves_the_stream_usable(small_set: Path) -> None:
    before = threading.active_count()
    with stream_of(small_set, batch_size=2) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        batches = stream.batches(clips)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert "clip-stream" not in {thread.name for thread in threading.enumerate()}
        assert len(everything(stream, clips)) == 8
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("frames", "batch_size", "side"), [(SIZE, 10**9, 48), (10**9, 2, 48), (SIZE, 10**4, 4096), (1, 10**15, 1)]
)
def test_batches_that_no_memory_holds_are_refused_before_it_is_asked_for(
    small_set: Path, frames: int, batch_size: int, side: int
) -> None:
    index = read_set(small_set).split("train")
    index.recipe = replace(index.recipe, width=side, height=side)
    with pytest.raises(UserError, match=rf"{frames} frames of {side}×{side}.* GB of memory, and this machine has"):
        ClipStream(index, frames_per_clip=frames, batch_size=batch_size)


@pytest.mark.parametrize("damaged", [0, -1])
def test_damage_reaches_the_caller_whichever_thread_finds_it(small_set: Path, damaged: int) -> None:
    index = read_set(small_set).split("train")
    index.samples[damaged] = msgspec.structs.replace(index.samples[damaged], crc32c="00000000")
    with (
        ClipStream(index, frames_per_clip=SIZE, batch_size=len(index), threads=3) as stream,
        pytest.raises(UserError, match=f"frames of {index.samples[damaged].key} are damaged"),
    ):
        list(stream.epoch(0))


def test_closing_in_the_middle_ends_the_iterator_and_the_thread(small_set: Path) -> None:
    before = threading.active_count()
    stream = stream_of(small_set, batch_size=1)
    batches = stream.batches(training_clips(stream.index.frames, SIZE, 0, 0))
    next(batches)
    stream.close()
    assert threading.active_count() == before
    assert len(list(batches)) <= BUFFERS


def test_closing_while_an_epoch_begins_ends_it(small_set: Path) -> None:
    index = read_set(small_set).split("train")
    stream: ClipStream

    class ClosedMeanwhile(LateShards):
        def fetch(self, order: Sequence[int]) -> None:
            super().fetch(order)
            closing.start()
            closing.join(0.05)  # it waits until the epoch has begun

    stream = ClipStream(index, frames_per_clip=SIZE, batch_size=5, shards=ClosedMeanwhile(index))
    closing = threading.Thread(target=stream.close)
    assert len(list(stream.epoch(0))) <= BUFFERS
    closing.join()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream.epoch(1))


def test_a_thread_that_cannot_start_ends_the_epoch_and_spoils_no_other(
    small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with ClipStream(read_set(small_set).split("train"), frames_per_clip=SIZE, batch_size=5, threads=2) as stream:
        whole = [samples for samples, _ in contents(stream, 1)]
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", fail)
            with pytest.raises(RuntimeError, match="new thread"):
                list(stream.epoch(0))
        assert not list(stream._gatherer._left)
        assert [samples for samples, _ in contents(stream, 1)] == whole


def test_a_second_epoch_at_the_same_time_is_refused(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        clips = training_clips(stream.index.frames, SIZE, 0, 0)
        batches = stream.batches(clips)
        next(batches)
        with pytest.raises(RuntimeError, match="in the middle of an epoch"):
            next(stream.batches(clips))


def test_a_refused_second_epoch_does_not_change_the_place(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        batches = stream.epoch(0)
        next(batches)
        with pytest.raises(RuntimeError, match="in the middle of an epoch"):
            next(stream.epoch(1))
        assert stream.state_dict()["epoch"] == 0 and stream.state_dict()["clips"] == 5


def test_an_epoch_that_was_looked_into_begins_again_at_its_first_batch(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        first = next(stream.epoch(0)).samples.tolist()
        assert stream.state_dict()["clips"] == 5
        seen = [batch.samples.tolist() for batch in stream.epoch(0)]
    assert seen[0] == first and sorted(chain.from_iterable(seen)) == list(range(16))


def test_a_state_is_gone_on_from_once(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        whole = [samples for samples, _ in contents(stream, 0)]
        stream.load_state_dict({"seed": 0, "epoch": 0, "clips": 5})
        assert [samples for samples, _ in contents(stream, 0)] == whole[1:]
        assert [samples for samples, _ in contents(stream, 0)] == whole


def test_a_closed_stream_says_so(small_set: Path) -> None:
    stream = stream_of(small_set)
    stream.close()
    for batches in (stream.epoch(0), stream.batches(stream.clips(0))):
        with pytest.raises(RuntimeError, match="this stream is closed"):
            next(batches)
    stream.close()


def test_nothing_outlives_close(small_set: Path) -> None:
    gc.collect()  # what the errors of other tests hold
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


def expected_frames(index: SplitIndex, sampling: Sampling, sample: int, start: int) -> np.ndarray:
    entry = index.samples[sample]
    with get_format(index.recipe.format).open(index.shards[index.shard[sample]], index.recipe) as reader:
        return np.array(reader.frames(entry)[clip_frames(entry.frames, sampling, start)])


@pytest.mark.parametrize(("kind", "stride"), [("window", 1), ("window", 2), ("window", 3), ("uniform", 1)])
def test_every_format_codec_and_sampling_gives_the_frames_of_the_shard(
    coded_sets: dict[tuple[str, str], Path], kind: str, stride: int
) -> None:
    for place in coded_sets.values():
        with ClipStream.open(
            place, frames_per_clip=8, batch_size=3, sampling=kind, stride=stride, threads=2
        ) as stream:
            clips, seen = stream.clips(0), 0
            for batch in stream.epoch(0):
                for row, sample in zip(batch.frames.numpy(), batch.samples.tolist(), strict=True):
                    start = int(clips.start[seen])
                    assert np.array_equal(row, expected_frames(stream.index, stream.sampling, sample, start))
                    seen += 1
        assert seen == 8


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_stop_goes_on_at_the_very_next_batch_with_another_number_of_ranks(small_set: Path, repeats: int) -> None:
    options: dict[str, Any] = {"frames_per_clip": SIZE, "batch_size": 4, "seed": 7, "repeats": repeats}
    with ClipStream.open(small_set, **options) as stream:
        whole = [contents(stream, epoch) for epoch in range(2)]
    with ClipStream.open(small_set, **options) as stream:
        first = contents(stream, 0)
        batches = stream.epoch(1)
        next(batches)
        state = stream.state_dict()
        batches.close()  # type: ignore[attr-defined]
    assert state == {"seed": 7, "epoch": 1, "clips": 4, "windowed": False} and [s for s, _ in first] == [
        s for s, _ in whole[0]
    ]
    rest = []
    for rank in range(2):
        with ClipStream.open(small_set, rank=rank, ranks=2, **{**options, "seed": 0}) as stream:
            stream.load_state_dict(state)
            rest.append(contents(stream, state["epoch"]))
            assert stream.state_dict() == {**state, "epoch": 2, "clips": 0}
    for (samples, frames), *parts in zip(whole[1][1:], *rest, strict=True):
        assert samples == parts[0][0] + parts[1][0]
        assert torch.equal(frames, torch.cat([part for _, part in parts]))


@pytest.mark.parametrize(
    "change", [{"clips": 10_000}, {"clips": -1}, {"epoch": -1}, {"seed": -1}, {"epoch": "1"}, {"epoch": None}]
)
def test_what_is_no_state_of_the_stream_is_refused(small_set: Path, change: dict[str, Any]) -> None:
    with stream_of(small_set) as stream:
        state = {name: value for name, value in {**stream.state_dict(), **change}.items() if value is not None}
        with pytest.raises(ValueError, match="no state of this stream, whose epochs have 16 clips"):
            stream.load_state_dict(state)


def test_more_ranks_than_clips_of_a_batch_are_refused(small_set: Path) -> None:
    with pytest.raises(ValueError, match="each needs a clip"):
        ClipStream.open(small_set, frames_per_clip=SIZE, batch_size=4, ranks=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "ballanced"}, "'ballanced': must be \"balanced\""),
        ({"weights": np.ones(3)}, "for 16 samples"),
        ({"weights": np.zeros(16)}, "one above it"),
        ({"weights": np.full(16, np.nan)}, "must be finite"),
        ({"weights": -np.ones(16)}, "none of them below 0"),
        ({"repeats": 0}, "multiple of 0 repeats"),
    ],
)
def test_options_that_make_no_sense_are_refused(small_set: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipStream.open(small_set, frames_per_clip=SIZE, batch_size=4, **options)


def test_balanced_draws_and_folds_come_out_of_the_stream(small_set: Path) -> None:
    train, held_out = split_fold(read_set(small_set).split("train"), 0, 4)
    with ClipStream(train, frames_per_clip=SIZE, batch_size=4, weights="balanced") as stream:
        drawn = {train.samples[i].video for batch in stream.epoch(0) for i in batch.samples.tolist()}
    assert drawn <= set(train.videos)
    assert not {sample.group for sample in train.samples} & {sample.group for sample in held_out.samples}
    assert len(train) == 12 and len(held_out) == 4


def test_shards_stay_open_in_number_below_what_the_process_may_have(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held(many)[0]
    monkeypatch.setattr("train.gather._descriptors", lambda: 8)
    with stream_of(many, batch_size=16) as stream:
        assert len(np.unique(stream.index.shard)) > 4
        (batch,) = stream.epoch(0)
        assert sorted(batch.samples.tolist()) == list(range(16)) and held(many)[0] - before <= 2


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("format_name", ["webdataset", "zarr"])
def test_fifty_epochs_hold_no_more_than_one_and_nothing_outlives_close(
    coded_sets: dict[tuple[str, str], Path], format_name: str, codec: str
) -> None:
    root = coded_sets[format_name, codec]
    before = held(root)
    with ClipStream.open(root, frames_per_clip=8, batch_size=4) as stream:
        contents(stream, 0)
        after_one = held(root)
        resident = resident_bytes()
        for epoch in range(1, 50):
            for batch in stream.epoch(epoch):
                assert len(batch.labels) == 4
        assert held(root) == after_one
        assert resident_bytes() - resident < 8e6
    assert held(root) == before == (before[0], 0, [])


def test_to_float_gives_what_a_model_wants(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        batch = next(stream.epoch(0))
        clips = batch.to_float(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        assert clips.shape == (5, SIZE, 3, 48, 48)
        assert torch.allclose(clips, batch.frames.permute(0, 1, 4, 2, 3) / 255)
