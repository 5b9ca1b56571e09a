"""What masked pre-training is worth: one network on the same few labels, from scratch and from a pre-training.

    prep sample-videos /tmp/paint/videos --videos 3200
    prep build-shards /tmp/paint/videos --out /tmp/paint/shards --size 64
    train pretrain --shards /tmp/paint/shards --out /tmp/paint/painter --option scale=micro --input diff \\
        --option decoder_depth=2 --option normalised_targets=no --frames 8 --crop 1 --batch-size 32 --lr 2e-3 \\
        --warmup 1 --epochs 25
    python benchmarks/pretraining.py /tmp/paint/painter --out /tmp/paint/runs --seeds 0,1,2,3,4,5,6,7,8,9,10,11

The pre-training has seen all of `train` without its labels, once. Then, for each seed, a few videos of each label
are drawn, and two classifiers of the same size and input are trained on them: from fresh weights, and from the
pre-training. Both have the same videos, steps, batches and flags, but for the rate, of which each has its own
(`--scratch-lr`, `--lr`). They are judged on `val` after their last step, 5 clips a video; `val` chooses nothing.
The gain is the mean over seeds of the difference in ROC-AUC; its interval draws videos and seeds anew, 1,000 times
(percentiles 2.5 and 97.5).

Each run that is done is a line in `results.jsonl`: run the command again to go on, or with more seeds or other
settings to add to it.
"""

import hashlib
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.report import no_stage
from pipeline.shards.index import SplitIndex
from train.bootstrap import resamples, weighted_auc
from train.checkpoint import RUN, read_run
from train.classification import Classification
from train.compute import choose_compute
from train.evaluate import evaluate_run
from train.loop import Trainer
from train.recipes import RECIPES, PretrainRecipe
from train.run_settings import RunSettings

ARMS = ("scratch", "pretrained")
Line = dict[str, Any]


def few_labels(count: int, seed: int) -> type[Classification]:
    """Training on `count` videos alone, as many of each label, drawn by `seed`; nothing is judged on the way."""

    class FewLabels(Classification):
        def splits(self) -> tuple[SplitIndex, None]:
            index = self.shard_set.split("train")
            rng = np.random.default_rng(seed)
            chosen = np.zeros(len(index), bool)
            for label in range(len(self.shard_set.labels)):
                members = rng.permutation(np.flatnonzero(index.label == label))
                chosen[members[: count // len(self.shard_set.labels)]] = True
            return index.select(chosen), None

    return FewLabels


def plan(
    before: RunSettings,
    painter: Path,
    arm: str,
    seed: int,
    *,
    labelled: int,
    steps: int,
    batch_size: int,
    lr: float,
    scratch_lr: float,
    layer_decay: float,
) -> RunSettings:
    """A classifier of the pre-training's size and input."""
    epoch = -(-labelled // batch_size)  # in steps
    recipe = replace(
        RECIPES["videomae"],
        frames=before.recipe.frames,
        input=before.recipe.input,
        epochs=-(-steps // epoch),
        warmup=steps / epoch / 10,
        batch_size=batch_size,
        lr=scratch_lr if arm == "scratch" else lr,
        layer_decay=layer_decay,
        dropout=0.0,
        crop=1.0,
        mixup=0.0,
        cutmix=0.0,
        erase=0.0,
    )
    weights = None if arm == "scratch" else str(painter.resolve())
    options = {"scale": before.options.get("scale", "base")}
    return RunSettings("videomae", before.shards, recipe, seed, weights=weights, options=options)


def judge(arm: str, seed: int, settings: RunSettings, labelled: int, out: Path) -> Line:
    """One classifier, trained and judged: its line. Goes on where it was stopped."""
    trainer = Trainer(settings, out, lambda _: None, few_labels(labelled, seed))
    trainer.resume() if (out / RUN).exists() else trainer.start()
    trainer.fit(no_stage)
    found = evaluate_run(out, compute=choose_compute(), weights="last", check_leaks=False)
    scores = {name: found.metrics[name] for name in ("roc_auc", "accuracy")}
    said = {"labels": found.predictions.labels.tolist(), "p": found.predictions.probabilities[:, 1].tolist()}
    return {"arm": arm, "seed": seed, "labelled": labelled, "settings": settings.as_dict(), **scores, **said}


def gain(lines: list[Line]) -> tuple[float, float, float]:
    """Mean over seeds of the difference in ROC-AUC, with its 95 % interval."""
    by_arm = {arm: {line["seed"]: line for line in lines if line["arm"] == arm} for arm in ARMS}
    seeds = sorted(by_arm[ARMS[0]].keys() & by_arm[ARMS[1]].keys())
    labels = np.array(lines[0]["labels"])

    def areas(line: Line, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        chances = np.array(line["p"])
        return weighted_auc(np.stack([1 - chances, chances], 1), labels, weights)

    def differences(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs = [(by_arm["pretrained"][seed], by_arm["scratch"][seed]) for seed in seeds]
        return np.stack([areas(one, weights) - areas(other, weights) for one, other in pairs])  # [seeds, R]

    videos = [str(number) for number in range(len(labels))]
    drawn = np.concatenate([differences(weights) for weights in resamples(videos, seed=0)], 1)
    chosen = np.random.default_rng(0).integers(len(seeds), size=drawn.shape)
    low, high = np.percentile(np.take_along_axis(drawn, chosen, 0).mean(0), [2.5, 97.5])
    return float(differences(np.ones((1, len(labels)))).mean()), float(low), float(high)


def show(lines: list[Line]) -> None:
    """The table: a row a seed, then the means and the gain."""
    print(f"{'seed':6}{'scratch':>10}{'pretrained':>12}   (ROC-AUC on val)")
    found = {(line["arm"], line["seed"]): line["roc_auc"] for line in lines}
    for seed in sorted({line["seed"] for line in lines}):
        scratch, pretrained = (found.get((arm, seed), float("nan")) for arm in ARMS)
        print(f"{seed:<6}{scratch:>10.3f}{pretrained:>12.3f}")
    if len(found) < 2 * len({line["seed"] for line in lines}):
        return
    middle, low, high = gain(lines)
    print(f"gain {middle:+.3f}, 95 % {low:+.3f} to {high:+.3f}")


@click.command()
@click.argument("painter", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="All runs and results.jsonl.")
@click.option("--labelled", default=64, show_default=True, help="Videos with a label.")
@click.option("--steps", default=400, show_default=True, help="Of labelled training.")
@click.option("--batch-size", default=32, show_default=True, help="Of labelled training.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="From the pre-training.")
@click.option("--scratch-lr", default=2e-3, show_default=True)
@click.option("--layer-decay", default=1.0, show_default=True, help="Of both.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
def main(painter: Path, out: Path, seeds: str, arms: str, **asked: Any) -> None:
    """Print the gain in ROC-AUC that the run PAINTER of `train pretrain` brings."""
    before = RunSettings.from_dict(read_run(painter)["settings"], PretrainRecipe)
    results = out / "results.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    shown: list[Line] = []
    for seed, arm in product(map(int, seeds.split(",")), arms.split(",")):
        settings = plan(before, painter, arm, seed, **asked)
        wanted = {
            "arm": arm,
            "labelled": asked["labelled"],
            "settings": json.loads(json.dumps(settings.as_dict())),
        }
        line = next((line for line in done if wanted.items() <= line.items()), None)
        if line is None:
            digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
            line = judge(arm, seed, settings, asked["labelled"], out / f"{arm}-{seed}-{digest}")
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
        shown.append(line)
        print(f"seed {seed}, {arm}: {line['roc_auc']:.3f}", flush=True)
    show(shown)


if __name__ == "__main__":
    main()
