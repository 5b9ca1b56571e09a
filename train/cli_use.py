"""`train predict` and `train export`: what a trained run is for. Heavy imports stay inside the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import FILE, check_files, json_option, overwrite_option
from pipeline.console import print_json, print_table, progress
from pipeline.places import as_place
from train.cli_options import checkpoint_option, compute_options, every_option, judging_batch_option, run_argument

if TYPE_CHECKING:
    from train.predict import Prediction

PEAKS_SHOWN = 3  # labels in the table of `train predict`


@click.command()
@run_argument
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True, type=click.Path())
@click.option("--clips", type=click.IntRange(1), help="Clips a video, averaged.  [default: 5]")
@every_option("A clip every so often, over the whole video, instead of --clips.")
@checkpoint_option
@click.option("--csv", "table", type=FILE, help="Write a table of all clips.")
@click.option("--plot", type=FILE, help="Draw the timelines, as SVG.")
@overwrite_option("the files of --csv and --plot")
@judging_batch_option
@compute_options
@json_option
def predict(
    run_folder: Path, videos: tuple[str, ...], clips: int | None, every: float | None, weights: str,
    table: Path | None, plot: Path | None, overwrite: bool, batch_size: int, device: str, precision: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what videos show, and when.

    Each VIDEO is a file or a URL. Frames are chosen as they were for training, and without --every the verdict is
    that of `train eval`.

    \b
    Examples:
      train predict runs/first street.mp4 https://example.org/yard.mp4
      train predict runs/first night.mkv --every 1 --plot night.svg
    """
    from pipeline.errors import UserError, WorkFailed
    from train.checkpoint import read_run, write_text

    if clips and every:
        raise UserError("--clips spreads clips over a video, --every slides over it: give one of them")
    check_files({"--csv": table, "--plot": plot}, overwrite=overwrite, suffixes={"--plot": ".svg"})
    read_run(run_folder)
    places = [str(as_place(video)) for video in videos]
    if folder := next((place for place in places if Path(place).is_dir()), None):
        raise UserError(f"{folder}: is a folder; give its videos, such as {folder}/*.mp4")

    from train.compute import choose_compute
    from train.predict import cut_by, predict_videos, timeline_csv
    from train.timeline import draw_timelines
    from train.trained import load_trained

    compute = choose_compute(device, precision)
    trained = load_trained(run_folder, weights, compute)
    with progress("") as stage:
        found = predict_videos(trained, compute, places, cut_by(trained, clips or 5, every), batch_size, stage)
    if table:
        write_text(table, timeline_csv(found))
    if plot:
        write_text(plot, draw_timelines(found))
    if as_json:
        how = {"every": every} if every else {"clips": clips or 5}
        rows = [prediction.as_dict() for prediction in found]
        print_json(
            {"run": str(run_folder), "model": trained.about["model"], "weights": weights, **how, "videos": rows}
        )
    else:
        _print_predictions(run_folder, found)
    bad = [prediction for prediction in found if not prediction.timeline]
    if bad:
        raise WorkFailed(f"{len(bad)} of {len(found)} videos have no verdict; {bad[0].video}: {bad[0].reason}")


@click.command()
@run_argument
@click.option("--to", required=True, type=click.Choice(["torch", "onnx"]), help="A torch.export program, or ONNX.")
@click.option("--out", type=FILE, help="Where to write the file.  [default: RUN/model.pt2 or .onnx]")
@checkpoint_option
@click.option("--parity-clips", "clips", type=click.IntRange(1), default=20, help="Clips to check parity on.")
@overwrite_option("the file of --out")
@json_option
def export(run_folder: Path, to: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Write a run's model for use elsewhere.

    Labels and preprocessing are inside, and it is checked that the file agrees with the run.

    \b
    Example:
      train export runs/first --to onnx
    """
    from train.checkpoint import read_run

    read_run(run_folder)

    from train.export import export_run

    made = export_run(run_folder, to, out, **options, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(made)
        return
    parity, size = made["parity"], "×".join(map(str, made["size"]))
    shown = f"at most {parity['max_abs_difference']:.2g} apart on {parity['clips']} {parity['kind']} clips"
    print_table(
        made["file"],
        [
            ("input", made["input"]),
            ("frames", f"{made['frames']} of {size}, {made['fps']} a second, fit {made['fit']}"),
            ("output", made["output"]),
            ("labels", ", ".join(made["labels"])),
            ("parity", f"{shown}; {parity['tolerance']:g} is allowed"),
        ],
    )


def _print_predictions(run_folder: Path, found: "Sequence[Prediction]") -> None:
    from train.timeline import clock

    rows = []
    for prediction in found:
        if not prediction.timeline:
            rows.append((prediction.video, "no verdict", "", prediction.reason))
            continue
        about = prediction.as_dict()
        peaks = sorted(about["peaks"].items(), key=lambda item: -item[1]["probability"])[:PEAKS_SHOWN]
        shown = "; ".join(f"{label} {p['probability']:.3f} at {clock(p['start'])}" for label, p in peaks)
        if prediction.reason:
            shown += f"; damaged: {prediction.reason}"
        rows.append((prediction.video, about["label"], f"{about['probability']:.3f}", shown))
    print_table(str(run_folder), rows, ("video", "label", "probability", "highest, and when"))
