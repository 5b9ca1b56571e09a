"""What a clip of each class counts in the loss."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError


def class_weights(asked: str, labels: Sequence[str], counted: NDArray[np.int64]) -> list[float] | None:
    """The weight of each of `labels`; None for `none`. `counted` [n]: the class numbers of the training samples.

    `balanced` is n / (classes · n of the class), as scikit-learn's `compute_class_weight`: each class weighs the
    same in all, and the mean sample weighs 1. Else `label=weight` with commas between; a label that is not named
    weighs 1. Raises `UserError`.
    """
    if asked == "none":
        return None
    if asked == "balanced":
        counts = np.bincount(counted, minlength=len(labels))
        missing = [label for label, count in zip(labels, counts, strict=True) if not count]
        if missing:
            raise UserError(
                f"--class-weights balanced: there are no videos of {missing[0]} to train on; "
                "give weights by label, or split the set, or choose the fold, otherwise"
            )
        return [float(len(counted) / (len(labels) * count)) for count in counts]
    named: dict[str, float] = {}
    for part in asked.split(","):
        label, equals, text = part.rpartition("=")
        if not equals:
            raise UserError(f"--class-weights {asked}: must be balanced, none, or such as {_example(labels)}")
        if label not in labels:
            raise UserError(f"--class-weights {part}: no such label; there are {', '.join(labels)}")
        if label in named:
            raise UserError(f"--class-weights {asked}: gives {label} twice")
        named[label] = _weight(part, text)
    return [named.get(label, 1.0) for label in labels]


def _weight(part: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"--class-weights {part}: a weight must be a number above 0")
    return weight


def _example(labels: Sequence[str]) -> str:
    return ",".join(f"{label}={weight}" for label, weight in zip(labels, (3, 1), strict=False))
