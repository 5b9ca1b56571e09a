"""The laws of sampling in time."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling import BestGuess, ContinuedClock, displays, keep_displayed, needed_packets

TICK = Fraction(1, 1000)
times = st.lists(st.integers(-5_000, 20_000), min_size=1, max_size=60, unique=True).map(sorted)
rates = st.fractions(Fraction(1, 10), 120, max_denominator=1001)


def shown_at(pts: list[int], counts: list[int]) -> list[int]:
    return [p for p, count in zip(pts, counts, strict=True) for _ in range(count)]


@given(times, rates, st.integers(1, 2_000))
def test_slot_k_shows_the_last_frame_that_is_not_later_than_k_over_fps(
    pts: list[int], fps: Fraction, duration: int
) -> None:
    kept = shown_at(pts, displays(pts, pts[-1] + duration, TICK, fps))
    for k, chosen in enumerate(kept):
        time = pts[0] + k / fps / TICK
        assert chosen == max(p for p in pts if p <= time)


@given(times, rates, st.integers(1, 2_000))
def test_slots_go_on_until_the_last_frame_disappears(pts: list[int], fps: Fraction, duration: int) -> None:
    count = sum(displays(pts, pts[-1] + duration, TICK, fps))
    seconds = (pts[-1] + duration - pts[0]) * TICK
    assert (count - 1) / fps < seconds
    assert count / fps >= seconds


@given(times, rates, st.integers(1, 2_000))
def test_choosing_while_decoding_equals_choosing_beforehand(pts: list[int], fps: Fraction, duration: int) -> None:
    beforehand = displays(pts, pts[-1] + duration, TICK, fps)
    stream = [(p, duration, p) for p in pts]
    on_the_way = [p for p, _, slots in keep_displayed(stream, TICK, fps, period=40) for _ in range(slots)]
    assert on_the_way == shown_at(pts, beforehand)


def test_five_of_thirty_frames_a_second_are_every_sixth() -> None:
    counts = displays(range(150), 150, Fraction(1, 30), Fraction(5))
    assert [i for i, count in enumerate(counts) if count] == list(range(0, 150, 6))
    assert sum(counts) == 25


def test_a_slow_video_repeats_its_frames_as_a_player_does() -> None:
    assert displays([0, 1, 2], 3, Fraction(1), Fraction(5)) == [5, 5, 5]


def test_a_single_frame_without_duration_is_kept_once() -> None:
    assert list(keep_displayed([(7, None, "frame")], TICK, Fraction(5), period=40)) == [(7, "frame", 1)]


def test_frames_that_do_not_move_forward_replace_the_one_before() -> None:
    stream = [(0, 100, "a"), (0, 100, "b"), (200, 100, "c"), (100, 100, "d")]
    kept = [frame for _, frame, _ in keep_displayed(stream, TICK, Fraction(5), period=100)]
    assert kept == ["b", "d"]


def test_groups_without_a_kept_frame_are_left_out() -> None:
    keyframe = [True, False, False, True, False, False, True, False]
    assert list(needed_packets(range(8), keyframe, {0, 7})) == [True] * 3 + [False] * 3 + [True] * 2


def test_a_leading_frame_of_the_next_group_needs_the_group_before() -> None:
    pts = [0, 1, 2, 5, 3, 4, 6]  # 3 and 4 are displayed before the keyframe 5, and lean on 2
    keyframe = [True, False, False, True, False, False, False]
    assert list(needed_packets(pts, keyframe, {4})) == [True] * 7


def test_times_that_go_back_give_way_to_those_of_decoding() -> None:
    guess = BestGuess()
    pts, dts = [1, 2, 4, 3, 5, 7, 6, 8], [1, 2, 3, 4, 5, 6, 7, 8]
    assert [guess.time(*pair) for pair in zip(pts, dts, strict=True)] == [1, 2, 4, 4, 5, 6, 7, 8]


def test_good_times_are_believed_and_missing_ones_replaced() -> None:
    guess = BestGuess()
    assert [guess.time(pts, dts) for pts, dts in [(0, None), (2, 1), (None, 3), (6, 2)]] == [0, 2, 3, 6]


def test_a_clock_that_is_set_anew_goes_on_without_a_gap() -> None:
    clock = ContinuedClock(TICK, 40)
    read = [0, 40, 9_000, None, 8_950, 8_800, 8_840, 2_000_000, 2_000_040, 0]
    got = [None if dts is None else dts + clock.offset(dts, None) for dts in read]
    assert got == [0, 40, 9_000, None, 8_950, 8_990, 9_030, 9_070, 9_110, 9_150]
