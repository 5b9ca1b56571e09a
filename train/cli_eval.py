"""`train eval`. Heavy imports stay inside the command."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from pipeline.commands import FILE, check_files, json_option, overwrite_option
from pipeline.console import print_json, print_table, progress, warn
from train.cli_options import judging_options, run_argument, split_option


@click.command("eval")
@run_argument
@judging_options
@split_option("--threshold-from", None, "Fit the threshold between two classes on this split.")
@click.option("--csv", "csv_file", type=FILE, help="Write a table of all videos.")
@click.option("--curves", type=FILE, help="Draw ROC and precision-recall curves, as SVG.")
@click.option("--mistakes", type=FILE, help="Draw the worst mistakes as a contact sheet, as PNG.")
@overwrite_option("the files of --csv, --curves and --mistakes")
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
    """Judge a run: scores, intervals and mistakes on a split.

    Several clips a video, their probabilities averaged, give one verdict a video.

    \b
    Example:
      train eval runs/first --clips 5 --mistakes worst.png --json
    """
    from train.checkpoint import read_run

    read_run(run_folder)  # a wrong path is told before torch is loaded
    files = {"--csv": csv_file, "--curves": curves, "--mistakes": mistakes}
    check_files(files, overwrite=overwrite, suffixes={"--curves": ".svg", "--mistakes": ".png"})

    from train.compute import choose_compute
    from train.evaluate import evaluate_run
    from train.verdicts import write_csv, write_curves, write_mistakes

    with progress("videos") as stage:
        found = evaluate_run(run_folder, compute=choose_compute(device, precision), stage=stage, **options)
    for file, write in ((csv_file, write_csv), (curves, write_curves), (mistakes, write_mistakes)):
        if file:
            write(file, found)
    metrics = found.metrics
    _warn(metrics)
    if as_json:
        print_json(metrics)
        return
    title = f"{run_folder}, {metrics['split']}, {metrics['clips']} clips a video"
    print_table(title, score_rows(metrics))
    for file in filter(None, (csv_file, curves, mistakes)):
        click.echo(f"wrote {file}")


def _warn(metrics: dict[str, Any]) -> None:
    """Of what makes the numbers too good, or may."""
    from train.lessons import cautions

    for caution in cautions(metrics):
        warn(f"{metrics['split']}: {caution}")


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
