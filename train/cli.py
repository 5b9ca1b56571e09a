"""`train`: shards to models and metrics. Heavy imports stay inside the commands: `--help` answers at once."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import Commands, json_option, print_json, print_table
from train.cli_eval import compare, evaluate, score_rows
from train.cli_pretrain import pretrain
from train.cli_recipe import config_option, family_option, make_recipe, recipe_options, stopping_options
from train.cli_report import report
from train.cli_training import DEFAULT_RUNS, DEFAULT_SHARDS, claim, fit, run_options, saved_settings
from train.cli_use import export, predict
from train.cli_watch import watch


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reelcache", prog_name="train")
def main() -> None:
    """Train video classifiers from shards, and judge them.

    \b
    Start with:  train run --model early_fusion
                 train eval runs/<the run>
    """


main.add_command(predict)
main.add_command(export)
main.add_command(watch)
main.add_command(report)
main.add_command(pretrain)


@main.command()
@config_option
@click.option("--model", required=True, help="The family; `train models` lists them.")
@run_options
@recipe_options
@stopping_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    model: str,
    shards: Path | str,
    cache: Path | None,
    cache_size: int | None,
    out: Path | None,
    seed: int,
    fold: str | None,
    device: str,
    precision: str,
    weights: Path | None,
    compiled: bool,
    fsdp: bool,
    checkpoint_every: str,
    options: dict[str, Any],
    tensorboard: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a model family on the `train` split of a shard set, judged on `val`.

    \b
    Example:  train run --model early_fusion --epochs 20 --out runs/first
              train run --config runs/first/config.toml --seed 1
              torchrun --nproc-per-node 2 -m train run --model early_fusion --out runs/second
    """
    from pipeline.errors import UserError
    from train.recipes import RECIPES
    from train.stopping import Every

    if model not in RECIPES:
        raise UserError(f"--model {model}: no such family; there are {', '.join(RECIPES)}")
    every = Every.parse(checkpoint_every)
    if resume and out is None:
        raise UserError("--resume: say which run with --out")
    out = out or DEFAULT_RUNS / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    recipe = make_recipe(model, flags)
    claim(out, resume=resume, overwrite=overwrite)

    from train.ranks import join_ranks
    from train.run_settings import RunSettings

    settings = RunSettings(
        model, str(shards), recipe, seed, device, precision, str(weights.resolve()) if weights else None, options,
        fold, compiled, fsdp,
    )  # fmt: skip
    if resume:
        told = ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) in told}
        settings = saved_settings(out, settings, asked)
    with join_ranks() as ranks:  # all of them have seen by then that the folder may be used
        out = Path(ranks.text_of_first(str(out)))
        kept = {"cache": cache, "cache_size": cache_size, "checkpoint_every": every, "ranks": ranks,
                "tensorboard": tensorboard}  # fmt: skip
        metrics = fit(ctx, settings, out, kept, resume=resume)
    if not ranks.first:
        return
    if as_json:
        print_json({"run": str(out), **metrics})
        return
    print_table(str(out), _metric_rows(metrics))
    click.echo(f"next: train eval {out}")


main.command("eval")(evaluate)
main.command("compare")(recipe_options(compare))


@main.command()
@click.option("--model", required=True, help="The family; `train models` lists them.")
@click.option(
    "--shards", type=click.Path(path_type=Path), default=DEFAULT_SHARDS, show_default=True, help="The set."
)
@click.option("--batch-size", type=click.IntRange(1), help="Clips a step.  [default: the family's]")
@click.option("--frames", type=click.IntRange(1), help="T: frames a clip.  [default: the family's]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--seconds", type=click.FloatRange(0), default=10, show_default=True, help="For each of the three.")
@json_option
def bench(
    model: str, shards: Path, device: str, precision: str, seconds: float, as_json: bool, **flags: Any
) -> None:
    """Say what holds training up: clips/s of the loader alone, the model alone, and both.

    \b
    Example:  train bench --model early_fusion
    """
    from pipeline.errors import UserError
    from pipeline.shards.index import read_set
    from train.recipes import RECIPES

    if model not in RECIPES:
        raise UserError(f"--model {model}: no such family; there are {', '.join(RECIPES)}")
    recipe = make_recipe(model, flags)
    shard_set = read_set(shards)

    from train.bench import bench as measure
    from train.compute import choose_compute

    found = measure(model, shard_set, recipe, choose_compute(device, precision), seconds)
    if as_json:
        print_json(found)
        return
    title = f"{model}, {found['batch_size']} clips of {found['frames']} frames a step, on {found['device']}"
    names = {"loader": "loader alone", "model": "model alone, on one cached batch", "together": "both together"}
    rows = [(label, f"{found['clips_per_second'][name]:,.1f} clips/s") for name, label in names.items()]
    print_table(title, [*rows, ("waiting for data", f"{found['data_wait']:.2%} of the time of both")])
    click.echo(found["advice"])


@main.command()
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True, help="T: frames a clip.")
@click.option("--size", default="112", show_default=True, help="Frames: 112 (square) or 160x90.")
@click.option("--classes", type=click.IntRange(2), default=2, show_default=True)
@click.option("--model", help="This family alone.")
@family_option
@json_option
def models(
    frames: int, size: str, classes: int, model: str | None, options: dict[str, Any], as_json: bool
) -> None:
    """List the model families: parameters, cost of a clip, input, weights they take, and paper.

    \b
    Example:  train models --json
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
        [
            (r["model"], f"{r['parameters']:,}", f"{r['gflops']:,}", "×".join(map(str, r["input"])),
             ", ".join(r["weights"]), r["source"])
            for r in rows
        ],
        ("model", "parameters", "GFLOPs", "T×C×H×W", "weights", "source"),
    )  # fmt: skip


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", f"{metrics['epochs']}, best {metrics['best_epoch']}"),
    ]
    if metrics["val"]:
        rows += [(f"val {name}", value) for name, value in score_rows(metrics["val"])]
    wait, rate = metrics["data_wait"], metrics["clips_per_second"]
    return [*rows, ("clips/s", f"{rate}"), ("waiting for data", f"{wait:.2%} of step time")]
