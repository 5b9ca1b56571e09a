"""A trained model on a split: several clips a video, probabilities averaged, one verdict a video."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import UserError
from pipeline.shards.index import ShardSet, SplitIndex, read_set
from train.checkpoint import load_weights, read_run
from train.clips import evaluation_clips
from train.compute import Compute, make_model
from train.inputs import INPUTS, make_input, to_clips
from train.metrics import score
from train.stream import ClipStream


@dataclass(frozen=True)
class Predictions:
    """`probabilities` [videos, K] and `labels` [videos], in the order of the index's `videos`."""

    videos: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]


def predict_split(
    model: nn.Module,
    stream: ClipStream,
    compute: Compute,
    *,
    clips: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    kind: str = "rgb",
) -> Predictions:
    """Probabilities of every video of the stream's split: the mean over its clips, shown as `kind` of input."""
    index = stream.index
    chosen = evaluation_clips(index.frames, stream.frames_per_clip, clips)
    total = np.zeros((len(index.videos), len(index.labels)))
    count = np.zeros(len(index.videos))
    labels = np.zeros(len(index.videos), np.int64)
    labels[index.video] = index.label
    model.eval()
    with torch.inference_mode():
        for batch in stream.batches(chosen):
            logits = compute.logits(model, make_input(to_clips(batch.frames, mean, std), kind))
            videos = index.video[batch.samples.numpy()]
            np.add.at(total, videos, logits.softmax(1).double().cpu().numpy())
            np.add.at(count, videos, 1)
    return Predictions(index.videos, total / count[:, None], labels)


def evaluate_run(
    run: Path, *, split: str, clips: int, weights: str, shards: Path | None, batch_size: int, compute: Compute
) -> dict[str, Any]:
    """The metrics of a finished (or stopped) run on a split of its shard set, or of another set of the same
    recipe and labels. Raises `UserError`."""
    about = read_run(run)
    settings = about["settings"]
    for name in ("shards", "frames"):
        if name not in settings:
            raise UserError(f"{run}: the settings in its run.json lack {name}")
    shard_set = read_set(Path(shards or settings["shards"]))
    index = index_for(shard_set, about, split)
    size = shard_set.recipe.width, shard_set.recipe.height
    model = make_model(
        about["model"],
        num_classes=len(about["labels"]),
        num_frames=settings["frames"],
        size=size,
        in_channels=INPUTS[settings.get("input", "rgb")],
        **settings.get("options", {}),
    )
    load_weights(run / f"{weights}.safetensors", model)
    model = compute.prepare(model)
    mean, std = tuple(about["mean"]), tuple(about["std"])
    with ClipStream(
        index, frames_per_clip=settings["frames"], batch_size=batch_size, device=compute.device
    ) as stream:
        kind = settings.get("input", "rgb")
        found = predict_split(model, stream, compute, clips=clips, mean=mean, std=std, kind=kind)
    return {
        "run": str(run),
        "model": about["model"],
        "weights": weights,
        "shards": str(shard_set.folder),
        "split": split,
        "clips": clips,
        **score(found.probabilities, found.labels, about["labels"]),
    }


def index_for(shard_set: ShardSet, about: dict[str, Any], split: str) -> SplitIndex:
    """The split, if the run can be judged on it. Raises `UserError` for other labels or another recipe."""
    if list(shard_set.labels) != about["labels"]:
        raise UserError(
            f"{shard_set.folder}: has the labels {', '.join(shard_set.labels)}; the run was trained on "
            f"{', '.join(about['labels'])}"
        )
    if shard_set.recipe.fingerprint != about["fingerprint"]:
        raise UserError(
            f"{shard_set.folder}: is of the recipe {shard_set.recipe.fingerprint}, the run was trained on "
            f"frames of {about['fingerprint']}; build the set with the same --fps, --size and --fit"
        )
    return shard_set.split(split)
