"""Raw videos to verdicts. With `watch.py` the one file of `train` that opens videos, through the very code of the
offline stage: decoder, recipe and clips are those of the run's shard set, so the model sees live what it saw in
training.
"""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.decode import DecodeError, get_decoder
from pipeline.places import local_file
from pipeline.recipe import Recipe
from pipeline.report import Stage, Step
from pipeline.shards.codec import get_codec
from train.clips import Sampling, clip_frames, evaluation_clips
from train.compute import Compute
from train.tables import no_formula
from train.trained import Trained

Pixels = NDArray[np.uint8]
# First slot, the slot after the last, frames [T, H, W, 3]. Slot k is displayed k / fps seconds after the first.
Clip = tuple[int, int, Pixels]
Cut = Callable[[Iterator[Pixels]], Iterator[Clip]]


@dataclass(frozen=True)
class Moment:
    """What the model says of one clip: `start` and `end` in seconds from the first frame, `probabilities` [K]."""

    start: float
    end: float
    probabilities: NDArray[np.float64]


@dataclass
class Prediction:
    """What is known of one video. `reason`: why it broke; its timeline, if any, is of what came before."""

    video: str
    labels: Sequence[str]
    timeline: list[Moment] = field(default_factory=list)
    frames: int = 0
    reason: str = ""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The mean over the clips [K]."""
        mean: NDArray[np.float64] = np.mean([moment.probabilities for moment in self.timeline], axis=0)
        return mean

    def peaks(self) -> list[Moment]:
        """For each label the clip that shows it most."""
        return [max(self.timeline, key=lambda m: m.probabilities[k]) for k in range(len(self.labels))]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the verdict, and what it is made of; or the `error`."""
        if not self.timeline:
            return {"video": self.video, "error": self.reason}
        mean = self.probabilities
        best = int(mean.argmax())
        return {
            "video": self.video,
            "label": self.labels[best],
            "probability": float(mean[best]),
            "probabilities": dict(zip(self.labels, mean.tolist(), strict=True)),
            "frames": self.frames,
            **({"damaged": self.reason} if self.reason else {}),
            "peaks": {
                label: {"probability": float(m.probabilities[k]), "start": m.start, "end": m.end}
                for k, (label, m) in enumerate(zip(self.labels, self.peaks(), strict=True))
            },
            "timeline": [
                {
                    "start": m.start,
                    "end": m.end,
                    "probabilities": dict(zip(self.labels, m.probabilities.tolist(), strict=True)),
                }
                for m in self.timeline
            ],
        }


def spaced_clips(frames: Iterator[Pixels], sampling: Sampling, clips: int, longest: int) -> Iterator[Clip]:
    """What `train eval` asks of a video: its parts of at most `longest` frames, as samples are cut, and up to
    `clips` evenly spaced clips of each. One part is held at a time."""
    first = 0
    while part := list(islice(frames, longest)):
        for start in evaluation_clips(np.array([len(part)]), sampling, clips).start.tolist():
            places = np.arange(len(part))[clip_frames(len(part), sampling, start)]
            yield first + start, first + int(places[-1]) + 1, np.stack([part[place] for place in places])
        first += len(part)


def sliding_clips(frames: Iterator[Pixels], sampling: Sampling, window: int, stride: int) -> Iterator[Clip]:
    """A clip of `window` frames every `stride` frames, and one that ends with the video; frames spread evenly over
    a shorter one.

    Only the frames of one window are held.
    """
    held: deque[Pixels] = deque(maxlen=window)
    count = 0

    for count, frame in enumerate(frames, 1):
        held.append(frame)
        if count >= window and (count - window) % stride == 0:
            yield count - len(held), count, clip_of(held, sampling)
    if 0 < count < window or (count and (count - window) % stride):
        yield count - len(held), count, clip_of(held, sampling)


def clip_of(held: Sequence[Pixels], sampling: Sampling) -> Pixels:
    """The clip [T, H, W, 3] of a window's frames."""
    places = np.arange(len(held))[clip_frames(len(held), sampling, 0)]
    return np.stack([held[place] for place in places])


def stored_frames(seconds: float, recipe: Recipe) -> int:
    """The nearest number of frames that are so far apart, but at least one."""
    return max(1, round(Fraction(seconds) * recipe.fps))


def cut_by(trained: Trained, clips: int, every: float | None) -> Cut:
    """`sliding_clips` every so many seconds (to the nearest frame), else up to `clips` `spaced_clips`."""
    sampling, recipe = trained.sampling, trained.recipe
    if every is not None:
        frames = stored_frames(every, recipe)
        return lambda pixels: sliding_clips(pixels, sampling, trained.window, frames)
    return lambda pixels: spaced_clips(pixels, sampling, clips, recipe.max_frames)


def predict_videos(
    trained: Trained, compute: Compute, videos: Sequence[str], cut: Cut, batch_size: int, stage: Stage
) -> list[Prediction]:
    """A verdict on each video, paths or URLs, or its reason: a bad one never ends the others.

    `cut` makes clips of a video's frames. Batches go over the borders of videos; the frames held are those of one
    batch and what `cut` holds, however long a video is.
    """
    found = [Prediction(video, trained.labels) for video in videos]
    clips = _clips_of(found, trained.recipe, cut, stage)
    fps = trained.recipe.fps
    while batch := list(islice(clips, batch_size)):
        frames = torch.from_numpy(np.stack([pixels for _, (_, _, pixels) in batch]))
        for (prediction, (first, stop, _)), row in zip(
            batch, trained.probabilities(frames, compute).numpy(), strict=True
        ):
            prediction.timeline.append(Moment(float(first / fps), float(stop / fps), row))
    for prediction in found:
        if not prediction.timeline:
            prediction.reason = prediction.reason or "no frame could be decoded"
        if prediction.reason and trained.recipe.on_corrupt == "reject":  # as the shard set would
            prediction.timeline.clear()
    return found


def _clips_of(
    found: Sequence[Prediction], recipe: Recipe, cut: Cut, stage: Stage
) -> Iterator[tuple[Prediction, Clip]]:
    """All clips of all videos. The bar counts videos or, where there is only one, its frames."""
    step = stage("videos", len(found)) if len(found) > 1 else None
    for prediction in found:
        for clip in cut(_frames_of(prediction, recipe, stage if step is None else None)):
            yield prediction, clip
        if step:
            step(1)


def _frames_of(prediction: Prediction, recipe: Recipe, stage: Stage | None) -> Iterator[Pixels]:
    """The video's frames as a shard would hold them, until it ends or breaks; then its `reason` says why."""
    step: Step | None = None
    stored = stored_as(recipe)
    try:
        decoder = get_decoder(recipe.decoder)
        with local_file(prediction.video) as path:
            if stage:
                step = stage("frames", decoder.count(path, recipe))
            for frame in decoder.frames(path, recipe):
                prediction.frames += 1
                if step:
                    step(1)
                yield stored(frame.pixels)
    except DecodeError as error:
        prediction.reason = str(error)
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        prediction.reason = f"cannot be read: {why}"
    except MemoryError:
        raise  # the machine's fault, not the video's
    except Exception as error:  # whatever a decoder throws at one video, the others go on
        prediction.reason = f"{type(error).__name__}: {error}"


def stored_as(recipe: Recipe) -> Callable[[Pixels], Pixels]:
    """What a shard makes of a frame [H, W, 3]: JPEG changes it, and the model has learnt from changed ones."""
    if recipe.codec != "jpeg":
        return lambda pixels: pixels
    codec = get_codec(recipe)

    def through_codec(pixels: Pixels) -> Pixels:
        read = np.empty_like(pixels[None], order="C")
        codec.decode(memoryview(codec.encode(pixels[None])), read)
        changed: Pixels = read[0]
        return changed

    return through_codec


def timeline_csv(found: Sequence[Prediction]) -> str:
    """A row a clip: video, start and end in seconds, label, `p_<label>` for each, and `error` for a bad video."""
    text = io.StringIO()
    labels = found[0].labels
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "start", "end", "label", *(f"p_{label}" for label in labels), "error"])
    for prediction in found:
        for moment in prediction.timeline:
            best = labels[int(moment.probabilities.argmax())]
            numbers = [f"{value:.6f}" for value in moment.probabilities]
            times = f"{moment.start:.3f}", f"{moment.end:.3f}"
            writer.writerow([no_formula(prediction.video), *times, no_formula(best), *numbers, ""])
        if prediction.reason:
            empty = [""] * len(labels)
            writer.writerow([no_formula(prediction.video), "", "", "", *empty, no_formula(prediction.reason)])
    return text.getvalue()
