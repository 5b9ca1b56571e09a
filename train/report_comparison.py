"""Several runs of a report beside each other: their names, a table, and whether they can be compared at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.page import html
from train.catalog import describe_model
from train.comparison_table import HEADER, accuracy_panel, table_rows
from train.evaluate import Evaluation
from train.inputs import INPUTS
from train.report_log import Log, median
from train.report_verdicts import figures, scroll

COLUMNS = len(HEADER) - 1  # the last one is of other people's runs, on another set


def short_names(runs: Sequence[Path]) -> list[str]:
    """The end of each run's path, as long as it takes to tell all of them apart."""
    paths = [run.absolute() for run in runs]
    longest = max(len(path.parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]).replace("//", "/") for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def comparison(
    names: Sequence[str], about: Sequence[Mapping[str, Any]], logs: Sequence[Log], found: Sequence[Evaluation]
) -> str:
    """The table and its charts, as HTML; four lists with an entry a run."""
    models = [one["model"] for one in about]
    told = [
        model if models.count(model) == 1 else f"{model}, {name}"
        for model, name in zip(models, names, strict=True)
    ]
    table = {"rows": [_row(*entry) for entry in zip(told, about, logs, found, strict=True)]}
    head = "".join(f"<th scope=col>{html(name)}</th>" for name in HEADER[:COLUMNS])
    rows = "".join(
        f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row[:COLUMNS])}</tr>" for row in table_rows(table)
    )
    panels = [
        accuracy_panel(table, "parameters", "Accuracy and size"),
        accuracy_panel(table, "gflops", "Accuracy and cost", "GFLOPs a clip"),
    ]
    text = (
        "Intervals: Wilson's for accuracy; groups drawn anew for ROC-AUC. Each run is judged by its own weights."
    )
    return (
        f"<section><h2>Comparison</h2>{warning(names, found)}{scroll('Comparison')}<table><thead><tr>{head}</tr>"
        f"</thead><tbody>{rows}</tbody></table></div><p class=quiet>{html(text)}</p>"
        f'<div class="figures">{figures(panels)}</div></section>'
    )


def warning(names: Sequence[str], found: Sequence[Evaluation]) -> str:
    """Says so, as HTML, where the runs were not judged on the same frames."""
    digests = [one.metrics["shards_digest"] for one in found]
    if len(set(digests)) > 1:
        sets = "; ".join(f"{name}: {digest}" for name, digest in zip(names, digests, strict=True))
        return f'<p class="bad">Judged on different sets, so their numbers cannot be compared: {html(sets)}.</p>'
    if len({tuple(one.predictions.videos) for one in found}) > 1:
        return '<p class="bad">Judged on different videos of one set, as the folds of the runs differ.</p>'
    return ""


def _row(name: str, about: Mapping[str, Any], log: Log, found: Evaluation) -> dict[str, Any]:
    settings, metrics, recipe = about["settings"], found.metrics, found.index.recipe
    size = describe_model(
        about["model"],
        settings["frames"],
        (recipe.width, recipe.height),
        len(metrics["labels"]),
        in_channels=INPUTS[settings.get("input", "rgb")],
        **settings.get("options", {}),
    )
    return {
        **size,
        "model": name,
        "accuracy": metrics["accuracy"],
        "accuracy_interval": metrics["accuracy_interval"],
        "roc_auc": metrics["roc_auc"],
        "roc_auc_interval_by_group": (metrics.get("interval_by_group") or {}).get("roc_auc"),
        "seconds_per_epoch": median(log, "seconds"),
        "clips_per_second": median(log, "clips_per_second"),
    }
