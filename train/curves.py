"""ROC, and precision over recall: of two classes one ROC curve, else one a class against the rest, and a mean."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.page import shown
from train.chart import Line, Panel
from train.evaluate import Evaluation

MOST = 8  # labels with curves of their own: as many as there are colours
NAME = 24  # letters of a label in a legend
UNDEFINED = "not defined: one class only"

Values = NDArray[np.float64]
Curve = tuple[Values, Values]  # x and y of its points


def most_frequent(labels: NDArray[np.int64], names: int, most: int) -> list[int]:
    """The `most` labels that have the most of `labels` [videos], of so many names; in the order of the names."""
    counts = np.bincount(labels, minlength=names)
    return sorted(int(label) for label in np.argsort(-counts, kind="stable")[:most])


def curve_panels(found: Evaluation) -> list[Panel]:
    """Both charts: the most frequent labels each, of three and more labels also the mean of all."""
    metrics, probabilities, labels = found.metrics, found.predictions.probabilities, found.predictions.labels
    names = metrics["labels"]
    areas = [metrics["pr_auc_by_label"][name] for name in names]
    told = [
        f"{shown(name, NAME)}, {area:.3f}" if area is not None else ""
        for name, area in zip(names, areas, strict=True)
    ]
    roc = _lines(_roc, [shown(name, NAME) for name in names], probabilities, labels)
    precision = _lines(_precision, told, probabilities, labels)
    if len(names) == 2:
        roc = roc[1:]  # the other is its mirror image
    area = "undefined" if metrics["roc_auc"] is None else f"{metrics['roc_auc']:.3f}"
    of = f"; {MOST} of {len(names)} labels" if len(names) > MOST else ""
    rates = "false positive rate", "true positive rate"
    return [
        Panel(f"ROC, area {area}{of}", *rates, roc, diagonal=True, empty=UNDEFINED),
        Panel(f"Precision, recall, area{of}", "recall", "precision", precision, empty=UNDEFINED),
    ]


def _lines(
    curve: Callable[[NDArray[np.bool_], Values], Curve],
    names: list[str],
    probabilities: Values,
    labels: NDArray[np.int64],
) -> list[Line]:
    """A line for each of the most frequent labels, and one for the mean of all, where they are three and more."""
    defined = [k for k in range(len(names)) if 0 < (labels == k).sum() < len(labels)]
    curves = {k: curve(labels == k, probabilities[:, k]) for k in defined}
    chosen = [k for k in most_frequent(labels, len(names), MOST) if k in curves]
    lines = [Line(names[k], _points(curves[k]), colour) for colour, k in enumerate(chosen)]
    if len(names) > 2 and curves:
        lines.append(Line(f"mean of {len(curves)}", _points(_mean(list(curves.values()))), mean=True))
    return lines


def _roc(positive: NDArray[np.bool_], scores: Values) -> Curve:
    false_rate, true_rate, _ = roc_curve(positive, scores)
    return false_rate, true_rate


def _precision(positive: NDArray[np.bool_], scores: Values) -> Curve:
    """Stairs: between two recalls stands the precision at the next, so that the area is the average precision."""
    right, recall, _ = precision_recall_curve(positive, scores)
    right, recall = right[::-1], recall[::-1]  # from recall 0 on, where the precision is a made-up 1
    return recall.repeat(2)[1:-1], right[1:].repeat(2)


def _mean(curves: Sequence[Curve]) -> Curve:
    """At each x the mean of where the curves come in and of where they, upright there, go out."""
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    ends = [(_straight(grid, x, y, "left"), _straight(grid, x, y, "right")) for x, y in curves]
    return grid.repeat(2), np.mean(ends, 0).T.ravel()


def _straight(grid: Values, x: Values, y: Values, side: Literal["left", "right"]) -> Values:
    at = np.searchsorted(x, grid, side) - (side == "right")
    return np.where(x[at] == grid, y[at], np.interp(grid, x, y))


def _points(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
