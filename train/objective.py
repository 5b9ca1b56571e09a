"""What a run is trained for. `train.loop.Trainer` does the rest: data, steps, checkpoints, resuming, the log.

`train.classification.Classification` is one objective.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor, nn

from models.family import Family
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.shards.index import ShardSet, SplitIndex
from train.component import Component
from train.compute import Compute, fill_model
from train.run_settings import RunSettings
from train.stream import ClipStream

Say = Callable[[str], None]


class Drawn(Protocol):
    """What was drawn at random for each clip of a global batch, such as `train.augment.Draws`."""

    def __getitem__(self, part: slice) -> Self:
        """What was drawn for these clips."""
        ...


class Objective(ABC):
    """The data, the model, the loss of a clip, and how the model is judged.

    `mean`, `std`: the normalisation of the clips; that of the first weights, where the run has any.
    """

    # The value in the log's line that chooses the best epoch, see `train.patience.merit`; without it, the last.
    best_by: str = ""

    @property
    def unit(self) -> int:
        """So many neighbours of a batch must stay together when it is cut for ranks and micro-batches."""
        return 1

    def __init__(self, settings: RunSettings, shard_set: ShardSet, compute: Compute, say: Say) -> None:
        """Raises `UserError` where this cannot be learnt from that set."""
        self.settings, self.recipe = settings, settings.recipe
        self.shard_set, self.compute, self.say = shard_set, compute, say
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD

    @abstractmethod
    def splits(self) -> tuple[SplitIndex, SplitIndex | None]:
        """What is trained on, and what the model is judged on, if on anything."""

    @abstractmethod
    def build(self) -> Family:
        """The model with its first weights, drawn by torch's generator. Raises `UserError`."""

    def load(self, model: Family) -> dict[str, Any] | None:
        """Fill the model from `settings.weights` and take over their normalisation; what did not match is said.

        Returns what `run.json` tells of it. Raises `UserError`.
        """
        if self.settings.weights is None:
            return None
        loaded = fill_model(Path(self.settings.weights), model, self.settings.model)
        self.normalise_by(loaded.mean, loaded.std)
        self.say(f"{self.settings.weights}: {loaded.format}, {len(loaded.matched)} tensors loaded")
        for what, names in (("left as they were made", loaded.missing), ("not used", loaded.unexpected)):
            if names:
                self.say(f"  {what}: {', '.join(names)}")
        lists = {"missing": list(loaded.missing), "unexpected": list(loaded.unexpected)}
        return {"file": self.settings.weights, "format": loaded.format, "matched": len(loaded.matched), **lists}

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Take these constants from now on; the model is built."""
        self.mean, self.std = mean, std

    @abstractmethod
    def draw(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> Drawn:
        """All that is random about `count` clips of `size` (height, width), but for dropout.

        It is drawn for the global batch and then cut, so it depends neither on the ranks nor on `--accumulate`.
        """

    @abstractmethod
    def losses(self, model: nn.Module, frames: Tensor, labels: Tensor, drawn: Any) -> dict[str, Tensor]:
        """Values of each clip [b]: `loss`, whose mean over the global batch the step brings down, and others.

        Where there is a `weight` among them, that mean is the sum of `loss` over the sum of `weight`.

        `frames` uint8 [b, T, H, W, 3] and `labels` int64 [b] may be a part of the batch; `drawn` is that part of
        what `draw` gave. The log's line has the mean of each value over the epoch's clips, under its name here.
        """

    @abstractmethod
    def validate(self, model: nn.Module, stream: ClipStream) -> dict[str, float]:
        """What the log's line says after an epoch; `stream` reads the second of `splits`."""

    @abstractmethod
    def close(self, model: nn.Module, stream: ClipStream | None) -> dict[str, Any]:
        """What `metrics.json` says of the best weights, besides how they came to be. `stream`: see `validate`."""

    def components(self, out: Path, open_stream: Callable[[], ClipStream]) -> list[Component]:  # noqa: ARG002
        """What the objective brings to the run in the folder `out`. The stream reads what is judged on, or else
        what is trained on."""
        return []
