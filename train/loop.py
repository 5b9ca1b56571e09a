"""Training: epochs of steps over a shard set, a run folder that holds all that made it.

Everything drawn at random (order, clip starts, augmentation, dropout) is a function of the seed and the step's
number, so a run that was stopped goes on as if nothing had happened.
"""

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import count_parameters
from models.origin import Origin
from pipeline.errors import UserError, WorkFailed
from pipeline.places import absolute, as_place
from pipeline.report import Stage, Step
from pipeline.shards.cache import cache_for
from pipeline.shards.index import ShardSet, SplitIndex, read_set
from pipeline.summary import summarize
from train import checkpoint
from train.classification import Classification
from train.component import Component
from train.compute import choose_compute
from train.objective import Objective, Say
from train.optim import learning_rate, make_optimizer, set_rate
from train.run_settings import RunSettings
from train.stream import Batch, ClipStream


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    ended: bool = False  # a component wanted no further epoch


class Trainer:
    """One run in progress: data, steps, checkpoints, the log. `fit` carries it to its end.

    `objective` says what the model is trained for; what else the run carries along is in `components`.
    """

    def __init__(
        self,
        settings: RunSettings,
        out: Path,
        say: Say,
        objective: type[Objective] = Classification,
        *,
        cache: Path | None = None,
        cache_size: int | None = None,
    ) -> None:
        self.settings, self.recipe, self.out, self.say = settings, settings.recipe, out, say
        self._cache = partial(cache_for, root=cache, limit=cache_size)
        self.shard_set = read_set(as_place(settings.shards))
        self.compute = choose_compute(settings.device, settings.precision)
        self.objective = objective(settings, self.shard_set, self.compute, say)
        self.train_index, self.val_index = self.objective.splits()
        torch.manual_seed(settings.seed)
        self.model = self.compute.prepare(self.objective.build())
        self.optimizer = make_optimizer(
            self.model, self.recipe.lr, self.recipe.weight_decay, self.recipe.layer_decay, self.recipe.beta2
        )
        shown = self.val_index or self.train_index
        self.components: list[Component] = self.objective.components(out, partial(self._stream, shown))
        self.steps_per_epoch = -(-len(self.train_index) // self.recipe.batch_size)
        self.progress = Progress()

    def start(self) -> None:
        """Load the first weights, make the run folder anew and describe the run in it. Raises `UserError`."""
        started_from = self.objective.load(self.model)
        if (self.out / checkpoint.RUN).exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(self.out / checkpoint.RUN, {**self._description(), "started_from": started_from})
        if started_from:  # so that going on never needs that file again
            self._save_checkpoint()

    def resume(self) -> None:
        """Go back to the last checkpoint. Raises `UserError` where the run cannot go on from there."""
        about = checkpoint.read_run(self.out)
        if about["shards_digest"] != summarize(self.shard_set)["digest"]:
            raise UserError(f"{self.out}: the shard set {self.settings.shards} has changed since; start a new run")
        self.objective.normalise_by(tuple(about["mean"]), tuple(about["std"]))
        path = self.out / checkpoint.CHECKPOINT
        if path.exists():
            state = checkpoint.load_checkpoint(path, self.model, self.optimizer, self.components)
            self.progress = Progress(**state)
        else:  # stopped between run.json and the checkpoint
            self.objective.load(self.model)
        self._trim_log()
        self.say(f"going on from epoch {self.progress.epoch} of {self.recipe.epochs}")

    def fit(self, stage: Stage) -> dict[str, Any]:
        """Train to the last epoch; returns (and saves) the closing metrics."""
        with self._stream(self.train_index) as stream:
            while self.progress.epoch < self.recipe.epochs and not self.progress.ended:
                self._epoch(stream, stage)
        metrics = self._close()
        checkpoint.write_json(self.out / checkpoint.METRICS, metrics)
        return metrics

    def _epoch(self, stream: ClipStream, stage: Stage) -> None:
        began, waited = time.perf_counter(), stream.waited
        epoch = self.progress.epoch
        for component in self.components:
            component.before_epoch(epoch)
        means = self._train_epoch(stream, stage(f"epoch {epoch + 1}/{self.recipe.epochs}", len(stream.index)))
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
            **means,
            **self._validate(),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "seconds": round(seconds, 3),
            "clips_per_second": round(len(stream.index) / seconds, 1),
            "data_wait": round(waited / seconds, 5),
        }
        with self._judged():
            self._save_weights(checkpoint.LAST)
            self._keep_best(line)
        wishes = [component.after_epoch(line) for component in self.components]  # all of them are told
        at.ended = any(wishes)
        with (self.out / checkpoint.LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._save_checkpoint()
        self.say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    def _save_weights(self, name: str) -> None:
        of = self.objective
        origin = Origin(self.settings.model, self.settings.options, of.mean, of.std, self.model.grid)
        checkpoint.save_weights(self.out / name, self.model, origin)

    def _save_checkpoint(self) -> None:
        path = self.out / checkpoint.CHECKPOINT
        checkpoint.save_checkpoint(path, self.model, self.optimizer, self.components, asdict(self.progress))

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Within it the model has the weights that are judged and saved."""
        with ExitStack() as stack:
            for component in self.components:
                stack.enter_context(component.judged())
            yield

    def _train_epoch(self, stream: ClipStream, step: Step) -> dict[str, float]:
        """The objective's values, each its mean over the epoch's clips."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        number = self.progress.epoch * self.steps_per_epoch
        clips = 0
        for batch in stream.epoch(self.progress.epoch):
            for name, values in self._step(batch, number).items():
                sums[name] = sums.get(name, 0) + values.sum(dtype=torch.float64)
            number += 1
            clips += len(batch.labels)
            step(len(batch.labels))
        return {name: total.item() / clips for name, total in sums.items()}

    def _step(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Step `number` of the run; returns the objective's values of each clip."""
        recipe, frames = self.recipe, batch.frames
        torch.manual_seed(self.settings.seed * 1_000_003 + number)  # dropout
        rate = learning_rate(
            number,
            recipe.epochs * self.steps_per_epoch,
            round(recipe.warmup * self.steps_per_epoch),
            recipe.lr,
        )
        set_rate(self.optimizer, rate)
        rng = np.random.default_rng([self.settings.seed, number])
        drawn = self.objective.draw(len(frames), (frames.shape[2], frames.shape[3]), rng)
        values = self.objective.losses(self.model, frames, batch.labels, drawn)
        loss = values["loss"].mean()
        if not torch.isfinite(loss):
            raise WorkFailed(
                f"the loss became {loss.item()} at step {number}; try a lower --lr or --precision fp32"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for component in self.components:
            component.after_step()
        return {name: value.detach() for name, value in values.items()}

    def _validate(self) -> dict[str, float]:
        if self.val_index is None:
            return {}
        with self._judged(), self._stream(self.val_index) as stream:
            return self.objective.validate(self.model, stream)

    def _keep_best(self, line: dict[str, Any]) -> None:
        """The best epoch by the objective's measure, the later of two equals; without one, the last."""
        reached = line.get(self.objective.best_by, 0.0)
        if reached >= self.progress.best:
            self.progress.best, self.progress.best_epoch = reached, line["epoch"]
            self._save_weights(checkpoint.BEST)

    def _close(self) -> dict[str, Any]:
        at = self.progress
        checkpoint.load_weights(self.out / checkpoint.BEST, self.model)
        with ExitStack() as stack:
            stream = None if self.val_index is None else stack.enter_context(self._stream(self.val_index))
            found = self.objective.close(self.model, stream)
        return {
            "model": self.settings.model,
            "parameters": count_parameters(self.model),
            "epochs": at.epoch,
            "best_epoch": at.best_epoch,
            **found,
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
            "mean": list(self.objective.mean),
            "std": list(self.objective.std),
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
