"""Training: epochs of steps over a shard set, a run folder that holds all that made it.

Everything drawn at random (order, clip starts, augmentation, dropout) is a function of the seed and the step's
number, so a run that was stopped goes on as if nothing had happened.
"""

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import count_parameters
from models.family import Family
from models.origin import Origin
from pipeline.errors import UserError, WorkFailed
from pipeline.places import absolute, as_place
from pipeline.report import Stage, Step
from pipeline.shards.cache import cache_for
from pipeline.shards.index import ShardSet, SplitIndex, read_set
from pipeline.summary import summarize
from train import checkpoint
from train.augment import augment, draw_augmentation, soft_labels
from train.compute import choose_compute, fill_model, make_model
from train.evaluate import predict_split
from train.folds import train_and_val
from train.inputs import IMAGENET_MEAN, IMAGENET_STD, INPUTS, make_input
from train.metrics import score
from train.optim import learning_rate, make_optimizer, set_rate
from train.recipes import TrainRecipe
from train.stream import ClipStream

Say = Callable[[str], None]
CLOSING_CLIPS = 5  # clips a video for the closing number; one, the middle, after each epoch


@dataclass(frozen=True)
class RunSettings:
    """What `train run` was asked for; saved in the run and enough to repeat it."""

    model: str
    shards: str
    recipe: TrainRecipe
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    weights: str | None = None  # what the model starts from, where not from nothing
    options: dict[str, Any] = field(default_factory=dict)  # the family's own
    fold: str | None = None  # k/K: held out of train and val together, instead of val

    def as_dict(self) -> dict[str, Any]:
        """Flat, as `run.json` has it."""
        values = asdict(self)
        recipe = values.pop("recipe")
        return {**values, **recipe}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSettings":
        """The reverse of `as_dict`. Raises `UserError` where a setting is missing."""
        wanted = {*TrainRecipe.__dataclass_fields__, *cls.__dataclass_fields__} - {"recipe"}
        missing = sorted(wanted - set(values))
        if missing:
            raise UserError(f"run.json: its settings lack {missing[0]}; the run was made by another release")
        recipe = {name: values[name] for name in TrainRecipe.__dataclass_fields__}
        rest = {name: values[name] for name in cls.__dataclass_fields__ if name != "recipe"}
        return cls(**rest, recipe=TrainRecipe(**recipe))


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Trainer:
    """One run in progress. `fit` carries it to its end."""

    def __init__(
        self,
        settings: RunSettings,
        out: Path,
        say: Say,
        *,
        cache: Path | None = None,
        cache_size: int | None = None,
    ) -> None:
        self.settings, self.recipe, self.out, self.say = settings, settings.recipe, out, say
        self._cache = partial(cache_for, root=cache, limit=cache_size)
        self.shard_set = read_set(as_place(settings.shards))
        self.train_index, self.val_index = train_and_val(self.shard_set, settings.fold)
        if len(self.shard_set.labels) < 2:
            raise UserError(
                f"{settings.shards}: all videos are labelled {self.shard_set.labels[0]!r}; a classifier needs two"
            )
        self.compute = choose_compute(settings.device, settings.precision)
        torch.manual_seed(settings.seed)
        self.model = self.compute.prepare(self._build())
        self.optimizer = make_optimizer(
            self.model, self.recipe.lr, self.recipe.weight_decay, self.recipe.layer_decay
        )
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD
        self.steps_per_epoch = -(-len(self.train_index) // self.recipe.batch_size)
        self.progress = Progress()

    def _build(self) -> Family:
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

    def start(self) -> None:
        """Load the first weights, make the run folder anew and describe the run in it. Raises `UserError`."""
        started_from = self._load_weights()
        if (self.out / checkpoint.RUN).exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(self.out / checkpoint.RUN, {**self._description(), "started_from": started_from})
        if started_from:  # so that going on never needs that file again
            self._save_checkpoint()

    def _load_weights(self) -> dict[str, Any] | None:
        """Fill the model from `settings.weights` and take over their normalisation; what did not match is said."""
        if self.settings.weights is None:
            return None
        loaded = fill_model(Path(self.settings.weights), self.model, self.settings.model)
        self.mean, self.std = loaded.mean, loaded.std
        self.say(f"{self.settings.weights}: {loaded.format}, {len(loaded.matched)} tensors loaded")
        for what, names in (("left as they were made", loaded.missing), ("not used", loaded.unexpected)):
            if names:
                self.say(f"  {what}: {', '.join(names)}")
        lists = {"missing": list(loaded.missing), "unexpected": list(loaded.unexpected)}
        return {"file": self.settings.weights, "format": loaded.format, "matched": len(loaded.matched), **lists}

    def resume(self) -> None:
        """Go back to the last checkpoint. Raises `UserError` where the run cannot go on from there."""
        about = checkpoint.read_run(self.out)
        if about["shards_digest"] != summarize(self.shard_set)["digest"]:
            raise UserError(f"{self.out}: the shard set {self.settings.shards} has changed since; start a new run")
        self.mean, self.std = tuple(about["mean"]), tuple(about["std"])
        if (self.out / checkpoint.CHECKPOINT).exists():
            state = checkpoint.load_checkpoint(self.out / checkpoint.CHECKPOINT, self.model, self.optimizer)
            self.progress = Progress(**state)
        else:  # stopped between run.json and the checkpoint
            self._load_weights()
        self._trim_log()
        self.say(f"going on from epoch {self.progress.epoch} of {self.recipe.epochs}")

    def fit(self, stage: Stage) -> dict[str, Any]:
        """Train to the last epoch; returns (and saves) the closing metrics."""
        with self._stream(self.train_index) as stream:
            while self.progress.epoch < self.recipe.epochs:
                self._epoch(stream, stage)
        metrics = self._close()
        checkpoint.write_json(self.out / checkpoint.METRICS, metrics)
        return metrics

    def _epoch(self, stream: ClipStream, stage: Stage) -> None:
        began, waited = time.perf_counter(), stream.waited
        epoch = self.progress.epoch
        loss, right = self._train_epoch(
            stream, stage(f"epoch {epoch + 1}/{self.recipe.epochs}", len(stream.index))
        )
        seconds, waited = time.perf_counter() - began, stream.waited - waited
        at = self.progress
        at.epoch = epoch + 1
        at.clips, at.seconds, at.waited = (
            at.clips + len(stream.index),
            at.seconds + seconds,
            at.waited + waited,
        )
        line = {
            "epoch": epoch + 1,
            "loss": loss,
            "train_accuracy": right,
            **self._validate(),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "seconds": round(seconds, 3),
            "clips_per_second": round(len(stream.index) / seconds, 1),
            "data_wait": round(waited / seconds, 5),
        }
        self._save_weights(checkpoint.LAST)
        self._keep_best(line)
        with (self.out / checkpoint.LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._save_checkpoint()
        self.say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    def _save_weights(self, name: str) -> None:
        origin = Origin(self.settings.model, self.settings.options, self.mean, self.std, self.model.grid)
        checkpoint.save_weights(self.out / name, self.model, origin)

    def _save_checkpoint(self) -> None:
        path = self.out / checkpoint.CHECKPOINT
        checkpoint.save_checkpoint(path, self.model, self.optimizer, asdict(self.progress))

    def _train_epoch(self, stream: ClipStream, step: Step) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch's clips."""
        self.model.train()
        loss_sum = torch.zeros((), device=self.compute.device)
        right = torch.zeros((), device=self.compute.device)
        number = self.progress.epoch * self.steps_per_epoch
        clips = 0
        for batch in stream.epoch(self.progress.epoch):
            loss, logits = self._step(batch.frames, batch.labels, number)
            loss_sum += loss * len(batch.labels)
            right += (logits.argmax(1) == batch.labels).sum()
            number += 1
            clips += len(batch.labels)
            step(len(batch.labels))
        return loss_sum.item() / clips, right.item() / clips

    def _step(self, frames: torch.Tensor, labels: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        recipe = self.recipe
        torch.manual_seed(self.settings.seed * 1_000_003 + number)  # dropout
        rate = learning_rate(
            number,
            recipe.epochs * self.steps_per_epoch,
            round(recipe.warmup * self.steps_per_epoch),
            recipe.lr,
        )
        set_rate(self.optimizer, rate)
        rng = np.random.default_rng([self.settings.seed, number])
        draws = draw_augmentation(recipe, len(frames), (frames.shape[2], frames.shape[3]), rng)
        clips = make_input(augment(frames, draws, self.mean, self.std), recipe.input)
        logits = self.compute.logits(self.model, clips)
        targets = soft_labels(labels, draws, logits.shape[1]) if recipe.mixes else labels
        loss = functional.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise WorkFailed(
                f"the loss became {loss.item()} at step {number}; try a lower --lr or --precision fp32"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), logits.detach()

    def _validate(self) -> dict[str, float]:
        if self.val_index is None:
            return {}
        scores = self._score(self.val_index, clips=1)
        values = {"val_accuracy": scores["accuracy"], "val_roc_auc": scores["roc_auc"]}
        return {name: value for name, value in values.items() if value is not None}

    def _score(self, index: SplitIndex, clips: int) -> dict[str, Any]:
        with self._stream(index) as stream:
            found = predict_split(
                self.model, stream, self.compute, clips=clips, mean=self.mean, std=self.std, kind=self.recipe.input
            )
        return score(found.probabilities, found.labels, self.shard_set.labels)

    def _keep_best(self, line: dict[str, Any]) -> None:
        """The best epoch by validation accuracy, the later of two equals; without a val split, the last."""
        reached = line.get("val_accuracy", 0.0)
        if reached >= self.progress.best:
            self.progress.best, self.progress.best_epoch = reached, line["epoch"]
            self._save_weights(checkpoint.BEST)

    def _close(self) -> dict[str, Any]:
        at = self.progress
        checkpoint.load_weights(self.out / checkpoint.BEST, self.model)
        judged = self._score(self.val_index, CLOSING_CLIPS) if self.val_index is not None else {}
        return {
            "model": self.settings.model,
            "parameters": count_parameters(self.model),
            "epochs": at.epoch,
            "best_epoch": at.best_epoch,
            "val": {"clips": CLOSING_CLIPS, **judged} if judged else None,
            "clips_per_second": round(at.clips / at.seconds, 1) if at.seconds else None,
            "data_wait": round(at.waited / at.seconds, 5) if at.seconds else None,
            "train_seconds": round(at.seconds, 1),
        }

    def _stream(self, index: SplitIndex) -> ClipStream:
        return ClipStream(
            index,
            frames_per_clip=self.recipe.frames,
            batch_size=self.recipe.batch_size,
            device=self.compute.device,
            seed=self.settings.seed,
            shards=self._cache(index),
            say=self.say,
        )

    def _trim_log(self) -> None:
        """Forget epochs that the checkpoint does not know: they are trained again."""
        path = self.out / checkpoint.LOG
        lines = path.read_text().splitlines() if path.exists() else []
        checkpoint.write_text(path, "".join(line + "\n" for line in lines[: self.progress.epoch]))

    def _description(self) -> dict[str, Any]:
        summary = summarize(self.shard_set)
        return {
            "model": self.settings.model,
            "settings": {**self.settings.as_dict(), "shards": absolute(self.settings.shards)},
            "labels": list(self.shard_set.labels),
            "mean": list(self.mean),
            "std": list(self.std),
            "frames_recipe": self.shard_set.recipe.as_dict(),
            "fingerprint": summary["fingerprint"],
            "shards_digest": summary["digest"],
            "computed_on": {"device": str(self.compute.device), "bf16": self.compute.bf16},
            "versions": {
                "reelcache": version("reelcache"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def describe_set(shard_set: ShardSet) -> str:
    """One line on what is trained on."""
    counts = ", ".join(f"{split} {len(shard_set.split(split).videos)}" for split in shard_set.splits)
    return f"{shard_set.folder}: {counts}; labels {', '.join(shard_set.labels)}"
