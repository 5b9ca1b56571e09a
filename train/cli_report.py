"""`train report`: runs to look at."""

from pathlib import Path
from typing import Any

import click

from pipeline.commands import FILE, FOLDER, check_files, deliver_page, json_option, overwrite_option
from pipeline.console import progress
from train.cli_options import judging_options


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, default="report.html", help="Where to write the page.")
@judging_options
@overwrite_option("the file of --out")
@json_option
def report(
    runs: tuple[Path, ...], out: Path, overwrite: bool, device: str, precision: str, as_json: bool, **options: Any
) -> None:
    """Write an HTML page that shows runs.

    Curves, verdicts, calibration, worst and best clips, settings; with several runs, a table and plots that
    compare them. The file opens offline, and holds pictures from the videos.

    \b
    Examples:
      train report runs/first --out report.html
      train report runs/first runs/second
    """
    from train.checkpoint import read_run

    for run in runs:
        read_run(run)  # a wrong path is told before any work
    check_files({"--out": out}, overwrite=overwrite)

    from train.compute import choose_compute
    from train.report import make_report

    with progress("videos") as stage:
        page = make_report(runs, choose_compute(device, precision), stage=stage, **options)
    deliver_page(out, page, as_json=as_json)
