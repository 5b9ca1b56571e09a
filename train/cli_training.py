"""What training commands share: the flags of a run, what is checked about them, and the way to a run's end."""

import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.commands import FOLDER, apply_options, cache_flags, json_option, overwrite_option, seed_option
from pipeline.console import print_json, print_table, progress
from pipeline.report import no_stage
from train.cli_options import DEFAULT_RUNS, device_flags, shards_option
from train.cli_recipe import config_option, family_option

if TYPE_CHECKING:
    from train.run_settings import RunSettings

NO_RUN = "--resume: say which run with --out"

RUN_FLAGS: list[Callable[[Any], Any]] = [
    config_option,
    shards_option,
    *cache_flags,
    click.option("--out", type=FOLDER, help="Where to put the run: a folder.  [default: runs/<model>-<time>]"),
    seed_option("order, clips, augmentation and first weights"),
    click.option(
        "--fold", metavar="k/K", help="Hold fold k of K (0/5 … 4/5) out of train and val together, by group."
    ),
    click.option("--leave-out", metavar="VIDEO", multiple=True, help="Do not train on this one; may be repeated."),
    *device_flags,
    click.option(
        "--weights", metavar="PATH", type=click.Path(path_type=Path),
        help="Start from a checkpoint's file, or from another run.",
    ),
    click.option(
        "--compile/--no-compile", "compiled", default=False,
        help="Compile the model (torch.compile); needs a compiler.",
    ),
    click.option("--fsdp/--no-fsdp", default=False, help="Divide the weights among the ranks of torchrun (FSDP)."),
    click.option(
        "--checkpoint-every", default="10min", metavar="STEPS|MINUTESmin",
        help="When to save a checkpoint, besides after each epoch.",
    ),
    family_option,
    click.option("--tensorboard/--no-tensorboard", default=False, help="Write the log for TensorBoard, too."),
    click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint."),
    overwrite_option("the run in --out"),
    json_option,
]  # fmt: skip


def run_options(command: Any) -> Any:
    """What any training is told beside its recipe."""
    return apply_options(RUN_FLAGS, command)


def settings_from(model: str, recipe: Any, flags: dict[str, Any]) -> "RunSettings":
    """What was asked for: those of RUN_FLAGS that decide what comes out."""
    from train.run_settings import RunSettings

    weights: Path | None = flags["weights"]
    return RunSettings(
        model,
        str(flags["shards"]),
        recipe,
        seed=flags["seed"],
        device=flags["device"],
        precision=flags["precision"],
        weights=str(weights.resolve()) if weights else None,
        options=flags["options"],
        fold=flags["fold"],
        leave_out=list(flags["leave_out"]),
        compile=flags["compiled"],
        fsdp=flags["fsdp"],
    )


def train_run(
    ctx: click.Context,
    settings: "RunSettings",
    flags: dict[str, Any],
    rows: Callable[[dict[str, Any]], list[tuple[str, str]]],
    then: Callable[["RunSettings", list[str], Mapping[str, Any]], str],
    **kept: Any,
) -> None:
    """Carry a run to its end by those of RUN_FLAGS that say how, and show its metrics as `rows`.

    `then`: the commands that come next after a run of these settings on a set with these labels, which ended with
    these metrics; with `{out}` for its folder. `kept`: more for the `Trainer`. Raises `UserError`.
    """
    from pipeline.errors import UserError
    from train.checkpoint import read_run
    from train.stopping import Every

    out, resume = flags["out"], flags["resume"]
    every = Every.parse(flags["checkpoint_every"])
    if resume and out is None:
        raise UserError(NO_RUN)
    out = out or DEFAULT_RUNS / f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}"
    claim(out, resume=resume, overwrite=flags["overwrite"])
    if resume:
        told = ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP
        asked = {name for name in ctx.params if ctx.get_parameter_source(name) in told}
        settings = saved_settings(out, settings, asked)

    from train.ranks import join_ranks

    with join_ranks() as ranks:  # all of them have seen by then that the folder may be used
        out = Path(ranks.text_of_first(str(out)))
        kept |= {name: flags[name] for name in ("cache", "cache_size", "tensorboard")}
        kept |= {"checkpoint_every": every, "ranks": ranks}
        metrics = fit(ctx, settings, out, kept, resume=resume, overwrite=flags["overwrite"])
    if not ranks.first:
        return
    if flags["as_json"]:
        print_json({"run": str(out), **metrics})
        return
    print_table(str(out), rows(metrics))
    following = then(settings, read_run(out)["labels"], metrics)
    click.echo(f"next: {following.replace('{out}', shlex.quote(str(out)))}")


def resumed_family(ctx: click.Context, flags: dict[str, Any]) -> str:
    """The model family of the run that goes on; of a new one, it has to be given. Raises `click.UsageError`."""
    from train.checkpoint import read_run

    if flags["resume"] and not flags["out"]:
        raise click.UsageError(NO_RUN)
    if not flags["resume"]:
        model = next(param for param in ctx.command.params if param.name == "model")
        raise click.MissingParameter(ctx=ctx, param=model)
    return str(read_run(flags["out"])["model"]).removesuffix("_pretraining")


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


def saved_settings(out: Path, asked: "RunSettings", given: set[str]) -> "RunSettings":
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


def fit(
    ctx: click.Context, settings: "RunSettings", out: Path, kept: dict[str, Any], *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Train to the end; a run that is stopped says what goes on with it."""
    from models import PRETRAINING
    from train.loop import Trainer, describe_data
    from train.stopping import Stopped

    first = kept["ranks"].first
    trainer = Trainer(settings, out, partial(click.echo, err=True), **kept)
    for line in describe_data(trainer):
        trainer.say(line)
    trainer.resume() if resume else trainer.start(overwrite=overwrite)
    try:
        with progress("clips") as stage:
            return trainer.fit(stage if first else no_stage)
    except Stopped as stopped:
        job = "pretrain" if settings.model in PRETRAINING else f"run --model {settings.model}"
        command = f"train {job} --out {shlex.quote(str(out))} --resume{_cache_flags(kept)}"
        if kept["ranks"].of > 1:
            command = f"torchrun --nproc-per-node {kept['ranks'].of} -m {command}"
        trainer.say(f"{stopped}; go on with: {command}")
        ctx.exit(128 + stopped.number)


def _cache_flags(kept: dict[str, Any]) -> str:
    """The flags of the cache as they were given: a run does not remember them."""
    place = f" --cache {shlex.quote(str(kept['cache']))}" if kept["cache"] else ""
    return place + (f" --cache-size {kept['cache_size']}" if kept["cache_size"] else "")
