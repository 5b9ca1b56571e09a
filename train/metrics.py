"""Numbers that say how good a classifier is, with how sure one can be of them. Scores are scikit-learn's."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score, roc_curve

from train.bootstrap import group_intervals

TOP = 5


def score(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Metrics of `probabilities` [videos, classes] against `labels` [videos]; JSON-ready.

    `accuracy_interval` is Wilson's, 95 %, as if videos were independent; with `groups`, the intervals `by_group`
    are beside it. F1 and PR-AUC are means over the classes, and stand for each class beside that; ROC-AUC is the
    plain one of two classes, and the mean over more. A number that the labels at hand do not define (AUC of a
    single class) is null. `top_k`: k is no more than there are classes.
    """
    predicted = decide(probabilities, threshold)
    classes = range(len(names))
    f1 = f1_score(labels, predicted, labels=list(classes), average=None, zero_division=np.nan)
    shown_f1 = [None if np.isnan(one) else float(one) for one in f1]  # neither there nor predicted
    precision = [_average_precision(labels == k, probabilities[:, k]) for k in classes]
    recall = [float((predicted[labels == k] == k).mean()) if (labels == k).any() else None for k in classes]
    right = predicted == labels
    by_group: dict[str, Any] = {}
    if groups is not None:
        found = group_intervals(probabilities[None], right[None].astype(np.float64), labels, groups)
        by_group = {"groups": len(set(groups)), "interval_by_group": found}
    return {
        "videos": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(wilson(float(right.mean()), len(labels))),
        "balanced_accuracy": _mean(recall),
        "log_loss": log_loss(probabilities, labels),
        "roc_auc": roc_auc(probabilities, labels),
        "pr_auc": _mean(precision),
        "f1": _mean(shown_f1),
        "top_k": _top(probabilities, labels, min(TOP, len(names))),
        **by_group,
        "pr_auc_by_label": dict(zip(names, precision, strict=True)),
        "f1_by_label": dict(zip(names, shown_f1, strict=True)),
        "confusion": confusion_matrix(labels, predicted, labels=list(classes)).tolist(),
        "labels": list(names),
    }


def decide(probabilities: NDArray[np.float64], threshold: float | None = None) -> NDArray[np.int64]:
    """The predicted class [videos]: the likeliest; of two classes with a `threshold`, the second from there on."""
    if threshold is None:
        likeliest: NDArray[np.int64] = probabilities.argmax(1)
        return likeliest
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def fit_threshold(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The probability of the second of two classes from which on to decide for it, so that balanced accuracy is
    highest (Youden 1950, Cancer 3); of several, the one nearest to a half. Between the neighbouring scores.

    Raises `ValueError` for other than two classes, or for labels of one of them alone.
    """
    if probabilities.shape[1] != 2 or len(np.unique(labels)) != 2:
        raise ValueError("a threshold needs two classes, and videos of both")
    scores = probabilities[:, 1]
    false_rate, true_rate, cuts = roc_curve(labels == 1, scores, drop_intermediate=False)
    best = np.flatnonzero(np.isclose(true_rate - false_rate, (true_rate - false_rate).max()))
    below = [scores[scores < cut].max(initial=0.0) for cut in cuts[best]]
    above = [min(float(cut), 1.0) for cut in cuts[best]]
    middles = np.array([(low + high) / 2 for low, high in zip(below, above, strict=True)])
    return float(middles[np.abs(middles - 0.5).argmin()])


def wilson(share: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `total` (Wilson 1927, JASA 22). The share may be a mean over seeds, so
    no whole number of them, and SciPy's takes whole ones alone."""
    squared = NormalDist().inv_cdf(0.975) ** 2 / total
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return max(0.0, middle - half), min(1.0, middle + half)


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The cross-entropy, in nats; a probability of 0 counts as the smallest that float32 has."""
    chances = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chances, np.finfo(np.float32).tiny)).mean())


def roc_auc(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """Of two classes the plain one; of more, the mean of each class against the rest, as far as defined."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    defined = [k for k in classes if 0 < (labels == k).sum() < len(labels)]
    return _mean([float(roc_auc_score(labels == k, probabilities[:, k])) for k in defined])


def _top(probabilities: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> dict[str, Any]:
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return {"k": k, "accuracy": float((likeliest == labels[:, None]).any(1).mean())}


def _average_precision(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    return float(average_precision_score(positive, scores)) if positive.any() else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
