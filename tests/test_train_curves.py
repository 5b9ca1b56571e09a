"""The curves say what the numbers beside them say."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from train.chart import Line
from train.curves import curve_panels
from train.evaluate import Evaluation
from train.metrics import score


def judged(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Evaluation:
    metrics = score(probabilities, labels, names := [f"label {k}" for k in range(probabilities.shape[1])])
    predictions = SimpleNamespace(probabilities=probabilities, labels=labels)
    return cast(Evaluation, SimpleNamespace(metrics={**metrics, "labels": names}, predictions=predictions))


def area(line: Line) -> float:
    x, y = np.array(line.points).T
    return float(np.trapezoid(y, x))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [2, 4])
def test_the_area_under_each_line_is_the_number_that_is_given(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=30)
    coarse = rng.integers(1, 6, size=(30, classes))  # scores that tie, as those of few clips do
    found = judged(coarse / coarse.sum(1, keepdims=True), labels)
    roc, precision = (panel.lines for panel in curve_panels(found))
    areas = list(found.metrics["pr_auc_by_label"].values())
    assert [area(line) for line in precision[:classes]] == pytest.approx(areas)
    assert area(roc[-1]) == pytest.approx(found.metrics["roc_auc"])
    if classes > 2:
        assert precision[-1].mean and area(precision[-1]) == pytest.approx(found.metrics["pr_auc"])
