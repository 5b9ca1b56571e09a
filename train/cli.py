"""`train`: shards to models and metrics. Heavy imports stay inside the commands: `--help` answers at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import Commands, cache_options, json_option
from pipeline.console import print_json, print_table
from train.cli_compare import compare
from train.cli_eval import evaluate, score_rows
from train.cli_options import (
    batch_size_option,
    check_families,
    compute_options,
    frames_option,
    model_option,
    shards_option,
)
from train.cli_pretrain import pretrain
from train.cli_recipe import Training, family_option, input_option, make_recipe, recipe_options, stopping_options
from train.cli_report import report
from train.cli_training import resumed_family, run_options, settings_from, train_run
from train.cli_use import export, predict
from train.cli_watch import watch

if TYPE_CHECKING:
    from train.run_settings import RunSettings


@click.group("train", cls=Commands)
@click.version_option(package_name="reelcache", prog_name="train")
def main() -> None:
    """Train video classifiers from shards, and judge them.

    \b
    Examples:
      train run --model early_fusion --out runs/first
      train eval runs/first
      train predict runs/first street.mp4
    """


@click.command(cls=Training)
@model_option()
@run_options
@recipe_options
@stopping_options
@click.pass_context
def run(ctx: click.Context, /, model: str | None, **flags: Any) -> None:
    """Train a model family on a shard set.

    It learns from the `train` split and is judged on `val` after each epoch. What is not given of the recipe is
    the family's own.

    \b
    Examples:
      train run --model early_fusion --epochs 20 --out runs/first
      train run --config runs/first/config.toml --seed 1
      torchrun --nproc-per-node 2 -m train run --model early_fusion --epochs 20
    """
    model = model or resumed_family(ctx, flags)
    check_families("--model", [model])
    settings = settings_from(model, make_recipe(model, flags), flags)
    train_run(ctx, settings, flags, _metric_rows, _judging)


@click.command()
@model_option(required=True)
@shards_option
@cache_options
@batch_size_option
@frames_option
@input_option
@family_option
@compute_options
@click.option("--seconds", type=click.FloatRange(0), default=10, help="How long each of the three is measured.")
@json_option
def bench(
    model: str, shards: Path | str, cache: Path | None, cache_size: int | None, device: str, precision: str,
    seconds: float, as_json: bool, options: dict[str, Any], **flags: Any,
) -> None:  # fmt: skip
    """Say what holds training up: the loader or the model.

    Clips/s of the loader alone, of the model alone, and of both together. A flag without a default here has the
    family's own.

    \b
    Examples:
      train bench --model early_fusion --seconds 5
      train bench --model vivit --option scale=small --input diff
    """
    from pipeline.shards.index import read_set

    check_families("--model", [model])
    recipe = make_recipe(model, flags)
    shard_set = read_set(shards)

    from train.bench import bench as measure
    from train.compute import choose_compute

    compute = choose_compute(device, precision)
    found = measure(model, shard_set, recipe, compute, seconds, options, cache=cache, cache_size=cache_size)
    if as_json:
        print_json(found)
        return
    title = f"{model}, {found['batch_size']} clips of {found['frames']} frames a step, on {found['device']}"
    names = {"loader": "loader alone", "model": "model alone, on one cached batch", "together": "both together"}
    rows = [(label, f"{found['clips_per_second'][name]:,.1f} clips/s") for name, label in names.items()]
    print_table(title, [*rows, ("waiting for data", f"{found['data_wait']:.2%} of the time of both")])
    click.echo(found["advice"])


@click.command()
@click.option("--frames", type=click.IntRange(1), default=16, help="T: frames a clip.")
@click.option("--size", metavar="SIZE", default="112", help="Size of a frame: 112 (square) or 160x90.")
@click.option("--classes", type=click.IntRange(2), default=2, help="How many classes are told apart.")
@model_option()
@family_option
@json_option
def models(
    frames: int, size: str, classes: int, model: str | None, options: dict[str, Any], as_json: bool
) -> None:
    """List the model families, or one with --model.

    Parameters, cost of a clip, input, weights that it can start from, and paper.

    \b
    Examples:
      train models --json
      train models --model vivit --option scale=small
    """
    from pipeline.errors import UserError
    from pipeline.recipe import parse_size
    from train.catalog import describe_model, list_models

    if options and model is None:
        raise UserError("--option: say of which family with --model")
    clip = frames, parse_size(size), classes
    rows = list_models(*clip) if model is None else [describe_model(model, *clip, **options)]
    if as_json:
        print_json({"models": rows, "flops_per_multiply_add": 2})
        return
    print_table(
        f"{classes} classes; a multiply-add counts as two FLOPs",
        [_model_row(row) for row in rows],
        ("model", "parameters", "GFLOPs", "T×C×H×W", "weights", "source, or why not"),
    )


def _judging(_settings: "RunSettings", _labels: list[str], metrics: Mapping[str, Any]) -> str:
    """Whether there are near copies, only their search tells, which reads the whole set."""
    if not metrics["val"]:
        return "train eval {out} --split SPLIT --shards SET, as there is no val here to judge it on"
    return "train eval {out} or train report {out} (--allow-leaks, where copies are on both sides)"


def _model_row(row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return row["model"], "", "", "", "", row["error"]
    shape, weights = "×".join(map(str, row["input"])), ", ".join(row["weights"])
    return row["model"], f"{row['parameters']:,}", f"{row['gflops']:,}", shape, weights, row["source"]


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", f"{metrics['epochs']}, best {metrics['best_epoch']}"),
    ]
    if metrics["val"]:
        rows += [(f"val {name}", value) for name, value in score_rows(metrics["val"])]
    wait, rate = metrics["data_wait"], metrics["clips_per_second"]
    return [*rows, ("clips/s", f"{rate}"), ("waiting for data", f"{wait:.2%} of step time")]


for command in (run, pretrain, evaluate, compare, predict, watch, export, report, bench, models):
    main.add_command(command)
