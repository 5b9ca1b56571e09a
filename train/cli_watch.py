"""`train watch`: a camera, a stream or a file in real time. Heavy imports stay inside the command."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import FOLDER
from pipeline.console import print_table, warn
from train.cli_options import checkpoint_option, compute_options, every_option, run_argument

if TYPE_CHECKING:
    from pipeline.decode.live import Source

SHARE = click.FloatRange(0, 1)
SECONDS = click.FloatRange(0)


@click.command()
@run_argument
@click.argument("place", metavar="SOURCE", type=click.Path())
@click.option("--label", help="What is watched for: one of the run's labels.")
@every_option("A clip every so often.  [default: at every stored frame]")
@click.option("--on", type=SHARE, default=0.6, help="An event begins at this probability.")
@click.option("--off", type=SHARE, default=0.4, help="An event ends below this probability.")
@click.option("--min-seconds", type=SECONDS, default=1.0, help="Shorter events are not told.")
@click.option("--gap-seconds", type=SECONDS, default=1.0, help="Shorter gaps do not end an event.")
@click.option("--save", type=FOLDER, help="Keep an MP4 of each event: the frames that the model saw.")
@click.option("--before", type=SECONDS, default=3.0, metavar="SECONDS",
              help="With --save: what a clip shows of the time before its event was told.")  # fmt: skip
@click.option("--reconnect", type=SECONDS, metavar="SECONDS",
              help="Give up a stream after so long without a picture; 0: at once.  [default: never]")  # fmt: skip
@click.option("--full-speed", is_flag=True,
              help="A file not in real time but as fast as can be; no frame is dropped.")  # fmt: skip
@checkpoint_option
@compute_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line more at the end, the summary.")
def watch(
    run_folder: Path, place: str, label: str | None, every: float | None, save: Path | None, before: float,
    reconnect: float | None, full_speed: bool, weights: str, device: str, precision: str, as_json: bool,
    **thresholds: float,
) -> None:  # fmt: skip
    """Watch a camera, a stream or a file for events.

    Prints a JSON line where an event starts or ends. SOURCE is a device, a stream's URL or a file; frames are
    chosen as they were for training. Ctrl-C ends the watch with a summary.

    \b
    Examples:
      train watch runs/first rtsp://camera.local/live --label fight --save events
      train watch runs/first /dev/video0 --label fight --every 1 > events.jsonl
      train watch runs/first night.mkv --label fight --full-speed
    """
    from pipeline.errors import UserError, WorkFailed
    from train.checkpoint import read_run
    from train.events import EventDetector, Hysteresis

    try:
        detector = EventDetector(Hysteresis(**thresholds))
    except ValueError as error:
        raise UserError(f"--on, --off: {error}") from error
    number = _label_number(read_run(run_folder)["labels"], label)

    from train.compute import choose_compute
    from train.event_clips import EventClips
    from train.predict import stored_frames
    from train.trained import load_trained
    from train.watch import Watcher, judge_with
    from train.watch import watch as watch_stream
    from train.watch_view import live_view

    compute = choose_compute(device, precision)
    trained = load_trained(run_folder, weights, compute)
    source = _source(place, full_speed)
    if trained.recipe.decoder != "pyav":
        warn(f"the set was made by the decoder {trained.recipe.decoder}; streams are read by pyav")
    name, step = trained.labels[number], 1 if every is None else stored_frames(every, trained.recipe)
    if save:
        save.mkdir(parents=True, exist_ok=True)
    judge = judge_with(trained, compute, number)
    patience = math.inf if reconnect is None else reconnect
    with live_view(name) as view:
        watcher = Watcher(
            judge, trained.sampling, trained.window, step, detector, source.clock,
            lambda line: view.tell({**line, "label": name, "source": source.name}),
            EventClips(save, before, trained.recipe.fps, view.say) if save else None,
        )  # fmt: skip
        found = watch_stream(watcher, trained, source, patience, view.say, view.show)
    reason = found.pop("error", "")
    if found["frames"]:
        of_stream = (found["frames"] + found["frames_dropped"]) / float(trained.recipe.fps)
        _print_summary(source.name, name, found, of_stream, as_json)
    if reason:
        raise (WorkFailed if found["frames"] else UserError)(f"{source.name}: {reason}")


def _source(place: str, full_speed: bool) -> "Source":
    from pipeline.decode.live import Source
    from pipeline.errors import UserError
    from pipeline.places import as_place

    path = str(as_place(place)) if place.lower().startswith("file://") else place
    source = Source(path, in_time=not full_speed)
    if full_speed and not Path(path).is_file():
        raise UserError(f"--full-speed: {source.name} is no file, and comes at its own speed; leave it out")
    return source


def _label_number(labels: list[str], label: str | None) -> int:
    from pipeline.errors import UserError

    if label is None:  # none is obvious: alphabet puts the quiet one last as often as first
        raise UserError(f"--label is missing: what to watch for; the run has {', '.join(labels)}")
    if label not in labels:
        raise UserError(f"--label {label}: the run has no such label; it has {', '.join(labels)}")
    return labels.index(label)


def _print_summary(place: str, label: str, found: dict[str, Any], of_stream: float, as_json: bool) -> None:
    """As a table on stderr, for stdout has the events; or as one more line there. `of_stream`: seconds that went
    by in it, which at full speed are more than those that it took."""
    if as_json:
        click.echo(json.dumps({"kind": "summary", "label": label, "source": place, **found}))
        return

    def spread(name: str, unit: str, digits: int) -> str:
        values = found[name]
        if values is None:
            return "nothing measured"
        return ", ".join(f"{key} {value:.{digits}f} {unit}" for key, value in values.items())

    print_table(
        place,
        [
            ("watched", f"{of_stream:,.1f} s for {label}, in {found['seconds']:,.1f} s"),
            ("events", f"{found['events']:,}"),
            ("frames", f"{found['frames']:,} seen, {found['frames_dropped']:,} dropped"),
            ("clips", f"{found['clips']:,} judged, {found['clips_skipped']:,} skipped"),
            ("frame arrival to decision", spread("latency_ms", "ms", 0)),
            ("of that the model", spread("inference_ms", "ms", 0)),
            ("behind the stream", spread("behind_ms", "ms", 0)),
            ("crossing --on to alarm", spread("time_to_alarm_seconds", "s", 2)),
            ("reconnects", f"{found['reconnects']:,}"),
            ("damaged packets", f"{found['packets_damaged']:,}"),
            ("event clips not written", f"{found['event_clips_failed']:,}"),
        ],
        err=True,
    )
