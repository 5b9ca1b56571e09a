"""Numbers that say how good a classifier is, with how sure one can be of them. scikit-learn's and SciPy's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score


def score(probabilities: NDArray[np.float64], labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Metrics of `probabilities` [videos, classes] against `labels` [videos]; JSON-ready.

    `accuracy_interval` is Wilson's, 95 %. F1 and PR-AUC are means over the classes, and stand for each class
    beside that; ROC-AUC is the plain one of two classes, and the mean over more. A number that the labels at
    hand do not define (AUC of a single class) is null.
    """
    predicted = probabilities.argmax(1)
    classes = range(len(names))
    f1 = f1_score(labels, predicted, labels=list(classes), average=None, zero_division=0.0)
    precision = [_average_precision(labels == k, probabilities[:, k]) for k in classes]
    right = int((predicted == labels).sum())
    return {
        "videos": len(labels),
        "accuracy": right / len(labels),
        "accuracy_interval": list(wilson(right, len(labels))),
        "roc_auc": _roc_auc(probabilities, labels),
        "pr_auc": _mean(precision),
        "f1": float(f1.mean()),
        "pr_auc_by_label": dict(zip(names, precision, strict=True)),
        "f1_by_label": dict(zip(names, map(float, f1), strict=True)),
        "confusion": confusion_matrix(labels, predicted, labels=list(classes)).tolist(),
        "labels": list(names),
    }


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22)."""
    interval = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _roc_auc(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """Of two classes the plain one; of more, the mean of each class against the rest, as far as defined."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    defined = [k for k in classes if 0 < (labels == k).sum() < len(labels)]
    return _mean([float(roc_auc_score(labels == k, probabilities[:, k])) for k in defined])


def _average_precision(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    return float(average_precision_score(positive, scores)) if positive.any() else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
