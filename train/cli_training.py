"""What training commands share: the flags of a run, what is checked about them, and the way to a run's end."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.console import PLACE, json_option, progress
from pipeline.report import no_stage
from train.cli_eval import cache_options
from train.cli_recipe import apply_options, family_option

DEFAULT_SHARDS = Path("data/shards")
DEFAULT_RUNS = Path("runs")
SEED = click.IntRange(0, 2**31 - 1)
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
        "--compile/--no-compile",
        "compiled",
        default=False,
        help="Compile the model (torch.compile); needs a compiler.",
    ),
    click.option("--fsdp/--no-fsdp", default=False, help="Divide the weights among the ranks of torchrun (FSDP)."),
    click.option(
        "--checkpoint-every",
        default="10min",
        show_default=True,
        metavar="STEPS|MINUTESmin",
        help="Besides after each epoch.",
    ),
    family_option,
    click.option("--tensorboard/--no-tensorboard", default=False, help="Write the log for TensorBoard, too."),
    click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint."),
    click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
    json_option,
]


def run_options(command: Any) -> Any:
    """What any training is told beside its recipe."""
    return apply_options(RUN_FLAGS, command)


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
