"""The laws of order: each clip once, the same for everybody, inside its sample."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.clips import clip_frames, evaluation_clips, training_clips

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
