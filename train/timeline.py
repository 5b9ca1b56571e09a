"""Predictions drawn as SVG by hand: sharp at any size, opens in every browser, needs no plotting library."""

from collections.abc import Sequence
from html import escape

from train.predict import Prediction

WIDTH, LEFT, RIGHT = 960, 44, 16
TOP, HEIGHT, BELOW = 34, 120, 34  # of a panel: its title, its curves, its time axis
MOST_CURVES, MOST_DOTS, TICKS = 6, 80, 8
COLOURS = ("#cf222e", "#0969da", "#1a7f37", "#bf8700", "#8250df", "#59636e")  # read on white and on black
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .name { font-weight: 600 } .quiet { fill: #59636e; font-size: 11px } .mid { text-anchor: middle }
  .end { text-anchor: end } .paper { fill: #ffffff } .grid { stroke: #d1d9e0 }
  .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .quiet { fill: #9198a1 } .paper { fill: #0d1117 } .grid { stroke: #3d444d }
  }
"""
SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # steps of a time axis


def draw_timelines(found: Sequence[Prediction]) -> str:
    """A panel a video: probability over time, a curve a label (the likeliest, where there are many)."""
    panel = TOP + HEIGHT + BELOW
    height = panel * len(found) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
    ]
    for place, prediction in enumerate(found):
        inside = _panel(prediction) if prediction.timeline else _broken(prediction)
        parts += [f'<g transform="translate(0 {place * panel})">', *inside, "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def clock(seconds: float) -> str:
    """`0:07.2`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:02.0f}" if rest == int(rest) else f"{rest:04.1f}"
    return f"{hours}:{minutes:02}:{tail}" if hours else f"{minutes}:{tail}"


def _panel(prediction: Prediction) -> list[str]:
    mean, labels = prediction.probabilities, prediction.labels
    # Where there are many labels: those that a clip shows most. In the order of labels, so colours stay.
    highest = [float(moment.probabilities[k]) for k, moment in enumerate(prediction.peaks())]
    shown = sorted(sorted(range(len(labels)), key=lambda k: -highest[k])[:MOST_CURVES])
    end = max(moment.end for moment in prediction.timeline)
    best = int(mean.argmax())
    parts = [_title(prediction.video, f"{labels[best]} {mean[best]:.3f}"), *_axes(end)]
    for number, k in enumerate(shown):
        colour = COLOURS[number]
        points = [((m.start + m.end) / 2, float(m.probabilities[k])) for m in prediction.timeline]
        if len(points) == 1:  # one clip holds from its first frame to its last
            moment = prediction.timeline[0]
            points = [(moment.start, points[0][1]), (moment.end, points[0][1])]
        placed = [(_x(seconds, end), _y(value)) for seconds, value in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{line}"/>')
        if len(placed) <= MOST_DOTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{LEFT + 150 * number}" y="{TOP + HEIGHT + BELOW - 4}" style="fill: {colour}">'
            f"{_text(labels[k], 20)}</text>"
        )
    return parts


def _broken(prediction: Prediction) -> list[str]:
    y = TOP + HEIGHT // 2
    return [
        _title(prediction.video, "no verdict"),
        f'<text class="quiet" x="{LEFT}" y="{y}">{_text(prediction.reason, 140)}</text>',
    ]


def _title(video: str, verdict: str) -> str:
    return (
        f'<text class="name" x="{LEFT}" y="22">{_text(video, 90)}</text>'
        f'<text class="end" x="{WIDTH - RIGHT}" y="22">{_text(verdict, 40)}</text>'
    )


def _axes(end: float) -> list[str]:
    parts = []
    for value in (0, 0.5, 1):
        y = _y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="quiet end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    step = next((step for step in SECONDS if end / step <= TICKS), SECONDS[-1])
    parts += [
        f'<text class="quiet mid" x="{_x(seconds, end):.1f}" y="{TOP + HEIGHT + 14}">{clock(seconds)}</text>'
        for seconds in range(0, int(end) + 1, step)
    ]
    return parts


def _x(seconds: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end


def _y(probability: float) -> float:
    return TOP + HEIGHT * (1 - probability)


def _text(text: str, longest: int) -> str:
    """Text as XML takes it, its start cut off where it is long: the end of a path tells more."""
    text = text.encode("utf-8", "backslashreplace").decode()
    shown = text if len(text) <= longest else "…" + text[1 - longest :]
    return escape("".join(c if c.isprintable() else "�" for c in shown))
