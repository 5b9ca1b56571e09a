"""`prep` as a user runs it: one clear line for a mistake, the right exit code, JSON where asked."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, write_video

from pipeline.cli import main


def prep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_build_and_inspect_print_one_json_object_each(labelled_videos: Path, tmp_path: Path) -> None:
    built = prep("build-shards", labelled_videos, "--out", tmp_path / "set", "--workers", 0, "--json")
    summary = json.loads(built.stdout)
    assert (summary["videos"], summary["rejected"], summary["decoded"]) == (8, 0, 8)
    inspected = json.loads(prep("inspect", tmp_path / "set", "--json").stdout)
    assert inspected["labels"] == {"cats": 4, "dogs": 4}
    assert inspected["size"] == [112, 112] and inspected["fps"] == 5
    assert sum(inspected["splits"].values()) == 8
    assert {"frames", "bytes", "fingerprint", "shards"} <= inspected.keys()


def test_the_closing_table_names_what_was_rejected_and_why(labelled_videos: Path, tmp_path: Path) -> None:
    (labelled_videos / "cats" / "text.mp4").write_text("not a video")
    result = prep("build-shards", labelled_videos, "--out", tmp_path / "set", "--workers", 0)
    assert result.exit_code == 0
    assert "cats/text.mp4" in result.stdout and "cannot be opened as a video" in result.stdout


def test_wrong_sources_are_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "flat" / "a.mp4")
    for source, message in [
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "empty", "no videos in this folder"),
        (tmp_path / "flat", "a.mp4 stands outside a label folder"),
    ]:
        assert_one_clear_line(prep("build-shards", source, "--out", tmp_path / "set"), 2, message)
    assert not (tmp_path / "set").exists()


def test_nothing_but_bad_videos_is_failed_work(tmp_path: Path) -> None:
    (tmp_path / "videos" / "cats").mkdir(parents=True)
    (tmp_path / "videos" / "cats" / "a.mp4").write_text("not a video")
    result = prep("build-shards", tmp_path / "videos", "--out", tmp_path / "set", "--workers", 0)
    assert_one_clear_line(result, 1, "none of its 1 videos could be decoded")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--fps", "fast", "--fps fast: not a rate"),
        ("--fps", "0", "above 0"),
        ("--size", "big", "--size big: not a size"),
        ("--size", "0", "from 1 to 4096"),
        ("--size", "4096", "at most 170 fit"),
        ("--time-limit", "inf", "0.1<=x<=86400"),
        ("--val", "1.5", "--val 1.5"),
        ("--max-frames", "0", "--max-frames 0: must be 1 or more"),
        ("--decoder", "magic", "no decoder is called 'magic'; there are pyav, opencv"),
    ],
)
def test_wrong_flags_are_named(labelled_videos: Path, tmp_path: Path, flag: str, value: str, message: str) -> None:
    result = prep("build-shards", labelled_videos, "--out", tmp_path / "set", flag, value)
    assert_one_clear_line(result, 2, message)


def test_a_missing_set_says_how_to_make_one(tmp_path: Path) -> None:
    assert_one_clear_line(prep("inspect", tmp_path / "nowhere"), 2, "make a shard set with `prep build-shards")
    assert_one_clear_line(prep("inspect", tmp_path), 2, "no shard set here")


def test_where_a_set_is_missing_the_advice_fits_what_is_there(small_set: Path, tmp_path: Path) -> None:
    videos = small_set.parent / "videos"
    made_of_them = f"make a shard set of them with `prep build-shards {videos} --out data/mine`"
    assert_one_clear_line(prep("inspect", videos), 2, made_of_them)
    shutil.copytree(small_set, tmp_path / "set")
    close = tmp_path / "sets"
    assert_one_clear_line(prep("inspect", close), 2, f"VIDEOS --out {close}`; did you mean {tmp_path}/set?")
    assert_one_clear_line(prep("inspect", tmp_path), 2, f"did you mean {tmp_path}/set?")
    (tmp_path / "set" / "recipe.json").unlink()
    assert_one_clear_line(prep("inspect", tmp_path / "set"), 2, f"`prep verify {tmp_path}/set --repair --source")
    assert_one_clear_line(prep("inspect", "memory://team/x"), 2, "`prep list memory://team/x` says which sets")


def test_another_rate_into_the_same_set_is_refused(small_set: Path) -> None:
    source = small_set.parent / "videos"
    result = prep("build-shards", source, "--out", small_set, "--size", "48", "--fps", "10", "--workers", 0)
    assert_one_clear_line(result, 2, "this run asks for fps=10, not 5")


def test_sample_videos_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert prep("sample-videos", tmp_path / name, "--videos", 6, "--seed", 3).exit_code == 0
    one, two = (sorted((tmp_path / name).rglob("*.mp4")) for name in ("one", "two"))
    assert len(one) == 6
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert {path.relative_to(tmp_path / "one").parts[:2] for path in one} == {
        (split, label) for split in ("train", "val") for label in ("meet", "part")
    }


def test_sample_videos_never_replace_anything_unasked(tmp_path: Path) -> None:
    prep("sample-videos", tmp_path / "v", "--videos", 4)
    assert_one_clear_line(prep("sample-videos", tmp_path / "v", "--videos", 4), 2, "--overwrite")
    assert prep("sample-videos", tmp_path / "v", "--videos", 4, "--overwrite").exit_code == 0
    (tmp_path / "v" / "mine.txt").touch()
    assert_one_clear_line(prep("sample-videos", tmp_path / "v", "--overwrite"), 2, "holds other files (mine.txt)")
    assert_one_clear_line(prep("sample-videos", tmp_path / "w", "--splits", "train,dev"), 2, "--splits train,dev")


def test_strict_fails_when_a_video_was_rejected(labelled_videos: Path, tmp_path: Path) -> None:
    (labelled_videos / "cats" / "text.mp4").write_text("not a video")
    result = prep("build-shards", labelled_videos, "--out", tmp_path / "set", "--workers", 0, "--strict")
    assert_one_clear_line(result, 1, "1 video rejected or damaged (--strict)")
    assert json.loads(prep("inspect", tmp_path / "set", "--json").stdout)["videos"] == 8


# Frames of 32 pixels in one colour become so few bytes that headers and descriptions are most of them.
@pytest.mark.parametrize(
    ("shard_format", "codec", "near"),
    [
        ("webdataset", "raw", 0.1), ("webdataset", "jpeg", 0.1), ("webdataset", "zstd", 0.3), ("zarr", "raw", 0.2),
    ],
)  # fmt: skip
def test_a_dry_run_counts_what_the_build_then_makes_and_writes_nothing(
    labelled_videos: Path, tmp_path: Path, shard_format: str, codec: str, near: float
) -> None:
    (labelled_videos / "cats" / "text.mp4").write_text("not a video")
    out = tmp_path / "set"
    kind = ["--format", shard_format, "--codec", codec, "--videos-per-shard", 2]
    build = ["build-shards", labelled_videos, "--out", out, *kind, "--workers", 0, "--json"]
    foreseen = json.loads(prep(*build, "--dry-run").stdout)
    assert not out.exists()
    made = json.loads(prep(*build).stdout)
    assert (foreseen["frames"], foreseen["shards"]) == (made["frames"], made["shards"])
    assert (foreseen["videos"], foreseen["unreadable"], foreseen["decode"]) == (9, 1, 9)
    assert foreseen["bytes"] == pytest.approx(made["bytes"], rel=near)
    assert foreseen["warnings"] and foreseen["warnings"] == made["warnings"]
    again = json.loads(prep(*build, "--dry-run").stdout)
    assert (again["decode"], again["seconds"]) == (0, 0)
    assert_one_clear_line(prep(*build, "--dry-run", "--fps", 10), 2, "this run asks for fps=10, not 5")
