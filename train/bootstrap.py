"""Intervals by resampling groups: videos of one recording err together, so recordings are drawn, not videos."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
BLOCK = 5_000_000  # numbers held at once, whatever the size of the set
Floats = NDArray[np.float64]


def group_intervals(
    probabilities: Floats, right: Floats, labels: NDArray[np.int64], groups: Sequence[str], seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % percentile intervals of `accuracy` and `roc_auc` (Efron & Tibshirani 1993, chapter 13; whole groups
    drawn with replacement, as in Field & Welsh 2007, JRSS B 69).

    `probabilities` [seeds, videos, K], `right` [seeds, videos] 0 or 1: metrics are means over the first dimension.
    An interval is None where there is one group alone, or where most resamples don't define the metric.
    """
    drawn = [
        (
            np.mean([share(weights, one) for one in right], 0),
            np.mean([weighted_auc(one, labels, weights) for one in probabilities], 0),
        )
        for weights in resamples(groups, seed)
    ]
    if len(set(groups)) < 2:
        return {"accuracy": None, "roc_auc": None}
    accuracy, auc = (np.concatenate(values) for values in zip(*drawn, strict=True))
    return {"accuracy": _percentiles(accuracy), "roc_auc": _percentiles(auc)}


def resamples(groups: Sequence[str], seed: int) -> Iterator[Floats]:
    """How often each video is drawn, a row a resample, in blocks."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(group))
    for first in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - first)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), count)
        yield times[:, group].astype(np.float64)


def share(weights: Floats, right: Floats) -> Floats:
    """The weighted share of right answers, for each row of `weights` [R, videos]."""
    shares: Floats = (weights @ right) / weights.sum(1)
    return shares


def weighted_auc(probabilities: Floats, labels: NDArray[np.int64], weights: Floats) -> Floats:
    """ROC-AUC [R] under each row of `weights` [R, videos]: of two classes the plain one, of more the mean of each
    class against the rest, as `train.metrics` has it. NaN where a resample has one class alone."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    found = np.stack([_auc(probabilities[:, k], labels == k, weights) for k in classes])
    known = ~np.isnan(found)
    total: Floats = np.where(known, found, 0.0).sum(0)
    means: Floats = np.full(len(total), np.nan)
    np.divide(total, known.sum(0), out=means, where=known.any(0))
    return means


def _auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The share of pairs of a positive and a negative in which the positive scores higher; ties count half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where the next higher score begins
    pos = np.add.reduceat((weights * positive)[:, order], starts, 1)
    neg = np.add.reduceat((weights * ~positive)[:, order], starts, 1)
    pairs = pos.sum(1) * neg.sum(1)
    won = (pos * (neg.cumsum(1) - neg / 2)).sum(1)
    shares: Floats = np.full(len(pairs), np.nan)
    np.divide(won, pairs, out=shares, where=pairs > 0)
    return shares


def _percentiles(values: Floats) -> list[float] | None:
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:
        return None
    return [float(value) for value in np.percentile(known, [2.5, 97.5])]
