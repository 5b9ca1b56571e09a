"""`train compare`. Heavy imports stay inside the command."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.commands import FILE, FOLDER, cache_options, check_files, json_option, names_in, overwrite_option
from pipeline.console import print_json, print_table, progress
from pipeline.places import absolute
from train.cli_options import (
    FAMILIES,
    allow_leaks_option,
    check_families,
    clips_option,
    compute_options,
    shards_option,
)
from train.cli_recipe import Training, config_option, recipe_options, settings_by_family


@click.command(cls=Training)
@config_option
@shards_option
@cache_options
@click.option(
    "--out",
    type=FOLDER,
    default="runs/compare",
    help="Where to put all runs: a folder; what is done there is kept.",
)
@click.option("--models", "names", metavar="FAMILIES", shell_complete=names_in(FAMILIES),
              help="Model families, with commas between.  [default: all]")  # fmt: skip
@click.option("--folds", metavar="K", type=click.IntRange(2),
              help="Folds by group of train and val.  [default: train, then val]")  # fmt: skip
@click.option("--within", metavar="k/K", help="Only what fold k of K trains on: to choose settings by.")
@click.option("--seeds", default="0", help="Seeds, with commas between.")
@clips_option
@click.option("--jobs", type=click.IntRange(1), help="How many at a time: runs.  [default: one a GPU]")
@compute_options
@click.option("--weights", metavar="[FAMILY=]PATH", multiple=True,
              help="Start from a checkpoint's file, or from another run; may be repeated.")  # fmt: skip
@click.option("--option", "options", metavar="FAMILY.NAME=VALUE", multiple=True,
              help="One of a family's own, such as vivit.scale=small; may be repeated.")  # fmt: skip
@allow_leaks_option
@click.option("--markdown", type=FILE, help="Write the table as Markdown.")
@click.option("--plot", type=FILE, help="Draw the accuracy over parameters, as SVG.")
@overwrite_option("the files of --markdown and --plot")
@recipe_options
@json_option
def compare(
    shards: Path | str, cache: Path | None, cache_size: int | None, out: Path, names: str | None,
    folds: int | None, within: str | None, seeds: str, clips: int, jobs: int | None, device: str, precision: str,
    weights: tuple[str, ...], options: tuple[str, ...], allow_leaks: bool, markdown: Path | None,
    plot: Path | None, overwrite: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train and judge several families, for one table.

    Families × folds × seeds, and the course's figures beside them. Stopped, it goes on when run again. What is
    not given of the recipe is each family's own.

    \b
    Examples:
      train compare --models early_fusion,cnn_mamba --folds 5 --seeds 0,1
      train compare --epochs 10 --markdown table.md --plot accuracy.svg
    """
    chosen, numbers = _families(names), _seeds(seeds)
    check_files({"--markdown": markdown, "--plot": plot}, overwrite=overwrite, suffixes={"--plot": ".svg"})

    from train.compare import compare as work
    from train.compare import plan_cells, visible_devices
    from train.comparison_table import write_markdown, write_plot
    from train.run_settings import RunSettings
    from train.stopping import Stopped

    place = absolute(str(shards))
    asked = [
        RunSettings(name, place, **own, device=device, precision=precision)
        for name, own in settings_by_family(chosen, flags, weights, options).items()
    ]
    cells = plan_cells(
        asked, out, folds=folds, seeds=numbers, clips=clips, within=within, cache=cache, cache_size=cache_size
    )
    jobs = jobs or max(1, len(visible_devices()) if device == "auto" else 1)
    say = partial(click.echo, err=True)
    try:
        with progress("clips") as stage:
            found = work(cells, out, jobs=jobs, allow_leaks=allow_leaks, say=say, stage=stage)
    except KeyboardInterrupt as stop:  # between two runs, or of several at a time, it is no `Stopped`
        say(f"{str(stop) or 'stopped'}; the same command goes on from there")
        click.get_current_context().exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))
    if markdown:
        write_markdown(markdown, found)
    if plot:
        write_plot(plot, found)
    _show_comparison(out, found, as_json=as_json)


def _families(names: str | None) -> list[str]:
    from train.recipes import RECIPES

    chosen = list(dict.fromkeys(names.split(","))) if names else list(RECIPES)
    check_families("--models", chosen)
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
