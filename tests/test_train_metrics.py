"""Metrics against values worked out by hand or published."""

import numpy as np
import pytest
from scipy.stats import binomtest

from train.metrics import score, wilson


def test_wilson_gives_the_published_intervals() -> None:
    # 291, 332 and 365 of 400: 68.2 to 76.9, 79.0 to 86.4 and 88.1 to 93.7 per cent
    for right, low, high in [(291, 0.682, 0.769), (332, 0.790, 0.864), (365, 0.881, 0.937)]:
        assert wilson(right / 400, 400) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 21), (8, 21), (9, 21), (21, 21), (365, 400)])
def test_wilson_is_scipys_for_whole_numbers(right: int, total: int) -> None:
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right / total, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_half_a_video_lies_between_those_of_its_neighbours() -> None:
    (low, high), (more_low, more_high) = wilson(8 / 21, 21), wilson(9 / 21, 21)
    between = wilson(8.5 / 21, 21)
    assert low < between[0] < more_low and high < between[1] < more_high


def test_binary_scores_worked_out_by_hand() -> None:
    fight = np.array([0.9, 0.6, 0.4, 0.2])
    scores = score(np.stack([fight, 1 - fight], 1), np.array([0, 1, 0, 1]), ["fight", "calm"])
    assert scores["accuracy"] == 0.5
    assert scores["roc_auc"] == 0.75
    assert scores["confusion"] == [[1, 1], [1, 1]]
    assert scores["f1_by_label"] == {"fight": 0.5, "calm": 0.5}
    assert scores["pr_auc_by_label"]["fight"] == pytest.approx((1 + 2 / 3) / 2)


def test_what_a_split_of_one_class_does_not_define_is_null() -> None:
    scores = score(np.array([[0.8, 0.2], [0.7, 0.3]]), np.array([0, 0]), ["fight", "calm"])
    assert scores["roc_auc"] is None
    assert scores["accuracy"] == scores["f1"] == 1
    assert scores["f1_by_label"] == {"fight": 1, "calm": None}


def test_many_classes_average_over_them() -> None:
    scores = score(np.eye(4), np.arange(4), list("abcd"))
    assert (scores["accuracy"], scores["roc_auc"], scores["f1"]) == (1, 1, 1)
