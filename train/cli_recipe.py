"""The flags that say how a model is trained, for `train run` and `train compare`, and a file that gives them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.commands import FILE, apply_options
from train.cli_options import batch_size_option, frames_option

if TYPE_CHECKING:
    from train.recipes import TrainRecipe

Recipe = TypeVar("Recipe", bound="TrainRecipe")
SHARE = click.FloatRange(0, 1)
WARMUP_PARTS = 5  # of a run; a warm-up that is not given takes one of them at most
TYPED = click.core.ParameterSource.COMMANDLINE
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
# Told by the set and by other flags
FIXED = ("name", "num_classes", "num_frames", "size", "in_channels", "dropout", "mask_ratio", "mean", "std")


# A flag that is not given takes the family's default, from train/recipes.py.
input_option = click.option(
    "--input", type=click.Choice(["rgb", "diff", "rgb+diff"]), help="Colours, changes, or both."
)
RECIPE_FLAGS: list[Callable[[Any], Any]] = [
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training clips."),
    batch_size_option,
    frames_option,
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate."),
    click.option("--weight-decay", type=click.FloatRange(0), help="AdamW's, on weights only."),
    click.option("--beta2", type=click.FloatRange(0, 1, max_open=True), help="AdamW's decay of mean squares."),
    click.option(
        "--warmup", type=click.FloatRange(0), help="Epochs of linear warm-up; by default a fifth at most."
    ),
    click.option("--clip-norm", type=click.FloatRange(0), help="Gradients are cut to this norm; 0: never."),
    click.option("--accumulate", type=click.IntRange(1), help="Parts in which a batch goes through the model."),
    click.option(
        "--crop", type=click.FloatRange(0, 1, min_open=True), help="Smallest share of the area kept; 1: all."
    ),
    click.option("--ratio", type=click.FloatRange(1), help="How much wider or higher a crop may be; 1: none."),
    click.option("--flip", type=SHARE, help="Share of clips that are mirrored."),
    click.option(
        "--brightness", type=SHARE, help="Largest change of brightness: 0.2 is 0.8 to 1.2 times; 0: none."
    ),
    click.option("--contrast", type=SHARE, help="Largest change of contrast: 0.2 is 0.8 to 1.2 times; 0: none."),
    click.option(
        "--saturation", type=SHARE, help="Largest change of saturation: 0.2 is 0.8 to 1.2 times; 0: none."
    ),
    click.option("--hue", type=click.FloatRange(0, 0.5), help="How far colours may turn, of a whole turn."),
    click.option("--grayscale", type=SHARE, help="Share of clips without colour."),
    click.option("--blur", type=SHARE, help="Share of clips that are blurred."),
    input_option,
    click.option("--sampling", type=click.Choice(["window", "uniform"]), help="Frames in a row, or of the whole."),
    click.option(
        "--stride", type=click.IntRange(1), help="Of a window: from one frame to the next, in stored frames."
    ),
    click.option("--repeats", type=click.IntRange(1), help="Clips of each video in a batch."),
    click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of averaged weights; 0: none."),
]
# Of these a training without labels knows nothing.
LABEL_FLAGS: list[Callable[[Any], Any]] = [
    click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="Of the cross-entropy."),
    click.option(
        "--layer-decay", type=click.FloatRange(0, 1, min_open=True), help="Rate of a stage over the next one's."
    ),
    click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Before the last layer."),
    click.option("--erase", type=SHARE, help="Share of clips with a blank box."),
    click.option("--mixup", type=click.FloatRange(0), help="Alpha of mixup; 0: none."),
    click.option("--cutmix", type=click.FloatRange(0), help="Alpha of CutMix; 0: none."),
    click.option("--balanced/--no-balanced", default=None, help="Draw all classes equally often."),
    click.option(
        "--class-weights",
        metavar="balanced|LABEL=WEIGHT,…",
        help="What a clip counts in the loss; none: all the same.",
    ),
    click.option(
        "--freeze-epochs",
        type=click.IntRange(0),
        help="With --weights: train the head and what they did not fill for so long, then all.",
    ),
]


# Not for `train compare`, which judges a run on the very videos that these would choose its best epoch by.
STOPPING_FLAGS: list[Callable[[Any], Any]] = [
    click.option("--best-by", type=click.Choice(["accuracy", "roc_auc", "loss"]), help="On val: the best epoch."),
    click.option(
        "--patience", type=click.IntRange(0), help="End after so many epochs without a better; 0: never."
    ),
]


class Training(click.Command):
    """A command whose help shows the flags of the recipe apart, below all others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lists of options."""
        from train.recipes import PretrainRecipe

        for title, of_recipe in (("Options", False), ("Recipe", True)):
            params = [
                p for p in self.get_params(ctx) if (p.name in PretrainRecipe.__dataclass_fields__) is of_recipe
            ]
            with formatter.section(title):
                formatter.write_dl([record for param in params if (record := param.get_help_record(ctx))])


def recipe_options(command: Any) -> Any:
    """All flags that override a family's recipe."""
    return apply_options([*RECIPE_FLAGS, *LABEL_FLAGS], command)


def unlabelled_options(command: Any) -> Any:
    """Those of them that a training without labels takes."""
    return apply_options(RECIPE_FLAGS, command)


def stopping_options(command: Any) -> Any:
    """The flags on what is the best epoch."""
    return apply_options(STOPPING_FLAGS, command)


def make_recipe(family: str, flags: dict[str, Any]) -> "TrainRecipe":
    """The family's recipe with the flags that were given. Raises `UserError` where they contradict each other."""
    from train.recipes import RECIPES

    return override(family, RECIPES[family], flags)


def override(family: str, recipe: "Recipe", flags: dict[str, Any]) -> "Recipe":
    """The family's recipe with what the flags say, those that are its fields and not None. Raises `UserError`."""
    from dataclasses import fields, replace

    from pipeline.errors import UserError

    names = {field.name for field in fields(recipe)}
    given = {name: flags[name] for name in names & set(flags) if flags[name] is not None}
    try:
        made = replace(recipe, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    longest = made.epochs / WARMUP_PARTS
    if "warmup" not in given and made.warmup > longest:
        if os.environ.get("RANK", "0") == "0":  # the ranks have not met yet
            click.echo(
                f"{family}: warm-up of {longest:g} epochs, a fifth of {made.epochs}, instead of {made.warmup:g}",
                err=True,
            )
        return replace(made, warmup=longest)
    if made.warmup >= made.epochs:
        raise UserError(
            f"--warmup {made.warmup:g}: of {made.epochs} epochs none would be at the rate of --lr; give less"
        )
    return made


def _take_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        from train.config import FAMILY, flags_of, read_config, read_families

        ctx.default_map = read_config(path, ctx.command)
        if "models" in flags_of(ctx.command):
            ctx.meta[FAMILY] = read_families(path, ctx.command)


config_option = click.option(
    "--config",
    type=FILE,
    metavar="FILE.toml",
    is_eager=True,  # before the flags whose values it gives
    expose_value=False,
    callback=_take_config,
    help="Flags from a file, such as a run's config.toml for `train run`; those given here beat it.",
)


family_option = click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda _ctx, _param, given: parse_options(given),
    help="One of the family's own, such as fusion=concat; may be repeated.",
)


def settings_by_family(
    families: Sequence[str], flags: dict[str, Any], weights: Sequence[str], options: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Recipe, first weights and options of each family, as `RunSettings` takes them. Raises `UserError`.

    The command line beats the family's own table in --config, and that beats the rest of the file."""
    context = click.get_current_context()
    tables = context.meta.get("family", {})
    typed = {name for name in (*flags, "weights", "options") if context.get_parameter_source(name) == TYPED}
    kept, own = weights_by_family(weights, families), options_by_family(options, families)
    found = {}
    for family in families:
        table = dict(tables.get(family, {}))
        start = weights_by_family(table.pop("weights", []), [family])
        extra = parse_options(tuple(table.pop("options", [])))
        table = {name: value for name, value in table.items() if name not in typed}
        # A weight or an option that is typed for one family says nothing of the others.
        weakest, strongest = (extra, own.get(family, {})) if "options" in typed else (own.get(family, {}), extra)
        found[family] = {
            "recipe": make_recipe(family, {**flags, **table}),
            "weights": ({**start, **kept} if "weights" in typed else {**kept, **start}).get(family),
            "options": {**weakest, **strongest},
        }
    return found


def options_by_family(given: Sequence[str], families: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`vivit.scale=small cnn_lstm.bidirectional=yes` as options of each family. Raises `UserError`."""
    from pipeline.errors import UserError

    parts: dict[str, list[str]] = {}
    for text in given:
        family, _, pair = text.partition(".")
        if family not in families:
            raise UserError(
                f"--option {text}: must be FAMILY.NAME=VALUE, with one of {', '.join(families)} as the family"
            )
        parts.setdefault(family, []).append(pair)
    return {family: parse_options(tuple(pairs)) for family, pairs in parts.items()}


def weights_by_family(given: Sequence[str], families: Sequence[str]) -> dict[str, str]:
    """`vivit=runs/x`, or `runs/x` for all, as an absolute path for each family: of a run, of its last weights.

    Raises `UserError`."""
    from pipeline.errors import UserError
    from train.checkpoint import LAST

    found: dict[str, str] = {}
    for text in given:
        family, equals, place = text.partition("=")
        chosen = [family] if equals and family in families else families
        path = Path(place if chosen == [family] and equals else text)
        if not path.exists():
            raise UserError(f"--weights {text}: there is no {path}")
        last = path / LAST  # of a run: the best may have been chosen by what the comparison holds out
        found |= dict.fromkeys(chosen, str((last if last.exists() else path).resolve()))
    return found


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """`depth=3 bidirectional=yes fusion=concat` → truth values and numbers, else words. Raises `UserError`."""
    import json

    from pipeline.errors import UserError

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--option {text}: must be NAME=VALUE, such as fusion=concat")
        if name in FIXED:
            raise UserError(f"--option {text}: is not the family's own to choose")
        try:
            options[name] = TRUTH[value.lower()] if value.lower() in TRUTH else json.loads(value)
        except ValueError:
            options[name] = value
    return options
