"""The log of a run as a report shows it: its lines, checked, and their charts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.foreign import parse_json, read_text
from train.chart import Line, Panel

DOTS = 30  # epochs that are marked each
WIDE, HIGH = 470, 200  # px of a chart over epochs
CHARTS = (  # title, names in the log, and how many of the chart's unit one of the log's is
    ("Loss", ("loss", "val_loss"), 1.0),
    ("Accuracy", ("train_accuracy", "val_accuracy", "val_roc_auc"), 1.0),
    ("Throughput, clips a second", ("clips_per_second",), 1.0),
    ("Waiting for data, % of the time", ("data_wait",), 100.0),
)

Log = Sequence[Mapping[str, float]]


def read_log(file: Path) -> list[dict[str, float]]:
    """What each epoch wrote, as far as it is finite. No file, no epochs; a last line cut short is what a killed
    run leaves. Raises `UserError`."""
    try:
        text = read_text(file)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    *lines, half = text.split("\n")
    found = [_numbers(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    try:
        return [*found, _numbers(str(file), half)]
    except UserError:
        return found


def _numbers(where: str, line: str) -> dict[str, float]:
    """The finite numbers of a line. Raises `UserError` for one that no run writes."""
    try:
        values: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: no line of a run's log: {error}; mend or remove it") from error
    epoch = values.get("epoch") if isinstance(values, dict) else None
    if type(epoch) is not int or epoch < 1:
        raise UserError(f"{where}: no line of a run's log: it names no epoch; mend or remove it")
    shown = {name for _, names, _ in CHARTS for name in names} | {"epoch", "seconds"}
    for name in sorted(shown & set(values)):
        if not isinstance(values[name], int | float | None) or isinstance(values[name], bool):
            raise UserError(f"{where}: {name} is {str(values[name])[:80]!r}, no number; mend or remove the line")
    return {name: float(values[name]) for name in shown & set(values) if _is_finite(values[name])}


def _is_finite(value: float | None) -> bool:
    try:
        return value is not None and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def log_panels(log: Log) -> list[Panel]:
    """Loss, accuracy, throughput and data wait over the epochs: a panel for each that the log has."""
    last = max((line["epoch"] for line in log), default=1.0)
    panels = []
    for title, names, unit in CHARTS:
        lines = [
            Line(name.replace("_", " ") if len(names) > 1 else "", points, number, dots=len(points) <= DOTS)
            for number, name in enumerate(names)
            if (points := [(line["epoch"], unit * line[name]) for line in log if name in line])
        ]
        if lines:
            high = 1.0 if title == "Accuracy" else max(y for line in lines for _, y in line.points) * 1.25
            across, up = (min(1.0, last - 1), last), (0.0, high or 1.0)
            named = f"{title} and ROC-AUC" if any(line.name == "val roc auc" for line in lines) else title
            panels.append(
                Panel(
                    named, "epoch", "", lines, (), across, up, legend_above=title == "Loss", whole_x=True,
                    wide=WIDE, high=HIGH,
                )
            )  # fmt: skip
    return panels


def median(log: Log, name: str) -> float:
    """Of what the epochs say of `name`; NaN where none does."""
    values = [line[name] for line in log if name in line]
    return statistics.median(values) if values else math.nan
