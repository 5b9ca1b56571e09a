"""Hysteresis: one event is told once. Numbers in, events out."""

import pytest

from train.events import EventDetector, Hysteresis

STEP = 0.2
RULE = Hysteresis(on=0.6, off=0.4, min_seconds=0.6, gap_seconds=0.6)


def told(probabilities: list[float], rule: Hysteresis = RULE) -> list[tuple[str, int]]:
    """What is told with which probability, by its place; an event under way at the end is told as over."""
    detector = EventDetector(rule)
    found = []
    for place, probability in enumerate(probabilities):
        for event in detector.update(place * STEP, probability):
            found.append(("start" if event.ended is None else "end", place))
    return found + [("end", len(probabilities)) for _ in detector.finish()]


def test_an_event_is_told_once_it_has_lasted_and_ends_once_the_gap_has() -> None:
    assert told([0, 0.7, 0.7, 0.7, 0.7, 0.9, 0, 0, 0]) == [("start", 4), ("end", 8)]


def test_a_short_event_is_not_told() -> None:
    assert told([0, 0.9, 0.9, 0.9, 0, 0.9, 0.9, 0, 0]) == []


def test_between_the_thresholds_nothing_begins_and_nothing_ends() -> None:
    assert told([0.5] * 9) == []
    assert told([0.6, 0.5, 0.4, 0.4, 0.5, 0.5, 0.5, 0.4]) == [("start", 3), ("end", 8)]


def test_a_short_gap_does_not_make_two_events() -> None:
    assert told([0.9] * 4 + [0] * 2 + [0.9] + [0] * 3) == [("start", 3), ("end", 9)]


def test_without_durations_each_crossing_is_told() -> None:
    assert told([0.6, 0, 0.6], Hysteresis(0.6, 0.6, 0, 0)) == [("start", 0), ("end", 1), ("start", 2), ("end", 3)]


def test_an_event_knows_when_it_was_and_its_peak() -> None:
    detector = EventDetector(RULE)
    for place, probability in enumerate([0, 0.7, 0.95, 0.5, 0.8, 0.1]):
        detector.update(place * STEP, probability)
    (event,) = detector.finish()
    assert [event.began, event.ended, event.peak] == pytest.approx([0.2, 0.8, 0.95])


@pytest.mark.parametrize(
    "values", [{"on": 0.3}, {"off": -0.1}, {"on": 1.1}, {"min_seconds": -1}, {"gap_seconds": -1}]
)
def test_rules_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Hysteresis(**values)
