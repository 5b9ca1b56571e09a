"""Small whole sets, made without a video: seeds to mutate, and sets to spoil."""

from pathlib import Path

import msgspec
import numpy as np

from pipeline.plan import sample_key
from pipeline.recipe import Recipe, recipe_text
from pipeline.shards import get_format
from pipeline.shards.folder import measure
from pipeline.shards.sidecar import Sample, Sidecar


def make_set(root: Path, recipe: Recipe, frames: tuple[int, ...] = (20, 3), split: str = "train") -> Path:
    """A set of one shard with samples of so many frames, in turn of cats and dogs."""
    root.mkdir(parents=True, exist_ok=True)
    shard_format, dice = get_format(recipe.format), np.random.default_rng(1)
    for name, text in {"recipe.json": recipe_text(recipe), **shard_format.around(recipe)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    stem = f"{split}-000000"
    shard = root / shard_format.name(stem)
    writer, samples = shard_format.create(shard, recipe), []
    for number, count in enumerate(frames):
        video, label, digest = f"{split}{number}.mp4", ("cats", "dogs")[number % 2], f"{number:064x}"
        for _ in range(count):
            writer.frame(dice.integers(0, 255, (recipe.height, recipe.width, 3), np.uint8))
        about = {
            "key": sample_key(video), "video": video, "label": label, "group": video, "split": split,
            "source": {"sha256": digest, "bytes": 9}, "fps": str(recipe.fps), "first": 0, "time_base": "1/5",
            "pts": list(range(count)), "decoder": "none",
        }  # fmt: skip
        place = writer.finish(sample_key(video), about)
        samples.append(Sample(sample_key(video), video, label, video, digest, count, *place))
    writer.close()
    held = tuple(msgspec.structs.replace(sample, crc32c=writer.checksums(sample)) for sample in samples)
    sidecar = Sidecar(shard_format.name(stem), recipe.fingerprint, split, 0, 1, *measure(shard), held, ())
    (root / f"{stem}.json").write_text(sidecar.text())
    return root
