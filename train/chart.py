"""Small charts as SVG: text that any browser shows, in light and dark, made without a drawing library."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from train.checkpoint import write_text

SIDE, GAP = 320, 60  # a panel's square, and the room around it, px
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#0a7ea4", "#59636e")
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .mid { text-anchor: middle }
  .end { text-anchor: end } .grid { stroke: #d1d9e0 } .curve { fill: none; stroke-width: 2 }
  .legend { paint-order: stroke; stroke: #ffffff; stroke-width: 4 }
  .mean { stroke: #1f2328; stroke-width: 3 } .bar { stroke-width: 1.5 }
  .dash { stroke: #818b98; stroke-dasharray: 4 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .page { fill: #0d1117 } .grid { stroke: #3d444d }
    .mean { stroke: #f0f6fc } .legend { stroke: #0d1117 }
    .curve, .bar { filter: brightness(1.4) }
  }
"""


@dataclass(frozen=True)
class Line:
    """A curve through points of (x, y), named in the legend (unless ""), in colour number `colour`.

    `dots`: its points are marked, so that one alone is seen, too. `mean`: it is the mean of the others, thick and
    in the colour of text.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dots: bool = False
    mean: bool = False


@dataclass(frozen=True)
class Point:
    """A named dot with an interval from `low` to `high`."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One chart. `x_range` and `y_range` are what its sides show; `log_x`: tens on the horizontal axis;
    `whole_x`: nothing between whole numbers; `legend_above`: the names of its lines stand at the top; `wide`,
    `high`: px; `empty`: what is said where there is nothing to draw."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    points: Sequence[Point] = ()
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    log_x: bool = False
    diagonal: bool = False
    legend_above: bool = False
    whole_x: bool = False
    wide: int = SIDE
    high: int = SIDE
    empty: str = ""


def write_svg(file: Path, panels: Sequence[Panel]) -> None:
    """Draw panels side by side."""
    wide, high = len(panels) * (SIDE + 2 * GAP), SIDE + 2 * GAP
    drawn = "".join(
        f'<g transform="translate({number * (SIDE + 2 * GAP) + GAP} {GAP})">\n{_panel(panel)}</g>\n'
        for number, panel in enumerate(panels)
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">'
    write_text(
        file, f'{head}\n<style>{STYLE}</style>\n<rect class="page" width="100%" height="100%"/>\n{drawn}</svg>\n'
    )


def draw_inside(panel: Panel) -> str:
    """One panel as an `svg` element for a page that has STYLE among its own."""
    wide, high = panel.wide + GAP + 24, panel.high + 2 * GAP - 12
    head = f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="{escape(panel.title)}">'
    return f'{head}<g transform="translate({GAP} {GAP - 16})">{_panel(panel)}</g></svg>'


def _panel(panel: Panel) -> str:
    across = _scale(panel.x_range, log=panel.log_x)
    up = _scale(panel.y_range)

    def at(x: float, y: float) -> str:
        return f"{across(x) * panel.wide:.1f} {(1 - up(y)) * panel.high:.1f}"

    parts = [f'<text class="title" y="-18">{escape(panel.title)}</text>', *_axes(panel, at)]
    if panel.diagonal:
        parts.append(f'<path class="dash" d="M{at(0, 0)}L{at(1, 1)}"/>')
    if panel.empty and not panel.lines and not panel.points:
        parts.append(_text(panel.wide / 2, panel.high / 2, panel.empty, "mid"))
    parts += [*_lines(panel, at), *_points(panel, at)]
    return "\n".join(parts) + "\n"


def _axes(panel: Panel, at: Callable[[float, float], str]) -> list[str]:
    (left, _), (bottom, _), high = panel.x_range, panel.y_range, panel.high
    parts = []
    for value in _ticks(panel.x_range, log=panel.log_x, whole=panel.whole_x):
        x = float(at(value, bottom).split()[0])
        parts.append(f'<path class="grid" d="M{x:.1f} 0V{high}"/>{_text(x, high + 18, _number(value), "mid")}')
    for value in _ticks(panel.y_range):
        y = float(at(left, value).split()[1])
        parts.append(f'<path class="grid" d="M0 {y:.1f}H{panel.wide}"/>{_text(-8, y + 4, _number(value), "end")}')
    parts.append(_text(panel.wide / 2, high + 40, panel.x_label, "mid"))
    parts.append(f'<g transform="translate(-46 {high / 2}) rotate(-90)">{_text(0, 0, panel.y_label, "mid")}</g>')
    return parts


def _lines(panel: Panel, at: Callable[[float, float], str]) -> list[str]:
    """Curves, and their legend in a corner."""
    curves, legend = [], []
    for number, line in enumerate(panel.lines):
        colour = COLOURS[line.colour % len(COLOURS)]
        look = 'class="curve mean"' if line.mean else f'class="curve" stroke="{colour}"'
        curves.append(f'<path {look} d="M{"L".join(at(x, y) for x, y in line.points)}"/>')
        for point in line.points if line.dots else ():
            cx, cy = at(*point).split()
            curves.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>')
        y = 20 + 20 * number if panel.legend_above else panel.high - 12 - 20 * (len(panel.lines) - 1 - number)
        if line.name:
            end = panel.wide - 30
            legend.append(f'<path {look} d="M{end} {y - 4}h20"/>{_text(end - 6, y, line.name, "legend end")}')
    return [*curves, *legend]


def _points(panel: Panel, at: Callable[[float, float], str]) -> list[str]:
    parts: list[str] = []
    below = 0.0
    for number, point in enumerate(sorted(panel.points, key=lambda point: point.y)):
        colour = COLOURS[number % len(COLOURS)]
        x, y = (float(value) for value in at(point.x, point.y).split())
        bar = f"M{at(point.x, point.low)}L{at(point.x, point.high)}"
        parts.append(f'<path class="bar" stroke="{colour}" d="{bar}"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        # A name stands beside its dot, and above the one below it.
        below = min(y + 4, below - 15) if number else y + 4
        left = x > panel.wide * 0.6
        parts.append(_text(x - 9 if left else x + 9, below, point.name, "end" if left else ""))
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _scale(ends: tuple[float, float], *, log: bool = False) -> Callable[[float], float]:
    """From a value to its place between 0 and 1."""
    change: Callable[[float], float] = math.log10 if log else float
    low, high = map(change, ends)
    return lambda value: (change(value) - low) / (high - low)


def _ticks(ends: tuple[float, float], *, log: bool = False, whole: bool = False) -> list[float]:
    low, high = ends
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [step * 10.0**n for n in powers for step in (1, 3) if low <= step * 10.0**n <= high]
    step = 0.1 if high - low < 0.75 else 0.2
    if high - low > 1.5 or high - low < 0.25:  # 1, 2 or 5 of whatever gives a handful
        power = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5)
    if whole:
        step = math.ceil(step)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:.3g}"
