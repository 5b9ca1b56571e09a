"""What each family sees of time: trained on videos whose classes are each other in reverse.

    prep sample-videos /tmp/sense/videos --videos 320
    prep build-shards /tmp/sense/videos --out /tmp/sense/shards --size 64
    python benchmarks/temporal_sense.py /tmp/sense/shards

No frame and no set of frames tells the classes of `prep sample-videos` apart, only their order does. So a family
that looks at frames one by one must stay at chance, and every other should come near 1. Each family is trained by
`train run` and judged on `val` by the weights of its last epoch.

CNNs are trained by their own recipes for 8 epochs. Transformers start from nothing, too, and have no notion of
space or time to start with: they get the `mini` scale, frame differences for input, milder crops, and more epochs.
Differences show motion to whoever looks at one frame: the last row says what single_frame makes of them.

Last result, 2026-11-22, 64 val videos: single_frame 0.594, late_fusion 0.578 (chance is within their intervals);
early_fusion, cnn_lstm and s3d 1.000, cnn_mamba 0.984; videomae 0.969 (0.893 to 0.991), vivit 0.938 (0.850 to
0.975). The row of single_frame on differences was not run. On colours alone transformers stayed at chance.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

TRAIN = [sys.executable, "-c", "from train.cli import main; main()"]
TRANSFORMERS = (
    "--option scale=mini --input diff --epochs 80 --lr 3e-4 --warmup 2 --layer-decay 1 --dropout 0 "
    "--label-smoothing 0 --crop 0.8 --brightness 0 --contrast 0"
)
CONVOLUTIONS = "--epochs 8"
FLAGS = {"vivit": TRANSFORMERS, "videomae": TRANSFORMERS}


def families() -> list[str]:
    """As `train models` lists them."""
    done = subprocess.run([*TRAIN, "models", "--json"], check=True, capture_output=True, text=True)
    return [row["model"] for row in json.loads(done.stdout)["models"]]


def accuracy(family: str, flags: str, shards: Path, out: Path) -> tuple[float, float, float]:
    """On val after the last epoch, with its 95 % interval."""
    run = [*TRAIN, "run", "--model", family, "--shards", str(shards), "--out", str(out), "--json", *flags.split()]
    subprocess.run(run, check=True, stdout=subprocess.PIPE)
    command = [
        *TRAIN,
        "eval",
        str(out),
        "--checkpoint",
        "last",
        "--allow-leaks",
        "--json",
    ]  # made-up videos look alike
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    metrics = json.loads(done.stdout)
    return metrics["accuracy"], *metrics["accuracy_interval"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.option("--only", default="", help="Families whose name holds this word.")
def main(shards: Path, only: str) -> None:
    """Print the accuracy of each family, with the flags that it was trained with."""
    asked = [(family, FLAGS.get(family, CONVOLUTIONS)) for family in families()]
    asked.append(("single_frame", f"{CONVOLUTIONS} --input diff"))
    with tempfile.TemporaryDirectory() as folder:
        for number, (family, flags) in enumerate(asked):
            if only in family:
                found, low, high = accuracy(family, flags, shards, Path(folder) / str(number))
                print(f"{family:16}{found:.3f}   ({low:.3f} to {high:.3f})   {flags}", flush=True)


if __name__ == "__main__":
    main()
