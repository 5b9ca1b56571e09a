"""The options that several `train` commands have, each declared once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.commands import FOLDER, PLACE, apply_options, cache_flags, names_in

Flag = Callable[[Any], Any]
DEFAULT_SHARDS = Path("data/shards")
DEFAULT_RUNS = Path("runs")
MOST_SECONDS = 86_400  # a day, between two clips of a video or stream
FAMILIES = "train.recipes:RECIPES"
DEVICES = ("auto", "cpu", "cuda", "mps")
SPLITS = ("train", "val", "test")
PRECISIONS = click.Choice(["auto", "fp32", "bf16", "fp16"])

run_argument = click.argument("run_folder", metavar="RUN", type=FOLDER)
shards_option = click.option(
    "--shards", metavar="SET", type=PLACE, default=DEFAULT_SHARDS, help="The shard set: a path or URL."
)
frames_option = click.option("--frames", type=click.IntRange(1), help="T: frames a clip, at the stored rate.")
batch_size_option = click.option("--batch-size", type=click.IntRange(1), help="Clips a step.")
judging_batch_option = click.option("--batch-size", type=click.IntRange(1), default=32, help="Clips a step.")
clips_option = click.option("--clips", type=click.IntRange(1), default=5, help="Clips a video, averaged.")
checkpoint_option = click.option(
    "--checkpoint", "weights", type=click.Choice(["best", "last"]), default="best",
    help="The epoch of the run: the one that was best on val, or the last.",
)  # fmt: skip
allow_leaks_option = click.option(
    "--allow-leaks", is_flag=True, help="Go on where videos, copies or groups are on both sides."
)
device_flags: list[Flag] = [
    click.option(
        "--device", metavar="NAME", default="auto", shell_complete=names_in("train.cli_options:DEVICES"),
        help="cpu, cuda, cuda:1 …; auto: a GPU where there is one.",
    ),
    click.option(
        "--precision", type=PRECISIONS, default="auto",
        help="Of forward passes; auto: bf16 where the hardware has it.",
    ),
]  # fmt: skip


def split_option(flag: str, default: str | None, told: str) -> Flag:
    """A flag that names a split."""
    return click.option(
        flag, metavar="SPLIT", default=default, help=told,
        shell_complete=names_in("train.cli_options:SPLITS"),
    )  # fmt: skip


def every_option(told: str) -> Flag:
    """`--every`: how far apart the clips of a video or stream begin."""
    longest = click.FloatRange(0, MOST_SECONDS, min_open=True)
    return click.option("--every", type=longest, metavar="SECONDS", help=told)


def model_option(table: str = FAMILIES, **attributes: Any) -> Flag:
    """`--model`: one of the families in the table."""
    return click.option(
        "--model", metavar="FAMILY", shell_complete=names_in(table), **attributes,
        help="The model family; `train models` lists them.",
    )  # fmt: skip


def compute_options(command: Any) -> Any:
    """Where a model runs."""
    return apply_options(device_flags, command)


def judging_options(command: Any) -> Any:
    """How a run is judged on a split of a set."""
    options = [
        split_option("--split", "val", "The split to judge on."),
        clips_option,
        checkpoint_option,
        click.option(
            "--shards", metavar="SET", type=PLACE, help="The shard set: a path or URL.  [default: the run's]"
        ),
        *cache_flags,
        allow_leaks_option,
        judging_batch_option,
        *device_flags,
    ]
    return apply_options(options, command)


def check_families(flag: str, names: list[str]) -> None:
    """Raises `UserError` for a name that is no family's."""
    from pipeline.errors import UserError
    from train.recipes import RECIPES

    for name in names:
        if name not in RECIPES:
            raise UserError(f"{flag} {name}: no such family; there are {', '.join(RECIPES)}")
