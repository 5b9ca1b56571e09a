"""`prep build-shards` and `prep inspect`: videos to a shard set, and what is in one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import PLACE, json_option, names_in, overwrite_option, seed_option
from pipeline.console import counted, human_bytes, print_json, print_table, progress, warn
from pipeline.interrupt import resumable

if TYPE_CHECKING:
    from pipeline.driver import BuildReport, Wanted
    from pipeline.estimate import Estimate

DEFAULT_VIDEOS = Path("data/videos")
DEFAULT_SHARDS = Path("data/shards")
DEFAULT_QUALITY = 90

set_argument = click.argument("shards", metavar="[SET]", type=PLACE, default=DEFAULT_SHARDS)
group_by_option = click.option(
    "--group-by",
    metavar="REGEX",
    help="What of a path below SRC names the recording that a clip was cut from: its first parentheses, or all.",
)
unlabelled_option = click.option(
    "--unlabelled", is_flag=True, help="SRC has no labels: folders, but for splits, mean nothing."
)


def workers_option(default: int | None, told: str = "") -> Callable[[Any], Any]:
    """`--workers`, with `told` as a default that is found out."""
    shown = f"  [default: {told}]" if told else ""
    return click.option(
        "--workers", type=click.IntRange(0), default=default,
        help=f"Processes that decode; 0: this one, which a crashing decoder ends.{shown}",
    )  # fmt: skip


def source_option(when: str, default: Path | None = None) -> Callable[[Any], Any]:
    """`--source`: where the videos of a set are."""
    return click.option(
        "--source",
        type=PLACE,
        metavar="SRC",
        default=default,
        help=f"{when}the folder or CSV that SET was built from.",
    )


@click.command()
@click.argument("source", metavar="[SRC]", type=PLACE, default=DEFAULT_VIDEOS)
@click.option("--out", type=PLACE, default=DEFAULT_SHARDS, help="Where to put the set: a folder or URL.")
@click.option("--fps", metavar="RATE", default="5", help="Frames kept per second: 5, 12.5, 30000/1001.")
@click.option("--size", metavar="SIZE", default="112", help="Size of a frame: 112 (square) or 160x90.")
@click.option(
    "--fit", type=click.Choice(["stretch", "crop", "pad"]), default="stretch",
    help="How other shapes become this one.",
)  # fmt: skip
@click.option(
    "--decoder", metavar="NAME", default="pyav", shell_complete=names_in("pipeline.decode:DECODERS"),
    help="pyav, or opencv where PyAV is not to be had.",
)  # fmt: skip
@click.option(
    "--format", "shard_format", metavar="NAME", default="webdataset",
    shell_complete=names_in("pipeline.shards:FORMATS"), help="webdataset (tars), or zarr.",
)  # fmt: skip
@click.option(
    "--codec", metavar="NAME", default="raw", shell_complete=names_in("pipeline.shards.codec:CODECS"),
    help="raw is fastest; zstd is smaller and the same; jpeg is far smaller and near.",
)  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), help=f"Of --codec jpeg.  [default: {DEFAULT_QUALITY}]")
@click.option("--max-frames", type=int, default=1024, help="Longer videos become several samples.")
@click.option("--videos-per-shard", type=int, default=32, help="At most so many, on average.")
@click.option("--val", type=float, default=0.2, help="Share of the groups for val, where SRC names no split.")
@click.option("--test", type=float, default=0.0, help="Share of the groups for test, where SRC names no split.")
@seed_option("the draw of groups for val and test", name="split_seed")
@group_by_option
@unlabelled_option
@workers_option(None, "one a core")
@click.option("--scheduler", metavar="tcp://…", help="Use this running Dask cluster instead.")
@click.option(
    "--cache",
    type=PLACE,
    metavar="PLACE",
    help="Keep here what was decoded, for the team: looked for there before.",
)
@click.option(
    "--on-corrupt", type=click.Choice(["reject", "keep"]), default="reject",
    help="A video that breaks on the way: none of it, or the frames that came out.",
)  # fmt: skip
@click.option(
    "--time-limit", type=click.FloatRange(0.1, 86_400), default=120.0, metavar="SECONDS",
    help="A video that gives no frame for so long is rejected.",
)  # fmt: skip
@click.option("--retry-rejected", is_flag=True, help="Try videos again that an earlier build rejected.")
@click.option("--dry-run", is_flag=True, help="Only say what would be made: videos, frames, bytes, time.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any video was rejected or damaged.")
@click.option("--max-rejects", type=click.IntRange(0), metavar="N", help="Stop as soon as more are rejected.")
@click.option("--prune", is_flag=True, help="Drop videos from --out that SRC no longer has.")
@overwrite_option("the set that stands in --out")
@json_option
def build_shards(
    source: Path | str, out: Path | str, dry_run: bool, strict: bool, as_json: bool, **options: Any
) -> None:
    """Decode the videos of SRC into a shard set.

    SRC (default data/videos) is a folder of <label>/*.mp4 or <split>/<label>/*.mp4, or a CSV with
    path,label[,split][,group][,key]. SRC and --out may be URLs (s3://bucket/videos). Run it again after any change
    or crash: only what is new is decoded.

    \b
    Examples:
      prep build-shards rwf-2000 --out data/rwf --fps 5 --size 112
      prep build-shards videos.csv --out data/mine --dry-run
    """
    from pipeline.driver import build_set, estimate_set
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
    again = "the same command without --overwrite" if options["overwrite"] else "the same command again"
    with progress("videos") as stage, resumable(again):
        report = build_set(wanted, out, workers=workers, stage=stage, **{name: options[name] for name in names})
    summary = summarize(read_set(out, whole=False))
    _print_built(out, report, summary, as_json)
    _check_built(source, summary, strict=strict)


@click.command()
@set_argument
@json_option
def inspect(shards: Path | str, as_json: bool) -> None:
    """Say what is in a shard set.

    SET (default data/shards) is its folder or URL.

    \b
    Example:
      prep inspect data/shards --json
    """
    from pipeline.shards.index import read_set
    from pipeline.summary import summarize

    summary = summarize(read_set(shards, whole=False))
    if as_json:
        print_json(summary)
        return
    print_table(str(shards), _summary_rows(summary))
    _print_broken(summary)


def _print_built(out: Path | str, report: "BuildReport", summary: dict[str, Any], as_json: bool) -> None:
    for message in report.warnings:
        warn(message)
    did = {
        "decoded": report.decoded, "copied": report.copied,
        "shards_written": report.shards_written, "shards_kept": report.shards_kept,
    }  # fmt: skip
    if as_json:
        print_json({**summary, **did, "warnings": list(report.warnings)})
        return
    print_table(
        f"{out}: decoded {counted(report.decoded, 'video')}, copied {report.copied}, rejected {report.rejected}; "
        f"wrote {counted(report.shards_written, 'shard')}, kept {report.shards_kept}",
        _summary_rows(summary),
    )
    _print_broken(summary)


def _check_built(source: Path | str, summary: dict[str, Any], *, strict: bool) -> None:
    """Raises `WorkFailed` for a set without a video; with `strict` for each that broke."""
    from pipeline.errors import WorkFailed

    if not summary["videos"]:
        raise WorkFailed(f"{source}: none of its {summary['rejected']} videos could be decoded")
    broken = summary["rejected"] + len(summary["damaged"])
    if strict and broken:
        raise WorkFailed(
            f"{source}: {counted(broken, 'video')} rejected or damaged (--strict); the set stands, and says which"
        )


def _print_estimate(out: Path | str, found: "Estimate", as_json: bool) -> None:
    from dataclasses import asdict

    for message in found.warnings:
        warn(message)
    if as_json:
        print_json(asdict(found))
        return
    print_table(
        f"{out}: nothing was written",
        [
            ("videos", f"{found.videos:,}, about {found.unreadable:,} of them unreadable"),
            ("length", f"{found.hours:,.2f} hours"),
            ("frames", f"{found.frames:,}"),
            ("bytes", f"{human_bytes(found.bytes)} in {counted(found.shards, 'shard')}"),
            ("this build", f"decodes {counted(found.decode, 'video')} in about {found.seconds:,.0f} s"),
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
        ("bytes", f"{human_bytes(summary['bytes'])} in {counted(summary['shards'], 'shard')}"),
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
