"""`train report`: what a run did, as a page that a browser plays."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browsing
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, build, write_video

from pipeline.recipe import Recipe
from train.chart import Line, Panel, draw_inside
from train.cli import main
from train.report import calibration, log_panels

HOSTILE = "<img src=x onerror=document.title='pwned'>"
QUICK = ["--model", "early_fusion", "--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "1"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for number in range(16):
        label, split = (HOSTILE, "calm")[number % 2], ("train", "val")[number % 4 > 1]
        write_video(root / "videos" / split / label / f"{number}.mp4", frames=30 + 12 * number, salt=5 * number)
    build(root / "videos", root / "set", recipe=Recipe(width=48, height=48))
    result = train("run", *QUICK, "--shards", root / "set", "--out", root / "run")
    assert result.exit_code == 0, result.output
    return root / "run"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_what_is_as_sure_as_right_is_calibrated() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    points, error = calibration(np.tile([0.8, 0.2], (10, 1)), labels)
    assert points == pytest.approx(np.array([(0.8, 0.8)])) and error == pytest.approx(0)
    assert calibration(np.tile([0.95, 0.05], (10, 1)), labels)[1] == pytest.approx(0.15)


def test_panels_are_drawn_of_what_the_log_has() -> None:
    log = [{"epoch": 1, "loss": 0.7, "data_wait": 0.0}, {"epoch": 2, "loss": 250.0, "data_wait": 0.0}]
    panels = log_panels(log)
    assert [panel.title for panel in panels] == ["Loss", "Waiting for data, % of the time"]
    assert all(draw_inside(panel).count('class="grid"') < 20 for panel in panels)
    assert log_panels([]) == []


def test_names_in_a_chart_are_escaped() -> None:
    assert "<img" not in draw_inside(Panel(HOSTILE, "x", "y", [Line(HOSTILE, [(0, 0), (1, 1)])]))


def test_a_browser_shows_two_runs_and_plays_their_clips(run_folder: Path, tmp_path: Path, browser: Page) -> None:
    page = tmp_path / "report.html"
    result = train("report", run_folder, run_folder, "--out", page, "--json", "--clips", 2, "--allow-leaks")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": str(page), "bytes": page.stat().st_size}
    assert "<img" not in page.read_text()
    browser.open(page, width=390)
    assert browser.run("[...document.querySelectorAll('h2')].map(title => title.textContent)") == [
        "Comparison", "run: early_fusion", "run: early_fusion",
    ]  # fmt: skip
    assert browser.run("document.querySelectorAll('.clip').length") == 16
    assert browser.run("document.querySelectorAll('.moments polyline').length") == 16
    assert HOSTILE in browser.run("document.querySelector('main').textContent")
    clip = "document.querySelector('.clip')"
    browser.run(f"{clip}.click()")
    browser.wait(f"{clip}.dataset.frame !== '0'")
    browser.wait("document.querySelector('.now').getAttribute('x1') !== '0'")
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run("document.title") == "2 runs: report" and browser.errors == []


def test_a_report_keeps_what_stands_and_names_a_wrong_path(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert_one_clear_line(train("report", run_folder, "--out", tmp_path / "report.html"), 2, "--overwrite")
    assert_one_clear_line(train("report", tmp_path / "no-run"), 2, "no run here")
    assert (tmp_path / "report.html").read_text() == "mine"
