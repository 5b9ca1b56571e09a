"""`train pretrain`. Heavy imports stay inside the command."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import print_json, print_table
from train.cli_training import DEFAULT_RUNS, claim, fit, run_options, saved_settings, unlabelled_options

INSIDE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command()
@click.option("--model", default="videomae", show_default=True, help="The family that is to start from it.")
@run_options
@click.option(
    "--mask-ratio",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of a frame that is hidden.",
)
@unlabelled_options
@click.option("--pictures-every", type=click.IntRange(0), help="Epochs from picture to picture; 0: none.")
@click.pass_context
def pretrain(
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
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Let a model learn from the `train` split without its labels: most of each clip is hidden, and it paints it.

    Labels are not looked at; what `val` has is painted after each epoch to tell how well. `train run --weights`
    then starts from the run.

    \b
    Example:  train pretrain --option scale=small --out runs/painter
              train run --model videomae --option scale=small --weights runs/painter
    """
    from dataclasses import replace

    from pipeline.errors import UserError
    from train.recipes import PRETRAIN_RECIPES
    from train.stopping import Every

    if model not in PRETRAIN_RECIPES:
        raise UserError(f"--model {model}: has no pre-training; there is one for {', '.join(PRETRAIN_RECIPES)}")
    every = Every.parse(checkpoint_every)
    if resume and out is None:
        raise UserError("--resume: say which run with --out")
    network = f"{model}_pretraining"
    out = out or DEFAULT_RUNS / f"{network}-{datetime.now():%Y%m%d-%H%M%S}"
    given = {name: value for name, value in flags.items() if value is not None}
    recipe = replace(PRETRAIN_RECIPES[model], **given)
    claim(out, resume=resume, overwrite=overwrite)

    from train.pretraining import MaskedPretraining
    from train.ranks import join_ranks
    from train.run_settings import RunSettings

    start = str(weights.resolve()) if weights else None
    settings = RunSettings(
        network, str(shards), recipe, seed, device, precision, start, options, fold, compiled, fsdp
    )
    if resume:
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = saved_settings(out, settings, asked)
    with join_ranks() as ranks:
        out = Path(ranks.text_of_first(str(out)))
        kept = {"cache": cache, "cache_size": cache_size, "checkpoint_every": every, "ranks": ranks}
        metrics = fit(ctx, settings, out, {"objective": MaskedPretraining, **kept}, resume=resume)
    if not ranks.first:
        return
    if as_json:
        print_json({"run": str(out), **metrics})
        return
    print_table(str(out), _rows(metrics))
    click.echo(f"next: train run --model {model} {_options(settings.options)}--weights {out}")


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    loss, wait = metrics["val"] and f"{metrics['val']['loss']:.4f}", metrics["data_wait"]
    return [
        ("model", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", f"{metrics['epochs']}"),
        *([("val loss", loss)] if loss else []),
        ("clips/s", f"{metrics['clips_per_second']}"),
        ("waiting for data", f"{wait:.2%} of step time"),
    ]


def _options(options: dict[str, Any]) -> str:
    """What the classifier must be given to be of the same size."""
    return f"--option scale={options['scale']} " if "scale" in options else ""
