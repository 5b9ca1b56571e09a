"""What each setting is worth on real clips: many short runs with all settings drawn at random, and one fit.

    prep build-shards ../shared/data/surveillance-fights/videos.csv --out data/fights10 --size 80 --fps 10
    python benchmarks/tuning.py data/fights10 --out runs/tuning --runs 60

A run is judged on an inner fold of what an outer fold trains on (`--outer`), which itself is left alone. Every run
tells something about every setting: 60 of them measure a dozen settings as well as 30 runs with and 30 without
would measure one. The fit is of least squares, with a constant for each inner fold, since folds are not equally
hard; ± is one standard error. What is done in --out is kept: the same command goes on, and more --runs add to it.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.console import print_table
from train.checkpoint import write_json
from train.compare import VERDICTS, Cell, compare, pooled
from train.recipes import RECIPES
from train.run_settings import RunSettings

OUTER, INNER, CLIPS = 5, 4, 5
# A setting -> as it is by default here, and otherwise. The set has 10 frames a second: stride 2 is 5.
SETTINGS: dict[str, tuple[Any, Any]] = {
    "lr": (1e-3, 3e-3),
    "epochs": (20, 40),
    "stride": (2, 1),
    "crop": (0.6, 0.35),
    "mixup": (0.0, 0.4),
    "erase": (0.0, 0.3),
    "weight_decay": (0.05, 0.5),
    "dropout": (0.0, 0.5),
    "input": ("diff", "rgb+diff"),
}
FAMILIES = ("single_frame", "late_fusion", "early_fusion", "cnn_lstm", "cnn_mamba")
BACKBONE = "resnet18_quarter"


@dataclass(frozen=True)
class Run:
    """A cell and what was drawn for it: for each effect whether it was otherwise."""

    cell: Cell
    otherwise: dict[str, bool]

    @property
    def fold(self) -> str:
        """The inner fold that it is judged on."""
        return str(self.cell.settings.fold)


def draw_run(number: int, family: str, outer: int, shards: Path, out: Path) -> Run:
    """Run `number`: the same for the same number, whatever else is run."""
    rng = np.random.default_rng([20261128, number])
    otherwise = {name: bool(rng.integers(2)) for name in SETTINGS}
    chosen = {name: values[otherwise[name]] for name, values in SETTINGS.items()}
    fold = f"{outer}/{OUTER},{number % INNER}/{INNER}"
    recipe = replace(RECIPES[family], frames=8, ratio=4 / 3, **chosen)
    place, options = str(shards.resolve()), {"backbone": BACKBONE}
    settings = RunSettings(family, place, recipe, fold=fold, seed=number, options=options)
    return Run(Cell(settings, out / f"{family}-fold{outer}-{number:03d}", CLIPS), otherwise)


def fit(runs: list[Run], scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each effect adds to the scores [n], and its standard error, both [effects]."""
    folds = sorted({run.fold for run in runs})
    rows = [[*run.otherwise.values(), *(run.fold == fold for fold in folds)] for run in runs]
    known = np.array(rows, float)
    effects, _, rank, _ = np.linalg.lstsq(known, scores, rcond=None)
    if len(scores) <= rank or rank < known.shape[1]:
        raise click.ClickException(f"{len(scores)} runs: too few for {known.shape[1]} unknowns; give more --runs")
    noise = np.square(scores - known @ effects).sum() / (len(scores) - rank)
    errors = np.sqrt(noise * np.diag(np.linalg.inv(known.T @ known)))
    return effects[: len(SETTINGS)], errors[: len(SETTINGS)]


@click.command()
@click.argument("shards", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "family", type=click.Choice(FAMILIES), default="early_fusion", show_default=True)
@click.option("--runs", "count", type=click.IntRange(1), default=60, show_default=True)
@click.option("--outer", type=click.IntRange(0, OUTER - 1), default=0, show_default=True,
              help="The fold of 5 that is left alone.")  # fmt: skip
@click.option("--table", is_flag=True, help="Train nothing: fit what is done.")
def main(shards: Path, out: Path, family: str, count: int, outer: int, table: bool) -> None:
    """Train and judge what is not done yet, and say what each setting adds to AUC and accuracy."""
    runs = [draw_run(number, family, outer, shards, out) for number in range(count)]
    for run in [] if table else runs:
        compare([run.cell], out, say=lambda line: click.echo(line, err=True))
    done = [run for run in runs if (run.cell.out / VERDICTS).exists()]
    if not done:
        raise click.ClickException(f"{out}: no run is done yet")
    scores = [pooled([run.cell]) for run in done]
    measured = {name: np.array([score[name] for score in scores]) for name in ("roc_auc", "accuracy")}
    columns = [_column(*fit(done, values), values.mean()) for values in measured.values()]
    names = [f"{name} {usual} → {other}" for name, (usual, other) in SETTINGS.items()]
    rows = list(zip([*names, "mean of all runs"], *columns, strict=True))
    print_table(f"{family}, {len(done)} runs", rows, ("setting", "ROC-AUC", "accuracy"))
    write_json(out / "tuning.json", {"model": family, "runs": len(done), "rows": rows})


def _column(effects: NDArray[np.float64], errors: NDArray[np.float64], mean: float) -> list[str]:
    both = zip(effects, errors, strict=True)
    return [*(f"{effect:+.3f} ± {error:.3f}" for effect, error in both), f"{mean:.3f}"]


if __name__ == "__main__":
    main()
