"""`prep leaks`: copies of videos where they do harm."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_build import DEFAULT_VIDEOS, set_argument, source_option
from pipeline.commands import FILE, check_files, json_option, overwrite_option
from pipeline.console import counted, print_json, print_table, progress, warn

if TYPE_CHECKING:
    from pipeline.leaks import Leaks, Pair

PAIRS_SHOWN = 50


@click.command()
@set_argument
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.25,
              help="How unlike near copies may be: 0 (alike) to 1 (unrelated).")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Also pairs inside one split and label.")
@click.option("--group", type=FILE, help="Write a CSV for build-shards that keeps copies together.")
@source_option("With --group: ", DEFAULT_VIDEOS)
@overwrite_option("the file of --group")
@click.option("--strict", is_flag=True, help="Exit with 1 if any pair is found.")
@json_option
def leaks(
    shards: Path | str, threshold: float, every: bool, group: Path | None, source: Path | str, overwrite: bool,
    strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find copies of videos across splits or labels.

    They are found from the stored frames of SET (default data/shards). Copies may be compressed again, scaled,
    brightened or trimmed. --group writes a CSV for build-shards in which copies share a group, and so a split.

    \b
    Examples:
      prep leaks data/rwf
      prep leaks data/rwf --group data/rwf.csv --source rwf-2000
      prep build-shards data/rwf.csv --out data/rwf
    """
    from pipeline.errors import WorkFailed
    from pipeline.leaks import find_leaks, write_groups
    from pipeline.shards.index import read_set
    from pipeline.sources import list_videos

    shard_set = read_set(shards)
    videos = list_videos(source) if group else []
    check_files({"--group": group}, overwrite=overwrite)
    with progress("videos") as stage:
        found = find_leaks(shard_set, threshold, stage)
    shown = [pair for pair in found.pairs if every or pair.harms]
    moved = write_groups(group, shard_set, videos, found.pairs) if group else 0
    _print_leaks(shards, found, shown, threshold, as_json)
    if group:
        then = shlex.join(["prep", "build-shards", str(group), "--out", str(shards)])
        then = f"{then} {shard_set.recipe.flags}".rstrip()
        click.echo(f"{group}: moves {counted(moved, 'video')} to another split; next: {then}", err=as_json)
    if strict and shown:
        raise WorkFailed(f"{shards}: {counted(len(shown), 'pair')} of copies found (--strict)")


def _print_leaks(shards: Path | str, found: "Leaks", shown: "list[Pair]", threshold: float, as_json: bool) -> None:
    from dataclasses import asdict

    unseen = {"flat": found.flat, "still": found.still, "short": found.short}
    if as_json:
        pairs = [asdict(pair) for pair in shown]
        print_json({"videos": found.videos, "threshold": threshold, "pairs": pairs, **unseen})
        return
    rows = [
        (pair.a, pair.b, " | ".join(dict.fromkeys(pair.splits)), " | ".join(dict.fromkeys(pair.labels)),
         f"{pair.distance:.3f}", pair.kind)
        for pair in shown[:PAIRS_SHOWN]
    ]  # fmt: skip
    harm = sum(pair.harms for pair in found.pairs)
    title = f"{shards}: no copies were found"
    if found.pairs:
        title = f"{shards}: {counted(len(found.pairs), 'pair')} of copies, {harm} of them across splits or labels"
    if rows:
        print_table(title, rows, ("video a", "video b", "split", "label", "distance", "kind"))
    else:
        click.echo(title)
    if len(shown) > PAIRS_SHOWN:
        click.echo(f"and {len(shown) - PAIRS_SHOWN} more; --json lists them all")
    reasons = {"flat": "of one flat colour", "still": "without motion", "short": "shorter than 1.2 s"}
    for kind, names in unseen.items():
        if names:
            only = "only exact copies of such are found; --json lists them"
            warn(f"{counted(len(names), 'video')} {reasons[kind]}: {only}")
