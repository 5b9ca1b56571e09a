"""Draws the diagrams of docs/models.md: `python docs/models/draw.py` writes <family>.svg beside this file."""

from pathlib import Path
from typing import NamedTuple

WIDTH, MARGIN = 720, 20
STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .name { font-size: 17px; font-weight: 600 } .quiet { fill: #59636e }
  .mid { text-anchor: middle } .end { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 } .line { fill: none; stroke: #59636e; stroke-width: 1.6 }
  .tip { fill: #59636e } .dash { stroke-dasharray: 5 4 } .box { stroke-width: 1.4 }
  .frame { fill: #eaeef2; stroke: #818b98 } .backbone { fill: #ddf4ff; stroke: #0969da }
  .fusion { fill: #fff1d6; stroke: #bf8700 } .head { fill: #dafbe1; stroke: #1a7f37 }
  .query { fill: #1f2328; stroke: #1f2328 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .quiet { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
    .line { stroke: #9198a1 } .tip { fill: #9198a1 } .frame { fill: #212830; stroke: #656c76 }
    .backbone { fill: #10284a; stroke: #4493f8 } .fusion { fill: #3a2a08; stroke: #d29922 }
    .head { fill: #0f3019; stroke: #3fb950 } .query { fill: #f0f6fc; stroke: #f0f6fc }
  }
"""


class Box(NamedTuple):
    """A step: `kind` is its colour, `shape` what leaves it, `copies` > 1 that each frame takes it by itself."""

    kind: str
    name: str
    notes: tuple[str, ...]
    shape: str
    width: int
    copies: int = 1


CLIP = Box("frame", "clip", (), "16×3×112×112", 112, 5)
PER_FRAME = Box("backbone", "ResNet-18", ("each frame alone,", "same weights"), "16×512", 150, 3)
MLP = Box("head", "MLP", ("512-512-128-K",), "K logits", 126)
LINEAR = Box("head", "Linear", ("768-K",), "K logits", 96)
ROWS = {  # the clip stands before each
    "single_frame": (
        PER_FRAME,
        MLP._replace(shape="16×K", width=136, copies=3),
        Box("fusion", "mean", ("logits; when judging,", "probabilities"), "K logits", 170),
    ),
    "late_fusion": (PER_FRAME, Box("fusion", "fuse", ("mean over time,", "or concat"), "512", 132), MLP),
    "early_fusion": (
        Box("fusion", "stack", ("all frames as", "channels"), "48×112×112", 122),
        Box("backbone", "ResNet-18", ("first convolution", "sees all frames"), "512", 146),
        MLP,
    ),
    "cnn_lstm": (
        PER_FRAME,
        Box("fusion", "Linear", ("512-256",), "16×256", 80),
        Box("fusion", "2 × LSTM", ("frames in order,", "last state"), "512", 128),
        MLP,
    ),
    "cnn_mamba": (
        PER_FRAME,
        Box("fusion", "3 × Mamba", ("in order, state", "by content"), "16×512", 118),
        Box("fusion", "mean", ("over time",), "512", 84),
        MLP._replace(notes=("512-256-K",), width=96),
    ),
    "s3d": (
        Box("backbone", "stem", ("1×7×7, 7×1×1,", "1×3×3, 3×1×1"), "192×8×14×14", 130),
        Box("backbone", "9 × Inception", ("1×3×3, 3×1×1", "and 1×1, pooled"), "1024×2×3×3", 146),
        Box("fusion", "mean", ("over T, H, W",), "1024", 108),
        MLP._replace(notes=("1024-1024", "-128-K"), width=90),
    ),
    "vivit": (
        Box("fusion", "tubelets", ("2×16×16 pixels,", "a token each"), "8·7·7 = 392×768", 126),
        Box("fusion", "+ [class]", ("and learned", "positions"), "393×768", 96),
        Box("backbone", "12 × block", ("attention,", "MLP"), "393×768", 116),
        LINEAR._replace(notes=("on [class]",)),
    ),
    "videomae": (
        Box("fusion", "tube mask", ("hides 9 of 10 patches,", "the same at all times"), "40 of 392 tokens", 174),
        Box("backbone", "encoder", ("12 blocks, 768",), "40×768", 120),
        Box("backbone", "decoder", ("+ mask tokens,", "4 blocks, 384"), "352×1536", 124),
        Box("head", "error", ("of hidden", "pixels"), "a scalar", 84),
    ),
    "videomae, classifier": (
        Box("fusion", "tubelets", ("2×16×16 pixels, a", "token each; sines"), "392×768", 174),
        Box("backbone", "encoder", ("all tokens",), "392×768", 120),
        Box("fusion", "mean", ("over tokens,", "LayerNorm"), "768", 124),
        LINEAR._replace(width=84),
    ),
}
READINGS = {
    "single_frame": "every frame votes, nobody compares",
    "late_fusion": "features of frames are joined, then judged once",
    "early_fusion": "the first convolution sees all frames at once",
    "cnn_lstm": "a recurrent network reads the frames in order",
    "cnn_mamba": "a selective state space reads the frames in order",
    "s3d": "convolutions over picture and time, one after the other",
    "vivit": "a transformer over pieces of space and time",
    "videomae": "pre-training: paint what was hidden, without labels",
}
# A kind of attention -> what it says, and in the tokens' drawing: the colour of the own frame, of the own place
# at other times, and of the others
ATTENTIONS = {
    "joint": ("all tokens", "head", "head", "head"),
    "factorised_encoder": ("space, then time", "backbone", "frame", "frame"),
    "factorised_self_attention": ("both in every block", "backbone", "fusion", "frame"),
    "factorised_dot_product": ("half the heads each", "backbone", "fusion", "frame"),
}


def text(x: float, y: float, content: str, style: str = "") -> str:
    """A line of text; `style` names classes of STYLE."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{content}</text>'


def rect(x: float, y: float, width: float, height: float, style: str, radius: float = 7) -> str:
    """A rectangle with round corners, from its upper left one."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{style}"/>'


def arrow(x: float, y: float, to: float) -> str:
    """An arrow to the right."""
    tip = f'<path d="M{to:g} {y:g}l-8 -4.5v9z" class="tip"/>'
    return f'<path d="M{x:g} {y:g}H{to - 6:g}" class="line"/>{tip}'


def draw_step(box: Box, x: float, top: float) -> list[str]:
    """A box of 84 pixels' height, those behind it first, what leaves it below."""
    shift, middle = (7 if box is CLIP else 5), x + box.width / 2
    back = shift * (box.copies - 1)
    front, high = box.width - back, 84 - back
    drawn = [
        rect(x + shift * i, top + back - shift * i, front, high, f"{box.kind} box")
        for i in reversed(range(box.copies))
    ]
    inside, lines = x + front / 2, len(box.notes)
    y = top + back + high / 2 + 6 - 9 * lines
    drawn.append(text(inside, y, box.name, "name mid"))
    drawn += [text(inside, y + 19 + 17 * i, note, "mid") for i, note in enumerate(box.notes)]
    return [*drawn, text(middle, top + 106, box.shape, "mid quiet")]


def draw_row(boxes: tuple[Box, ...], top: float) -> list[str]:
    """The clip and the steps from left to right over the whole width, arrows between them."""
    boxes = (CLIP, *boxes)
    gap = (WIDTH - 2 * MARGIN - sum(box.width for box in boxes)) / (len(boxes) - 1)
    drawn: list[str] = []
    x = float(MARGIN)
    for box in boxes:
        if drawn:
            drawn.append(arrow(x - gap + 3, top + 42, x - 3))
        drawn += draw_step(box, x, top)
        x += box.width + gap
    return drawn


def draw_attention(kind: str, x: float, top: float) -> list[str]:
    """Three time steps of 3×3 tokens: the asking one, and those that it attends to."""
    says, frame, place, others = ATTENTIONS[kind]
    first, _, rest = kind.partition("_")
    drawn = [
        text(x, top, first if rest else "not factorised", "quiet"),
        text(x, top + 20, (rest or first).replace("_", " "), "name"),
        text(x, top + 40, says),
    ]
    for cell in range(27):
        step, row, column = cell // 9, cell // 3 % 3, cell % 3
        centre = row == column == 1
        style = "query" if cell == 13 else frame if step == 1 else place if centre else others
        drawn.append(rect(x + 50 * step + 14 * column, top + 54 + 14 * row, 12, 12, style, 2))
    if kind == "factorised_encoder":  # the second transformer's tokens
        drawn += [rect(x + 14 + 50 * step, top + 108, 12, 12, "fusion", 2) for step in range(3)]
        drawn += [f'<path d="M{x + 20 + 50 * step:g} {top + 98:g}v9" class="line"/>' for step in range(3)]
    return drawn


def diagram(family: str) -> str:
    """The family's SVG."""
    drawn = [text(MARGIN, 32, family, "name"), text(WIDTH - MARGIN, 32, READINGS[family], "end quiet")]
    drawn += draw_row(ROWS[family], 52)
    height = 178
    if family == "vivit":
        height = 330
        for number, kind in enumerate(ATTENTIONS):
            drawn += draw_attention(kind, MARGIN + 180 * number, 198)
    if family == "videomae":
        height = 336
        drawn += [text(MARGIN, 192, "then the classifier", "quiet"), *draw_row(ROWS["videomae, classifier"], 210)]
        drawn.append('<path d="M385 163v39" class="line dash"/><path d="M385 207l-4.5 -8h9z" class="tip"/>')
        drawn.append(text(395, 188, "its weights", "quiet"))
    body = "\n".join([rect(0.5, 0.5, WIDTH - 1, height - 1, "card", 10), *drawn])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img">\n<title>{family}: {READINGS[family]}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    for name in READINGS:
        (Path(__file__).parent / f"{name}.svg").write_text(diagram(name), encoding="utf-8")
