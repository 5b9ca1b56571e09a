"""`prep`: videos to shards. Heavy imports stay inside the commands, so that `--help` answers at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_preview import preview
from pipeline.cli_share import COMMANDS
from pipeline.console import PLACE, Commands, human_bytes, json_option, print_json, print_table, progress, warn

if TYPE_CHECKING:
    from pipeline.driver import Wanted
    from pipeline.estimate import Estimate
    from pipeline.leaks import Leaks, Pair

DEFAULT_VIDEOS = Path("data/videos")
DEFAULT_SHARDS = Path("data/shards")
DEFAULT_QUALITY = 90
PAIRS_SHOWN = 50


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reelcache", prog_name="prep")
def main() -> None:
    """Decode each video once, offline, into shards of small uint8 frames.

    \b
    Start with:  prep sample-videos data/videos
                 prep build-shards --fps 5 --size 112
                 prep inspect data/shards
    """


for command in (*COMMANDS, preview):
    main.add_command(command)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--videos", default=320, show_default=True, help="How many to make, over all splits.")
@click.option("--splits", default="train,val", show_default=True, help="Comma-separated; the first gets 4 in 5.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same videos.")
@click.option("--overwrite", is_flag=True, help="Replace the videos that an earlier call made in DIR.")
def sample_videos(folder: Path, videos: int, splits: str, seed: int, overwrite: bool) -> None:
    """Make labelled h264 videos to try everything on: two figures that meet, or part.

    The two classes are each other in reverse, so that no single frame tells them apart; motion does.

    \b
    Example:  prep sample-videos data/videos
    """
    from pipeline.sample_videos import make_sample_videos

    with progress("videos") as stage:
        made = make_sample_videos(folder, videos, splits.split(","), seed, overwrite=overwrite, stage=stage)
    click.echo(f"{made} videos in {folder}; next: prep build-shards {folder}")


@main.command()
@click.argument("source", metavar="[SRC]", type=PLACE, default=DEFAULT_VIDEOS)
@click.option("--out", type=PLACE, default=DEFAULT_SHARDS, show_default=True, help="The set.")
@click.option("--fps", default="5", show_default=True, help="Frames kept per second: 5, 12.5, 30000/1001.")
@click.option("--size", default="112", show_default=True, help="Stored frames: 112 (square) or 160x90.")
@click.option(
    "--fit", type=click.Choice(["stretch", "crop", "pad"]), default="stretch", show_default=True,
    help="How other shapes become this one.",
)  # fmt: skip
@click.option("--decoder", default="pyav", show_default=True, help="pyav, or opencv where PyAV is not to be had.")
@click.option(
    "--format", "shard_format", default="webdataset", show_default=True, help="webdataset (tars), or zarr."
)
@click.option(
    "--codec", default="raw", show_default=True,
    help="raw is fastest; zstd is smaller and the same; jpeg is far smaller and near.",
)  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), help=f"Of --codec jpeg.  [default: {DEFAULT_QUALITY}]")
@click.option("--max-frames", default=1024, show_default=True, help="Longer videos become several samples.")
@click.option("--videos-per-shard", default=32, show_default=True, help="At most so many, on average.")
@click.option(
    "--val", default=0.2, show_default=True, help="Share of the groups for val, where SRC names no split."
)
@click.option("--test", default=0.0, show_default=True, help="Likewise for test.")
@click.option("--split-seed", default=0, show_default=True, help="Another number, another draw of the groups.")
@click.option("--group-by", metavar="REGEX", help="What of a path names the recording that a clip was cut from.")
@click.option("--unlabelled", is_flag=True, help="SRC has no labels: folders, but for splits, mean nothing.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes; 0: this one, which a crashing decoder ends. Default: one a core.",
)
@click.option("--scheduler", metavar="tcp://…", help="Use this running Dask cluster instead.")
@click.option("--cache", type=PLACE, metavar="PLACE", help="The team's frames: looked for there, and put there.")
@click.option(
    "--on-corrupt", type=click.Choice(["reject", "keep"]), default="reject", show_default=True,
    help="A video that breaks on the way: none of it, or the frames that came out.",
)  # fmt: skip
@click.option(
    "--time-limit", type=click.FloatRange(0.1, 86_400), default=120.0, show_default=True, metavar="SECONDS",
    help="A video that gives no frame for so long is rejected.",
)  # fmt: skip
@click.option("--retry-rejected", is_flag=True, help="Try videos again that an earlier build rejected.")
@click.option("--dry-run", is_flag=True, help="Only say what would be made: videos, frames, bytes, time.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any video was rejected or damaged.")
@click.option("--max-rejects", type=click.IntRange(0), metavar="N", help="Stop as soon as more are rejected.")
@click.option("--prune", is_flag=True, help="Drop videos from the set that SRC no longer has.")
@click.option("--overwrite", is_flag=True, help="Remove the set that stands in --out first.")
@json_option
def build_shards(
    source: Path | str, out: Path | str, dry_run: bool, strict: bool, as_json: bool, **options: Any
) -> None:
    """Decode the videos of SRC (default data/videos) into the shard set --out.

    SRC is a folder of <label>/*.mp4 or <split>/<label>/*.mp4, or a CSV with path,label[,split][,group][,key].
    Both may be URLs (s3://bucket/videos). Run it again after any change or crash: only what is new is decoded.

    \b
    Example:  prep build-shards rwf-2000 --out data/rwf --fps 5 --size 112
    """
    from pipeline.driver import build_set, estimate_set
    from pipeline.errors import WorkFailed
    from pipeline.shards.index import read_set
    from pipeline.summary import summarize

    wanted = _wanted(source, options)
    workers = options["workers"] if options["workers"] is not None else _cores()
    if dry_run:
        with progress("videos") as stage:
            found = estimate_set(wanted, out, workers=workers, overwrite=options["overwrite"], stage=stage)
        _print_estimate(out, found, as_json)
        return
    names = ("scheduler", "overwrite", "max_rejects", "time_limit", "cache")
    with progress("videos") as stage:
        report = build_set(wanted, out, workers=workers, stage=stage, **{name: options[name] for name in names})
    summary = summarize(read_set(out, whole=False))
    for message in report.warnings:
        warn(message)
    did = {
        "decoded": report.decoded, "copied": report.copied,
        "shards_written": report.shards_written, "shards_kept": report.shards_kept,
    }  # fmt: skip
    if as_json:
        print_json({**summary, **did, "warnings": list(report.warnings)})
    else:
        print_table(
            f"{out}: decoded {report.decoded} videos, copied {report.copied}, rejected {report.rejected}; "
            f"wrote {report.shards_written} shards, kept {report.shards_kept}",
            _summary_rows(summary),
        )
        _print_broken(summary)
    if not summary["videos"]:
        raise WorkFailed(f"{source}: none of its {summary['rejected']} videos could be decoded")
    broken = summary["rejected"] + len(summary["damaged"])
    if strict and broken:
        raise WorkFailed(
            f"{source}: {broken} videos were rejected or damaged (--strict); the set stands, and says which"
        )


@main.command()
@click.argument("shards", metavar="[SET]", type=PLACE, default=DEFAULT_SHARDS)
@json_option
def inspect(shards: Path | str, as_json: bool) -> None:
    """Say what is in a shard set.

    \b
    Example:  prep inspect data/shards --json
    """
    from pipeline.shards.index import read_set
    from pipeline.summary import summarize

    summary = summarize(read_set(shards, whole=False))
    if as_json:
        print_json(summary)
        return
    print_table(str(shards), _summary_rows(summary))
    _print_broken(summary)


@main.command()
@click.argument("shards", metavar="[SET]", type=PLACE, default=DEFAULT_SHARDS)
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.25, show_default=True,
              help="How unlike near copies may be: 0 (alike) to 1 (unrelated).")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Also pairs inside one split and label.")
@click.option(
    "--group", type=click.Path(path_type=Path), metavar="FILE", help="Write a CSV that keeps copies together."
)
@click.option("--source", type=PLACE, default=DEFAULT_VIDEOS, show_default=True,
              help="With --group: the folder or CSV that SET was built from.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the FILE of --group.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any pair is found.")
@json_option
def leaks(
    shards: Path | str, threshold: float, every: bool, group: Path | None, source: Path | str, overwrite: bool,
    strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find copies of videos across splits or labels, from the cached frames of SET.

    Copies may be compressed again, scaled, brightened or trimmed. `--group` writes a CSV for `build-shards` in
    which copies share a group, and so a split.

    \b
    Example:  prep leaks data/rwf
              prep leaks data/rwf --group data/rwf.csv --source rwf-2000
              prep build-shards data/rwf.csv --out data/rwf
    """
    from pipeline.errors import UserError, WorkFailed
    from pipeline.leaks import find_leaks, write_groups
    from pipeline.shards.index import read_set
    from pipeline.sources import list_videos

    shard_set = read_set(shards)
    videos = list_videos(source) if group else []
    if group and group.exists() and not overwrite:
        raise UserError(f"{group}: exists; give another --group, or --overwrite")
    with progress("videos") as stage:
        found = find_leaks(shard_set, threshold, stage)
    shown = [pair for pair in found.pairs if every or pair.harms]
    moved = write_groups(group, shard_set, videos, found.pairs, overwrite=overwrite) if group else None
    _print_leaks(shards, found, shown, threshold, as_json)
    if group:
        click.echo(f"{group}: {moved} videos change their split; next: prep build-shards {group}", err=as_json)
    if strict and shown:
        raise WorkFailed(f"{shards}: {len(shown)} pairs of copies were found (--strict)")


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
    title = f"{shards}: {harm} pairs of copies cross splits or labels, {len(found.pairs) - harm} do not"
    if rows:
        print_table(title, rows, ("video a", "video b", "split", "label", "distance", "kind"))
    else:
        click.echo(title)
    if len(shown) > PAIRS_SHOWN:
        click.echo(f"and {len(shown) - PAIRS_SHOWN} more; --json lists them all")
    reasons = {"flat": "show one flat colour", "still": "do not move", "short": "are shorter than 1.2 s"}
    for kind, names in unseen.items():
        if names:
            warn(f"{len(names)} videos {reasons[kind]}: only exact copies of them are found; --json lists them")


def _print_estimate(out: Path | str, found: "Estimate", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(asdict(found))
        return
    print_table(
        f"{out}: nothing was written",
        [
            ("videos", f"{found.videos:,}, about {found.unreadable:,} of them unreadable"),
            ("length", f"{found.hours:,.2f} hours"),
            ("frames", f"{found.frames:,}"),
            ("bytes", f"{human_bytes(found.bytes)} in {found.shards:,} shards"),
            ("this build", f"decodes {found.decode:,} videos in about {found.seconds:,.0f} s"),
        ],
    )


def _wanted(source: Path | str, options: dict[str, Any]) -> "Wanted":
    """The options of `build-shards` that say what the set is to hold. Raises `UserError`."""
    from pipeline.decode import get_decoder
    from pipeline.driver import Wanted
    from pipeline.errors import UserError
    from pipeline.recipe import Recipe, parse_fps, parse_size
    from pipeline.shards import get_format

    val, test = options["val"], options["test"]
    if not (0 <= val <= 1 and 0 <= test <= 1 and val + test <= 1):
        raise UserError(f"--val {val} --test {test}: shares from 0 to 1, together at most 1")
    for name in ("max_frames", "videos_per_shard"):
        if options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: must be 1 or more")
    get_decoder(options["decoder"])
    codec, quality = options["codec"], options["quality"]
    known = get_format(options["shard_format"]).codecs
    if codec not in known:
        raise UserError(f"--codec {codec}: --format {options['shard_format']} takes {', '.join(known)}")
    if quality is not None and codec != "jpeg":
        raise UserError(f"--quality {quality}: is of --codec jpeg, not of {codec}")
    width, height = parse_size(options["size"])
    recipe = Recipe(
        fps=parse_fps(options["fps"]),
        width=width,
        height=height,
        fit=options["fit"],
        decoder=options["decoder"],
        format=options["shard_format"],
        codec=codec,
        quality=quality or DEFAULT_QUALITY,
        max_frames=options["max_frames"],
        on_corrupt=options["on_corrupt"],
    )
    most = get_format(recipe.format).most_frames(recipe)
    if most is not None and recipe.max_frames > most:
        raise UserError(
            f"--max-frames {recipe.max_frames}: of --size {options['size']} at most {most} fit into the "
            "8 GiB that a sample in a tar may have; give fewer, or --format zarr"
        )
    names = ("val", "test", "split_seed", "group_by", "unlabelled", "prune", "retry_rejected")
    rest = {name: options[name] for name in names}
    return Wanted(source, recipe, per_shard=options["videos_per_shard"], **rest)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of `inspect` and of the end of a build."""
    width, height = summary["size"]
    by_split = "; ".join(
        f"{split} {sum(labels.values())} ({', '.join(f'{label} {n}' for label, n in labels.items())})"
        for split, labels in summary["split_labels"].items()
    )
    rows = [
        ("videos", f"{summary['videos']:,}"),
        ("rejected", f"{summary['rejected']:,}"),
        ("frames", f"{summary['frames']:,} of {width}×{height}, {summary['fps']:g} a second"),
        ("bytes", f"{human_bytes(summary['bytes'])} in {summary['shards']:,} shards"),
        ("splits", by_split),
        ("groups", f"{summary['groups']:,}, {len(summary['groups_across_splits'])} of them across splits"),
        ("recipe", summary["fingerprint"]),
        ("digest", summary["digest"]),
    ]
    if summary["same_bytes"]:
        first = " = ".join(summary["same_bytes"][0])
        rows.append(("same bytes", f"{len(summary['same_bytes'])} times, the first: {first}"))
    if summary["unfinished"]:
        rows.append(("unfinished", summary["unfinished"]))
    return rows


def _print_broken(summary: dict[str, Any]) -> None:
    for title, entries in (("rejected", summary["rejections"]), ("damaged, kept in part", summary["damaged"])):
        rows = [(entry["video"], entry["reason"], entry["frames"]) for entry in entries]
        if rows:
            print_table(title, rows, ("video", "reason", "frames before"))
