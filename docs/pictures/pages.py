"""Pictures of the HTML pages: `python docs/pictures/pages.py` after `make demo` writes preview.webp and
report.webp beside this file. With `--looks FOLDER` it writes both pages there instead, and the whole of each as
a desktop and a phone show it, light and dark: to be looked at after a change. Needs Chromium.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2

from pipeline.preview import make_preview
from pipeline.shards.index import read_set
from train.compute import choose_compute
from train.report import make_report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from browser import Page, browsing  # noqa: E402

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PICTURE = 1000, 1080  # px of the pictures in the docs
QUALITY = 70  # of WebP


def write_pages(folder: Path, shards: Path, runs: list[Path]) -> list[Path]:
    """Both pages, of runs on this set. Made-up videos look alike, so leaks are allowed."""
    texts = {
        "preview": make_preview(read_set(shards)),
        "report": make_report(runs, choose_compute("auto", "auto"), shards=shards, allow_leaks=True),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return [folder / f"{name}.html" for name in texts]


def take_looks(browser: Page, page: Path) -> None:
    """The whole page in each width and scheme, beside it."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.open(page, width=width, prefers_color_scheme=scheme)
            browser.picture(page.with_name(f"{page.stem}-{width}-{scheme}.png"), whole=True)


def take_picture(browser: Page, page: Path, folder: Path) -> None:
    """Its beginning, as WebP for the docs."""
    width, height = PICTURE
    browser.open(page, width=width, height=height, prefers_color_scheme="light")
    made = page.with_suffix(".png")
    browser.picture(made)
    cv2.imwrite(str(folder / f"{page.stem}.webp"), cv2.imread(str(made)), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])


def main() -> None:
    """Make the pages and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/demo")])
    parser.add_argument("--looks", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, browsing(Path(scratch, "profile")) as browser:
        folder = asked.looks or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for page in write_pages(folder, asked.shards, asked.runs):
            take_looks(browser, page) if asked.looks else take_picture(browser, page, HERE)
        assert not browser.errors, browser.errors


if __name__ == "__main__":
    main()
