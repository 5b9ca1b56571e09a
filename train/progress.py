"""How far a run is: all of a checkpoint that is not tensors."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EpochSoFar:
    """What of the epoch is done, on all ranks; `sums` of the objective's values, `stream`: its place."""

    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    stream: dict[str, int] | None = None

    def add(self, clips: int, sums: dict[str, float]) -> None:
        """A step was made."""
        self.steps += 1
        self.clips += clips
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}

    def means(self) -> dict[str, float]:
        """The values' means over the clips; that of the loss over the clips' weights, where they have any."""
        means = {name: value / self.clips for name, value in self.sums.items()}
        weight = means.pop("weight", 1.0)
        return {**means, "loss": means["loss"] / weight}


@dataclass
class Progress:
    """How far a run is. Seconds are of the clock on the wall, without the time between a stop and a resumption."""

    epoch: int = 0
    best: float = -math.inf  # see `train.patience.merit`
    best_epoch: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    ended: bool = False  # a component wanted no further epoch
    now: EpochSoFar = field(default_factory=EpochSoFar)

    def end_epoch(self) -> EpochSoFar:
        """The epoch that is over; the next one has nothing done yet."""
        over, self.now = self.now, EpochSoFar()
        self.epoch += 1
        self.clips, self.seconds = self.clips + over.clips, self.seconds + over.seconds
        self.waited += over.waited
        return over

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; its floats come back as they were."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """The reverse of `as_dict`. Raises `TypeError` or `KeyError` for anything else."""
        return cls(**{**values, "now": EpochSoFar(**values["now"])})
