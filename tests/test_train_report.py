"""`train report`: what a run did, as a page that a browser plays."""

import json
from collections.abc import Iterator
from pathlib import Path

import conftest
import numpy as np
import pytest
from browser import Page, browsing
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, build, write_video

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from train.chart import Line, Panel, draw_inside
from train.cli import main
from train.curves import curve_panels
from train.evaluate import Evaluation, Predictions
from train.metrics import score
from train.report_comparison import short_names, warning
from train.report_log import log_panels, median, read_log
from train.report_verdicts import calibration, verdicts

HOSTILE = "<img src=x onerror=document.title='pwned'>"
QUICK = [*conftest.QUICK, "--epochs", "1"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def judged(labels: list[int], classes: int) -> Evaluation:
    """Random verdicts of videos with these labels."""
    chances = np.random.default_rng(0).dirichlet(np.ones(classes), len(labels))
    names, true = [f"label {number}" for number in range(classes)], np.array(labels)
    videos = [f"{number}.mp4" for number in range(len(labels))]
    metrics = score(chances, true, names, groups=videos)
    return Evaluation(metrics, None, Predictions(videos, chances, true), lambda _: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for number in range(16):
        label, split = (HOSTILE, "calm")[number % 2], ("train", "val")[number % 4 > 1]
        write_video(root / "videos" / split / label / f"{number}.mp4", frames=30 + 12 * number, salt=5 * number)
    build(root / "videos", root / "set", recipe=Recipe(width=48, height=48))
    result = train("run", *QUICK, "--shards", root / "set", "--out", root / "run")
    assert result.exit_code == 0, result.output
    assert f"next: train eval {root / 'run'} or train report {root / 'run'}" in result.output
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


def test_of_many_labels_the_most_frequent_are_drawn_and_the_mean_of_all() -> None:
    found = judged([number for number in range(40) for _ in range(2 if number in range(20, 28) else 1)], 40)
    roc, precision = curve_panels(found)
    assert [line.name for line in roc.lines] == [*(f"label {n}" for n in range(20, 28)), "mean of 40"]
    assert len(precision.lines) == 9 and "8 of 40 labels" in roc.title
    x, y = np.array(roc.lines[-1].points).T
    assert np.trapezoid(y, x) == pytest.approx(found.metrics["roc_auc"])
    x, y = np.array(precision.lines[-1].points).T
    assert np.diff(x) @ y[1:] == pytest.approx(found.metrics["pr_auc"])
    page = verdicts(found)
    assert page.index("30 most frequent of 40") < page.index('class="figures') < page.index("8 most frequent")


def test_one_class_alone_has_no_curves_and_that_is_said() -> None:
    for panel in curve_panels(judged([0, 0, 0], 2)):
        assert not panel.lines and "not defined: one class only" in draw_inside(panel)
    assert all(
        len(panel.lines) == lines for panel, lines in zip(curve_panels(judged([0, 1], 2)), (1, 2), strict=True)
    )


def test_epochs_are_whole() -> None:
    panel = log_panels([{"epoch": 1.0, "loss": 1.0}, {"epoch": 2.0, "loss": 1.0}])[0]
    assert "1.5" not in draw_inside(panel)


def test_a_log_of_a_killed_run_is_read_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"epoch": 1, "loss": NaN, "seconds": 2}\n{"epoch": 2, "loss": 0.5, "val_roc_auc": null}\n{"epo'
    )
    assert read_log(log) == [{"epoch": 1, "seconds": 2}, {"epoch": 2, "loss": 0.5}]
    assert median(read_log(log), "seconds") == 2 and "nan" not in draw_inside(log_panels(read_log(log))[0])
    assert read_log(tmp_path / "none") == []


@pytest.mark.parametrize(
    "line", ["[]", "{}", "no JSON", '{"epoch": "1"}', '{"epoch": 2, "loss": "low"}', "[" * 9999]
)
def test_a_foreign_line_of_a_log_is_named(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"epoch": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: [^\n]*$"):
        read_log(log)


def test_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes() -> None:
    assert short_names([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert short_names([Path("runs/one"), Path("runs/two")]) == ["one", "two"]
    assert short_names([Path("runs/one"), Path("runs/one")]) == ["one", "one"]


def test_runs_that_were_judged_on_different_sets_or_videos_are_said_to_be() -> None:
    one, more, other = judged([0, 1], 2), judged([0, 1, 1], 2), judged([0, 1], 2)
    for found, digest in ((one, "aa"), (more, "aa"), (other, "bb")):
        found.metrics["shards_digest"] = digest
    assert warning(["x", "y"], [one, one]) == ""
    assert "different videos" in warning(["x", "y"], [one, more])
    assert "x: aa; y: bb" in warning(["x", "y"], [one, other])


def test_panels_are_drawn_of_what_the_log_has() -> None:
    log = [{"epoch": 1.0, "loss": 0.7, "data_wait": 0.0}, {"epoch": 2.0, "loss": 250.0, "data_wait": 0.0}]
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
    text = page.read_text()
    assert "<img" not in text and "RWF-2000" not in text
    digest = json.loads((run_folder / "run.json").read_text())["shards_digest"]
    assert f"Judged on val of {run_folder.parent / 'set'}, digest {digest}" in text
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
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            browser.open(page, width=width, prefers_color_scheme=scheme)
            assert browser.run("document.documentElement.scrollWidth") == width
    chart = "document.querySelector('figure.chart').getBoundingClientRect().width"
    assert browser.run(chart) >= 380  # px, or its text is too small to read
    card, drawing = (
        browser.run(f"document.querySelector('.wide {part}').clientWidth") for part in ("figure", "svg")
    )
    assert drawing > 0.9 * card
    assert browser.run("document.title") == "2 runs: report" and browser.errors == []


def test_a_report_keeps_what_stands_and_names_a_wrong_path(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    assert_one_clear_line(train("report", run_folder, "--out", tmp_path / "report.html"), 2, "--overwrite")
    assert_one_clear_line(train("report", tmp_path / "no-run"), 2, "no run here")
    assert_one_clear_line(train("report", run_folder, "--out", tmp_path / "no" / "x"), 2, "no folder")
    assert (tmp_path / "report.html").read_text() == "mine"
