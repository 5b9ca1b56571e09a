"""`train eval` and `train compare`. Heavy imports stay inside the commands."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.console import PLACE, json_option, print_json, print_table, progress, warn
from train.cli_recipe import config_option, settings_by_family

FILE = click.Path(path_type=Path, dir_okay=False)


def _bytes(_ctx: click.Context, _param: click.Parameter, given: str | None) -> int | None:
    from pipeline.shards.cache import parse_bytes

    return parse_bytes(given) if given else None


def cache_options(command: Any) -> Any:
    """Where shards of a set that lies elsewhere are kept."""
    for option in (
        click.option("--cache-size", metavar="50GB", callback=_bytes, help="At most so much is kept there."),
        click.option(
            "--cache", type=click.Path(path_type=Path), metavar="DIR",
            help="Shards of a set behind a URL come here.  [default: ~/.cache/reelcache]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True, help="Which split to judge on.")
@click.option("--clips", type=click.IntRange(1), default=5, show_default=True, help="Clips a video, averaged.")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--shards", type=PLACE, help="Another set of the same recipe and labels.")
@cache_options
@click.option("--threshold-from", metavar="SPLIT", help="Fit the threshold between two classes on this split.")
@click.option("--allow-leaks", is_flag=True, help="Judge even where videos of --split, or copies, were learnt.")
@click.option("--csv", "csv_file", type=FILE, help="A table of all videos.")
@click.option("--curves", type=FILE, help="ROC and precision-recall curves, as SVG.")
@click.option("--mistakes", type=FILE, help="The worst mistakes as a contact sheet, as PNG.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Clips a step.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@json_option
def evaluate(
    run_folder: Path,
    csv_file: Path | None,
    curves: Path | None,
    mistakes: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str,
    precision: str,
    **options: Any,
) -> None:
    """Judge a run: several clips a video, probabilities averaged, one verdict a video.

    \b
    Example:  train eval runs/first --clips 5 --mistakes worst.png --json
    """
    from train.checkpoint import read_run

    read_run(run_folder)  # a wrong path is told before torch is loaded
    _check_files({"--csv": csv_file, "--curves": curves, "--mistakes": mistakes}, overwrite=overwrite)

    from train.compute import choose_compute
    from train.evaluate import evaluate_run
    from train.verdicts import write_csv, write_curves, write_mistakes

    with progress("videos") as stage:
        found = evaluate_run(run_folder, compute=choose_compute(device, precision), stage=stage, **options)
    for file, write in ((csv_file, write_csv), (curves, write_curves), (mistakes, write_mistakes)):
        if file:
            write(file, found)
    metrics = found.metrics
    _warn_of_leaks(metrics["split"], metrics["leaks"])
    if as_json:
        print_json(metrics)
        return
    title = f"{run_folder}, {metrics['split']}, {metrics['clips']} clips a video"
    print_table(title, score_rows(metrics))
    for file in filter(None, (csv_file, curves, mistakes)):
        click.echo(f"wrote {file}")


def _warn_of_leaks(split: str, leaks: dict[str, Any]) -> None:
    if not leaks["checked"]:
        warn(f"{split}: leaks were not looked for: {leaks['reason']}")
    elif leaks["count"]:
        warn(f"{split}: {leaks['count']} groups or pairs of copies of it were learnt; this is no test score")


@config_option
@click.option(
    "--shards", type=click.Path(path_type=Path), default="data/shards", show_default=True, help="The set."
)
@click.option("--out", type=click.Path(path_type=Path), default="runs/compare", show_default=True,
              help="Folder of all runs; what is done there is kept.")  # fmt: skip
@click.option("--models", "names", help="Families, with commas between.  [default: all]")
@click.option(
    "--folds", type=click.IntRange(2), help="Folds by group of train and val.  [default: train, then val]"
)
@click.option("--within", metavar="k/K", help="Only what fold k of K trains on: to choose settings by.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, with commas between.")
@click.option("--clips", type=click.IntRange(1), default=5, show_default=True, help="Clips a video, averaged.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: one a GPU]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--weights", metavar="[FAMILY=]PATH", multiple=True, help="Start from a file, or a run; repeatable.")
@click.option(
    "--option", "options", metavar="FAMILY.NAME=VALUE", multiple=True,
    help="One of a family's own, such as vivit.scale=small; repeatable.",
)  # fmt: skip
@click.option("--allow-leaks", is_flag=True, help="Go on where copies or groups are on both sides.")
@click.option("--markdown", type=FILE, help="The table as Markdown.")
@click.option("--plot", type=FILE, help="Accuracy over parameters, as SVG.")
@click.option("--overwrite", is_flag=True, help="Replace these two files.")
@json_option
def compare(
    shards: Path,
    out: Path,
    names: str | None,
    folds: int | None,
    within: str | None,
    seeds: str,
    clips: int,
    jobs: int | None,
    device: str,
    precision: str,
    weights: tuple[str, ...],
    options: tuple[str, ...],
    allow_leaks: bool,
    markdown: Path | None,
    plot: Path | None,
    overwrite: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train and judge families × folds × seeds; a table beside the course's. Stopped, it goes on when run again.

    \b
    Example:  train compare --models early_fusion,cnn_mamba --folds 5 --seeds 0,1 --markdown table.md
    """
    chosen, numbers = _families(names), _seeds(seeds)
    _check_files({"--markdown": markdown, "--plot": plot}, overwrite=overwrite)

    from train.compare import compare as work
    from train.compare import plan_cells, visible_devices
    from train.comparison_table import write_markdown, write_plot
    from train.run_settings import RunSettings

    place = str(shards.resolve())
    asked = [
        RunSettings(name, place, **own, device=device, precision=precision)
        for name, own in settings_by_family(chosen, flags, weights, options).items()
    ]
    cells = plan_cells(asked, out, folds=folds, seeds=numbers, clips=clips, within=within)
    jobs = jobs or max(1, len(visible_devices()) if device == "auto" else 1)
    say = partial(click.echo, err=True)
    with progress("clips") as stage:
        found = work(cells, out, jobs=jobs, allow_leaks=allow_leaks, say=say, stage=stage)
    if markdown:
        write_markdown(markdown, found)
    if plot:
        write_plot(plot, found)
    _show_comparison(out, found, as_json=as_json)


def _families(names: str | None) -> list[str]:
    from pipeline.errors import UserError
    from train.recipes import RECIPES

    chosen = list(dict.fromkeys(names.split(","))) if names else list(RECIPES)
    for name in chosen:
        if name not in RECIPES:
            raise UserError(f"--models {name}: no such family; there are {', '.join(RECIPES)}")
    return chosen


def _seeds(text: str) -> list[int]:
    from pipeline.errors import UserError

    if not all(seed.isdecimal() and int(seed) < 2**31 for seed in text.split(",")):
        raise UserError(f"--seeds {text}: must be whole numbers with commas between, such as 0,1,2")
    return sorted({int(seed) for seed in text.split(",")})


def _show_comparison(out: Path, found: dict[str, Any], *, as_json: bool) -> None:
    """Raises `WorkFailed` where runs failed, after the rest is shown."""
    from pipeline.errors import WorkFailed
    from train.comparison_table import COURSE, COURSE_SOURCE, HEADER, notes, table_rows

    if as_json:
        print_json({**found, "course": {"source": COURSE_SOURCE, "accuracy": COURSE}})
    else:
        print_table(str(out), table_rows(found), HEADER)
        click.echo("\n".join(notes(found)))
    failed = [reason for row in found["rows"] for reason in row.get("failed", [])]
    if failed:
        raise WorkFailed(f"{len(failed)} runs failed, the first: {failed[0]}")


def _check_files(files: dict[str, Path | None], *, overwrite: bool) -> None:
    """Before the long work: whether its files can be written. Raises `UserError`."""
    from pipeline.errors import UserError

    for flag, file in files.items():
        if file is None:
            continue
        if file.exists() and not overwrite:
            raise UserError(f"{flag} {file}: exists; give another name, or --overwrite")
        if not file.absolute().parent.is_dir():
            raise UserError(f"{flag} {file}: there is no folder {file.parent}")


def score_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of `train.metrics.score` as lines of a table."""
    confusion = "; ".join(
        f"{label}: {', '.join(f'{n} as {other}' for n, other in zip(row, metrics['labels'], strict=True))}"
        for label, row in zip(metrics["labels"], metrics["confusion"], strict=True)
    )
    accuracy = f"{metrics['accuracy']:.3f} (95 % {_between(metrics['accuracy_interval'])})"
    by_group = metrics.get("interval_by_group") or {}
    rows = [
        ("accuracy", f"{accuracy} on {metrics['videos']} videos"),
        ("balanced accuracy", _shown(metrics["balanced_accuracy"])),
        ("ROC-AUC", _shown(metrics["roc_auc"], by_group.get("roc_auc"))),
        ("PR-AUC", _shown(metrics["pr_auc"])),
        ("F1", _shown(metrics["f1"])),
        ("confusion", confusion),
    ]
    if by_group.get("accuracy"):
        text = f"{_between(by_group['accuracy'])}, drawing {metrics['groups']} groups"
        rows.insert(1, ("accuracy, by group", f"95 % {text}"))
    if metrics["top_k"]["k"] < len(metrics["labels"]):
        rows.insert(1, (f"top {metrics['top_k']['k']}", _shown(metrics["top_k"]["accuracy"])))
    if metrics.get("threshold") is not None:
        text = f"{metrics['labels'][1]} from {metrics['threshold']:.3f} on, fitted on {metrics['threshold_from']}"
        rows.append(("threshold", text))
    return rows


def _shown(value: float | None, interval: Iterable[float] | None = None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" (95 % {_between(interval)})" if interval else "")


def _between(interval: Iterable[float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"
