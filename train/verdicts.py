"""What stands behind the numbers of an evaluation: a table of all videos, curves, the worst mistakes."""

import csv
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.chart import write_svg
from train.checkpoint import write_text
from train.clips import Clips
from train.curves import curve_panels
from train.evaluate import Evaluation, groups_of
from train.metrics import decide
from train.stream import ClipStream
from train.tables import no_formula

SHOWN = 10  # mistakes
STRIP = 8  # frames of each
CAPTION = 24  # px
MARGIN = 4  # px
FONT = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def write_csv(file: Path, found: Evaluation) -> None:
    """A line a video: id, label, group, probability of each class, what was predicted, and 1 if that is right."""
    names = found.metrics["labels"]
    predicted = decide(found.predictions.probabilities, found.metrics["threshold"])
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("video", "label", "group", *(f"p_{name}" for name in names), "predicted", "correct"))
    shown = [no_formula(name) for name in names]
    for video, group, label, verdict, chances in zip(
        found.predictions.videos, groups_of(found.index), found.predictions.labels, predicted,
        found.predictions.probabilities.tolist(), strict=True,
    ):  # fmt: skip
        own = (no_formula(video), shown[label], no_formula(group))
        rows.writerow((*own, *chances, shown[verdict], int(label == verdict)))
    write_text(file, text.getvalue())


def write_curves(file: Path, found: Evaluation) -> None:
    """ROC and precision over recall, as SVG."""
    write_svg(file, curve_panels(found))


def worst_mistakes(found: Evaluation, count: int = SHOWN) -> list[int]:
    """Places of the wrongly judged videos, the least likely true label first."""
    _, probabilities, labels = _columns(found)
    wrong = np.flatnonzero(decide(probabilities, found.metrics["threshold"]) != labels)
    own = probabilities[wrong, labels[wrong]]
    return [int(place) for place in wrong[np.argsort(own, kind="stable")][:count]]


def write_mistakes(file: Path, found: Evaluation, count: int = SHOWN) -> int:
    """The worst mistakes as a PNG: a row a video, frames from its first to its last, and what was thought of it.
    Returns how many there are; a faultless run gets a sheet that says so."""
    names, (videos, probabilities, labels) = found.metrics["labels"], _columns(found)
    places = worst_mistakes(found, count)
    width = STRIP * found.index.recipe.width
    rows = []
    for place, frames in zip(places, _strips(found, places), strict=True):
        verdict = int(decide(probabilities[place : place + 1], found.metrics["threshold"])[0])
        chance = probabilities[place, verdict]
        text = f": is {names[labels[place]]}, judged {names[verdict]} ({chance:.2f})"
        rows += [_caption(videos[place], text, width), np.concatenate(list(frames), 1)]
    sheet = np.concatenate(rows or [_caption("", "no mistakes", width)])
    _, png = cv2.imencode(".png", sheet[..., ::-1])
    file.write_bytes(png.tobytes())
    return len(places)


def _columns(found: Evaluation) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    return found.predictions.videos, found.predictions.probabilities, found.predictions.labels


def _strips(found: Evaluation, places: list[int]) -> list[NDArray[np.uint8]]:
    """Frames [8, H, W, 3] of each video, spread over its first sample."""
    if not places:
        return []
    first = np.unique(found.index.video, return_index=True)[1][places]
    with ClipStream(
        found.index, frames_per_clip=STRIP, batch_size=len(places), sampling="uniform",
        shards=found.open_cache(found.index),
    ) as stream:  # fmt: skip
        batch = next(iter(stream.batches(Clips(first, np.zeros_like(first)))))
        return list(batch.frames.numpy().copy())


def _caption(video: str, told: str, width: int) -> NDArray[np.uint8]:
    """A long path loses its start: its end, and what is told of it, say more."""
    line: NDArray[Any] = np.full((CAPTION, width, 3), 255, np.uint8)
    name, told = (text.encode("ascii", "replace").decode() for text in (video, told))  # all that the fonts know
    shown = name
    while name and cv2.getTextSize(shown + told, *FONT, 1)[0][0] > width - 2 * MARGIN:
        name = name[1:]
        shown = f"...{name}"
    cv2.putText(line, shown + told, (MARGIN, CAPTION - 8), *FONT, (30, 30, 30), 1, cv2.LINE_AA)
    return line
