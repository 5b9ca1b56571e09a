"""What a run is trained for. `train.loop.Trainer` does the rest: data, steps, checkpoints, resuming, the log.

`train.classification.Classification` is one objective.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor, nn

from models.family import Family
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from models.origin import Lesson, Origin, parse_lessons
from pipeline.errors import UserError
from pipeline.shards.index import ShardSet, SplitIndex
from pipeline.summary import digest
from train.component import Component
from train.compute import Compute, fill_model
from train.lessons import learnt_videos, tell_unknown, unknown_lessons
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
    learns_labels: bool = True

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
        self.started_from: dict[str, Any] | None = None  # what `run.json` tells of the first weights

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
        loaded = fill_model(Path(self.settings.weights), model, self.settings.model, self.labels)
        self.normalise_by(loaded.mean, loaded.std)
        self.say(f"{self.settings.weights}: {loaded.format}, {len(loaded.matched)} tensors loaded")
        for what, names in (("left as they were made", loaded.missing), ("not used", loaded.unexpected)):
            if names:
                self.say(f"  {what}: {', '.join(names)}")
        if loaded.input not in (None, self.recipe.input):
            self.say(
                f"Warning: --weights {self.settings.weights}: was trained with --input {loaded.input}, and "
                f"this run shows it {self.recipe.input}"
            )
        self._warn_of_what_was_learnt(loaded.learnt)
        self.started_from = {
            "file": self.settings.weights,
            "format": loaded.format,
            "matched": len(loaded.matched),
            "missing": list(loaded.missing),
            "unexpected": list(loaded.unexpected),
            "learnt": [asdict(lesson) for lesson in loaded.learnt],
        }
        return self.started_from

    def _warn_of_what_was_learnt(self, lessons: tuple[Lesson, ...]) -> None:
        """Of videos that the first weights have learnt and this run holds out."""
        _, held_out = self.splits()
        if held_out is None:
            return
        learnt, weights = learnt_videos(self.shard_set, lessons), self.settings.weights
        if known := [video for video in held_out.videos if video in learnt]:
            what = "the labels" if any(learnt[video] for video in known) else "the frames, not the labels,"
            self.say(
                f"Warning: --weights {weights}: has learnt {what} of {len(known)} of the {len(held_out.videos)} "
                f"videos that this run holds out, the first is {known[0]}; its scores on them are no test scores"
            )
        if unknown := unknown_lessons(lessons, self.shard_set):
            self.say(f"Warning: --weights {weights}: {tell_unknown(unknown)}")

    def go_on(self, about: dict[str, Any]) -> None:
        """Take over what the run's description says of its first weights. Raises `UserError`."""
        self.normalise_by(tuple(about["mean"]), tuple(about["std"]))
        self.started_from = about.get("started_from")
        if self.started_from and not isinstance(self.started_from.get("missing"), list):
            raise UserError("run.json: started_from: missing is no list")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Those that it learns, if it learns labels."""
        return tuple(self.shard_set.labels) if self.learns_labels else None

    def origin(self, model: Family) -> Origin:
        """What the weights of this run say of themselves. Raises `UserError`."""
        settings = self.settings
        own = Lesson(digest(self.shard_set), settings.fold, self.learns_labels, tuple(settings.leave_out))
        try:
            before = parse_lessons(self.started_from.get("learnt")) if self.started_from else ()
        except (ValueError, TypeError) as error:
            raise UserError(f"run.json: started_from: learnt cannot be read: {error}") from error
        learnt = tuple(dict.fromkeys([own, *before]))
        told = learnt, self.labels, self.recipe.input
        return Origin(settings.model, settings.options, self.mean, self.std, model.grid, *told)

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
