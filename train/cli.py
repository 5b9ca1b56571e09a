"""`train`: shards to models and metrics. Heavy imports stay inside the commands: `--help` answers at once."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import Commands, json_option, print_json, print_table, progress
from train.cli_eval import compare, evaluate, score_rows

DEFAULT_SHARDS = Path("data/shards")
DEFAULT_RUNS = Path("runs")
SEED = click.IntRange(0, 2**31 - 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reelcache", prog_name="train")
def main() -> None:
    """Train video classifiers from shards, and judge them.

    \b
    Start with:  train run --model early_fusion
                 train eval runs/<the run>
    """


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
    click.option("--jitter", type=click.FloatRange(0, 1), help="Contrast and brightness; 0: none."),
    click.option("--flip/--no-flip", default=None, help="Mirror half of the clips."),
]


def recipe_options(command: Any) -> Any:
    """All flags that override a family's recipe."""
    for option in reversed(RECIPE_FLAGS):
        command = option(command)
    return command


@main.command()
@click.option("--model", required=True, help="The family; `train models` lists them.")
@click.option(
    "--shards", type=click.Path(path_type=Path), default=DEFAULT_SHARDS, show_default=True, help="The set."
)
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
@click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda _ctx, _param, given: _parse_options(given),
    help="One of the family's own, such as fusion=concat; may be repeated.",
)
@recipe_options
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
    model: str,
    shards: Path,
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

    from train.loop import RunSettings, Trainer, describe_set

    settings = RunSettings(
        model, str(shards), recipe, seed, device, precision, str(weights.resolve()) if weights else None, options,
        fold,
    )  # fmt: skip
    if resume:
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = _saved_settings(out, settings, asked)
    trainer = Trainer(settings, out, say=lambda line: click.echo(line, err=True))
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
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True, help="T: frames a clip.")
@click.option("--size", default="112", show_default=True, help="Frames: 112 (square) or 160x90.")
@click.option("--classes", type=click.IntRange(2), default=2, show_default=True)
@json_option
def models(frames: int, size: str, classes: int, as_json: bool) -> None:
    """List the model families: parameters, cost of a clip, input, weights they take, and paper.

    \b
    Example:  train models --json
    """
    from pipeline.recipe import parse_size
    from train.catalog import list_models

    rows = list_models(frames, parse_size(size), classes)
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
    """`depth=3 bidirectional=true fusion=concat` → values as JSON has them, else words. Raises `UserError`."""
    import json

    from pipeline.errors import UserError

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--option {text}: must be NAME=VALUE, such as fusion=concat")
        if name in ("in_channels", "dropout"):  # told by the frames and by --dropout
            raise UserError(f"--option {text}: is not the family's own to choose")
        try:
            options[name] = json.loads(value)
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
    from train.checkpoint import read_run
    from train.loop import RunSettings

    saved = RunSettings.from_dict(read_run(out)["settings"])
    before, now = saved.as_dict(), {**asked.as_dict(), "shards": str(Path(asked.shards).resolve())}
    for name in sorted(given & set(before)):
        if now[name] != before[name]:
            raise UserError(f"--{name.replace('_', '-')} {now[name]}: the run in {out} has {before[name]}; "
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
