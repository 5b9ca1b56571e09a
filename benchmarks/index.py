"""How long a large set takes to open, and an epoch to be planned, and in how much memory.

    python benchmarks/index.py                      # a million made-up samples; asks for 350 MB of disk
    python benchmarks/index.py --samples 100_000 --json

Sidecars are written as a build writes them, beside shards that are files of the right length with nothing in them:
opening a set reads no frame. A process of its own then opens it, so that its memory is that of opening alone.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

ROOT = Path(__file__).parents[1]
FRAMES, FRAME_BYTES = 50, 112 * 112 * 3  # ten seconds of video


def make_set(root: Path, samples: int, per_shard: int) -> None:
    """A set of `samples` videos with sidecars and hollow shards."""
    from pipeline.recipe import Recipe, recipe_text
    from pipeline.shards.sidecar import Sample, Sidecar

    recipe = Recipe()
    (root / "recipe.json").write_text(recipe_text(recipe))
    buckets = -(-samples // per_shard)
    for bucket in range(buckets):
        numbers = range(bucket * per_shard, min((bucket + 1) * per_shard, samples))
        held = tuple(
            Sample(
                f"class{n % 400}-video{n:09d}-{n:08x}", f"class{n % 400}/video{n:09d}.mp4", f"class{n % 400}",
                f"class{n % 400}/video{n:09d}.mp4", f"{n:064x}", FRAMES, 640 + i * FRAMES * FRAME_BYTES,
                crc32c=f"{n:032x}",
            )
            for i, n in enumerate(numbers)
        )  # fmt: skip
        stem, size = f"train-{bucket:06d}", len(held) * (FRAMES * FRAME_BYTES + 2048)
        sidecar = Sidecar(
            f"{stem}.tar", recipe.fingerprint, "train", bucket, buckets, size, f"{bucket:064x}", held, ()
        )
        with (root / f"{stem}.tar").open("wb") as shard:
            shard.truncate(size)
        (root / f"{stem}.json").write_text(sidecar.text())


def measure(root: Path) -> dict[str, float]:
    """Open the set and plan two epochs; seconds, and megabytes at the most."""
    from pipeline.shards.index import read_set
    from train.clips import balanced_weights, training_clips

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    index = read_set(root).split("train")
    opened = time.perf_counter()
    training_clips(index.frames, 16, 0, 1)
    planned = time.perf_counter()
    training_clips(index.frames, 16, 0, 1, weights=balanced_weights(index.label))
    drawn = time.perf_counter()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "samples": len(index), "shards": len(index.shards), "open_seconds": round(opened - began, 2),
        "plan_seconds": round(planned - opened, 3), "balanced_plan_seconds": round(drawn - planned, 3),
        "most_megabytes": round(most / 1024), "megabytes_before": round(before / 1024),
    }  # fmt: skip


@click.command()
@click.option("--samples", default=1_000_000, show_default=True)
@click.option("--per-shard", default=128, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the made-up set here, or take what is here.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--measure", "measured", type=click.Path(path_type=Path), hidden=True)
def main(
    samples: int, per_shard: int, rounds: int, folder: Path | None, as_json: bool, measured: Path | None
) -> None:
    """Print seconds to open the set and to plan an epoch, and the most memory that it took."""
    if measured:
        print(json.dumps(measure(measured)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = folder or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "recipe.json").exists():
            make_set(root, samples, per_shard)
        command = [sys.executable, __file__, "--measure", str(root)]
        found = [json.loads(subprocess.check_output(command)) for _ in range(rounds)]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name in found[0]:
        print(f"{name:24}" + "".join(f"{row[name]:>12}" for row in found))


if __name__ == "__main__":
    main()
