"""The laws of order: each clip once, the same for everybody, inside its sample."""

from itertools import chain, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from train.clips import (
    Sampling,
    balanced_weights,
    batch_bounds,
    clip_frames,
    evaluation_clips,
    rank_part,
    training_clips,
)
from train.folds import folds_by_group

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)


@given(lengths, st.integers(0, 2**31), st.integers(0, 99), st.integers(1, 32))
def test_an_epoch_has_every_sample_once_and_is_a_function_of_seed_and_epoch(
    frames: np.ndarray,
    seed: int,
    epoch: int,
    size: int,
) -> None:
    clips, again = (training_clips(frames, size, seed, epoch) for _ in range(2))
    assert sorted(clips.sample) == list(range(len(frames)))
    assert (clips.sample == again.sample).all() and (clips.start == again.start).all()
    assert (clips.start >= 0).all()
    assert (clips.start <= np.maximum(frames[clips.sample] - size, 0)).all()


def test_epochs_and_seeds_differ() -> None:
    frames = np.full(100, 50)
    orders = {tuple(training_clips(frames, 16, seed, epoch).sample) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_starts_reach_from_the_first_to_the_last() -> None:
    starts = np.concatenate([training_clips(np.full(50, 20), 16, 0, epoch).start for epoch in range(20)])
    assert set(starts) == {0, 1, 2, 3, 4}


@given(lengths, st.integers(1, 32), st.integers(1, 9))
def test_evaluation_sees_every_sample_with_different_starts(frames: np.ndarray, size: int, clips: int) -> None:
    chosen = evaluation_clips(frames, size, clips)
    pairs = list(zip(chosen.sample.tolist(), chosen.start.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for sample, length in enumerate(frames.tolist()):
        starts = [start for at, start in pairs if at == sample]
        latest = max(length - size, 0)
        assert len(starts) == min(clips, latest + 1)
        if clips > 1:
            assert (starts[0], starts[-1]) == (0, latest)


@given(st.integers(1, 60), st.integers(1, 32), st.data())
def test_a_clip_is_consecutive_or_spread_over_a_short_sample(length: int, size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, max(length - size, 0)))
    frames = np.arange(length)[clip_frames(length, size, start)]
    assert len(frames) == size
    if length >= size:
        assert frames.tolist() == list(range(start, start + size))
    elif size > 1:
        assert (frames[0], frames[-1]) == (0, length - 1)
        assert set(frames) == set(range(length))


samplings = st.one_of(
    st.builds(Sampling, st.integers(1, 20), st.just("window"), st.integers(1, 5)),
    st.builds(Sampling, st.integers(1, 20), st.just("uniform")),
)


@given(st.integers(1, 80), samplings, st.integers(0, 99))
def test_every_kind_of_clip_lies_inside_its_sample_in_order(length: int, sampling: Sampling, seed: int) -> None:
    start = training_clips(np.array([length]), sampling, seed, 0).start[0]
    frames = np.arange(length)[clip_frames(length, sampling, int(start))]
    assert len(frames) == sampling.frames
    assert (np.diff(frames) >= 0).all()
    if sampling.kind == "window" and length >= sampling.span:
        assert (np.diff(frames) == sampling.stride).all()
    elif sampling.frames > 1:
        assert (frames[0], frames[-1]) == (0, length - 1)


@pytest.mark.parametrize(("kind", "frames", "stride"), [("window", 0, 1), ("uniform", 8, 2), ("middle", 8, 1)])
def test_sampling_that_makes_no_sense_is_refused(kind: str, frames: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"clip of 0|no stride|no sampling"):
        Sampling(frames, kind, stride)


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 4), st.booleans(), st.data())
def test_batches_cover_the_epoch_and_do_not_depend_on_where_one_begins(
    clips: int, groups: int, repeats: int, drop_last: bool, data: st.DataObject
) -> None:
    clips, size = clips * repeats, groups * repeats
    bounds = batch_bounds(clips, size, repeats=repeats, drop_last=drop_last)
    sizes = [stop - begin for begin, stop in pairwise(bounds)]
    assert bounds[0] == 0 and sum(sizes) == (clips - clips % size if drop_last else clips)
    assert sizes[:-2] == [size] * len(sizes[:-2]) and all(part % repeats == 0 for part in sizes)
    assert len(sizes) == (clips // size if drop_last else -(-clips // size))
    assert all(2 * part >= size - repeats for part in sizes) or len(sizes) == 1
    at = data.draw(st.integers(0, len(bounds) - 1))
    assert batch_bounds(clips, size, bounds[at], repeats=repeats, drop_last=drop_last) == bounds[at:]


@given(lengths, st.integers(0, 2**31), st.integers(0, 9), st.integers(1, 40), st.data())
def test_ranks_share_the_same_global_batches_and_a_stop_changes_nothing(
    frames: np.ndarray, seed: int, epoch: int, size: int, data: st.DataObject
) -> None:
    clips = training_clips(frames, 16, seed, epoch)
    bounds = batch_bounds(len(clips), size)
    before, after = (data.draw(st.integers(1, 9), label="ranks") for _ in range(2))
    stopped = data.draw(st.integers(0, len(bounds) - 1))
    again = batch_bounds(len(clips), size, bounds[stopped])
    seen: list[int] = []
    for ranks, part_of_epoch in ((before, bounds[: stopped + 1]), (after, again)):
        for begin, stop in pairwise(part_of_epoch):
            parts = [clips.sample[rank_part(begin, stop, rank, ranks)].tolist() for rank in range(ranks)]
            assert list(chain(*parts)) == clips.sample[begin:stop].tolist()
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            seen += chain(*parts)
    assert sorted(seen) == list(range(len(frames)))


@given(lengths, st.integers(1, 4), st.integers(0, 99))
def test_repeats_of_a_sample_follow_each_other(frames: np.ndarray, repeats: int, seed: int) -> None:
    clips = training_clips(frames, 16, seed, 0, repeats=repeats)
    together = clips.sample.reshape(-1, repeats)
    assert (together == together[:, :1]).all()
    assert sorted(together[:, 0]) == list(range(len(frames)))
    assert (clips.start <= np.maximum(frames[clips.sample] - 16, 0)).all()


def test_repeats_have_starts_of_their_own() -> None:
    starts = training_clips(np.full(50, 200), 16, 0, 0, repeats=2).start.reshape(-1, 2)
    assert (starts[:, 0] != starts[:, 1]).sum() > 40


def test_a_batch_that_would_cut_repeats_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 3"):
        batch_bounds(30, 10, repeats=3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(1, 12), st.integers(0, 99))
def test_an_order_over_arriving_shards_is_a_permutation_that_waits_for_few(
    arrivals: list[int], window: int, seed: int
) -> None:
    arrival = np.array(arrivals)
    clips = training_clips(np.full(len(arrival), 20), 16, seed, 0, arrival=arrival, window=window)
    assert sorted(clips.sample) == list(range(len(arrival)))
    given = arrival[clips.sample]
    for place, shard in enumerate(given.tolist()):
        assert (given[place:] > shard - window).all()  # all shards but the last of the window are done


def test_balanced_weights_draw_rare_classes_as_often() -> None:
    label = np.array([0] * 900 + [1] * 100)
    clips = training_clips(np.full(1000, 20), 16, 0, 0, weights=balanced_weights(label))
    assert len(clips) == 1000
    assert 430 < label[clips.sample].sum() < 570


grouped = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=40, max_size=200)


@given(grouped, st.integers(2, 5), st.randoms())
def test_folds_keep_groups_whole_whatever_the_order(
    samples: list[tuple[int, int]], folds: int, chance: Random
) -> None:
    pairs = samples + [(group, 0) for group in range(5)]
    found: dict[int, int] = {}
    for _ in range(2):
        fold = folds_by_group([str(group) for group, _ in pairs], np.array([label for _, label in pairs]), folds)
        of_group = {group: number for (group, _), number in zip(pairs, fold.tolist(), strict=True)}
        assert [of_group[group] for group, _ in pairs] == fold.tolist()
        assert not found or found == of_group
        found = of_group
        chance.shuffle(pairs)
    assert set(found.values()) == set(range(folds))


def test_folds_of_single_videos_are_balanced_by_label() -> None:
    label = np.array([0] * 60 + [1] * 25)
    fold = folds_by_group([str(number) for number in range(85)], label, 5)
    assert [np.bincount(label[fold == number]).tolist() for number in range(5)] == [[12, 5]] * 5


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(UserError, match="3 folds of 2 groups"):
        folds_by_group(["a", "b", "b"], np.array([0, 1, 1]), 3)
