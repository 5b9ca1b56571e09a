"""`train report`: runs as one HTML file to look at, made from the evaluation that `train eval` prints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.page import html, make_page, shown, web_file
from pipeline.report import Stage, no_stage
from train.chart import STYLE
from train.checkpoint import LOG, read_run
from train.compute import Compute
from train.evaluate import Evaluation, evaluate_run
from train.lessons import cautions
from train.report_clips import clip_data, extremes
from train.report_comparison import comparison, short_names
from train.report_log import Log, log_panels, read_log
from train.report_verdicts import figures, verdicts
from train.trained import load_trained

SHOWN = 6  # worst clips, and best
PICTURES = 9_500_000  # bytes of JPEG in the file; as base64 a third more


@dataclass(frozen=True)
class Judged:
    """A run, and what was found of it: `about` is its run.json, `clips` are the worst and the best."""

    about: Mapping[str, Any]
    log: Log
    found: Evaluation
    clips: Mapping[str, list[dict[str, Any]]]


def make_report(runs: Sequence[Path], compute: Compute, *, stage: Stage = no_stage, **options: Any) -> str:
    """The page. `options` are those of `evaluate_run`. Raises `UserError`."""
    budget = PICTURES // (2 * SHOWN * len(runs))
    logs = [read_log(run / LOG) for run in runs]  # before the work: one of them may be none
    judged = [_judge(run, log, compute, budget, stage, options) for run, log in zip(runs, logs, strict=True)]
    names = short_names(runs)
    sections = [_section(number, *entry) for number, entry in enumerate(zip(names, judged, strict=True))]
    title = shown(names[0], 60) if len(runs) == 1 else f"{len(runs)} runs"
    if len(runs) > 1:
        sections.insert(0, comparison(names, [one.about for one in judged], logs, [one.found for one in judged]))
    what = judged[0].found.metrics
    head = (
        f'<header><h1>{html(title)}</h1><p class="quiet">Judged on {html(what["split"])}, {what["clips"]} clips a '
        f"video, weights {what['weights']}.</p></header><main>"
    )
    data = {"clips": {f"{kind}{n}": clips for n, one in enumerate(judged) for kind, clips in one.clips.items()}}
    return make_page(
        f"{title}: report", f"{head}{''.join(sections)}</main>", data,
        scripts=[web_file("report.js", "train")], styles=[STYLE, web_file("report.css", "train")],
    )  # fmt: skip


def _judge(run: Path, log: Log, compute: Compute, budget: int, stage: Stage, options: Mapping[str, Any]) -> Judged:
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
    return Judged(about, log, found, clips)


def _section(number: int, name: str, one: Judged) -> str:
    metrics = one.found.metrics
    parts = [
        f"<h2>{html(name)}: {html(one.about['model'])}</h2>",
        _judged_on(metrics), _facts(metrics), _cautions(metrics),
        "<h3>Training</h3>", _training(one.log), "<h3>Verdicts</h3>", verdicts(one.found),
    ]  # fmt: skip
    for kind, text in (("worst", "Worst"), ("best", "Best")):
        if one.clips[kind]:
            parts.append(
                f"<h3>{text} clips</h3>"
                '<p class="quiet">The curve is the probability of the true label over time. Point '
                f'at a clip, or press it, and it plays.</p><ul class="grid" data-clips="{kind}{number}"></ul>'
            )
    parts += ["<h3>Settings</h3>", _settings(one.about)]
    return f"<section>{''.join(parts)}</section>"


def _judged_on(metrics: Mapping[str, Any]) -> str:
    fold = (
        f", fold {metrics['fold']}" if metrics["fold"] is not None and metrics["split"] in ("train", "val") else ""
    )
    text = f"Judged on {metrics['split']}{fold} of {metrics['shards']}, digest {metrics['shards_digest']}"
    return f'<p class="quiet">{html(text)}.</p>'


def _training(log: Log) -> str:
    panels = log_panels(log)
    return f'<div class="figures wide">{figures(panels)}</div>' if panels else "<p>No epoch has ended yet.</p>"


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


def _cautions(metrics: Mapping[str, Any]) -> str:
    told = [f'<p class="bad">{html(metrics["split"])}: {html(caution)}.</p>' for caution in cautions(metrics)]
    leaks = metrics["leaks"]
    if leaks["checked"] and not (leaks["count"] or leaks["unknown"] or leaks["namesakes"]):
        told.append('<p class="quiet">No group, and no copy of a judged video, was learnt.</p>')
    return "".join(told)


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


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
