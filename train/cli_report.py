"""`train report`: runs to look at."""

from pathlib import Path
from typing import Any

import click

from pipeline.console import PLACE, human_bytes, json_option, print_json, progress
from train.cli_eval import cache_options


@click.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True)
@click.option("--split", default="val", show_default=True, help="Which split to judge on.")
@click.option("--clips", type=click.IntRange(1), default=5, show_default=True, help="Clips a video, averaged.")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--shards", type=PLACE, help="Another set of the same recipe and labels.")
@cache_options
@click.option("--allow-leaks", is_flag=True, help="Judge even where videos of --split, or copies, were learnt.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Clips a step.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@json_option
def report(
    runs: tuple[Path, ...], out: Path, overwrite: bool, device: str, precision: str, as_json: bool, **options: Any
) -> None:
    """Write one HTML file about runs: curves, verdicts, calibration, worst and best clips, settings.

    With several runs, a table and plots compare them. The file opens offline, and holds pictures from the videos.

    \b
    Example:  train report runs/first --out report.html
              train report runs/first runs/second
    """
    from pipeline.errors import UserError
    from train.checkpoint import read_run

    for run in runs:
        read_run(run)  # a wrong path is told before torch is loaded
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; give another name, or --overwrite")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")

    from pipeline.page import write_page
    from train.compute import choose_compute
    from train.report import make_report

    with progress("videos") as stage:
        page = make_report(runs, choose_compute(device, precision), stage=stage, **options)
    write_page(out, page)
    size = out.stat().st_size
    if as_json:
        print_json({"file": str(out), "bytes": size})
        return
    click.echo(f"wrote {out}, {human_bytes(size)}; open it in a browser")
