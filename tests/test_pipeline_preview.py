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
from far import serving

from pipeline.cli import main
from pipeline.histogram import bars, histogram
from pipeline.page import as_json, make_page
from pipeline.preview import LIMIT, MOST_VIDEOS, PICTURES, make_preview
from pipeline.preview import _budget as budget_beside
from pipeline.preview_broken import MOST, Entry, broken_text
from pipeline.preview_sample import fair_sample
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import Broken
from pipeline.sprites import LADDER, make_sheet, spread

HOSTILE = "<img src=x onerror=document.title='pwned'>"
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
    monkeypatch.setattr("pipeline.preview_clips.make_sheet", lambda frames, budget: replace(
        make_sheet(frames, 1), jpeg=b"\xff" * budget))  # fmt: skip
    page = make_preview(read_set(mixed_set), videos=9)
    clips = data_of(page)["clips"]
    worst = {"video": "\U0001f3a5" * 200, "label": "\U0001f3a5" * 200, "group": "\U0001f3a5" * 200}
    texts = len(as_json([{**clips[0], **worst, "sheet": None}] * MOST_VIDEOS).encode())
    assert PICTURES * 4 / 3 + texts < LIMIT and len(page.encode()) < LIMIT


def test_pictures_are_the_smaller_the_longer_the_texts_are(
    mixed_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preview_clips.make_sheet", lambda frames, budget: replace(
        make_sheet(frames, 1), jpeg=b"\xff" * budget))  # fmt: skip
    monkeypatch.setattr("pipeline.preview.LIMIT", 700_000)
    assert len(make_preview(read_set(mixed_set), videos=9).encode()) < 700_000


def test_the_longest_texts_leave_room_for_pictures() -> None:
    assert budget_beside(200, 0) == PICTURES // 200
    # Signs that take six bytes each: in three names and, of the first, a reason; in the table of broken ones, too.
    worst = 6 * (600 * MOST_VIDEOS + (300 + 900 + 2 * 700) * MOST)
    noise = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3)).astype(np.uint8)
    assert budget_beside(MOST_VIDEOS + 40, worst) > len(make_sheet(list(noise), 1).jpeg)


def test_reasons_are_counted_without_their_numbers_and_no_kind_crowds_out_the_other() -> None:
    rejected = [
        Entry("rejected", "train", Broken(f"{n:04}.mp4", "a", "g", None, f"frame {n} is torn", n))
        for n in range(400)
    ]
    damaged = [Entry("damaged", "val", Broken("0007b.mp4", "a", "g", None, "ends early", 3))]
    text = broken_text(rejected, damaged)
    assert '<td class="number">400</td><td>frame … is torn</td>' in text and "400 rejected, 1 damaged" in text
    assert text.index("0007.mp4") < text.index("0007b.mp4") < text.index("0008.mp4")


def test_a_video_of_the_sets_own_rate_or_more_has_that_rate(mixed_set: Path) -> None:
    assert "all 5 a second" in make_preview(read_set(mixed_set))


def test_a_set_without_any_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "videos" / "a" / "1.mp4").write_bytes(b"no video at all")
    build(tmp_path / "videos", tmp_path / "set")
    assert "No video was kept." in make_preview(read_set(tmp_path / "set", whole=False))


def test_shards_from_elsewhere_are_fetched_once(mixed_set: Path, tmp_path: Path) -> None:
    with serving(mixed_set) as far:
        for name in ("one", "two"):
            page = tmp_path / f"{name}.html"
            found = prep("preview", far.url, "--out", page, "--cache", tmp_path / "cache", "--leaks")
            assert found.exit_code == 0, found.output
        assert far.shards() and set(far.shards().values()) == {1}


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
    # Such a name is taken by no file system with the dot and the end that a page has while it is written.
    assert_one_clear_line(
        prep("preview", mixed_set, "--out", tmp_path / ("x" * 252)), 2, "cannot be written there"
    )
    assert_one_clear_line(prep("preview", "no-set", "--out", out), 2, "no shard set here")
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


def test_a_browser_searches_plays_all_and_shows_more(tmp_path: Path, browser: Page) -> None:
    for split in ("train", "val"):
        write_video(tmp_path / "videos" / split / "calm" / "take_1.mp4", frames=40, salt=len(split))
    for number in range(60):
        (tmp_path / "videos" / "train" / "calm" / f"torn-{number}_2.mp4").write_bytes(b"no video at all")
    build(tmp_path / "videos", tmp_path / "set", group_by=r"([^/]+)_[0-9]+\.mp4$")
    page = tmp_path / "preview.html"
    assert prep("preview", tmp_path / "set", "--out", page).exit_code == 0
    browser.open(page)
    cards = "document.querySelectorAll('#grid > li').length"
    assert browser.run(cards) == 48
    browser.run("document.getElementById('more').click()")
    assert browser.run(cards) == 62 and browser.run("document.getElementById('more').hidden")
    browser.run(f"{CHOOSE}('split', '=val')")
    assert browser.run(cards) == 1
    browser.run(f"{CHOOSE}('split', '')")
    browser.run(f"{CHOOSE}('group', '=take')")
    assert browser.run(cards) == 2
    browser.run(f"{CHOOSE}('group', '')")
    browser.run(f"{CHOOSE}('search', 'TAKE_1')")
    assert browser.run(cards) == 2
    assert browser.run("document.querySelector('#grid .name').textContent") == "calm/take_1.mp4"
    assert browser.run("document.querySelector('#grid .about').title") == "train/calm/take_1.mp4"
    for pressed in ("true", "false"):
        browser.run("document.getElementById('play').click()")
        states = "[...document.querySelectorAll('#grid .clip')].map(clip => clip.getAttribute('aria-pressed'))"
        assert browser.run(states) == [pressed] * 2
    assert browser.errors == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_needs_scrolling_sideways(
    mixed_set: Path, tmp_path: Path, browser: Page, scheme: str, width: int
) -> None:
    page = tmp_path / "preview.html"
    assert prep("preview", mixed_set, "--out", page).exit_code == 0
    browser.open(page, width=width, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert browser.run("document.documentElement.scrollWidth") == width
    light = sum(map(int, re.findall(r"\d+", browser.run("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert (light > 380) == (scheme == "light")
    assert browser.errors == []
