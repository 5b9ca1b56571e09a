"""The loader: right frames, right order, nothing left behind."""

import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import build, write_video
from far import serving
from torch import Tensor

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.cache import ShardCache
from pipeline.shards.index import SplitIndex, read_set
from train.clips import Clips, Sampling, clip_frames, training_clips
from train.folds import split_fold
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


@pytest.fixture(scope="session")
def coded_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The same 8 videos, of 7 to 28 frames, by format and codec."""
    root = tmp_path_factory.mktemp("coded")
    for number in range(8):
        label = ("cats", "dogs")[number % 2]
        write_video(root / "videos" / "train" / label / f"{number}.mp4", 42 + 18 * number, salt=number)
    kinds = [
        ("webdataset", "raw"),
        ("webdataset", "zstd"),
        ("webdataset", "jpeg"),
        ("zarr", "raw"),
        ("zarr", "zstd"),
    ]
    for name, codec in kinds:
        build(root / "videos", root / name / codec, recipe=Recipe(width=32, height=32, format=name, codec=codec))
    return {(name, codec): root / name / codec for name, codec in kinds}


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


def contents(stream: ClipStream, epoch: int) -> list[tuple[list[int], Tensor]]:
    return [(batch.samples.tolist(), batch.frames.clone()) for batch in stream.epoch(epoch)]


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


class LateShards:
    """Shards that arrive one by one, each only when the loader waits for it."""

    def __init__(self, index: SplitIndex) -> None:
        self.index, self.here, self.closed = index, list[int](), False
        self.interrupted = threading.Event()
        self.order: list[int] = []
        self.coming = len(index.shards)

    def fetch(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.interrupted.clear()

    def interrupt(self) -> None:
        self.interrupted.set()

    def path(self, shard: int) -> Path:
        if self.order.index(shard) >= self.coming:
            self.interrupted.wait()
            raise UserError(f"shard {shard} did not come")
        while shard not in self.here:
            self.here.append(self.order[len(self.here)])
        return self.index.shards[shard]

    def arrived(self) -> list[int]:
        return self.here

    def renew(self, _: int) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def test_training_starts_before_all_shards_are_there(small_set: Path) -> None:
    index, said = read_set(small_set).split("train"), list[str]()
    source = LateShards(index)
    with ClipStream(index, frames_per_clip=4, batch_size=1, shards=source, say=said.append) as stream:
        batches = stream.epoch(0)
        seen = next(batches).samples.tolist()
        assert len(source.here) < len(index.shards) > 2
        seen += [sample for batch in batches for sample in batch.samples.tolist()]
        assert (
            sorted(seen)
            == list(range(len(index)))
            == sorted(s for b in stream.epoch(1) for s in b.samples.tolist())
        )
    assert len(said) == 1 and "0 of 4 shards are here" in said[0]
    assert source.closed


def test_closing_wakes_a_loader_that_waits_for_a_shard(small_set: Path) -> None:
    index = read_set(small_set).split("train")
    source, before = LateShards(index), threading.active_count()
    stream = ClipStream(index, frames_per_clip=4, batch_size=1, shards=source)
    source.coming = 1
    batches = stream.epoch(0)
    seen = next(batches).samples.tolist()
    while len(seen) < (index.shard == source.order[0]).sum():
        seen += next(batches).samples.tolist()
    stream.close()
    assert threading.active_count() == before
    assert list(batches) == []
    assert stream.state_dict()["clips"] == len(seen)


def test_leaving_an_epoch_waits_for_no_shard_and_the_next_one_has_all(many: Path, tmp_path: Path) -> None:
    with (
        serving(many) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=1, cache=tmp_path) as stream,
    ):
        names = [path.name for path in stream.index.shards]
        first = names[stream.index.shard[stream.clips(0).sample[0]]]
        server.held = set(names) - {first}
        batches = stream.epoch(0)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert not server.release.is_set() and len(list(tmp_path.glob("*.tar"))) == 1
        server.release.set()
        assert sorted(s for batch in stream.epoch(0) for s in batch.samples.tolist()) == list(range(16))


@pytest.mark.parametrize("format_name", ["webdataset", "zarr"])
@pytest.mark.parametrize("wrong", ["flip", "cut", "gone"])
def test_a_shard_that_went_bad_in_the_cache_is_fetched_once_more(
    coded_sets: dict[tuple[str, str], Path], tmp_path: Path, format_name: str, wrong: str
) -> None:
    root = coded_sets[format_name, "raw"]
    with (
        serving(root) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=4, cache=tmp_path, threads=2) as stream,
    ):
        whole = contents(stream, 1)
    with (
        serving(root) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=4, cache=tmp_path, threads=2) as stream,
    ):
        files = [path for path in tmp_path.rglob("*") if path.name.endswith(".tar") or path.name == "c.0.0.0.0"]
        spoil(max(files, key=lambda path: path.stat().st_size), wrong)
        again = contents(stream, 1)
        assert sum("c.0.0" in name or ".tar" in name for name in server.counts) == 1
    for (samples, frames), (others, same) in zip(whole, again, strict=True):
        assert samples == others and torch.equal(frames, same)


def spoil(path: Path, wrong: str) -> None:
    data = bytearray(path.read_bytes())
    for place in range(2000, len(data), 3000):  # in every frame
        data[place] ^= 1
    path.unlink()
    if wrong != "gone":
        path.write_bytes(data if wrong == "flip" else data[:2000])


def test_damage_that_a_shard_came_with_is_told_with_its_url(many: Path, tmp_path: Path) -> None:
    with serving(many) as server:
        index = read_set(server.url).split("train")
        index.samples[0] = msgspec.structs.replace(index.samples[0], crc32c="00000000")
        source = ShardCache(index, index.sidecars, tmp_path)
        with (
            ClipStream(index, frames_per_clip=4, batch_size=4, shards=source) as stream,
            pytest.raises(
                UserError, match=rf"^{server.url}/{index.sidecars[index.shard[0]].shard}: the frames of"
            ),
        ):
            list(stream.epoch(0))


def test_shards_stay_open_in_number_below_what_the_process_may_have(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held(many)[0]
    monkeypatch.setattr("train.gather._descriptors", lambda: 8)
    with stream_of(many, batch_size=16) as stream:
        assert len(np.unique(stream.index.shard)) > 4
        (batch,) = stream.epoch(0)
        assert sorted(batch.samples.tolist()) == list(range(16)) and held(many)[0] - before <= 2


def held(root: Path) -> tuple[int, int, list[str]]:
    """Open files, maps of the set's files, and the loader's threads, of this process."""
    gc.collect()  # what the errors of other tests hold
    maps = Path("/proc/self/maps").read_text().count(str(root))
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("clip-")]
    return len(os.listdir("/proc/self/fd")), maps, threads


@pytest.mark.parametrize("far_first", [True, False])
def test_a_stop_in_the_first_epoch_goes_on_in_its_order_wherever_shards_lie_now(
    many: Path, far_first: bool
) -> None:
    index = read_set(many).split("train")

    def stream_from(far: bool) -> ClipStream:
        shards = LateShards(index) if far else None
        return ClipStream(index, frames_per_clip=4, batch_size=3, seed=5, shards=shards)

    with stream_from(far_first) as stream:
        assert stream.clips(0).sample.tolist() != stream_from(not far_first).clips(0).sample.tolist()
        batches = stream.epoch(0)
        seen = [next(batches).samples.tolist() for _ in range(2)]
        state = stream.state_dict()
    with stream_from(not far_first) as stream:
        stream.load_state_dict(state)
        seen += [samples for samples, _ in contents(stream, 0)]
        assert sorted(chain.from_iterable(seen)) == list(range(len(index)))


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_fifty_epochs_hold_no_more_than_one_and_nothing_outlives_close(
    coded_sets: dict[tuple[str, str], Path], codec: str
) -> None:
    root = coded_sets["webdataset", codec]
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


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_to_float_gives_what_a_model_wants(small_set: Path) -> None:
    with stream_of(small_set) as stream:
        batch = next(stream.epoch(0))
        clips = batch.to_float(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        assert clips.shape == (5, SIZE, 3, 48, 48)
        assert torch.allclose(clips, batch.frames.permute(0, 1, 4, 2, 3) / 255)
