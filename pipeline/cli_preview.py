"""`prep preview`: a set to look at."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli_build import set_argument
from pipeline.commands import (
    FILE,
    cache_options,
    check_files,
    deliver_page,
    json_option,
    overwrite_option,
    seed_option,
)
from pipeline.console import progress


@click.command()
@set_argument
@click.option("--out", type=FILE, default="preview.html", help="Where to write the page.")
@click.option("--videos", type=click.IntRange(1, 2000), default=200,
              help="How many videos; of more, a sample by split and label.")  # fmt: skip
@seed_option("that sample")
@click.option("--leaks", is_flag=True, help="Look for near copies, too; reads every frame.")
@cache_options
@overwrite_option("the file of --out")
@json_option
def preview(shards: Path | str, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write an HTML page that shows a shard set.

    Clips of SET (default data/shards) that play, distributions, copies, and what was rejected. The file is under
    20 MB, opens offline, and holds pictures from the videos: who gets it sees them.

    \b
    Example:
      prep preview data/shards --out preview.html --leaks
    """
    from pipeline.preview import make_preview
    from pipeline.shards.index import read_set

    shard_set = read_set(shards, whole=False)
    check_files({"--out": out}, overwrite=overwrite)
    with progress("videos") as stage:
        page = make_preview(shard_set, stage=stage, **options)
    deliver_page(out, page, as_json=as_json)
