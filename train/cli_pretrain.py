"""`train pretrain`. Heavy imports stay inside the command."""

import shlex
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from train.cli_options import DEFAULT_SHARDS, model_option
from train.cli_recipe import Training, override, unlabelled_options
from train.cli_training import run_options, settings_from, train_run

if TYPE_CHECKING:
    from train.run_settings import RunSettings

INSIDE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(cls=Training)
@model_option("train.recipes:PRETRAIN_RECIPES", default="videomae")
@run_options
@click.option("--mask-ratio", type=INSIDE, help="Share of a frame's patches that is hidden, such as 0.9.")
@unlabelled_options
@click.option("--pictures-every", type=click.IntRange(0), help="Epochs from picture to picture; 0: none.")
@click.pass_context
def pretrain(ctx: click.Context, /, model: str, **flags: Any) -> None:
    """Let a model learn from a shard set without its labels.

    Most of each clip of the `train` split is hidden, and the model paints it. What `val` has is painted after each
    epoch to tell how well. `train run --weights` then starts from the run. What is not given of the recipe is the
    family's own.

    \b
    Examples:
      train pretrain --option scale=small --out runs/painter
      train pretrain --config runs/painter/config.toml --mask-ratio 0.9
      train run --model videomae --option scale=small --weights runs/painter
    """
    settings = _settings(model, flags)

    from train.pretraining import MaskedPretraining

    train_run(ctx, settings, flags, _rows, partial(_classifier, model), objective=MaskedPretraining)


def _settings(model: str, flags: dict[str, Any]) -> "RunSettings":
    """What was asked for. Raises `UserError`."""
    from pipeline.errors import UserError
    from train.recipes import PRETRAIN_RECIPES

    if model not in PRETRAIN_RECIPES:
        raise UserError(f"--model {model}: has no pre-training; there is one for {', '.join(PRETRAIN_RECIPES)}")
    return settings_from(f"{model}_pretraining", override(model, PRETRAIN_RECIPES[model], flags), flags)


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    loss, wait = metrics["val"] and f"{metrics['val']['loss']:.4f}", metrics["data_wait"]
    return [
        ("model", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", f"{metrics['epochs']}"),
        *([("val loss", loss)] if loss else []),
        ("clips/s", f"{metrics['clips_per_second']}"),
        ("waiting for data", f"{wait:.2%} of step time"),
    ]


def _classifier(model: str, settings: "RunSettings", labels: list[str], _: Mapping[str, Any]) -> str:
    """The command that trains a classifier of the same size, which is shown the same, from the run in `{out}`; on
    the same set, if that has labels to tell apart."""
    from models import takes
    from train.recipes import RECIPES

    recipe, own = settings.recipe, RECIPES[model]
    flags = [f"--option {name}={value}" for name, value in settings.options.items() if takes(model, name)]
    flags += [f"--input {recipe.input}"] if recipe.input != own.input else []
    flags += [f"--frames {recipe.frames}"] if recipe.frames != own.frames else []
    flags += [f"--fold {settings.fold}"] if settings.fold and len(labels) > 1 else []
    shards = settings.shards if len(labels) > 1 else "YOUR_LABELLED_SET"
    flags += [f"--shards {shlex.quote(shards)}"] if shards != str(DEFAULT_SHARDS) else []
    return " ".join(["train run --model", model, *flags, "--weights {out}"])
