"""How long a comparison has left, by the logs of its runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from train.forecast import Load, Outlook, duration, seconds_left


def load(folder: Path, name: str, seconds: Sequence[float], gflops: float = 1.0) -> Load:
    """Ten epochs of 100 clips, judged by 30; those with `seconds` are done."""
    log = folder / f"{len(list(folder.iterdir()))}.jsonl"
    lines = (json.dumps({"epoch": number, "seconds": value}) for number, value in enumerate(seconds, 1))
    log.write_text("".join(line + "\n" for line in lines))
    return Load(name, 10, 100, 30, gflops, log)


def test_a_family_goes_on_as_fast_as_it_went(tmp_path: Path) -> None:
    loads = [load(tmp_path, "slow", [20, 20]), load(tmp_path, "slow", []), load(tmp_path, "fast", [1] * 10)]
    assert seconds_left(loads) == pytest.approx(18 * 20 * 1.1)  # judging is a tenth of training


def test_a_last_line_that_is_cut_short_is_no_epoch(tmp_path: Path) -> None:
    cut = load(tmp_path, "cut", [20, 20])
    cut.log.write_text(cut.log.read_text() + '{"epoch": 3, "sec')
    assert seconds_left([cut]) == pytest.approx(8 * 20 * 1.1)


def test_a_family_without_an_epoch_is_measured_by_its_flops(tmp_path: Path) -> None:
    loads = [load(tmp_path, "known", [2] * 10, gflops=4), load(tmp_path, "unknown", [], gflops=8)]
    assert seconds_left(loads) == pytest.approx(10 * 4 * 1.1)


def test_the_outlook_says_what_is_known(tmp_path: Path) -> None:
    fresh = Load("a", 2, 100, 0, 1.0, tmp_path / "none.jsonl")
    assert "after the first epoch" in str(Outlook([fresh], 1)) and "first run" in str(Outlook([fresh], 2))
    mixed = [load(tmp_path, "d", [60] * 5), load(tmp_path, "e", [])]
    assert str(Outlook(mixed, 1)).endswith("to go (1 of the families only guessed, by their FLOPs)")
    halfway = load(tmp_path, "b", [60] * 5)
    assert str(Outlook([halfway], 1)) == "about 6 min to go"
    assert str(Outlook([halfway], 2)) == "about 3 min to go"
    assert str(Outlook([load(tmp_path, "c", [60] * 10)], 1)) == "nothing left to train"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h"), (200_000, "2.3 days")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
