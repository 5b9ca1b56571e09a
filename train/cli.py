"""`train`: shards to models and metrics. Heavy imports stay inside the commands: `--help` answers at once."""

import shlex
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import PLACE, Commands, json_option, print_json, print_table, progress
from pipeline.report import no_stage
from train.cli_eval import cache_options, compare, evaluate, score_rows
from train.cli_recipe import config_option, family_option, make_recipe, recipe_options, stopping_options
from train.cli_report import report
from train.cli_use import export, predict

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


main.add_command(predict)
main.add_command(export)
main.add_command(report)


@main.command()
@config_option
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
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Start from a checkpoint's file, or from another run."
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=False,
    help="Compile the model (torch.compile); needs a compiler.",
)
@click.option("--fsdp/--no-fsdp", default=False, help="Divide the weights among the ranks of torchrun (FSDP).")
@click.option(
    "--checkpoint-every",
    default="10min",
    show_default=True,
    metavar="STEPS|MINUTESmin",
    help="Besides after each epoch.",
)
@family_option
@recipe_options
@stopping_options
@click.option("--tensorboard/--no-tensorboard", default=False, help="Write the log for TensorBoard, too.")
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
    _claim(out, resume=resume, overwrite=overwrite)

    from train.ranks import join_ranks
    from train.run_settings import RunSettings

    settings = RunSettings(
        model, str(shards), recipe, seed, device, precision, str(weights.resolve()) if weights else None, options,
        fold, compiled, fsdp,
    )  # fmt: skip
    if resume:
        told = ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) in told}
        settings = _saved_settings(out, settings, asked)
    with join_ranks() as ranks:  # all of them have seen by then that the folder may be used
        out = Path(ranks.text_of_first(str(out)))
        kept = {"cache": cache, "cache_size": cache_size, "checkpoint_every": every, "ranks": ranks,
                "tensorboard": tensorboard}  # fmt: skip
        metrics = _fit(ctx, settings, out, kept, resume=resume)
    if not ranks.first:
        return
    if as_json:
        print_json({"run": str(out), **metrics})
        return
    print_table(str(out), _metric_rows(metrics))
    click.echo(f"next: train eval {out}")


def _fit(ctx: click.Context, settings: Any, out: Path, kept: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Train to the end; a run that is stopped says what goes on with it."""
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
        command = f"train run --model {settings.model} --out {shlex.quote(str(out))} --resume"
        if kept["ranks"].of > 1:
            command = f"torchrun --nproc-per-node {kept['ranks'].of} -m {command}"
        trainer.say(f"{stopped}; go on with: {command}")
        ctx.exit(128 + stopped.number)


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
    given = {"compile" if name == "compiled" else name for name in given}
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
