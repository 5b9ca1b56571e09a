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
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import count_parameters
from pipeline.errors import UserError, WorkFailed
from pipeline.places import absolute, as_place
from pipeline.report import Stage
from pipeline.shards.cache import cache_for, room_for
from pipeline.shards.index import SplitIndex, read_set
from pipeline.summary import summarize
from train import checkpoint
from train.carried import carried, check_carried
from train.classification import Classification
from train.clips import Sampling, batch_bounds
from train.compute import choose_compute, compile_model
from train.config import CONFIG, config_text
from train.manifest import write_manifest
from train.objective import Objective, Say
from train.optim import make_optimizer
from train.parallel import shard_model
from train.patience import merit
from train.progress import Progress
from train.ranks import ALONE, Ranks
from train.run_settings import RunSettings
from train.scalars import Scalars
from train.step import Stepper
from train.stopping import TEN_MINUTES, Clock, Every, Stopped, StopSignals
from train.stream import ClipStream


class Trainer:
    """One run in progress: data, steps, checkpoints, the log. `fit` carries it to its end.

    `objective` says what the model is trained for; what else the run carries along is in `components`. Of several
    `ranks`, all make every call alike, and the first one alone writes and speaks.
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
        checkpoint_every: Every = TEN_MINUTES,
        ranks: Ranks = ALONE,
        tensorboard: bool = False,
    ) -> None:
        self.settings, self.recipe, self.out, self.ranks = settings, settings.recipe, out, ranks
        self.say: Say = say if ranks.first else lambda _: None
        self._cache = partial(cache_for, root=cache, limit=cache_size)
        self._room = partial(room_for, root=cache, limit=cache_size)
        self._clock = Clock(checkpoint_every)
        self.shard_set = read_set(as_place(settings.shards))
        self.compute = choose_compute(settings.device, settings.precision, ranks)
        self.objective = objective(settings, self.shard_set, self.compute, self.say)
        self.train_index, self.val_index = self.objective.splits()
        self.clips_per_epoch = len(self.train_index) * self.recipe.repeats
        if settings.compile and settings.fsdp and ranks.of > 1:
            raise UserError("--compile, --fsdp: are not tried together; leave one of them out")
        self._check_batches()
        torch.manual_seed(settings.seed)
        self.model = self.compute.prepare(self.objective.build())
        self._parameters = count_parameters(self.model)  # before any of them is frozen
        if settings.compile:
            compile_model(self.model, self.compute)
        self.steps_per_epoch = -(-self.clips_per_epoch // self.recipe.batch_size)
        self.progress = Progress()
        check_carried(settings, judged=self.val_index is not None and bool(self.objective.best_by))
        self._scalars = [Scalars(out)] if tensorboard and ranks.first else []

    def _check_batches(self) -> None:
        """Every rank must get a clip of every batch. Raises `UserError`."""
        recipe, unit = self.recipe, self.objective.unit
        bounds = batch_bounds(self.clips_per_epoch, recipe.batch_size, repeats=recipe.repeats)
        smallest = min(stop - begin for begin, stop in pairwise(bounds))
        if -(-smallest // unit) < self.ranks.of:
            pairs = ", and clips that are mixed stay together" if unit > 1 else ""
            raise UserError(
                f"--batch-size {self.recipe.batch_size}: leaves a batch of {smallest} clips for "
                f"{self.ranks.of} ranks{pairs}; give another one, or fewer ranks"
            )

    def _equip(self) -> None:
        """What is made for the model as it stands: after its first weights, before a checkpoint's."""
        if self.settings.fsdp and self.ranks.of == 1:
            self.say("fsdp: there is one rank alone, nothing to divide the weights among")
        elif self.settings.fsdp:
            shard_model(self.model, self.compute)
        self.optimizer = make_optimizer(
            self.model, self.recipe.lr, self.recipe.weight_decay, self.recipe.layer_decay, self.recipe.beta2
        )
        shown = self.val_index or self.train_index
        own = self.objective.components(self.out, partial(self._stream, shown))
        fresh = (self.objective.started_from or {}).get("missing", ())
        general = carried(self.settings, self.model, self.objective.best_by, fresh)
        self.components = [*general, *own, *self._scalars]
        self.step = Stepper(self.model, self.objective, self.optimizer, self.steps_per_epoch)

    def start(self, *, overwrite: bool = False) -> None:
        """Load the first weights, make the run folder and describe the run in it; with `overwrite` a run that is
        there goes, once all is checked. Raises `UserError`, and `WorkFailed` where there can be no such folder."""
        started_from = self.objective.load(self.model)
        self._equip()
        self._check_room()
        if self.ranks.first:
            about = {**self._description(), "started_from": started_from}
            self._take_folder(about, overwrite=overwrite)
            checkpoint.write_text(self.out / CONFIG, config_text(about["settings"]))
            write_manifest(self.out, train=self.train_index, val=self.val_index)
        if started_from:  # so that going on never needs that file again
            self._save_checkpoint()

    def _check_room(self) -> None:
        """Raises `UserError` where memory or the cache has no room for the data."""
        indices = [index for index in (self.train_index, self.val_index) if index]
        with self._room(indices):
            for index in indices:
                self._stream(index, training=index is self.train_index).close()

    def _take_folder(self, about: dict[str, Any], *, overwrite: bool) -> None:
        """Make it, and what says that it is a run's: of two that begin there at the same time one gets it. Raises
        `UserError` and `WorkFailed`."""
        if overwrite and (self.out / checkpoint.RUN).exists():
            shutil.rmtree(self.out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkFailed(f"--out {self.out}: cannot be made: {error.strerror}") from error
        try:
            checkpoint.write_new_json(self.out / checkpoint.RUN, about)
        except FileExistsError as error:
            raise UserError(f"--out {self.out}: another run has begun there; give another one") from error

    def resume(self) -> None:
        """Go back to the last checkpoint. Raises `UserError` where the run cannot go on from there."""
        about = checkpoint.read_run(self.out)
        if about["shards_digest"] != summarize(self.shard_set)["digest"]:
            raise UserError(f"{self.out}: the shard set {self.settings.shards} has changed since; start a new run")
        self.objective.go_on(about)
        path = self.out / checkpoint.CHECKPOINT
        if path.exists():
            self._equip()
            self._load_checkpoint(path)
        else:  # stopped before the first checkpoint
            self.objective.load(self.model)
            self._equip()
        if self.ranks.first:
            self._clean()
            write_manifest(self.out, train=self.train_index, val=self.val_index)  # an older release kept none
        at = self.progress
        place = f"after epoch {at.epoch} of {self.recipe.epochs}"
        if at.now.steps:
            place = f"in epoch {at.epoch + 1} of {self.recipe.epochs}, after {at.now.steps} of "
            place += f"{self.steps_per_epoch} steps"
        self.say(f"going on {place}")

    def fit(self, stage: Stage) -> dict[str, Any]:
        """Train to the last epoch; returns (and saves) the closing metrics.

        Raises `Stopped` after Ctrl-C or SIGTERM, when all is saved; `UserError` where the cache has no room.
        """
        indices = [index for index in (self.train_index, self.val_index) if index]
        with self._room(indices):  # else an epoch would pass before val is found not to fit
            self._train(stage)
            metrics = self._close()
        if self.ranks.first:
            checkpoint.write_json(self.out / checkpoint.METRICS, metrics)
        return metrics

    def _train(self, stage: Stage) -> None:
        with StopSignals() as signals, self._stream(self.train_index, training=True) as stream:
            self._clock.restart()
            while self.progress.epoch < self.recipe.epochs and not self.progress.ended:
                self._train_epoch(stream, stage, signals)
                self._end_epoch()
                if self.ranks.any(signals.number > 0)[0]:
                    raise Stopped(signals.number, f"stopped after epoch {self.progress.epoch}")

    def _train_epoch(self, stream: ClipStream, stage: Stage, signals: StopSignals) -> None:
        """The steps of the epoch that are not made yet."""
        at = self.progress
        self.model.train()
        for component in self.components:
            component.before_epoch(at.epoch)
        show = stage(f"epoch {at.epoch + 1}/{self.recipe.epochs}", self.clips_per_epoch)
        show(at.now.clips)
        if at.now.stream:
            stream.load_state_dict(at.now.stream)
        began, waited = time.perf_counter() - at.now.seconds, stream.waited - at.now.waited
        for batch in stream.epoch(at.epoch):
            sums = self.step(batch, at.epoch * self.steps_per_epoch + at.now.steps)
            for component in self.components:
                component.after_step()
            at.now.add(batch.size, sums)
            at.now.stream = stream.state_dict()
            at.now.seconds, at.now.waited = time.perf_counter() - began, stream.waited - waited
            show(batch.size)
            if at.now.steps < self.steps_per_epoch:  # else the epoch's end saves
                stop, due = self.ranks.any(signals.number > 0, self._clock.due())
                if stop or due:
                    self._save_checkpoint()
                if stop:
                    raise Stopped(signals.number, f"stopped in epoch {at.epoch + 1} after {at.now.steps} steps")

    def _end_epoch(self) -> None:
        """Judge what the epoch made of the model, and save it."""
        over = self.progress.end_epoch()
        line = {
            "epoch": self.progress.epoch,
            **over.means(),
            **self._validate(),
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "seconds": round(over.seconds, 3),
            "clips_per_second": round(over.clips / over.seconds, 1),
            "data_wait": round(over.waited / over.seconds, 5),
        }
        with self._judged():
            self._save_weights(checkpoint.LAST)
            self._keep_best(line)
            wishes = [component.after_epoch(line) for component in self.components]  # all of them are told
        self.progress.ended = any(wishes)
        if self.ranks.first:
            with (self.out / checkpoint.LOG).open("a") as log:
                log.write(json.dumps(line) + "\n")
        self._save_checkpoint()
        self.say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Within it the model has the weights that are judged and saved, the same on all ranks."""
        with ExitStack() as stack:
            for component in self.components:
                stack.enter_context(component.judged())
            self.ranks.share_buffers(self.model)
            yield

    def _validate(self) -> dict[str, float]:
        if self.val_index is None:
            return {}
        with self._judged(), self._stream(self.val_index) as stream:
            try:
                return self.objective.validate(self.model, stream)
            except WorkFailed as error:
                raise WorkFailed(f"epoch {self.progress.epoch}: {error}") from error

    def _keep_best(self, line: dict[str, Any]) -> None:
        """The best epoch by the objective's measure, the later of two equals; without one, the last."""
        reached = merit(line, self.objective.best_by)
        if reached >= self.progress.best:
            self.progress.best, self.progress.best_epoch = reached, line["epoch"]
            self._save_weights(checkpoint.BEST)

    def _close(self) -> dict[str, Any]:
        at = self.progress
        self.ranks.wait()  # for the first one, which writes
        checkpoint.load_weights(self.out / checkpoint.BEST, self.model)
        with ExitStack() as stack:
            stream = None if self.val_index is None else stack.enter_context(self._stream(self.val_index))
            found = self.objective.close(self.model, stream)
        return {
            "model": self.settings.model,
            "parameters": self._parameters,
            "epochs": at.epoch,
            "best_epoch": at.best_epoch,
            **found,
            "clips_per_second": round(at.clips / at.seconds, 1) if at.seconds else None,
            "data_wait": round(at.waited / at.seconds, 5) if at.seconds else None,
            "train_seconds": round(at.seconds, 1),
        }

    def _stream(self, index: SplitIndex, *, training: bool = False) -> ClipStream:
        """In training each rank reads its part of every batch; else what it is told to."""
        ranks = self.ranks if training else ALONE
        return ClipStream(
            index,
            frames_per_clip=self.recipe.frames,
            sampling=self.recipe.sampling,
            stride=self.recipe.stride,
            weights="balanced" if self.recipe.balanced else None,
            repeats=self.recipe.repeats,
            batch_size=self.recipe.batch_size,
            device=self.compute.device,
            seed=self.settings.seed,
            shards=self._cache(index),
            say=self.say,
            rank=ranks.rank,
            ranks=ranks.of,
            unit=self.objective.unit,
        )

    def _save_weights(self, name: str) -> None:
        origin = self.objective.origin(self.model)
        checkpoint.save_weights(self.out / name, self.model, origin, write=self.ranks.first)

    def _save_checkpoint(self) -> None:
        state = {"progress": self.progress.as_dict(), "scaler": self.step.scaler.state_dict()}
        path = self.out / checkpoint.CHECKPOINT
        checkpoint.save_checkpoint(
            path, self.model, self.optimizer, self.components, state, write=self.ranks.first
        )
        self._clock.restart()

    def _load_checkpoint(self, path: Path) -> None:
        state = checkpoint.load_checkpoint(path, self.model, self.optimizer, self.components)
        try:
            self.progress = Progress.from_dict(state["progress"])
            self.step.scaler.load_state_dict(state["scaler"])
        except (TypeError, KeyError, RuntimeError) as error:
            raise UserError(f"{path}: was made by another release ({error!r}); start a new run") from error

    def _clean(self) -> None:
        """Forget epochs that the checkpoint does not know, as they are trained again, and half-written files."""
        path = self.out / checkpoint.LOG
        lines = path.read_text().splitlines() if path.exists() else []
        checkpoint.write_text(path, "".join(line + "\n" for line in lines[: self.progress.epoch]))
        for half in self.out.glob(".*.tmp"):
            half.unlink()

    def _description(self) -> dict[str, Any]:
        summary = summarize(self.shard_set)
        return {
            "model": self.settings.model,
            "settings": {**self.settings.as_dict(), "shards": absolute(self.settings.shards)},
            "labels": list(self.shard_set.labels),
            "mean": list(self.objective.mean),
            "std": list(self.objective.std),
            "sample_frames": int(np.median(self.train_index.frames)),
            "frames_recipe": self.shard_set.recipe.as_dict(),
            "fingerprint": summary["fingerprint"],
            "shards_digest": summary["digest"],
            "computed_on": {
                "device": str(self.compute.device),
                "precision": self.compute.precision,
                "ranks": self.ranks.of,
            },
            "versions": {
                "reelcache": version("reelcache"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def describe_data(trainer: Trainer) -> Iterator[str]:
    """A line each on the set, on what of it a fold holds out, and on videos that are shorter than a clip."""
    shard_set, train, val = trainer.shard_set, trainer.train_index, trainer.val_index
    counts = ", ".join(f"{split} {len(shard_set.split(split).videos)}" for split in shard_set.splits)
    yield f"{shard_set.folder}: {counts}; labels {', '.join(shard_set.labels)}"
    if trainer.settings.fold and val is not None:
        yield f"fold {trainer.settings.fold}: trains on {len(train.videos)} videos, holds out {len(val.videos)}"
    longest = np.zeros(len(train.videos), np.int64)
    np.maximum.at(longest, train.video, train.frames)
    clip = Sampling(trainer.recipe.frames, trainer.recipe.sampling, trainer.recipe.stride)
    if short := int((longest < clip.span).sum()):
        told = f"{short} of {len(longest)} videos are shorter than a clip ({clip.span} stored frames): "
        told += f"its {clip.frames} frames are spread over what they have"
        yield told + (", some taken more than once" if longest.min() < clip.frames else "")
