"""What helps where one class is rare: balanced draws, class weights, or nothing.

    python benchmarks/imbalance.py ../shared/data/surveillance-fights/videos.csv

Each seed draws groups for val, leaves val as it is, and keeps of the training videos all of one label and a ninth
as many of the other. The same family is then trained three times by `train run`, and judged by balanced accuracy
on val with the weights of the last epoch. Intervals are Student's over the seeds, 95 %; differences are paired.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

PREP = [sys.executable, "-c", "from pipeline.cli import main; main()"]
TRAIN = [sys.executable, "-c", "from train.cli import main; main()"]
WAYS = {"nothing": [], "--balanced": ["--balanced"], "--class-weights": ["--class-weights", "balanced"]}
Row = dict[str, str]


def imbalanced(rows: list[Row], rare: str, ratio: int, seed: int) -> list[Row]:
    """The videos with a split: about a third of them in val, whole groups; of `rare`, few are left in train."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(sorted({row["group"] for row in rows})).tolist()
    val: set[str] = set()
    while sum(row["group"] in val for row in rows) < len(rows) / 3:
        val.add(groups.pop())
    found = [{**row, "split": "val" if row["group"] in val else "train"} for row in rows]
    train = [row for row in found if row["split"] == "train"]
    many = [row for row in train if row["label"] != rare]
    few = [row for row in train if row["label"] == rare]
    kept = rng.choice(len(few), round(len(many) / ratio), replace=False)
    return [*many, *(few[place] for place in kept), *(row for row in found if row["split"] == "val")]


def balanced_accuracies(rows: list[Row], folder: Path, seed: int, flags: list[str]) -> list[float]:
    """Of each of WAYS, on one set that is built in `folder`."""
    with (folder / "videos.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "label", "group", "split"])
        table.writeheader()
        table.writerows(rows)
    shards = str(folder / "shards")
    build = [*PREP, "build-shards", str(folder / "videos.csv"), "--out", shards, "--size", "64", "--workers", "1"]
    subprocess.run(build, check=True, capture_output=True)
    found = []
    for number, way in enumerate(WAYS.values()):
        out = str(folder / str(number))
        run = [*TRAIN, "run", "--shards", shards, "--out", out, "--seed", str(seed), *flags, *way]
        subprocess.run(run, check=True, capture_output=True)
        judge = [*TRAIN, "eval", out, "--checkpoint", "last", "--allow-leaks", "--json"]
        done = subprocess.run(judge, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout)["balanced_accuracy"])
    return found


def shown(values: NDArray[np.float64]) -> str:
    """Mean, and Student's interval."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.3f} ({values.mean() - half:+.3f} to {values.mean() + half:+.3f})"


@click.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rare", default="fight", show_default=True, help="The label that is made rare.")
@click.option("--ratio", default=9, show_default=True, help="Videos of the others for one of it.")
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--model", default="early_fusion", show_default=True)
@click.option("--epochs", default=12, show_default=True)
def main(table: Path, rare: str, ratio: int, seeds: int, model: str, epochs: int) -> None:
    """Print balanced accuracy for each way, and its gain over doing nothing."""
    with table.open(newline="") as file:
        rows = [{**row, "path": str((table.parent / row["path"]).resolve())} for row in csv.DictReader(file)]
    flags = ["--model", model, "--epochs", str(epochs), "--frames", "8", "--input", "diff"]
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(balanced_accuracies(imbalanced(rows, rare, ratio, seed), Path(folder), seed, flags))
        print(
            f"seed {seed}: ", "  ".join(f"{w} {v:.3f}" for w, v in zip(WAYS, found[-1], strict=True)), flush=True
        )
    table_of = np.array(found)
    for number, way in enumerate(WAYS):
        gain = f"gain {shown(table_of[:, number] - table_of[:, 0])}" if number else ""
        print(f"{way:16}{shown(table_of[:, number])}   {gain}")


if __name__ == "__main__":
    main()
