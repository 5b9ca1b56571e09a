"""Early stopping, and what makes an epoch better than another."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from train.component import Component


def merit(line: Mapping[str, Any], metric: str) -> float:
    """How good the epoch of this log line is by `metric`, such as val_accuracy; more is better, also of a loss.

    Without that value (no val split) all epochs are the same; nan, of a loss that overflowed, is the worst.
    """
    value = float(line.get(metric, 0.0))
    if math.isnan(value):
        return -math.inf
    return -value if metric.endswith("loss") else value


class Patience(Component):
    """Ends a run when the last `epochs` epochs brought nothing better by `metric`; as good is not better."""

    name = "patience"

    def __init__(self, metric: str, epochs: int) -> None:
        self.metric, self.epochs = metric, epochs
        self.best, self.since = -math.inf, 0

    def after_epoch(self, line: Mapping[str, Any]) -> bool:
        """Whether patience is at its end."""
        value = merit(line, self.metric)
        if value > self.best:
            self.best, self.since = value, line["epoch"]
        return bool(line["epoch"] - self.since >= self.epochs)

    def state_dict(self) -> dict[str, Tensor]:
        """The best value and its epoch."""
        return {"best": torch.tensor(self.best, dtype=torch.float64), "since": torch.tensor(self.since)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `KeyError` where it is none of these."""
        self.best, self.since = float(state["best"]), int(state["since"])
