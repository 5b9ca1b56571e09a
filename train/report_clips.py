"""The clips of a report: what a video shows, and what the model says of it from moment to moment."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.leaks import in_order
from pipeline.page import shown
from pipeline.shards import get_format
from pipeline.shards.checks import check_sample
from pipeline.shards.index import SplitIndex
from pipeline.sprites import MOST_FRAMES, make_sheet, spread
from train.compute import Compute
from train.evaluate import Evaluation
from train.predict import sliding_clips
from train.trained import Trained

MOMENTS = 40  # clips of a video that are judged for its curve


def extremes(found: Evaluation, count: int) -> tuple[list[int], list[int]]:
    """Places of the videos whose true label the model finds least likely, and most likely; none is in both."""
    labels = found.predictions.labels
    own = found.predictions.probabilities[np.arange(len(labels)), labels]
    order = [int(place) for place in np.argsort(own, kind="stable")]
    count = min(count, len(order) // 2) or len(order)
    return order[:count], order[count:][::-1][:count]


def clip_data(found: Evaluation, trained: Trained, compute: Compute, place: int, budget: int) -> dict[str, Any]:
    """What the page takes of one video: its sheet, verdict, and the probability of its true label over time.

    Of a video that is stored in several parts, the first.
    """
    index, predictions = found.index, found.predictions
    frames = _first_part(index, place)
    label = int(predictions.labels[place])
    stride = max(1, (len(frames) - trained.window) // MOMENTS)
    clips = list(sliding_clips(iter(frames), trained.sampling, trained.window, stride))
    chances = np.concatenate([
        trained.probabilities(torch.from_numpy(np.stack([pixels for _, _, pixels in clips[at : at + 8]])), compute)
        for at in range(0, len(clips), 8)
    ])  # fmt: skip
    own = predictions.probabilities[place]
    sheet = make_sheet([frames[number] for number in spread(len(frames), MOST_FRAMES)], budget)
    names = found.metrics["labels"]
    threshold = found.metrics["threshold"]
    judged = int(own.argmax()) if threshold is None else int(own[1] >= threshold)
    return {
        "video": shown(predictions.videos[place]),
        "label": shown(names[label]),
        "judged": shown(names[judged]),
        "right": judged == label,
        "probability": round(float(own[label]), 4),
        "moments": _curve([(first, stop) for first, stop, _ in clips], chances[:, label], len(frames)),
        "sheet": sheet.as_dict(len(frames) / float(index.recipe.fps)),
    }


def _curve(clips: Sequence[tuple[int, int]], chances: NDArray[np.float64], frames: int) -> list[list[float]]:
    """Points of (share of the video, probability) at the middles of the clips; the first clip holds from its first
    frame on, the last to its last."""
    places = [clips[0][0], *((first + stop) / 2 for first, stop in clips), clips[-1][1]]
    values = [chances[0], *chances, chances[-1]]
    return [[round(at / frames, 4), round(float(value), 4)] for at, value in zip(places, values, strict=True)]


def _first_part(index: SplitIndex, place: int) -> NDArray[np.uint8]:
    samples = {index.samples[number].key: int(number) for number in np.flatnonzero(index.video == place)}
    first = in_order([index.samples[number] for number in samples.values()])[0]
    sidecar = index.sidecars[index.shard[samples[first.key]]]
    local: AbstractContextManager[Path] = index.folder.local(sidecar.shard)
    with local as path, get_format(index.recipe.format).open(path, index.recipe) as reader:
        check_sample(reader, first)
        return np.array(reader.frames(first))
