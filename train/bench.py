"""Which one to mend: clips/s of the loader alone, of the training step alone, and of both together."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import count_parameters
from models.family import Family
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import UserError
from pipeline.shards.cache import cache_for
from pipeline.shards.index import ShardSet, SplitIndex
from train.augment import augment, draw_augmentation
from train.clips import Clips, training_clips
from train.compute import Compute, make_model
from train.inputs import INPUTS, make_input
from train.optim import make_optimizer
from train.recipes import TrainRecipe
from train.stream import Batch, ClipStream

Step = Callable[[Batch], None]
Batches = Generator[Batch, None, None]
WAITING_ALLOWED = 0.02  # of the step's time: below it, a faster loader changes nothing
WARM_UP = 2  # steps, in which memory is got and kernels are chosen


@dataclass(frozen=True)
class Speeds:
    """Clips per second, and the share of the time of both together that went into waiting for data."""

    loader: float
    model: float
    together: float
    waiting: float

    @property
    def advice(self) -> str:
        """One sentence: what to mend."""
        if self.waiting <= WAITING_ALLOWED:
            pace = self.loader / self.model
            return f"Mend the model: the loader is {pace:.1f} times as fast, and waiting takes {self.waiting:.1%}."
        if self.loader < self.model:
            return f"Mend the loader: the model waits {self.waiting:.1%} of the time (slow disk, codec, network?)."
        return (
            f"Each alone is fast enough, yet the model waits {self.waiting:.1%} of the time: they take the cores "
            "from each other; give the model fewer threads (OMP_NUM_THREADS)."
        )


def bench(
    name: str,
    shard_set: ShardSet,
    recipe: TrainRecipe,
    compute: Compute,
    seconds: float,
    options: Mapping[str, Any] | None = None,
    *,
    cache: Path | None = None,
    cache_size: int | None = None,
) -> dict[str, Any]:
    """Measure for about `seconds` each; what `train bench --json` prints. Raises `UserError`.

    `options`: the family's own.

    The shards of a set behind a URL come to the folder `cache`, of at most `cache_size` bytes.
    """
    index = shard_set.split("train")
    if recipe.batch_size > len(index):
        raise UserError(f"--batch-size {recipe.batch_size}: the train split has {len(index)} samples only")
    size = shard_set.recipe.width, shard_set.recipe.height
    torch.manual_seed(0)
    model = compute.prepare(
        make_model(
            name,
            num_classes=len(shard_set.labels),
            num_frames=recipe.frames,
            size=size,
            in_channels=INPUTS[recipe.input],
            **(options or {}),
        )
    )
    step = training_step(model, recipe, compute)
    with ClipStream(
        index,
        frames_per_clip=recipe.frames,
        sampling=recipe.sampling,
        stride=recipe.stride,
        batch_size=recipe.batch_size,
        device=compute.device,
        shards=cache_for(index, cache, cache_size),
    ) as stream:
        speeds = _measure(stream, step, seconds)
    return {
        "model": name,
        "options": dict(options or {}),
        "input": recipe.input,
        "parameters": count_parameters(model),
        "batch_size": recipe.batch_size,
        "frames": recipe.frames,
        "device": str(compute.device),
        "bf16": compute.bf16,
        "threads": torch.get_num_threads(),
        "clips_per_second": {name: round(rate, 1) for name, rate in asdict(speeds).items() if name != "waiting"},
        "data_wait": round(speeds.waiting, 5),
        "advice": speeds.advice,
    }


def training_step(model: Family, recipe: TrainRecipe, compute: Compute) -> Step:
    """A step as training does it: augmentation, forward, backward, AdamW."""
    model.train()
    optimizer = make_optimizer(model, recipe.lr, recipe.weight_decay, recipe.layer_decay)
    numbers = count()

    def step(batch: Batch) -> None:
        rng = np.random.default_rng(next(numbers))
        size = batch.frames.shape[2], batch.frames.shape[3]
        draws = draw_augmentation(recipe, len(batch.frames), size, rng)
        clips = make_input(augment(batch.frames, draws, IMAGENET_MEAN, IMAGENET_STD), recipe.input)
        loss = nn.functional.cross_entropy(compute.logits(model, clips), batch.labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device, as training does to see that the loss is finite

    return step


def _measure(stream: ClipStream, step: Step, seconds: float) -> Speeds:
    with closing(_batches(stream)) as batches:
        first = next(batches)
        cached = replace(first, frames=first.frames.clone())
    for _ in range(WARM_UP):
        step(cached)
    loader, _ = _rate(_batches(stream), lambda _: None, seconds)
    model, _ = _rate((cached for _ in count()), step, seconds)
    waited = stream.waited
    together, spent = _rate(_batches(stream), step, seconds)
    return Speeds(loader, model, together, (stream.waited - waited) / spent)


def _batches(stream: ClipStream) -> Batches:
    """Full batches of epoch after epoch, without end: what is left of an epoch's clips makes none."""
    index: SplitIndex = stream.index
    whole = len(index) // stream.batch_size * stream.batch_size
    for epoch in count():
        clips = training_clips(index.frames, stream.sampling, 0, epoch)
        yield from stream.batches(Clips(clips.sample[:whole], clips.start[:whole]))


def _rate(batches: Batches, step: Step, seconds: float) -> tuple[float, float]:
    """Clips per second of wall time, and the seconds that it really took."""
    clips, began = 0, time.perf_counter()
    with closing(batches):
        for batch in batches:
            step(batch)
            clips += len(batch.labels)
            spent = time.perf_counter() - began
            if spent >= seconds:
                break
    return clips / spent, spent
