"""`prep preview`: a set to look at."""

from pathlib import Path

import click

from pipeline.console import PLACE, human_bytes, json_option, print_json, progress


@click.command()
@click.argument("shards", metavar="SET", type=PLACE)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="preview.html", show_default=True,
              help="The file to write.")  # fmt: skip
@click.option("--videos", type=click.IntRange(1, 2000), default=200, show_default=True,
              help="Show so many; of more, a sample by split and label.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, another sample.")
@click.option("--leaks", is_flag=True, help="Look for near copies, too; reads every frame.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@json_option
def preview(
    shards: Path | str, out: Path, videos: int, seed: int, leaks: bool, overwrite: bool, as_json: bool
) -> None:
    """Write one HTML file with clips of SET that play, distributions, copies, and what was rejected.

    The file is under 20 MB, opens offline, and holds pictures from the videos: who gets it sees them.

    \b
    Example:  prep preview data/shards --out preview.html
    """
    from pipeline.errors import UserError
    from pipeline.page import write_page
    from pipeline.preview import make_preview
    from pipeline.shards.index import read_set

    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; give another name, or --overwrite")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    shard_set = read_set(shards, whole=False)
    with progress("videos") as stage:
        page = make_preview(shard_set, videos=videos, seed=seed, leaks=leaks, stage=stage)
    write_page(out, page)
    size = out.stat().st_size
    if as_json:
        print_json({"file": str(out), "bytes": size})
        return
    click.echo(f"wrote {out}, {human_bytes(size)}; open it in a browser")
