"""Distributions as small SVG pictures that stand in a page and take its colours."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.page import html, shown

WIDE, HIGH, LEFT = 320, 130, 8
BINS = 20
ROW = 24  # px of one bar that lies


def histogram(title: str, unit: str, values: Sequence[float]) -> str:
    """How often which value comes, as a figure; `unit` is that of the values."""
    finite = np.asarray([value for value in values if np.isfinite(value)], float)
    if not len(finite):
        return f"<figure><figcaption>{html(title)}</figcaption><p class=quiet>Nothing to count.</p></figure>"
    low, high = float(finite.min()), float(finite.max())
    counts, edges = np.histogram(finite, bins=BINS)  # of one value a bar in the middle
    tallest = counts.max()
    step = (WIDE - 2 * LEFT) / len(counts)
    bars = "".join(
        f'<rect class="fill" x="{LEFT + step * number:.1f}" y="{HIGH - HIGH * count / tallest:.1f}" '
        f'width="{max(1, step - 2):.1f}" height="{HIGH * count / tallest:.1f}" rx="1.5">'
        f"<title>{edges[number] if high > low else low:.4g} to {edges[number + 1] if high > low else high:.4g} "
        f"{html(unit)}: {count:,}</title></rect>"
        for number, count in enumerate(counts)
        if count
    )
    ends = f'<text class="mid" x="{WIDE / 2 + step / 2:g}" y="{HIGH + 18}">{low:.3g} {html(unit)}</text>'
    median = f"all {low:.3g} {unit}"
    if high > low:
        ends = f'<text x="{LEFT}" y="{HIGH + 18}">{low:.3g}</text>'
        ends += f'<text class="end" x="{WIDE - LEFT}" y="{HIGH + 18}">{high:.3g} {html(unit)}</text>'
        median = f"median {np.median(finite):.3g} {unit}, {low:.3g} to {high:.3g}"
    return (
        f'<figure><figcaption>{html(title)} <span class="quiet">{html(median)}</span></figcaption>'
        f'<svg class="histogram" viewBox="0 0 {WIDE} {HIGH + 24}" role="img" '
        f'aria-label="{html(title)}: {html(median)}">'
        f'<path class="axis" d="M{LEFT} {HIGH + 0.5}H{WIDE - LEFT}"/>{bars}{ends}</svg></figure>'
    )


def bars(title: str, counts: Mapping[str, int], most: int = 12) -> str:
    """A bar a name, the most frequent first, and one for all the others."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = sum(count for _, count in ordered[most:])
    rows = [*ordered[:most], *([(f"{len(ordered) - most} others", rest)] if rest else [])]
    tallest = max((count for _, count in rows), default=1)
    wide = WIDE - 176  # beside the names, and before the numbers
    drawn = "".join(
        f'<g transform="translate(0 {ROW * number})">'
        f'<text class="end" x="118" y="16">{html(shown(name, 16))}</text>'
        f'<rect class="fill" x="126" y="4" width="{max(1, wide * count / tallest):.1f}" height="16" rx="1.5"/>'
        f'<text x="{132 + wide * count / tallest:.1f}" y="16">{count:,}</text>'
        f"<title>{html(name)}: {count:,}</title></g>"
        for number, (name, count) in enumerate(rows)
    )
    return (
        f'<figure><figcaption>{html(title)}</figcaption><svg class="histogram" role="img" '
        f'viewBox="0 0 {WIDE} {max(1, len(rows)) * ROW}" aria-label="{html(title)}, {len(ordered)} of them">'
        f"{drawn}</svg></figure>"
    )
