"""`prep preview`: hostile text stays text, samples are fair, files stay small, and a browser plays it."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Page, browsing
from click.testing import CliRunner, Result
from conftest import SMALL, assert_one_clear_line, build, write_video

from pipeline.cli import main
from pipeline.histogram import bars, histogram
from pipeline.page import as_json, make_page
from pipeline.preview import MOST_VIDEOS, PICTURES, fair_sample, make_preview
from pipeline.shards.index import read_set
from pipeline.sprites import LADDER, make_sheet, spread

HOSTILE = "<img src=x onerror=document.title='pwned'>"
LIMIT = 20_000_000
CHOOSE = """((id, value) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event("input"));
})"""


def prep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def data_of(page: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    values: dict[str, list[dict[str, object]]] = json.loads(found[1])
    return values


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels, one of them hostile; a copy, and a broken video whose name is a tag."""
    root = tmp_path_factory.mktemp("preview")
    videos = root / "videos"
    for number in range(8):
        folder = videos / ("train", "val")[number % 4 == 0] / (HOSTILE, "calm")[number % 2]
        write_video(folder / f"{number}.mp4", frames=30 + 12 * number, salt=5 * number)
    copy = videos / "val" / "calm" / "copy.mp4"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((videos / "train" / "calm" / "1.mp4").read_bytes())
    (videos / "train" / "calm" / f"{HOSTILE}.mp4").write_bytes(b"no video at all")
    build(videos, root / "set", recipe=replace(SMALL, codec="jpeg"))
    return root / "set"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_a_sample_has_its_share_of_every_split_and_label() -> None:
    sizes = {("train", "a"): 70_000, ("train", "b"): 20_000, ("val", "a"): 9_990, ("val", "b"): 10}
    strata = {f"{stratum} {n}": stratum for stratum, count in sizes.items() for n in range(count)}
    drawn = fair_sample(strata, 200, seed=0)
    found = Counter(strata[video] for video in drawn)
    assert len(drawn) == len(set(drawn)) == 200
    assert all(abs(found[stratum] - max(1, count * 200 / 100_000)) <= 2 for stratum, count in sizes.items())
    assert fair_sample(dict(reversed(strata.items())), 200, seed=0) == drawn != fair_sample(strata, 200, seed=1)


def test_fewer_videos_than_strata_are_drawn_all_the_same() -> None:
    strata = {f"v{number}": ("train", f"label {number}") for number in range(10)}
    assert len(fair_sample(strata, 3, seed=0)) == 3
    assert fair_sample(strata, 99, seed=0) == sorted(strata)


def test_text_that_looks_like_tags_stays_text(mixed_set: Path) -> None:
    page = make_preview(read_set(mixed_set))
    assert "<img" not in page and "</script" not in page.partition('id="data">')[2].partition("</script>")[0]
    clips = data_of(page)["clips"]
    assert HOSTILE in {clip["label"] for clip in clips}
    assert any(clip["state"] == "rejected" and HOSTILE in str(clip["video"]) for clip in clips)


def test_json_in_a_page_ends_no_script() -> None:
    hostile = "</script><script>alert(1)</script><!-- \u2028 &"
    text = as_json([hostile])
    assert not set("<>&\u2028") & set(text) and json.loads(text) == [hostile]


def test_a_page_allows_no_script_but_its_own() -> None:
    page = make_page("title", "<p>body</p>", {}, scripts=["1;"])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert policy[1].partition("script-src")[2].count("sha256-") == 2
    assert not re.search(r"https?://", page)


def test_names_that_are_not_utf_8_and_empty_figures_are_drawn() -> None:
    assert "\\udc" in bars("Labels", {"caf\udce9": 1}) and "Nothing" in histogram("Rate", "s", [float("nan")])


def test_the_same_seed_gives_the_same_bytes(mixed_set: Path) -> None:
    shard_set = read_set(mixed_set)
    assert make_preview(shard_set, videos=4, seed=3) == make_preview(shard_set, videos=4, seed=3)
    shown = [clip["video"] for clip in data_of(make_preview(shard_set, videos=4, seed=3))["clips"]]
    other = [clip["video"] for clip in data_of(make_preview(shard_set, videos=4, seed=4))["clips"]]
    assert shown != other


def test_a_sample_says_that_it_is_one(mixed_set: Path) -> None:
    assert "A sample: 4 of 9 videos" in make_preview(read_set(mixed_set), videos=4)
    assert "All 9 videos" in make_preview(read_set(mixed_set))


@pytest.mark.parametrize("videos", [1, 200, MOST_VIDEOS])
def test_a_sheet_of_noise_keeps_to_its_budget(videos: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 112, 112, 3)).astype(np.uint8)
    budget = PICTURES // videos
    sheet = make_sheet(list(noise), budget)
    assert len(sheet.jpeg) <= budget
    picture = cv2.imdecode(np.frombuffer(sheet.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape[:2] == (sheet.frames * sheet.height, sheet.width)
    smaller = make_sheet(list(noise), 1)
    assert smaller.frames == LADDER[-1][0]


def test_the_largest_page_is_under_20_mb(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preview.make_sheet", lambda frames, budget: replace(
        make_sheet(frames, 1), jpeg=b"\xff" * budget))  # fmt: skip
    page = make_preview(read_set(mixed_set), videos=9)
    clips = data_of(page)["clips"]
    worst = {"video": "\U0001f3a5" * 200, "label": "\U0001f3a5" * 200, "group": "\U0001f3a5" * 200}
    texts = len(as_json([{**clips[0], **worst, "sheet": None}] * MOST_VIDEOS).encode())
    assert PICTURES * 4 / 3 + texts < LIMIT and len(page.encode()) < LIMIT


def test_frames_are_spread_from_the_first_to_the_last() -> None:
    assert spread(3, 24) == [0, 1, 2]
    assert spread(100, 4) == [0, 33, 66, 99]
    assert spread(1, 24) == [0]


def test_the_command_writes_a_file_and_keeps_what_stands(mixed_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "preview.html"
    result = prep("preview", mixed_set, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": str(out), "bytes": out.stat().st_size}
    assert_one_clear_line(prep("preview", mixed_set, "--out", out), 2, "--overwrite")
    assert_one_clear_line(prep("preview", mixed_set, "--out", tmp_path / "no" / "x.html"), 2, "no folder")
    assert list(tmp_path.iterdir()) == [out]


def test_copies_stand_side_by_side(mixed_set: Path) -> None:
    for leaks in (False, True):
        pair = data_of(make_preview(read_set(mixed_set), videos=1, leaks=leaks))["pairs"][0]
        assert pair["harms"] and "across splits" in str(pair["text"])
        assert isinstance(pair["a"], dict) and pair["a"]["sheet"] and pair["b"]


def test_zarr_and_parts_of_long_videos_are_shown(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a" / "long.mp4", frames=300)
    build(tmp_path / "videos", tmp_path / "set", recipe=replace(SMALL, format="zarr", codec="zstd", max_frames=7))
    clip = data_of(make_preview(read_set(tmp_path / "set")))["clips"][0]
    assert isinstance(clip["sheet"], dict) and clip["sheet"]["n"] == 24 and clip["seconds"] == 10


def test_a_browser_filters_sorts_and_plays(mixed_set: Path, tmp_path: Path, browser: Page) -> None:
    page = tmp_path / "preview.html"
    assert prep("preview", mixed_set, "--out", page, "--leaks").exit_code == 0
    browser.open(page)
    cards = "document.querySelectorAll('#grid > li').length"
    assert browser.run(cards) == 10
    names = "[...document.querySelectorAll('#grid .chip:first-child')].map(chip => chip.textContent)"
    assert HOSTILE in browser.run(names) and "pwned" not in browser.run("document.title")
    browser.run(f"{CHOOSE}('label', '=calm')")
    assert set(browser.run(names)) == {"calm"} and browser.run(cards) == 6
    browser.run(f"{CHOOSE}('state', '=rejected')")
    assert browser.run(cards) == 1
    browser.run("document.getElementById('reset').click()")
    browser.wait(f"{cards} === 10")
    browser.run(f"{CHOOSE}('shortest', '3.3')")
    assert browser.run(cards) == 2
    browser.run(f"{CHOOSE}('shortest', '')")
    browser.run(f"{CHOOSE}('sort', '-seconds')")
    first = "document.querySelector('#grid .name').textContent"
    assert browser.run(first).endswith("7.mp4")
    clip = "document.querySelector('#grid .clip')"
    assert browser.run(f"{clip}.dataset.frame") == "0"
    browser.run(f"{clip}.click()")
    browser.wait(f"{clip}.dataset.frame !== '0'")
    browser.run(f"{clip}.click()")
    assert browser.run(f"{clip}.getAttribute('aria-pressed')") == "false"
    assert browser.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(mixed_set: Path, tmp_path: Path, browser: Page, scheme: str) -> None:
    page = tmp_path / "preview.html"
    assert prep("preview", mixed_set, "--out", page).exit_code == 0
    browser.open(page, width=390, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert browser.run("document.documentElement.scrollWidth") == 390
    light = sum(map(int, re.findall(r"\d+", browser.run("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert (light > 380) == (scheme == "light")
    assert browser.errors == []
