"""`train report`: runs as one HTML file to look at, made from the evaluation that `train eval` prints."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.page import html, make_page, shown, web_file
from pipeline.report import Stage, no_stage
from train.catalog import describe_model
from train.chart import STYLE, Line, Panel, draw_inside
from train.checkpoint import LOG, read_run
from train.comparison_table import HEADER, accuracy_panel, table_rows
from train.compute import Compute
from train.evaluate import Evaluation, evaluate_run
from train.report_clips import clip_data, extremes
from train.trained import load_trained
from train.verdicts import curve_panels

SHOWN = 6  # worst clips, and best
PICTURES = 9_500_000  # bytes of JPEG in the file; as base64 a third more
BINS = 10
DOTS = 30  # epochs that are marked each
CONFUSION_SHOWN = 30  # labels


@dataclass(frozen=True)
class Judged:
    """A run, and what was found of it: `log` is its lines of log.jsonl, `clips` the worst and the best."""

    run: Path
    about: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    found: Evaluation
    clips: Mapping[str, list[dict[str, Any]]]


def make_report(runs: Sequence[Path], compute: Compute, *, stage: Stage = no_stage, **options: Any) -> str:
    """The page. `options` are those of `evaluate_run`. Raises `UserError`."""
    budget = PICTURES // (2 * SHOWN * len(runs))
    judged = [_judge(run, compute, budget, stage, options) for run in runs]
    body = "".join(_section(number, one) for number, one in enumerate(judged))
    title = shown(runs[0].name, 60) if len(runs) == 1 else f"{len(runs)} runs"
    if len(runs) > 1:
        body = _comparison(judged) + body
    what = judged[0].found.metrics
    head = (
        f'<header><h1>{html(title)}</h1><p class="quiet">Judged on {html(what["split"])} of '
        f"{html(what['shards'])}, {what['clips']} clips a video, weights {what['weights']}.</p></header><main>"
    )
    data = {"clips": {f"{kind}{n}": clips for n, one in enumerate(judged) for kind, clips in one.clips.items()}}
    return make_page(
        f"{title}: report", f"{head}{body}</main>", data,
        scripts=[web_file("report.js", "train")], styles=[STYLE, web_file("report.css", "train")],
    )  # fmt: skip


def _judge(run: Path, compute: Compute, budget: int, stage: Stage, options: Mapping[str, Any]) -> Judged:
    about = read_run(run)
    found = evaluate_run(run, compute=compute, stage=stage, **options)
    trained = load_trained(run, found.metrics["weights"], compute)
    worst, best = extremes(found, SHOWN)
    step = stage(f"clips of {run.name}", len(worst) + len(best))
    clips: dict[str, list[dict[str, Any]]] = {"worst": [], "best": []}
    for kind, places in (("worst", worst), ("best", best)):
        for place in places:
            clips[kind].append(clip_data(found, trained, compute, place, budget))
            step(1)
    lines = (run / LOG).read_text("utf-8").splitlines() if (run / LOG).exists() else []
    return Judged(run, about, [json.loads(line) for line in lines], found, clips)


def calibration(
    probabilities: np.ndarray[Any, np.dtype[np.float64]], labels: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[list[tuple[float, float]], float]:
    """Mean confidence and accuracy of each of ten bins of confidence, and the expected calibration error: C. Guo
    et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    inside = [bins == number for number in range(BINS) if (bins == number).any()]
    points = [(float(sure[chosen].mean()), float(right[chosen].mean())) for chosen in inside]
    gaps = [chosen.mean() * abs(x - y) for chosen, (x, y) in zip(inside, points, strict=True)]
    return points, float(sum(gaps))


def log_panels(log: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Loss, accuracy, throughput and data wait over the epochs: a panel for each that the log has."""
    wanted = (
        ("Loss", ("loss", "val_loss"), 1.0),
        ("Accuracy", ("train_accuracy", "val_accuracy", "val_roc_auc"), 1.0),
        ("Throughput, clips a second", ("clips_per_second",), 1.0),
        ("Waiting for data, % of the time", ("data_wait",), 100.0),
    )
    panels = []
    last = max((line["epoch"] for line in log), default=1)
    for title, names, unit in wanted:
        lines = []
        for number, name in enumerate(names):
            points = [(line["epoch"], unit * line[name]) for line in log if line.get(name) is not None]
            if points:
                legend = name.replace("_", " ") if len(names) > 1 else ""
                lines.append(Line(legend, points, number, dots=len(points) <= DOTS))
        if lines:
            high = 1.0 if title == "Accuracy" else max(y for line in lines for _, y in line.points) * 1.25
            across, up = (float(min(1, last - 1)), float(last)), (0.0, float(high or 1))
            panels.append(Panel(title, "epoch", "", lines, (), across, up, legend_above=title == "Loss"))
    return panels


def _section(number: int, one: Judged) -> str:
    metrics = one.found.metrics
    points, error = calibration(one.found.predictions.probabilities, one.found.predictions.labels)
    panels = [
        *curve_panels(one.found),
        Panel(
            f"Calibration, error {error:.3f}",
            "confidence",
            "accuracy",
            [Line("", points, dots=True)],
            diagonal=True,
        ),
    ]
    parts = [
        f"<h2>{html(one.run.name)}: {html(one.about['model'])}</h2>", _facts(metrics), _leaks(metrics["leaks"]),
        "<h3>Training</h3>", _figures(log_panels(one.log)) or "<p>No epoch has ended yet.</p>",
        "<h3>Verdicts</h3>", f'<div class="figures">{_confusion(metrics)}{"".join(map(_figure, panels))}</div>',
    ]  # fmt: skip
    for kind, text in (("worst", "Worst"), ("best", "Best")):
        parts.append(
            f"<h3>{text} clips</h3>"
            '<p class="quiet">The curve is the probability of the true label over time. Point '
            f'at a clip, or press it, and it plays.</p><ul class="grid" data-clips="{kind}{number}"></ul>'
        )
    parts += ["<h3>Settings</h3>", _settings(one.about)]
    return f"<section>{''.join(parts)}</section>"


def _facts(metrics: Mapping[str, Any]) -> str:
    low, high = metrics["accuracy_interval"]
    facts = {
        "accuracy": f"{metrics['accuracy']:.3f}",
        "95 % interval": f"{low:.2f}–{high:.2f}",
        "ROC-AUC": _number(metrics["roc_auc"]),
        "PR-AUC": _number(metrics["pr_auc"]),
        "F1": _number(metrics["f1"]),
        "balanced accuracy": _number(metrics["balanced_accuracy"]),
        "videos": f"{metrics['videos']:,}",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def _leaks(leaks: Mapping[str, Any]) -> str:
    if not leaks["checked"]:
        return f'<p class="bad">Leaks were not looked for: {html(leaks["reason"])}.</p>'
    if leaks["count"]:
        return (
            f'<p class="bad">No test score: {leaks["count"]} groups or pairs of copies of these were learnt.</p>'
        )
    return '<p class="quiet">No group, and no copy of a judged video, was learnt.</p>'


def _confusion(metrics: Mapping[str, Any]) -> str:
    names, counts = metrics["labels"][:CONFUSION_SHOWN], metrics["confusion"]
    head = "".join(f"<th scope=col>{html(shown(name, 30))}</th>" for name in names)
    rows = ""
    for row, name in enumerate(names):
        total = sum(counts[row]) or 1
        cells = "".join(
            f'<td class="number heat{round(9 * counts[row][column] / total)}{" own" if row == column else ""}">'
            f"{counts[row][column]:,}</td>"
            for column in range(len(names))
        )
        rows += f"<tr><th scope=row>{html(shown(name, 30))}</th>{cells}</tr>"
    more = f"<p class=quiet>The first {len(names)} labels.</p>" if len(metrics["labels"]) > len(names) else ""
    return (
        "<figure><figcaption>Confusion <span class=quiet>a row is what it is, a column what it was judged</span>"
        f"</figcaption>{_scroll('Confusion matrix')}<table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}</figure>"
    )


def _figures(panels: Sequence[Panel]) -> str:
    return f'<div class="figures">{"".join(map(_figure, panels))}</div>' if panels else ""


def _figure(panel: Panel) -> str:
    return f'<figure class="chart">{draw_inside(panel)}</figure>'


def _settings(about: Mapping[str, Any]) -> str:
    flat = {**about["settings"], **{name: about[name] for name in ("fingerprint", "shards_digest")}}
    for name, value in (about.get("versions") or {}).items():
        flat[f"version of {name}"] = value
    texts = {name: json.dumps(v) if v is None or isinstance(v, dict) else str(v) for name, v in flat.items()}
    rows = "".join(
        f"<tr><th scope=row>{html(name)}</th><td>{html(text)}</td></tr>" for name, text in texts.items()
    )
    return (
        '<details><summary>All that the run was asked for</summary><div class="scroll"><table><tbody>'
        f"{rows}</tbody></table></div></details>"
    )


def _comparison(judged: Sequence[Judged]) -> str:
    found = {"rows": [_row(one, judged) for one in judged]}
    head = "".join(f"<th scope=col>{html(name)}</th>" for name in HEADER)
    rows = "".join(f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row)}</tr>" for row in table_rows(found))
    panels = [
        accuracy_panel(found, "parameters", "Accuracy and size"),
        accuracy_panel(found, "gflops", "Accuracy and cost", "GFLOPs a clip"),
    ]
    text = (
        "Intervals: Wilson's for accuracy; groups drawn anew for ROC-AUC. Each run is judged on its own split and "
        "by its own weights."
    )
    return (
        f"<section><h2>Comparison</h2>{_scroll('Comparison')}<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p class=quiet>{html(text)}</p>{_figures(panels)}</section>"
    )


def _scroll(name: str) -> str:
    """The start of a box that a wide table scrolls in, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{html(name)}">'


def _row(one: Judged, judged: Sequence[Judged]) -> dict[str, Any]:
    settings, metrics, recipe = one.about["settings"], one.found.metrics, one.found.index.recipe
    name = one.about["model"]
    size = describe_model(
        name,
        settings["frames"],
        (recipe.width, recipe.height),
        len(metrics["labels"]),
        **settings.get("options", {}),
    )
    alone = sum(other.about["model"] == name for other in judged) == 1
    return {
        **size,
        "model": name if alone else f"{name}, {one.run.name}",
        "accuracy": metrics["accuracy"],
        "accuracy_interval": metrics["accuracy_interval"],
        "roc_auc": metrics["roc_auc"],
        "roc_auc_interval_by_group": (metrics.get("interval_by_group") or {}).get("roc_auc"),
        "seconds_per_epoch": _median(one.log, "seconds"),
        "clips_per_second": _median(one.log, "clips_per_second"),
    }


def _median(log: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.median(line[name] for line in log) if log else float("nan")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
