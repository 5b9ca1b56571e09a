"""Augmentation of a batch of clips on this device, beside kornia's where it is installed. Milliseconds a batch.

    python benchmarks/augment.py                  # ours alone
    pip install kornia && python benchmarks/augment.py --batch 32 --rounds 7 --threads 1

Each row is one setting, ours and kornia's in turn, medians. Both start from uint8 [B, T, H, W, C] as the loader
gives them and end with normalised floats. kornia's ColorJitter turns the hue through HSV, ours in YIQ.

Last result, kornia 0.9.0 and torch 2.13.0, one thread of two cores that others used, too, so ratios count:
flip, crop and jitter 62 ms, kornia 1,412; flip and crop 104, kornia 644. Most of ours is the kernel's: it clears
77 MB of fresh memory for each batch: the same copy into memory that is kept takes a tenth. bf16 halves that.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

import click
import numpy as np
import torch
from torch import Tensor

from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from train.augment import augment, draw_augmentation
from train.inputs import make_input, to_clips
from train.recipes import Augment

Work = Callable[[], Tensor]
CROP = {"flip": 0.5, "crop": 0.6, "ratio": 4 / 3}
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
SETTINGS: dict[str, dict[str, float]] = {
    "normalise": {},
    "flip, crop": CROP,
    "flip, crop, jitter": {**CROP, **JITTER},
    "blur": {"blur": 1.0},
    "erase": {"erase": 1.0},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
}


def ours(frames: Tensor, settings: Augment, dtype: torch.dtype) -> Tensor:
    """What a training step does."""
    draws = draw_augmentation(settings, len(frames), (frames.shape[2], frames.shape[3]), np.random.default_rng(0))
    return augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD, dtype)


def theirs(frames: Tensor, pipeline: Any) -> Tensor:
    """A batch through kornia."""
    clips: Tensor = pipeline(frames.permute(0, 1, 4, 2, 3).float() / 255)
    return clips


def kornia_pipeline(settings: dict[str, float], height: int, width: int) -> Any | None:
    """The same for kornia, where it has it for clips and is installed."""
    if importlib.util.find_spec("kornia") is None or set(settings) - {*CROP, *JITTER}:
        return None
    from kornia import augmentation as kornia

    steps: list[Any] = [kornia.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))]
    if "hue" in settings:
        steps.insert(0, kornia.ColorJitter(*JITTER.values(), p=1.0))
    if "crop" in settings:
        crop = kornia.RandomResizedCrop((height, width), scale=(CROP["crop"], 1), ratio=(3 / 4, 4 / 3))
        steps = [crop, kornia.RandomHorizontalFlip(), *steps]
    return kornia.VideoSequential(*steps, data_format="BTCHW", same_on_frame=True)


def medians(works: dict[str, Work], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each, one after the other in every round; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(spent[1:]), 1) for name, spent in times.items()}


@click.command()
@click.option("--batch", default=32, show_default=True)
@click.option("--frames", default=16, show_default=True)
@click.option("--side", default=112, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(batch: int, frames: int, side: int, rounds: int, threads: int, device: str) -> None:
    """Print one JSON object."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    stored = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8).to(place)
    found: dict[str, dict[str, float]] = {}
    for name, values in SETTINGS.items():
        settings = Augment(**values)
        works: dict[str, Work] = {
            "fp32": partial(ours, stored, settings, torch.float32),
            "bf16": partial(ours, stored, settings, torch.bfloat16),
        }
        peer = kornia_pipeline(values, side, side)
        if peer is not None:
            works["kornia"] = partial(theirs, stored, peer)
        found[name] = medians(works, rounds, place)
    clips = to_clips(stored, IMAGENET_MEAN, IMAGENET_STD)
    inputs: dict[str, Work] = {kind: partial(make_input, clips, kind) for kind in ("diff", "rgb+diff")}
    found["input"] = medians(inputs, rounds, place)
    shape = "×".join(map(str, stored.shape))
    print(json.dumps({"batch": shape, "threads": threads, "milliseconds": found}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
