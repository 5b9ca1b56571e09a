"""A comparison as people read it: rows for the terminal, a Markdown table, a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.chart import Panel, Point, write_svg
from train.checkpoint import write_text

# Not ours: accuracy on the 400 validation clips of RWF-2000, as the course has it, which this project began with.
COURSE_SOURCE = "the course's table: accuracy in per cent on RWF-2000's validation split; its runs, not ours"
COURSE = {
    "single_frame": 72.8,
    "late_fusion": 73.0,
    "early_fusion": 76.3,
    "cnn_lstm": 63.0,
    "cnn_mamba": 83.0,
    "s3d": 78.8,
    "vivit": 84.8,
    "videomae": 91.3,
}
HEADER = (
    "model", "parameters", "GFLOPs", "accuracy (95 %)", "ROC-AUC (95 %)", "s/epoch", "clips/s", "RWF-2000, course",
)  # fmt: skip


def table_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a family, as text, under `HEADER`."""
    return [_row(row) for row in found["rows"]]


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    course = f"{COURSE[row['model']]:.1f} %" if row["model"] in COURSE else ""
    size = (row["model"], f"{row['parameters']:,}", f"{row['gflops']:,.2f}")
    if "failed" in row:
        return (*size, f"failed: {row['failed'][0]}", "", "", "", course)
    accuracy = _with_interval(row["accuracy"], row["accuracy_interval"])
    area = _with_interval(row["roc_auc"], row["roc_auc_interval_by_group"])
    speed = (f"{row['seconds_per_epoch']:.1f}", f"{row['clips_per_second']:,.1f}")
    return (*size, accuracy, area, *speed, course)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")


def notes(found: dict[str, Any]) -> list[str]:
    """What the numbers are of, a sentence a line."""
    folds, seeds, leaks = len(found["folds"]), found["seeds"], found["leaks"]
    judged = f"{folds} folds by group, each held out once" if folds else "the split val"
    outer = found["folds"][0].rpartition(",")[0] if folds else ""
    judged += f", of what fold {outer} trains on: to choose by, no test score" if outer else ""
    known = next((row for row in found["rows"] if "failed" not in row), None)
    videos = f"{known['videos']} videos of {known['groups']} groups; " if known else ""
    lines = [
        f"Set {found['digest']}: {videos}{judged}; mean over seeds {', '.join(map(str, seeds))}; "
        f"{found['clips']} clips a video; weights of the last epoch.",
        "Intervals: Wilson's for accuracy; groups drawn anew 1,000 times for ROC-AUC.",
        f"Last column: {COURSE_SOURCE}.",
    ]
    if count := len(set().union(*found.get("left_out", {}).values())):
        lines.append(f"{count} copies of held-out videos were not trained on where those are judged.")
    if leaks["count"]:
        lines.append(f"Not a test score: {leaks['count']} groups or pairs of copies are on both sides.")
    if leaks.get("weights"):
        runs = len(leaks["weights"])
        lines.append(f"Not a test score: {runs} runs started from weights that have learnt what they hold out.")
    return lines


def write_markdown(file: Path, found: dict[str, Any]) -> None:
    """The table in Markdown, with its notes."""
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *table_rows(found)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    write_text(file, "\n".join([*lines, "", *(f"- {note}" for note in notes(found))]) + "\n")


def write_plot(file: Path, found: dict[str, Any]) -> None:
    """Accuracy over parameters, as SVG."""
    write_svg(file, [accuracy_panel(found, "parameters", "Accuracy and size")])


def accuracy_panel(found: dict[str, Any], name: str, title: str, unit: str = "") -> Panel:
    """Accuracy over what each row has under `name`."""
    rows = [row for row in found["rows"] if "failed" not in row]
    sizes = [max(row[name], 0.01) for row in rows] or [1, 10]  # a tiny model's GFLOPs are rounded to 0
    points = [
        Point(row["model"], size, row["accuracy"], *row["accuracy_interval"])
        for row, size in zip(rows, sizes, strict=False)
    ]
    low = min([0.5, *(point.low for point in points)])
    return Panel(
        title, unit or name, "accuracy, with its 95 % interval", points=points, log_x=True,
        x_range=(min(sizes) / 2, max(sizes) * 2), y_range=(int(low * 10) / 10, 1.0),
    )  # fmt: skip
