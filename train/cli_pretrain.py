"""`train pretrain`. Heavy imports stay inside the command."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.console import print_json, print_table
from train.cli_recipe import unlabelled_options
from train.cli_training import DEFAULT_RUNS, claim, fit, run_options, saved_settings

if TYPE_CHECKING:
    from train.run_settings import RunSettings

INSIDE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command()
@click.option("--model", default="videomae", show_default=True, help="The family that is to start from it.")
@run_options
@click.option("--mask-ratio", type=INSIDE, help="Share of a frame's patches that is hidden: 0.75, 0.9 …")
@unlabelled_options
@click.option("--pictures-every", type=click.IntRange(0), help="Epochs from picture to picture; 0: none.")
@click.pass_context
def pretrain(
    ctx: click.Context,
    /,
    model: str,
    cache: Path | None,
    cache_size: int | None,
    out: Path | None,
    checkpoint_every: str,
    tensorboard: bool,
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
    from pipeline.errors import UserError
    from train.recipes import PRETRAIN_RECIPES
    from train.stopping import Every

    if model not in PRETRAIN_RECIPES:
        raise UserError(f"--model {model}: has no pre-training; there is one for {', '.join(PRETRAIN_RECIPES)}")
    every = Every.parse(checkpoint_every)
    if resume and out is None:
        raise UserError("--resume: say which run with --out")
    settings = _settings(model, flags)
    out = out or DEFAULT_RUNS / f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}"
    claim(out, resume=resume, overwrite=overwrite)

    from train.pretraining import MaskedPretraining
    from train.ranks import join_ranks

    if resume:
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = saved_settings(out, settings, asked)
    with join_ranks() as ranks:
        out = Path(ranks.text_of_first(str(out)))
        kept: dict[str, Any] = {
            "cache": cache,
            "cache_size": cache_size,
            "checkpoint_every": every,
            "ranks": ranks,
        }
        kept |= {"tensorboard": tensorboard, "objective": MaskedPretraining}
        metrics = fit(ctx, settings, out, kept, resume=resume)
    if not ranks.first:
        return
    if as_json:
        print_json({"run": str(out), **metrics})
        return
    print_table(str(out), _rows(metrics))
    click.echo(f"next: train run --model {model} {_options(settings.options)}--weights {out}")


def _settings(model: str, flags: dict[str, Any]) -> "RunSettings":
    """What was asked for: the recipe's flags that were given, and all others."""
    from dataclasses import replace

    from train.recipes import PRETRAIN_RECIPES, PretrainRecipe
    from train.run_settings import RunSettings

    of_recipe = {name for name in flags if name in PretrainRecipe.__dataclass_fields__}
    given = {name: flags[name] for name in of_recipe if flags[name] is not None}
    rest = {name: value for name, value in flags.items() if name not in of_recipe}
    weights = rest.pop("weights")
    return RunSettings(
        f"{model}_pretraining",
        str(rest.pop("shards")),
        replace(PRETRAIN_RECIPES[model], **given),
        weights=str(weights.resolve()) if weights else None,
        compile=rest.pop("compiled"),
        **rest,
    )


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
