"""Copies are found whatever was done to them, look-alikes are not, and groups keep copies together."""

import csv
import json
import shlex
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import SMALL, assert_one_clear_line, build
from numpy.typing import NDArray

from pipeline import video_hash
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.leaks import Leaks, Pair, find_leaks, in_order, joined_groups, write_groups
from pipeline.sample_videos import write_video
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import Sample
from pipeline.sources import list_videos

Picture = NDArray[np.uint8]
RATE = 15


def scene(walkers: int, seconds: float = 3.0) -> list[Picture]:
    """One fixed camera, always the same room; `walkers` is the seed of who walks through it, and how."""
    room = cv2.resize(np.random.default_rng(0).integers(0, 160, (4, 6, 3)).astype(np.uint8), (96, 64))
    draw = np.random.default_rng(walkers)
    count = int(seconds * RATE)
    paths = [draw.normal(0, 2.5, (count, 2)).cumsum(0) + draw.uniform(10, 54, 2) for _ in range(3)]
    pictures = [room.copy() for _ in range(count)]
    for at, picture in enumerate(pictures):
        for path in paths:
            x, y = np.mod(path[at], (96, 64)).astype(int).tolist()
            cv2.rectangle(picture, (x, y), (x + 9, y + 14), (230, 230, 200), -1)
    return [np.asarray(picture, np.uint8) for picture in pictures]


def worse(pictures: list[Picture]) -> list[Picture]:
    smaller = [cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA) for picture in pictures]
    return [np.clip(picture.astype(np.int16) // 8 * 8 + 25, 0, 255).astype(np.uint8) for picture in smaller]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `videos` that hold copies, and the `set` that was built from them."""
    root = tmp_path_factory.mktemp("leaks")
    long = scene(4, seconds=8)
    videos = {
        "train/fight/one": scene(1), "val/fight/worse": worse(scene(1)),
        "train/fight/two": scene(2), "val/fight/trimmed": scene(2)[6:],
        "train/calm/three": scene(3), "val/calm/off": worse(scene(3))[8:],
        "train/calm/long": long, "val/calm/part": long[40:75],
        "train/fight/black": [np.zeros_like(long[0])] * 30, "val/fight/black": [np.zeros_like(long[0])] * 45,
        "train/calm/still": [long[0]] * 30, "val/calm/still": [long[0]] * 45,
        "train/fight/frame": scene(1)[:1],
        **{f"{('train', 'val')[n % 2]}/calm/{n}": scene(n) for n in range(10, 22)},
    }  # fmt: skip
    for name, pictures in videos.items():
        (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / "videos" / f"{name}.mp4", pictures, RATE)
    shutil.copy(root / "videos/train/fight/two.mp4", root / "videos/train/calm/bytes.mp4")
    build(root / "videos", root / "set")
    return root


@pytest.fixture(scope="module")
def found(copies: Path) -> Leaks:
    return find_leaks(read_set(copies / "set"))


def names(pairs: tuple[Pair, ...]) -> set[tuple[str, str]]:
    return {(pair.a.removesuffix(".mp4"), pair.b.removesuffix(".mp4")) for pair in pairs}


EXPECTED = {
    ("train/fight/one", "val/fight/worse"): "near",
    ("train/fight/two", "val/fight/trimmed"): "near",
    ("train/calm/bytes", "val/fight/trimmed"): "near",
    ("train/calm/bytes", "train/fight/two"): "exact",
    ("train/calm/three", "val/calm/off"): "near",
    ("train/calm/long", "val/calm/part"): "near",
}


def prep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_copies_are_found_and_other_clips_of_the_same_camera_are_not(found: Leaks) -> None:
    kinds = {(pair.a.removesuffix(".mp4"), pair.b.removesuffix(".mp4")): pair.kind for pair in found.pairs}
    assert kinds == EXPECTED
    assert all(pair.harms for pair in found.pairs)
    assert [pair.distance for pair in found.pairs] == sorted(pair.distance for pair in found.pairs)


def test_videos_without_motion_are_named_and_not_paired(found: Leaks) -> None:
    assert found.flat == ("train/fight/black.mp4", "val/fight/black.mp4")
    assert found.still == ("train/calm/still.mp4", "val/calm/still.mp4")
    assert found.short == ("train/fight/frame.mp4",)


def test_json_is_one_object_and_strict_fails(copies: Path) -> None:
    result = prep("leaks", copies / "set", "--json", "--strict")
    printed = json.loads(result.stdout)
    assert result.exit_code == 1 and "6 pairs of copies found (--strict)" in result.stderr
    assert printed["videos"] == 26 and len(printed["pairs"]) == 6
    exact = next(pair for pair in printed["pairs"] if pair["kind"] == "exact")
    assert exact["splits"] == ["train", "train"] and exact["labels"] == ["calm", "fight"]
    assert exact["distance"] == 0


def test_a_set_built_from_the_groups_has_no_copies_across_splits(copies: Path, tmp_path: Path) -> None:
    file = tmp_path / "grouped" / "groups.csv"
    file.parent.mkdir()
    command = ["leaks", copies / "set", "--group", file, "--source", copies / "videos"]
    assert prep(*command).exit_code == 0
    groups = {row["key"]: row["group"] for row in csv.DictReader(file.read_text().splitlines())}
    assert (
        len({groups[f"{name}.mp4"] for name in ("train/fight/two", "train/calm/bytes", "val/fight/trimmed")}) == 1
    )
    build(file, tmp_path / "again")
    again = find_leaks(read_set(tmp_path / "again"))
    assert names(again.pairs) == EXPECTED.keys()
    assert {pair.splits for pair in again.pairs} <= {("train", "train"), ("val", "val")}
    assert_one_clear_line(prep(*command), 2, "groups.csv: exists")
    assert prep(*command, "--overwrite").exit_code == 0


def test_the_command_that_leaks_names_next_builds_the_same_set_anew(copies: Path, tmp_path: Path) -> None:
    shutil.copytree(copies / "set", tmp_path / "my set")
    group = ["--group", tmp_path / "g.csv", "--source", copies / "videos"]
    told = prep("leaks", tmp_path / "my set", *group).stdout
    program, *words = shlex.split(told.splitlines()[-1].partition("next: ")[2])
    assert program == "prep"
    built = prep(*words, "--workers", 0, "--json")
    assert built.exit_code == 0 and json.loads(built.stdout)["decoded"] == 0, built.output
    assert {pair.splits for pair in find_leaks(read_set(tmp_path / "my set")).pairs} <= {
        ("train",) * 2,
        ("val",) * 2,
    }


def test_the_default_hides_pairs_that_harm_nobody(copies: Path, tmp_path: Path) -> None:
    shutil.copytree(copies / "videos" / "train" / "fight", tmp_path / "videos" / "fight")
    shutil.copy(tmp_path / "videos/fight/one.mp4", tmp_path / "videos/fight/again.mp4")
    build(tmp_path / "videos", tmp_path / "set", val=0.0)
    for flags, count in ([], 0), (["--all"], 1):
        result = prep("leaks", tmp_path / "set", "--json", *flags)
        assert len(json.loads(result.stdout)["pairs"]) == count and result.exit_code == 0
    assert "1 pair of copies, 0 of them across splits or labels" in prep("leaks", tmp_path / "set").stdout


def test_a_source_that_is_not_the_sets_is_refused(copies: Path, tmp_path: Path) -> None:
    other = copies / "videos" / "train"
    result = prep("leaks", copies / "set", "--group", tmp_path / "g.csv", "--source", other)
    assert_one_clear_line(result, 2, "--source: 26 videos of the set are not in it")
    assert not (tmp_path / "g.csv").exists()


def test_whatever_a_file_may_be_called_comes_back_from_the_groups(tmp_path: Path) -> None:
    folder = tmp_path / "real" / "set"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    stems = ["line\r\nend", "not\udcff8", " blanks ", 'quo"te,', "long/" * 45 + "name"]
    for number, stem in enumerate(stems):
        (tmp_path / "videos" / "a" / stem).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "one.mp4", scene(number, 1), RATE)
        (tmp_path / "one.mp4").rename(tmp_path / "videos" / "a" / f"{stem}.mp4")
    build(tmp_path / "videos", tmp_path / "set", val=0.0)
    group = ["--group", tmp_path / "link" / "g.csv", "--source", tmp_path / "videos"]
    assert prep("leaks", tmp_path / "set", *group).exit_code == 0
    listed = list_videos(tmp_path / "link" / "g.csv")
    assert {video.id for video in listed} == {f"a/{stem}.mp4" for stem in stems} == {v.group for v in listed}
    assert all(Path(video.path).is_file() for video in listed)
    assert build(tmp_path / "link" / "g.csv", tmp_path / "set").decoded == 0
    assert [path.name for path in folder.iterdir()] == ["g.csv"]


def test_a_label_that_a_csv_would_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "videos" / " a").mkdir(parents=True)
    write_video(tmp_path / "videos" / " a" / "one.mp4", scene(1, 1), RATE)
    build(tmp_path / "videos", tmp_path / "set", val=0.0)
    result = prep("leaks", tmp_path / "set", "--group", tmp_path / "g.csv", "--source", tmp_path / "videos")
    assert_one_clear_line(result, 2, "--source: a CSV cannot hold the label ' a'")
    assert not (tmp_path / "g.csv").exists()


def test_urls_stand_in_the_groups_as_they_are(copies: Path, tmp_path: Path) -> None:
    video = list_videos(copies / "videos")[0]
    far = [replace(video, id="far", path="s3://team/a b.mp4"), video]
    shard_set = read_set(copies / "set")
    missing = [replace(video, id=sample.video) for car in shard_set.sidecars for sample in car.samples]
    write_groups(tmp_path / "g.csv", shard_set, far + missing, [])
    rows = list(csv.DictReader((tmp_path / "g.csv").read_text().splitlines()))
    assert rows[0]["path"] == "s3://team/a b.mp4" and (tmp_path / rows[1]["path"]).is_file()


def test_sets_of_one_video_and_of_none_say_so(tmp_path: Path) -> None:
    for name in ("one", "none"):
        (tmp_path / name / "a").mkdir(parents=True)
    write_video(tmp_path / "one" / "a" / "v.mp4", scene(1), RATE)
    (tmp_path / "none" / "a" / "v.mp4").write_text("not a video")
    for name in ("one", "none"):
        build(tmp_path / name, tmp_path / f"{name}-set", val=0.0)
    one = prep("leaks", tmp_path / "one-set")
    assert one.exit_code == 0 and "no copies were found" in one.stdout
    assert_one_clear_line(prep("leaks", tmp_path / "none-set"), 2, "for all its 1 videos were rejected")
    with pytest.raises(UserError, match="no split 'train' with videos; there are none"):
        read_set(tmp_path / "none-set", whole=False).split("train")


def test_groups_join_through_every_chain_of_pairs() -> None:
    def pair(a: str, b: str) -> Pair:
        return Pair(a, b, ("train", "val"), ("x", "x"), 0.0, "near")

    groups = {"a": "g1", "b": "g2", "c": "g2", "d": "g3", "e": "g4"}
    joined = joined_groups(groups, [pair("c", "d"), pair("a", "b")])
    assert joined == {"a": "g1", "b": "g1", "c": "g1", "d": "g1", "e": "g4"}


@pytest.mark.parametrize(("fps", "step", "length"), [("1", 1, 4), ("5", 1, 6), ("12.5", 2, 8), ("30", 6, 6)])
def test_windows_last_about_as_long_at_every_rate(fps: str, step: int, length: int) -> None:
    assert video_hash.frame_step(Fraction(fps)) == step
    assert video_hash.window_frames(Fraction(fps)) == length


def test_the_same_frames_in_other_bytes_and_in_many_samples_are_exact(tmp_path: Path) -> None:
    walk = scene(1)
    for name, tag in ("a/one", "isom"), ("b/two", "mp42"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        write_video(tmp_path / "videos" / f"{name}.mp4", walk, RATE)
        with (tmp_path / "videos" / f"{name}.mp4").open("ab") as file:
            file.write(b"\0\0\0\x0cfree" + tag.encode())
    build(tmp_path / "videos", tmp_path / "set", recipe=replace(SMALL, max_frames=4), val=0.0)
    (pair,) = find_leaks(read_set(tmp_path / "set")).pairs
    assert (pair.kind, pair.distance, pair.labels) == ("exact", 0.0, ("a", "b"))


def test_chunks_of_pairs_hold_each_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_hash, "CHUNK", 3)
    keys = np.array([7, 1, 7, 7, 2, 1, 7])
    parts = list(video_hash._same_key(keys))
    pairs = [
        tuple(sorted(pair))
        for first, second in parts
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(parts) > 1
    assert sorted(pairs) == [(0, 2), (0, 3), (0, 6), (1, 5), (2, 3), (2, 6), (3, 6)]


def test_videos_without_a_single_window_have_no_candidates() -> None:
    for videos in ([], [np.zeros((1, 63), np.float32)], [np.zeros((20, 63), np.float32)] * 3):
        windows = video_hash.hash_windows(videos, 6)
        assert len(windows) == 0 and list(video_hash.candidates(windows)) == []


def test_a_last_part_too_short_for_a_compared_frame_is_read(tmp_path: Path) -> None:
    (tmp_path / "videos" / "a").mkdir(parents=True)
    write_video(tmp_path / "videos" / "a" / "one.mp4", scene(1)[:9], RATE)
    build(tmp_path / "videos", tmp_path / "set", recipe=replace(SMALL, fps=Fraction(RATE), max_frames=8), val=0.0)
    found = find_leaks(read_set(tmp_path / "set"))
    assert (found.videos, found.short) == (1, ("a/one.mp4",))


def test_parts_of_one_video_stay_in_order_beyond_ten_thousand() -> None:
    parts = [Sample(f"key#{index:04d}", "v", "l", "v", "s", 1, index) for index in (10000, 2, 9999, 0, 1000)]
    assert [part.offset for part in in_order(parts)] == [0, 2, 1000, 9999, 10000]
