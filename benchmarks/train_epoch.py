"""Training from shards against decoding on the fly, which `DataLoader` users do: is the build worth its time?

    pip install decord2
    python benchmarks/train_epoch.py videos.csv             # or a folder of <label>/*.mp4
    python benchmarks/train_epoch.py videos.csv --rounds 5 --json

Builds the set with `prep build-shards` (its wall time is the cost), then takes turns, an epoch each: the input
alone, and with it the training step of `train bench` (augmentation on batches, forward, backward, AdamW). One way
reads shards by `ClipStream`; the other decodes the same videos by decord2, scaled in the decoder, in a
`DataLoader` with 2 workers that live on. Clips, batches, model and augmentation are the same, so only the input
differs. Videos are in the page cache. The build is repaid in the epoch by whose end both ways took as long.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be models.py beside this script

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.shards.index import SplitIndex, read_set
from pipeline.sources import list_videos
from train.bench import Step, training_step
from train.clips import Sampling, clip_frames
from train.compute import choose_compute, make_model
from train.recipes import RECIPES
from train.stream import Batch, ClipStream

Epoch = Callable[[], Iterable[Batch]]
WORKERS = 2


class OnTheFly(Dataset[tuple[Any, int, int]]):
    """A clip of each video, decoded when it is asked for: frames at `fps`, by their places in the file."""

    def __init__(self, index: SplitIndex, paths: list[str], frames: int) -> None:
        self.paths, self.fps, self.sampling = paths, float(index.recipe.fps), Sampling(frames)
        self.size = {"width": index.recipe.width, "height": index.recipe.height}
        self.labels: dict[int, int] = dict(zip(index.video.tolist(), index.label.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[Any, int, int]:
        import decord

        reader = decord.VideoReader(self.paths[place], num_threads=1, **self.size)
        kept = np.arange(0, len(reader), reader.get_avg_fps() / self.fps).astype(np.int64)
        latest = int(self.sampling.latest(np.array([len(kept)]))[0])
        start = int(np.random.default_rng().integers(latest + 1))
        chosen = kept[clip_frames(len(kept), self.sampling, start)]
        return reader.get_batch(chosen).asnumpy(), self.labels[place], place


def on_the_fly(index: SplitIndex, videos: Path, frames: int, batch_size: int) -> Epoch:
    """Batches as a `DataLoader` with 2 workers makes them."""
    path_of = {video.id: str(video.path) for video in list_videos(videos)}
    data = OnTheFly(index, [path_of[name] for name in index.videos], frames)
    loader: DataLoader[Any] = DataLoader(
        data, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return lambda: (Batch(frames, labels, places, 0, len(labels)) for frames, labels, places in loader)


def build(videos: Path, folder: Path) -> float:
    """Seconds that `prep build-shards` takes."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", str(videos)]
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds(epoch: Epoch, step: Step) -> float:
    """Wall time of one epoch."""
    began = time.perf_counter()
    for batch in epoch():
        step(batch)
    return time.perf_counter() - began


def compare(index: SplitIndex, videos: Path, model: str, rounds: int) -> dict[str, list[float]]:
    """Seconds per epoch of each way, alone and with training; the first round of all warms up and is left out."""
    recipe, compute = RECIPES[model], choose_compute("cpu", "auto")
    torch.manual_seed(0)
    size = index.recipe.width, index.recipe.height
    made = make_model(model, num_classes=len(index.labels), num_frames=recipe.frames, size=size)
    step = training_step(compute.prepare(made), recipe, compute)
    taken: dict[str, list[float]] = {}
    with ClipStream(index, frames_per_clip=recipe.frames, batch_size=recipe.batch_size) as stream:
        numbers = count()
        ways: dict[str, Epoch] = {
            "shards": lambda: stream.epoch(next(numbers)),
            "on the fly": on_the_fly(index, videos, recipe.frames, recipe.batch_size),
        }
        for number in range(rounds + 1):
            for way, epoch in ways.items():
                for what, do in (("input", lambda _: None), ("training", step)):
                    spent = seconds(epoch, do)
                    if number:
                        taken.setdefault(f"{what}, {way}", []).append(spent)
    return taken


def conclude(cost: float, taken: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, ratios round by round, and the epoch in which the build is repaid."""
    middle = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {}
    for what in ("input", "training"):
        pairs = zip(taken[f"{what}, on the fly"], taken[f"{what}, shards"], strict=True)
        each = [slow / fast for slow, fast in pairs]
        ratios[what] = [round(value, 2) for value in (statistics.median(each), min(each), max(each))]
    gain = middle["training, on the fly"] - middle["training, shards"]
    return {
        "build_seconds": round(cost, 2),
        "epoch_seconds": {name: round(value, 4) for name, value in middle.items()},
        "ratios": ratios,
        "repaid_in_epoch": max(1, math.ceil(cost / gain)) if gain > 0 else None,
    }


@click.command()
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="early_fusion", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(videos: Path, model: str, rounds: int, as_json: bool) -> None:
    """Print the build's seconds, seconds per epoch each way, their ratios, and when the build is repaid."""
    for video in list_videos(videos):  # into the page cache
        Path(str(video.path)).read_bytes()
    scratch = Path(tempfile.mkdtemp())
    try:
        cost = build(videos, scratch / "set")
        index = read_set(scratch / "set").split("train")
        found = {
            "clips": len(index),
            "cores": len(os.sched_getaffinity(0)),
            **conclude(cost, compare(index, videos, model, rounds)),
        }
    finally:
        shutil.rmtree(scratch)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['clips']} clips an epoch, {found['cores']} cores\nbuild: {found['build_seconds']} s")
    for name, value in found["epoch_seconds"].items():
        print(f"{name:24}{value:>10.3f} s an epoch")
    for what, (half, low, high) in found["ratios"].items():
        print(f"{what}: shards are {half} times as fast ({low} to {high})")
    print(f"the build is repaid in epoch {found['repaid_in_epoch']}")


if __name__ == "__main__":
    main()
