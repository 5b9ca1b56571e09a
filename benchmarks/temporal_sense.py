"""What each family sees of time: trained on videos whose classes are each other in reverse.

    prep sample-videos /tmp/sense/videos --videos 320
    prep build-shards /tmp/sense/videos --out /tmp/sense/shards --size 64
    python benchmarks/temporal_sense.py /tmp/sense/shards

No frame and no set of frames tells the classes of `prep sample-videos` apart, only their order does. So a family
that looks at frames one by one must stay at chance, and every other should come near 1. Each family is trained by
`train run` (transformers in their tiny size, at a higher rate, without crops: they start from nothing) and judged
on `val`.

Last result, 2026-11-22, 64 val videos: single_frame 0.594, late_fusion 0.578 (chance is within their intervals);
early_fusion, cnn_lstm and s3d 1.000, cnn_mamba 0.984; vivit and videomae 0.500: 256 clips and 8 epochs are too few
for transformers that start from nothing.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

TRAIN = [sys.executable, "-c", "from train.cli import main; main()"]
TRANSFORMERS = ["--option", "scale=tiny", "--lr", "5e-4", "--crop", "1", "--dropout", "0", "--layer-decay", "1"]
FLAGS = {"vivit": TRANSFORMERS, "videomae": TRANSFORMERS}


def families() -> list[str]:
    """As `train models` lists them."""
    done = subprocess.run([*TRAIN, "models", "--json"], check=True, capture_output=True, text=True)
    return [row["model"] for row in json.loads(done.stdout)["models"]]


def accuracy(family: str, shards: Path, out: Path, epochs: int) -> tuple[float, float, float]:
    """On val after the last epoch, with its 95 % interval."""
    common = ["--model", family, "--shards", str(shards), "--out", str(out), "--epochs", str(epochs), "--json"]
    subprocess.run([*TRAIN, "run", *common, *FLAGS.get(family, [])], check=True, capture_output=True)
    command = [*TRAIN, "eval", str(out), "--weights", "last", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    metrics = json.loads(done.stdout)
    return metrics["accuracy"], *metrics["accuracy_interval"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.option("--epochs", default=8, show_default=True)
@click.option("--only", default="", help="Families whose name holds this word.")
def main(shards: Path, epochs: int, only: str) -> None:
    """Print the accuracy of each family."""
    with tempfile.TemporaryDirectory() as folder:
        for family in families():
            if only in family:
                found, low, high = accuracy(family, shards, Path(folder) / family, epochs)
                print(f"{family:16}{found:.3f}   ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
