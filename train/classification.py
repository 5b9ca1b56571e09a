"""Training for labels: cross-entropy, judged by the accuracy on what is held out."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.family import Family
from pipeline.errors import UserError
from pipeline.shards.index import ShardSet, SplitIndex
from train.augment import Draws, augment, draw_augmentation, soft_labels
from train.class_weights import class_weights
from train.compute import Compute, make_model
from train.evaluate import predict_split
from train.folds import train_and_val
from train.inputs import INPUTS, make_input
from train.metrics import score
from train.objective import Objective, Say
from train.run_settings import RunSettings
from train.stream import ClipStream

SHOWN = {"accuracy": "accuracy", "roc_auc": "roc_auc", "loss": "log_loss"}  # after each epoch: name, score
CLOSING_CLIPS = 5  # clips a video for the closing number; one, the middle, after each epoch


class Classification(Objective):
    """Which of its labels a video has."""

    def __init__(self, settings: RunSettings, shard_set: ShardSet, compute: Compute, say: Say) -> None:
        super().__init__(settings, shard_set, compute, say)
        if len(shard_set.labels) < 2:
            raise UserError(
                f"{settings.shards}: all videos are labelled {shard_set.labels[0]!r}; a classifier needs two; "
                "build the set with labels (`train pretrain` needs none)"
            )
        self.best_by = f"val_{self.recipe.best_by}"
        train, val = self.splits()
        present = set(train.label.tolist())
        absent = [name for number, name in enumerate(shard_set.labels) if number not in present]
        if len(present) == 1:
            raise UserError(
                f"{settings.shards}: all videos to train on are of one label, none is of {', '.join(absent)}; "
                "split the set, or choose the fold, otherwise"
            )
        if absent:
            say(f"no video to train on is of {', '.join(absent)}: such videos cannot be told")
        if self.recipe.best_by == "roc_auc" and val is not None and len(set(val.label.tolist())) < 2:
            raise UserError("--best-by roc_auc: what is held out has videos of one label only, so there is none")
        weights = class_weights(self.recipe.class_weights, shard_set.labels, train.label)
        self._class_weights = None if weights is None else torch.tensor(weights, device=compute.device)

    @property
    def unit(self) -> int:
        """Where clips are mixed: all of two videos, whose clips are pairs."""
        return 2 * self.recipe.repeats if self.recipe.mixes else 1

    def splits(self) -> tuple[SplitIndex, SplitIndex | None]:
        """Train and val, or what the fold makes of them."""
        return train_and_val(self.shard_set, self.settings.fold, self.settings.leave_out)

    def build(self) -> Family:
        """The family, for the set's labels and the size of its frames."""
        shards = self.shard_set
        return make_model(
            self.settings.model,
            num_classes=len(shards.labels),
            num_frames=self.recipe.frames,
            size=(shards.recipe.width, shards.recipe.height),
            dropout=self.recipe.dropout,
            in_channels=INPUTS[self.recipe.input],
            **self.settings.options,
        )

    def draw(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> Draws:
        """Augmentation."""
        return draw_augmentation(self.recipe, count, size, rng, self.recipe.repeats)

    def losses(self, model: nn.Module, frames: Tensor, labels: Tensor, drawn: Draws) -> dict[str, Tensor]:
        """Cross-entropy with smoothed and, where clips are mixed, shared labels; and which clips were right."""
        clips = make_input(augment(frames, drawn, self.mean, self.std), self.recipe.input)
        logits = self.compute.logits(model, clips)
        targets = soft_labels(labels, drawn, logits.shape[1]) if self.recipe.mixes else labels
        weights = self._class_weights
        loss = functional.cross_entropy(
            logits, targets, weights, reduction="none", label_smoothing=self.recipe.label_smoothing
        )
        values = {"loss": loss, "train_accuracy": (logits.argmax(1) == labels).float()}
        if weights is None:
            return values
        return {**values, "weight": targets @ weights if self.recipe.mixes else weights[targets]}

    def validate(self, model: nn.Module, stream: ClipStream) -> dict[str, float]:
        """Accuracy, loss and, where it is defined, ROC-AUC, of one clip a video."""
        scores = self._score(model, stream, clips=1)
        values = {f"val_{name}": scores[key] for name, key in SHOWN.items()}
        return {name: value for name, value in values.items() if value is not None}

    def close(self, model: nn.Module, stream: ClipStream | None) -> dict[str, Any]:
        """All scores, of several clips a video."""
        if stream is None:
            return {"val": None}
        return {"val": {"clips": CLOSING_CLIPS, **self._score(model, stream, CLOSING_CLIPS)}}

    def _score(self, model: nn.Module, stream: ClipStream, clips: int) -> dict[str, Any]:
        found = predict_split(
            model, stream, self.compute, clips=clips, mean=self.mean, std=self.std, kind=self.recipe.input
        )
        return score(found.probabilities, found.labels, self.shard_set.labels)
