"""Augmentation in training, on the device and on whole batches.

What happens to a clip is drawn first, by NumPy on the CPU, so it is the same on every device, and a step that is
repeated repeats it; then it is applied to the pixels. All frames of a clip get the same.

    draws = draw_augmentation(settings, len(frames), size, np.random.default_rng([seed, epoch, step]))
    clips = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD)
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from train.inputs import Normalise, parts
from train.recipes import Augment
from train.transforms import (
    Floats,
    Ints,
    blur,
    change_colours,
    colour_matrices,
    crop_and_flip,
    fill_boxes,
    mix_pairs,
)

BLUR_SIGMA = (0.1, 2.0)  # pixels; SimCLR (Chen et al. 2020, arXiv 2002.05709)
ERASED_SHARE = (0.02, 1 / 3)  # random erasing (Zhong et al. 2017, arXiv 1708.04896)
ERASED_RATIO = 3.3


@dataclass(frozen=True)
class Draws:
    """What happens to each clip of a batch; every array has the clips first. See `train.transforms`.

    A slice of it is for that part of the batch: a rank of several draws for the global batch and takes its own.
    Clips are mixed in pairs, 0 with 1, 2 with 3, … (of `repeats` clips a video: 0 with `repeats`, …, so that two
    clips of one video are never a pair): cut where that leaves pairs whole. What has no other stays as it is.
    Order is a permutation of all samples, so neighbours are as random a pair as any.
    """

    flip: NDArray[np.bool_]
    crop: Ints  # boxes
    matrix: Floats  # [B, 3, 3]
    pull: Floats
    sigma: Floats
    erase: Ints  # boxes
    weight: Floats  # of the clip's own label
    paste: Ints  # boxes
    other: Ints  # how many places on the other of the pair stands; 0: there is none

    def __getitem__(self, part: slice) -> "Draws":
        return Draws(**{field.name: getattr(self, field.name)[part] for field in fields(self)})


def draw_augmentation(
    settings: Augment, batch: int, size: tuple[int, int], rng: np.random.Generator, repeats: int = 1
) -> Draws:
    """Draw for `batch` clips of `size` (height, width), `repeats` neighbours of which are of one video.

    A term draws the same whether others are on or off.
    """

    def within(reach: float, centre: float = 1.0) -> Floats:
        return centre + reach * rng.uniform(-1, 1, batch)

    def chance(probability: float) -> NDArray[np.bool_]:
        return rng.random(batch) < probability

    flip = chance(settings.flip)
    crop = _boxes(rng.uniform(settings.crop, 1, batch), settings.ratio, size, rng)
    brightness, contrast, saturation = map(within, (settings.brightness, settings.contrast, settings.saturation))
    hue, grey = within(settings.hue, 0.0), chance(settings.grayscale).astype(float)
    matrix = colour_matrices(brightness, contrast, saturation, hue, grey)
    sigma = np.where(chance(settings.blur), rng.uniform(*BLUR_SIGMA, batch), 0.0)
    erase = _boxes(rng.uniform(*ERASED_SHARE, batch), ERASED_RATIO, size, rng)
    erase[~chance(settings.erase)] = 0
    other = _partners(batch, repeats) if settings.mixes else np.zeros(batch, np.int64)
    weight, paste = _draw_mixing(settings, other, size, rng)
    return Draws(flip, crop, matrix, brightness * (1 - contrast), sigma, erase, weight, paste, other)


def _boxes(share: Floats, ratio: float, size: tuple[int, int], rng: np.random.Generator) -> Ints:
    """Boxes that cover that share of a frame, up to `ratio` times wider or higher than it, anywhere in it."""
    stretch = np.exp(np.log(ratio) * rng.uniform(-0.5, 0.5, len(share)))
    sides = np.sqrt(share)[:, None] * np.stack([1 / stretch, stretch], 1)
    # A side that would stand out is as long as the frame; the other keeps the share.
    sides = np.minimum(np.maximum(sides, share[:, None]), 1)
    extent = np.maximum(np.rint(sides * size), 1).astype(np.int64)
    corner = (rng.random((len(share), 2)) * (np.array(size) - extent + 1)).astype(np.int64)
    return np.concatenate([corner, extent], 1)


def _partners(batch: int, repeats: int) -> Ints:
    """How many places on the other clip of each one's pair stands: of every two videos, the first clip of the one
    with the first of the other, and so on; 0 for what the end leaves alone."""
    place = np.arange(batch)
    other = np.where(place % (2 * repeats) < repeats, repeats, -repeats)
    return np.where(place + other < batch, other, 0)


def _draw_mixing(
    settings: Augment, other: Ints, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """The weight of a clip's own label and, for CutMix, the box that it gets from the other of its pair."""
    first = np.flatnonzero(other > 0)
    pairs = len(first)
    weight, paste = np.ones(len(other)), np.zeros((len(other), 4), np.int64)
    if not pairs:
        return weight, paste
    cut = rng.random(pairs) < settings.cut_share
    blend = rng.beta(settings.mixup, settings.mixup, pairs) if settings.mixup else np.ones(pairs)
    share = rng.beta(settings.cutmix, settings.cutmix, pairs) if settings.cutmix else np.zeros(pairs)
    boxes = _boxes(share, 1.0, size, rng) * cut[:, None]
    covered = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1])
    for place in (first, first + other[first]):
        weight[place], paste[place] = np.where(cut, 1 - covered, blend), boxes
    return weight, paste


def augment(
    frames: Tensor,
    draws: Draws,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 [B, T, H, W, C] → augmented and normalised [B, T, C, H, W]; `to_clips` where nothing is drawn.

    What is mixed is normalised clips, their labels with `soft_labels`.
    """
    normalise = Normalise(frames, mean, std, dtype)
    for part in parts(frames):
        drawn = draws[part]
        pixels = crop_and_flip(frames[part], drawn.crop, drawn.flip)
        pixels = blur(pixels, drawn.sigma)
        normalise(part, change_colours(pixels, drawn.matrix, drawn.pull))
    clips = normalise.clips
    fill_boxes(clips, draws.erase)
    mix_pairs(clips, draws.weight, draws.paste, draws.other)
    return clips


def soft_labels(labels: Tensor, draws: Draws, classes: int) -> Tensor:
    """int64 [B] → the share of each class in each clip of a batch that `augment` mixed, [B, classes]."""
    own = functional.one_hot(labels, classes).float()
    partner = torch.arange(len(labels), device=labels.device) + torch.tensor(draws.other, device=labels.device)
    weight = torch.tensor(draws.weight, dtype=torch.float32, device=labels.device)[:, None]
    return weight * own + (1 - weight) * own[partner]
