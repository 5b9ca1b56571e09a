"""`prep`: videos to shards. Heavy imports stay inside the commands, so that `--help` answers at once."""

from pathlib import Path

import click

from pipeline.cli_build import build_shards, inspect
from pipeline.cli_leaks import leaks
from pipeline.cli_preview import preview
from pipeline.cli_share import COMMANDS
from pipeline.commands import FOLDER, Commands, json_option, overwrite_option, seed_option
from pipeline.console import print_json, progress


@click.group("prep", cls=Commands)
@click.version_option(package_name="reelcache", prog_name="prep")
def main() -> None:
    """Decode each video once, offline, into shards of small uint8 frames.

    \b
    Examples:
      prep sample-videos data/videos
      prep build-shards data/videos --out data/shards --fps 5 --size 112
      prep inspect data/shards
    """


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--videos", type=click.IntRange(1), default=320, help="How many videos, over all splits.")
@click.option("--splits", default="train,val", help="Splits, with commas between; the first gets 4 in 5.")
@seed_option("what they show")
@overwrite_option("the videos that an earlier call made in DIR")
@json_option
def sample_videos(folder: Path, videos: int, splits: str, seed: int, overwrite: bool, as_json: bool) -> None:
    """Make labelled h264 videos in DIR to try everything on.

    Two figures meet, or part. The two classes are each other in reverse, so that no single frame tells them
    apart; motion does.

    \b
    Example:
      prep sample-videos data/videos --videos 80 --seed 1
    """
    from pipeline.sample_videos import make_sample_videos

    with progress("videos") as stage:
        made = make_sample_videos(folder, videos, splits.split(","), seed, overwrite=overwrite, stage=stage)
    if as_json:
        print_json({"folder": str(folder), "videos": made})
    else:
        click.echo(f"{made} videos in {folder}; next: prep build-shards {folder}")


for command in (sample_videos, build_shards, inspect, leaks, preview, *COMMANDS):
    main.add_command(command)
