"""`train`: shards to models and metrics. Heavy imports stay inside the commands: `--help` answers at once."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import PLACE, Commands, json_option, print_json, print_table, progress
from train.cli_eval import cache_options, compare, evaluate, score_rows
from train.cli_use import export, predict

DEFAULT_SHARDS = Path("data/shards")
DEFAULT_RUNS = Path("runs")
SHARE = click.FloatRange(0, 1)
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
FIXED = ("name", "num_classes", "num_frames", "size", "in_channels", "dropout")  # told by the set and other flags
SEED = click.IntRange(0, 2**31 - 1)


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


# A flag that is not given takes the family's default, from train/recipes.py.
RECIPE_FLAGS: list[Callable[[Any], Any]] = [
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training clips."),
    click.option("--batch-size", type=click.IntRange(1), help="Clips a step."),
    click.option("--frames", type=click.IntRange(1), help="T: frames a clip, at the stored rate."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate."),
    click.option("--weight-decay", type=click.FloatRange(0), help="AdamW's, on weights only."),
    click.option("--warmup", type=click.FloatRange(0), help="Epochs of linear warm-up."),
    click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="Of the cross-entropy."),
    click.option("--clip-norm", type=click.FloatRange(0, min_open=True), help="Gradients are cut to this norm."),
    click.option(
        "--layer-decay", type=click.FloatRange(0, 1, min_open=True), help="Rate of a stage over the next one's."
    ),
    click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Before the last layer."),
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
    click.option("--erase", type=SHARE, help="Share of clips with a blank box."),
    click.option("--mixup", type=click.FloatRange(0), help="Alpha of mixup; 0: none."),
    click.option("--cutmix", type=click.FloatRange(0), help="Alpha of CutMix; 0: none."),
    click.option(
        "--input",
        type=click.Choice(["rgb", "diff", "rgb+diff"]),
        help="Colours, changes, or both.",
    ),
]


def recipe_options(command: Any) -> Any:
    """All flags that override a family's recipe."""
    for option in reversed(RECIPE_FLAGS):
        command = option(command)
    return command


family_option = click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda _ctx, _param, given: _parse_options(given),
    help="One of the family's own, such as fusion=concat; may be repeated.",
)


@main.command()
@click.option("--model", required=True, help="The family; `train models` lists them.")
@click.option("--shards", type=PLACE, default=DEFAULT_SHARDS, show_default=True, help="The set: a path or URL.")
@cache_options
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<model>-<time>]")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of order, clips, augmentation and first weights."
)
@click.option(
    "--fold", metavar="k/K", help="Hold fold k of K (0/5 … 4/5) out of train and val together, by group."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Start from a checkpoint's file, or from another run."
)
@family_option
@recipe_options
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@json_option
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
    options: dict[str, Any],
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a model family on the `train` split of a shard set, judged on `val`.

    \b
    Example:  train run --model early_fusion --epochs 20 --out runs/first
    """
    from dataclasses import replace

    from pipeline.errors import UserError
    from train.recipes import RECIPES

    if model not in RECIPES:
        raise UserError(f"--model {model}: no such family; there are {', '.join(RECIPES)}")
    if resume and out is None:
        raise UserError("--resume: say which run with --out")
    out = out or DEFAULT_RUNS / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    given = {name: value for name, value in flags.items() if value is not None}
    recipe = replace(RECIPES[model], **given)
    _claim(out, resume=resume, overwrite=overwrite)

    from train.loop import Trainer, describe_set
    from train.run_settings import RunSettings

    settings = RunSettings(
        model, str(shards), recipe, seed, device, precision, str(weights.resolve()) if weights else None, options,
        fold,
    )  # fmt: skip
    if resume:
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = _saved_settings(out, settings, asked)
    say = partial(click.echo, err=True)
    trainer = Trainer(settings, out, say, cache=cache, cache_size=cache_size)
    trainer.say(describe_set(trainer.shard_set))
    trainer.resume() if resume else trainer.start()
    with progress("clips") as stage:
        metrics = trainer.fit(stage)
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
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option("--seconds", type=click.FloatRange(0), default=10, show_default=True, help="For each of the three.")
@json_option
def bench(
    model: str, shards: Path, device: str, precision: str, seconds: float, as_json: bool, **flags: Any
) -> None:
    """Say what holds training up: clips/s of the loader alone, the model alone, and both.

    \b
    Example:  train bench --model early_fusion
    """
    from dataclasses import replace

    from pipeline.errors import UserError
    from pipeline.shards.index import read_set
    from train.recipes import RECIPES

    if model not in RECIPES:
        raise UserError(f"--model {model}: no such family; there are {', '.join(RECIPES)}")
    recipe = replace(RECIPES[model], **{name: value for name, value in flags.items() if value is not None})
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


def _parse_options(given: tuple[str, ...]) -> dict[str, Any]:
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


def _claim(out: Path, *, resume: bool, overwrite: bool) -> None:
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


def _saved_settings(out: Path, asked: Any, given: set[str]) -> Any:
    """The run's own settings. Raises `UserError` for a flag that says otherwise."""
    from pipeline.errors import UserError
    from pipeline.places import absolute
    from train.checkpoint import read_run
    from train.run_settings import RunSettings

    saved = RunSettings.from_dict(read_run(out)["settings"])
    before, now = saved.as_dict(), {**asked.as_dict(), "shards": absolute(asked.shards)}
    for name in sorted(given & set(before)):
        if now[name] != before[name]:
            flag = "option" if name == "options" else name.replace("_", "-")
            raise UserError(f"--{flag} {now[name]}: the run in {out} has {before[name]}; "
                            "leave the flag out, or start a new run")  # fmt: skip
    return saved


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", f"{metrics['epochs']}, best {metrics['best_epoch']}"),
    ]
    if metrics["val"]:
        rows += [(f"val {name}", value) for name, value in score_rows(metrics["val"])]
    wait, rate = metrics["data_wait"], metrics["clips_per_second"]
    return [*rows, ("clips/s", f"{rate}"), ("waiting for data", f"{wait:.2%} of step time")]
