"""The tables of docs/results.md: every family on real clips, 5 folds by group.

    prep build-shards ../shared/data/surveillance-fights/videos.csv --out data/fights --size 80
    python benchmarks/results.py data/fights --out runs/results                     # from nothing
    python benchmarks/results.py data/fights --out runs/base --base                # a ViT-B, one fold
    prep build-shards ../shared/data/surveillance-fights/videos.csv --out data/fights112
    python benchmarks/results.py data/fights112 --out runs/lite0 --models late_fusion,early_fusion --lite0 FILE.pth

A run is a cell of `train compare`, in a folder of its own below --out, and what is done there is kept: a stopped
command goes on when run again. --models does and shows some families alone; --table trains none. Last comes the
ensemble: the mean of the probabilities of all families that are shown.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

import click
import numpy as np

from pipeline.console import print_table
from train.checkpoint import LAST, write_json, write_text
from train.compare import VERDICTS, Cell, compare, plan_cells, pooled
from train.comparison_table import HEADER, notes, table_rows, write_markdown
from train.recipes import RECIPES
from train.run_settings import RunSettings

FOLDS, CLIPS = 5, 5


@dataclass(frozen=True)
class Row:
    """A family's changes to its recipe, its options, and the family whose run of the same fold it starts from."""

    recipe: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None


# Chosen on inner folds of what fold 0 trains on. Small networks, short clips, and what changed between frames.
MOTION: dict[str, Any] = {"frames": 8, "input": "diff", "epochs": 30, "ratio": 4 / 3}
# Its recipe is for weights that were pre-trained: the lower a layer, the slower it learns.
UNTAUGHT: dict[str, Any] = {
    "epochs": 20,
    "lr": 3e-4,
    "layer_decay": 1.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "erase": 0.0,
}
QUARTER: dict[str, Any] = {"backbone": "resnet18_quarter"}
SCRATCH = {
    "early_fusion": Row(MOTION, QUARTER),
    "late_fusion": Row(MOTION, QUARTER),
    "cnn_lstm": Row({**MOTION, "epochs": 12}, QUARTER, start="late_fusion"),
    "cnn_mamba": Row({**MOTION, "epochs": 12}, QUARTER, start="late_fusion"),
    "single_frame": Row(MOTION, QUARTER),
    "s3d": Row({**MOTION, "epochs": 12}),
    "vivit": Row(MOTION, {"scale": "tiny"}),
    "videomae": Row({**MOTION, **UNTAUGHT}, {"scale": "tiny"}),
}
BASE = {"vivit": Row({**MOTION, "epochs": 10}, {"scale": "base"})}
# On colours the pretrained trunk learns the places by heart, too: 0.547 / 0.560 on fold 0.
LITE0: dict[str, Any] = {"backbone": "efficientnet_lite0"}
TUNED: dict[str, Any] = {**MOTION, "epochs": 10, "lr": 3e-4}
PRETRAINED = {
    name: Row(TUNED, LITE0) for name in ("late_fusion", "single_frame", "early_fusion", "cnn_lstm", "cnn_mamba")
}


def plan(
    rows: dict[str, Row], shards: Path, out: Path, weights: Path | None, folds: int = FOLDS
) -> dict[str, list[Cell]]:
    """The cells of each family, of the first `folds` folds. A cell that starts from another takes the weights of
    its last epoch: the best one was chosen by the very videos that are held out."""
    planned = {}
    for name, row in rows.items():
        recipe = replace(RECIPES[name], **row.recipe)
        place, file = str(shards.resolve()), str(weights.resolve()) if weights else None
        settings = RunSettings(name, place, recipe, weights=file, options=row.options)
        cells = plan_cells([settings], out, folds=FOLDS, seeds=[0], clips=CLIPS)
        if row.start:
            starts = [str((out / cell.out.name.replace(name, row.start, 1) / LAST).resolve()) for cell in cells]
            cells = [
                replace(cell, settings=replace(cell.settings, weights=start))
                for cell, start in zip(cells, starts, strict=True)
            ]
        planned[name] = cells[:folds]
    return planned


def done(cells: Sequence[Cell]) -> bool:
    """Whether all cells of a family have their verdicts."""
    return all((cell.out / VERDICTS).exists() for cell in cells)


def ensemble(families: dict[str, list[Cell]], out: Path) -> dict[str, Any]:
    """Metrics of the mean of the families' probabilities, fold by fold."""
    cells = []
    for fold in range(FOLDS):
        parts = [json.loads((cells[fold].out / VERDICTS).read_text()) for cells in families.values()]
        if any(part["videos"] != parts[0]["videos"] for part in parts):
            raise click.ClickException(f"fold {fold}: the families held out other videos; remove the older runs")
        mean = np.mean([part["probabilities"] for part in parts], axis=0)
        like = next(iter(families.values()))[fold]
        folder = out / f"ensemble-fold{fold}"
        folder.mkdir(exist_ok=True)
        write_json(folder / VERDICTS, {**parts[0], "probabilities": mean.tolist()})
        cells.append(replace(like, out=folder))
    return pooled(cells)


def show(found: dict[str, Any], families: dict[str, list[Cell]], out: Path) -> None:
    """Print the table and the ensemble; both are in --out as Markdown and JSON."""
    print_table(str(out), table_rows(found), HEADER)
    click.echo("\n".join(notes(found)))
    write_markdown(out / "table.md", found)
    if len(families) > 1:
        both = ensemble(families, out)
        found["ensemble"] = {"families": list(families), **both}
        low, high = both["accuracy_interval"]
        line = f"ensemble of {', '.join(families)}: accuracy {both['accuracy']:.3f} ({low:.3f}–{high:.3f})"
        low, high = both["roc_auc_interval_by_group"]
        line += f", ROC-AUC {both['roc_auc']:.3f} ({low:.3f}–{high:.3f})"
        click.echo(line)
        write_text(out / "table.md", (out / "table.md").read_text() + f"- {line}\n")
    write_json(out / "results.json", found)


@click.command()
@click.argument("shards", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--models", "names", help="Families, with commas between.  [default: all of the table]")
@click.option(
    "--lite0", type=click.Path(exists=True, path_type=Path), help="ImageNet weights of EfficientNet-Lite0."
)
@click.option("--base", is_flag=True, help="A ViT-B from nothing, fold 0 alone.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--table", is_flag=True, help="Train nothing: show what is done.")
def main(
    shards: Path, out: Path, names: str | None, lite0: Path | None, base: bool, jobs: int, table: bool
) -> None:
    """Train and judge what is not done yet, and put the tables together."""
    if base and lite0:
        raise click.UsageError("--base and --lite0 are two tables: give one of them")
    rows = PRETRAINED if lite0 else BASE if base else SCRATCH
    planned = plan(rows, shards, out, lite0, 1 if base else FOLDS)
    wanted = names.split(",") if names else list(rows)
    for name in [] if table else wanted:
        compare(planned[name], out, jobs=jobs, say=lambda line: click.echo(line, err=True))
    families = {name: cells for name, cells in planned.items() if name in wanted and done(cells)}
    found: dict[str, Any] = {}
    for cells in families.values():
        one = compare(cells, out)
        found = {**one, "rows": [*found.get("rows", []), *one["rows"]]}
    if not found:
        raise click.ClickException(f"{out}: no family is done yet")
    show(found, families, out)


if __name__ == "__main__":
    main()
