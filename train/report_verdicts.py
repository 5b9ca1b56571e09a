"""What a report says of a run's verdicts: confusion matrix, curves, calibration."""

from typing import Any

import numpy as np

from pipeline.page import html, shown
from train.chart import Line, Panel, draw_inside
from train.curves import MOST, curve_panels, most_frequent
from train.evaluate import Evaluation

BINS = 10
CONFUSION_SHOWN = 30  # labels
NARROW = 6  # labels whose names stand level above the matrix; those of more stand upright


def verdicts(found: Evaluation) -> str:
    """Matrix and charts, as HTML."""
    points, error = calibration(found.predictions.probabilities, found.predictions.labels)
    reliability = [Line("", points, dots=True)]
    calibrated = Panel(f"Calibration, error {error:.3f}", "confidence", "accuracy", reliability, diagonal=True)
    count = len(found.metrics["labels"])
    more = (
        f"<p class=quiet>Curves: of the {MOST} most frequent labels, and the mean of all.</p>"
        if count > MOST
        else ""
    )
    return (
        f'{confusion(found)}<div class="figures three">{figures([*curve_panels(found), calibrated])}</div>{more}'
    )


def figures(panels: list[Panel]) -> str:
    """A chart each."""
    return "".join(f'<figure class="chart">{draw_inside(panel)}</figure>' for panel in panels)


def scroll(name: str) -> str:
    """The start of a box that a wide table scrolls in, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{html(name)}">'


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


def confusion(found: Evaluation) -> str:
    """The matrix of the most frequent labels."""
    names, counts = found.metrics["labels"], found.metrics["confusion"]
    chosen = most_frequent(found.predictions.labels, len(names), CONFUSION_SHOWN)
    head = "".join(f"<th scope=col><span>{html(shown(names[label], 30))}</span></th>" for label in chosen)
    rows = "".join(
        f"<tr><th scope=row>{html(shown(names[row], 30))}</th>{_cells(counts[row], row, chosen)}</tr>"
        for row in chosen
    )
    told = "a row is what it is, a column what it was judged"
    told += f"; the {len(chosen)} most frequent of {len(names)} labels" if len(names) > len(chosen) else ""
    upright = " upright" if len(chosen) > NARROW else ""
    return (
        f'<figure class="matrix{upright}"><figcaption>Confusion <span class=quiet>{told}</span></figcaption>'
        f"{scroll('Confusion matrix')}<table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _cells(counts: list[int], row: int, chosen: list[int]) -> str:
    total = sum(counts) or 1
    return "".join(
        f'<td class="number heat{round(9 * counts[column] / total)}{" own" if row == column else ""}">'
        f"{counts[column]:,}</td>"
        for column in chosen
    )
