"""`train predict` and `train export`: what a trained run is for. Heavy imports stay inside the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console import json_option, print_json, print_table, progress

if TYPE_CHECKING:
    from train.predict import Prediction

PEAKS_SHOWN = 3  # labels in the table of `train predict`


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option("--clips", type=click.IntRange(1), help="Clips a video, averaged, as `train eval`.  [default: 5]")
@click.option("--stride", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="Slide over the whole video instead: a clip every so often.")  # fmt: skip
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--csv", "table", type=click.Path(path_type=Path), metavar="FILE", help="Write a row a clip.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the timelines.")
@click.option("--overwrite", is_flag=True, help="Replace the files of --csv and --plot.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Clips a step.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@json_option
def predict(
    run_folder: Path, videos: tuple[str, ...], clips: int | None, stride: float | None, weights: str,
    table: Path | None, plot: Path | None, overwrite: bool, batch_size: int, device: str, precision: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what each VIDEO (a file or a URL) shows, and when. Frames are chosen as they were for training.

    \b
    Example:  train predict runs/first street.mp4 https://example.org/yard.mp4
              train predict runs/first night.mkv --stride 1 --csv night.csv --plot night.svg
    """
    from pipeline.errors import UserError, WorkFailed
    from train.checkpoint import read_run, write_text

    if clips and stride:
        raise UserError("--clips spreads clips over a video, --stride slides over it: give one of them")
    if plot and plot.suffix != ".svg":
        raise UserError(f"--plot {plot}: is drawn as SVG; call it {plot.with_suffix('.svg')}")
    for path in filter(None, (table, plot)):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists; give another name, or --overwrite")
    read_run(run_folder)

    from train.compute import choose_compute
    from train.predict import cut_by, predict_videos, timeline_csv
    from train.timeline import draw_timelines
    from train.trained import load_trained

    compute = choose_compute(device, precision)
    trained = load_trained(run_folder, weights, compute)
    places = [video.removeprefix("file://") for video in videos]
    with progress("") as stage:
        found = predict_videos(trained, compute, places, cut_by(trained, clips or 5, stride), batch_size, stage)
    if table:
        write_text(table, timeline_csv(found))
    if plot:
        write_text(plot, draw_timelines(found))
    if as_json:
        how = {"stride": stride} if stride else {"clips": clips or 5}
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
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["torch", "onnx"]), help="A torch.export program, or ONNX.")
@click.option("--out", type=click.Path(path_type=Path), help="The file.  [default: RUN/model.pt2 or .onnx]")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--clips", type=click.IntRange(1), default=20, show_default=True, help="Clips to check parity on.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@json_option
def export(run_folder: Path, to: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Write a run's model for use elsewhere, with labels and preprocessing inside, and check that it agrees.

    \b
    Example:  train export runs/first --to onnx
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
