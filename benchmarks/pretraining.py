"""What masked pre-training is worth: one network on the same few labels, from scratch and from a pre-training.

    prep sample-videos /tmp/paint/videos --videos 3200
    prep build-shards /tmp/paint/videos --out /tmp/paint/shards --size 64
    python benchmarks/pretraining.py /tmp/paint/shards --out /tmp/paint/runs

VideoMAE is pre-trained on all of `train` without its labels, once. Then, for each seed, a few videos of each
label are drawn, and two classifiers are trained on them: from fresh weights, and from the pre-training. Both
have the same videos, steps, batches and flags, but for the rate, of which each has its own (`--scratch-lr`,
`--lr`). They are judged on `val` after their last step, 5 clips a video; `val` chooses nothing. The gain is the
mean over seeds of the difference in ROC-AUC; its interval draws videos and seeds anew, 1,000 times (percentiles
2.5 and 97.5).

Each run that is done is a line in `results.jsonl`: run the command again to go on, or with more seeds or other
settings to add to it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.report import no_stage
from pipeline.shards.index import SplitIndex
from train.bootstrap import resamples, weighted_auc
from train.checkpoint import METRICS, RUN
from train.classification import Classification
from train.compute import choose_compute
from train.evaluate import evaluate_run
from train.loop import Trainer
from train.objective import Objective
from train.pretraining import MaskedPretraining
from train.recipes import PRETRAIN_RECIPES, RECIPES, TrainRecipe
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


def train(settings: RunSettings, out: Path, objective: type[Objective]) -> None:
    """To the end; from where it stopped, where it was begun."""
    trainer = Trainer(settings, out, lambda _: None, objective)
    trainer.resume() if (out / RUN).exists() else trainer.start()
    trainer.fit(no_stage)


def judge(arm: str, seed: int, settings: RunSettings, labelled: int, out: Path) -> Line:
    """One classifier, trained and judged: its line."""
    train(settings, out, few_labels(labelled, seed))
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
@click.argument("shards", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="All runs and results.jsonl.")
@click.option("--scale", default="micro", show_default=True)
@click.option("--frames", default=16, show_default=True)
@click.option("--labelled", default=64, show_default=True, help="Videos with a label.")
@click.option("--steps", default=400, show_default=True, help="Of labelled training.")
@click.option("--batch-size", default=32, show_default=True, help="Of labelled training.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--lr", default=1e-3, show_default=True, help="From the pre-training.")
@click.option("--scratch-lr", default=1e-3, show_default=True)
@click.option("--layer-decay", default=1.0, show_default=True, help="Of both.")
@click.option("--epochs", default=60, show_default=True, help="Of the pre-training.")
@click.option("--pretrain-lr", default=2e-3, show_default=True)
@click.option("--mask-ratio", default=0.75, show_default=True)
def main(
    shards: Path,
    out: Path,
    scale: str,
    frames: int,
    labelled: int,
    steps: int,
    batch_size: int,
    seeds: str,
    lr: float,
    scratch_lr: float,
    layer_decay: float,
    epochs: int,
    pretrain_lr: float,
    mask_ratio: float,
) -> None:
    """Print the gain in ROC-AUC."""
    options = {"scale": scale}
    painting = replace(
        PRETRAIN_RECIPES["videomae"], frames=frames, epochs=epochs, lr=pretrain_lr, mask_ratio=mask_ratio
    )
    before = RunSettings("videomae_pretraining", str(shards.resolve()), painting, options=options)
    source = out / f"painter-{scale}-{frames}f-{epochs}ep-{mask_ratio}-{pretrain_lr}"
    if not (source / METRICS).exists():
        train(before, source, MaskedPretraining)
    per_epoch = -(-labelled // batch_size)
    base = replace(
        RECIPES["videomae"], frames=frames, epochs=-(-steps // per_epoch), batch_size=batch_size, dropout=0.0,
        warmup=steps / per_epoch / 10, layer_decay=layer_decay,
    )  # fmt: skip
    starts: dict[str, tuple[TrainRecipe, str | None]] = {
        "scratch": (replace(base, lr=scratch_lr), None),
        "pretrained": (replace(base, lr=lr), str(source.resolve())),
    }
    results = out / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    shown: list[Line] = []
    for seed in map(int, seeds.split(",")):
        for arm, (recipe, weights) in starts.items():
            settings = RunSettings("videomae", before.shards, recipe, seed, weights=weights, options=options)
            wanted = json.loads(json.dumps({"arm": arm, "labelled": labelled, "settings": settings.as_dict()}))
            line = next((line for line in lines if wanted.items() <= line.items()), None)
            if line is None:
                run = out / f"{arm}-{labelled}-{recipe.lr}-{steps}-{layer_decay}-{source.name}-{seed}"
                line = judge(arm, seed, settings, labelled, run)
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            shown.append(line)
            print(f"seed {seed}, {arm}: {line['roc_auc']:.3f}", flush=True)
    show(shown)


if __name__ == "__main__":
    main()
