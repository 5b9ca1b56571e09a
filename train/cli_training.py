"""What training commands share: their flags, what is checked about them, and the way to the end of a run."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.console import PLACE, json_option, progress
from pipeline.report import no_stage
from train.cli_eval import cache_options

DEFAULT_SHARDS = Path("data/shards")
DEFAULT_RUNS = Path("runs")
SHARE = click.FloatRange(0, 1)
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
# Told by the set and by other flags
FIXED = ("name", "num_classes", "num_frames", "size", "in_channels", "dropout", "mask_ratio", "mean", "std")
SEED = click.IntRange(0, 2**31 - 1)


# A flag that is not given takes the family's default, from train/recipes.py.
RECIPE_FLAGS: list[Callable[[Any], Any]] = [
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training clips."),
    click.option("--batch-size", type=click.IntRange(1), help="Clips a step."),
    click.option("--frames", type=click.IntRange(1), help="T: frames a clip, at the stored rate."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate."),
    click.option("--weight-decay", type=click.FloatRange(0), help="AdamW's, on weights only."),
    click.option("--warmup", type=click.FloatRange(0), help="Epochs of linear warm-up."),
    click.option("--clip-norm", type=click.FloatRange(0, min_open=True), help="Gradients are cut to this norm."),
    click.option("--accumulate", type=click.IntRange(1), help="Parts in which a batch goes through the model."),
    click.option(
        "--crop", type=click.FloatRange(0, 1, min_open=True), help="Smallest share of the area kept; 1: all."
    ),
    click.option("--ratio", type=click.FloatRange(1), help="How much wider or higher a crop may be; 1: none."),
    click.option("--flip", type=SHARE, help="Share of clips that are mirrored."),
    click.option("--brightness", type=SHARE, help="How far its factor may be from 1; 0: no change."),
    click.option("--contrast", type=SHARE, help="Likewise."),
    click.option("--saturation", type=SHARE, help="Likewise."),
    click.option("--hue", type=click.FloatRange(0, 0.5), help="How far colours may turn, of a whole turn."),
    click.option("--grayscale", type=SHARE, help="Share of clips without colour."),
    click.option("--blur", type=SHARE, help="Share of clips that are blurred."),
    click.option(
        "--input",
        type=click.Choice(["rgb", "diff", "rgb+diff"]),
        help="Colours, changes, or both.",
    ),
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
]


family_option = click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda _ctx, _param, given: parse_options(given),
    help="One of the family's own, such as fusion=concat; may be repeated.",
)

RUN_FLAGS: list[Callable[[Any], Any]] = [
    click.option(
        "--shards", type=PLACE, default=DEFAULT_SHARDS, show_default=True, help="The set: a path or URL."
    ),
    cache_options,
    click.option(
        "--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<model>-<time>]"
    ),
    click.option(
        "--seed", type=SEED, default=0, show_default=True, help="Of order, clips, augmentation and first weights."
    ),
    click.option(
        "--fold", metavar="k/K", help="Hold fold k of K (0/5 … 4/5) out of train and val together, by group."
    ),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …"),
    click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16."),
    click.option(
        "--weights", type=click.Path(path_type=Path), help="Start from a checkpoint's file, or from another run."
    ),
    click.option(
        "--compile", "compiled", is_flag=True, help="Compile the model (torch.compile); needs a compiler."
    ),
    click.option("--fsdp", is_flag=True, help="Divide the weights among the ranks of torchrun (FSDP)."),
    click.option(
        "--checkpoint-every",
        default="10min",
        show_default=True,
        metavar="STEPS|MINUTESmin",
        help="Besides after each epoch.",
    ),
    family_option,
    click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint."),
    click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
    json_option,
]


def run_options(command: Any) -> Any:
    """What any training is told beside its recipe."""
    return _apply(RUN_FLAGS, command)


def recipe_options(command: Any) -> Any:
    """All flags that override a family's recipe."""
    return _apply([*RECIPE_FLAGS, *LABEL_FLAGS], command)


def unlabelled_options(command: Any) -> Any:
    """Those of them that a training without labels takes."""
    return _apply(RECIPE_FLAGS, command)


def _apply(options: Sequence[Callable[[Any], Any]], command: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


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


def claim(out: Path, *, resume: bool, overwrite: bool) -> None:
    """See that the run's folder may be used; nothing is removed yet. Raises `UserError`."""
    from pipeline.errors import UserError
    from train.checkpoint import RUN, read_run

    if resume and overwrite:
        raise UserError("--resume goes on with the run in --out, --overwrite removes it: give one of them")
    if resume:
        read_run(out)
    elif (out / RUN).exists():
        if not overwrite:
            raise UserError(f"{out}: holds a run; give another --out, --resume to go on with it, or --overwrite")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something that is not a run; give another --out")


def saved_settings(out: Path, asked: Any, given: set[str]) -> Any:
    """The run's own settings. Raises `UserError` for a flag that says otherwise."""
    from models import PRETRAINING
    from pipeline.errors import UserError
    from pipeline.places import absolute
    from train.checkpoint import read_run
    from train.run_settings import RunSettings

    about = read_run(out)
    if (about["model"] in PRETRAINING) != (asked.model in PRETRAINING):
        command = "pretrain" if about["model"] in PRETRAINING else "run"
        raise UserError(f"{out}: is a run of `train {command}`; that goes on with it")
    saved = RunSettings.from_dict(about["settings"], type(asked.recipe))
    before, now = saved.as_dict(), {**asked.as_dict(), "shards": absolute(asked.shards)}
    given = {"compile" if name == "compiled" else name for name in given}
    for name in sorted(given & set(before)):
        if now[name] != before[name]:
            flag = "option" if name == "options" else name.replace("_", "-")
            raise UserError(f"--{flag} {now[name]}: the run in {out} has {before[name]}; "
                            "leave the flag out, or start a new run")  # fmt: skip
    return saved


def fit(ctx: click.Context, settings: Any, out: Path, kept: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Train to the end; a run that is stopped says what goes on with it."""
    from models import PRETRAINING
    from train.loop import Trainer, describe_set
    from train.stopping import Stopped

    first = kept["ranks"].first
    trainer = Trainer(settings, out, partial(click.echo, err=True), **kept)
    trainer.say(describe_set(trainer.shard_set))
    trainer.resume() if resume else trainer.start()
    try:
        with progress("clips") as stage:
            return trainer.fit(stage if first else no_stage)
    except Stopped as stopped:
        job = "pretrain" if settings.model in PRETRAINING else f"run --model {settings.model}"
        command = f"train {job} --out {shlex.quote(str(out))} --resume"
        if kept["ranks"].of > 1:
            command = f"torchrun --nproc-per-node {kept['ranks'].of} -m {command}"
        trainer.say(f"{stopped}; go on with: {command}")
        ctx.exit(128 + stopped.number)
