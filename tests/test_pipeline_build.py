"""Building sets: what is decoded, what is copied, and that nothing is lost."""

import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import SMALL, build, edit_sidecar, frames_by_video, set_bytes, write_video

from pipeline.decode import get_decoder
from pipeline.errors import UserError
from pipeline.shards import get_format
from pipeline.shards.directory import STALE, begin, end, scan, snapshot
from pipeline.shards.folder import LocalFolder
from pipeline.shards.index import read_set
from pipeline.summary import summarize


def test_the_set_holds_the_decoders_frames_and_their_times(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    shard_set = read_set(tmp_path / "set")
    assert summarize(shard_set)["labels"] == {"cats": 4, "dogs": 4}
    for sidecar in shard_set.sidecars:
        with get_format("webdataset").open(tmp_path / "set" / sidecar.shard, SMALL) as reader:
            for sample in sidecar.samples:
                kept = list(get_decoder("pyav").frames(str(labelled_videos / sample.video), SMALL))
                meta = reader.meta(sample)
                assert reader.frames(sample).tobytes() == b"".join(frame.pixels.tobytes() for frame in kept)
                assert meta["pts"] == [frame.pts for frame in kept]
                assert Fraction(meta["time_base"]) == kept[0].time_base
                assert (meta["label"], meta["split"]) == (sample.label, sidecar.split)


def test_a_second_build_does_nothing(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    before = set_bytes(tmp_path / "set")
    report = build(labelled_videos, tmp_path / "set")
    assert (report.decoded, report.copied, report.shards_written) == (0, 0, 0)
    assert set_bytes(tmp_path / "set") == before


def test_a_replaced_video_is_decoded_alone(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    write_video(labelled_videos / "cats" / "2.mp4", frames=50, salt=33)
    report = build(labelled_videos, tmp_path / "set")
    assert (report.decoded, report.shards_written) == (1, 1)


def test_an_added_video_is_decoded_alone(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set", per_shard=4, val=0.0)
    write_video(labelled_videos / "cats" / "new.mp4", salt=33)
    report = build(labelled_videos, tmp_path / "set", per_shard=8, val=0.0)
    assert report.decoded == 1


def test_the_same_bytes_under_other_names_and_labels_are_not_decoded(
    labelled_videos: Path, tmp_path: Path
) -> None:
    build(labelled_videos, tmp_path / "set")
    (labelled_videos / "cats").rename(labelled_videos / "lions")
    report = build(labelled_videos, tmp_path / "set")
    assert (report.decoded, report.copied) == (0, 8)
    build(labelled_videos, tmp_path / "fresh")
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")


def test_growth_copies_frames_and_equals_a_set_built_at_once(labelled_videos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(labelled_videos / "cats", few / "cats")
    build(few, tmp_path / "set")
    shutil.copytree(labelled_videos / "dogs", few / "dogs")
    report = build(few, tmp_path / "set")
    assert report.decoded == 4
    build(labelled_videos, tmp_path / "fresh")
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")


def test_any_number_of_workers_gives_the_same_bytes(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "alone", workers=0)
    build(labelled_videos, tmp_path / "two", workers=2)
    assert set_bytes(tmp_path / "alone") == set_bytes(tmp_path / "two")


def test_roots_with_other_names_give_the_same_bytes(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "one")
    labelled_videos.rename(tmp_path / "elsewhere")
    build(tmp_path / "elsewhere", tmp_path / "two")
    assert set_bytes(tmp_path / "one") == set_bytes(tmp_path / "two")


def test_long_videos_become_several_samples_with_the_same_frames(labelled_videos: Path, tmp_path: Path) -> None:
    write_video(labelled_videos / "dogs" / "long.mp4", frames=300)
    build(labelled_videos, tmp_path / "whole")
    build(labelled_videos, tmp_path / "parts", recipe=replace(SMALL, max_frames=20))
    assert frames_by_video(tmp_path / "whole") == frames_by_video(tmp_path / "parts")
    samples = [s for c in read_set(tmp_path / "parts").sidecars for s in c.samples if "long" in s.video]
    assert [(sample.key[-5:], sample.frames) for sample in samples] == [
        ("#0000", 20),
        ("#0001", 20),
        ("#0002", 10),
    ]
    build(labelled_videos, tmp_path / "parts", recipe=replace(SMALL, max_frames=20), per_shard=1)
    assert frames_by_video(tmp_path / "whole") == frames_by_video(tmp_path / "parts")


def test_another_recipe_is_refused_and_says_what_to_do(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    before = set_bytes(tmp_path / "set")
    with pytest.raises(UserError, match=r"fps=10, not 5.*another --out.*--overwrite"):
        build(labelled_videos, tmp_path / "set", recipe=replace(SMALL, fps=Fraction(10)))
    assert set_bytes(tmp_path / "set") == before


def test_overwrite_builds_anew_and_leaves_other_files_alone(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    others = {name: tmp_path / "set" / name for name in ("NOTES.md", "backup.tar", "labels.json")}
    for path in others.values():
        path.write_text("mine")
    (tmp_path / "set" / "recipe.json").write_text("damaged")
    with pytest.raises(UserError, match=r"recipe\.json: cannot be read"):
        build(labelled_videos, tmp_path / "set")
    build(labelled_videos, tmp_path / "set", recipe=replace(SMALL, width=16), overwrite=True)
    assert read_set(tmp_path / "set").recipe.width == 16
    assert all(path.read_text() == "mine" for path in others.values())


def test_a_folder_of_something_else_is_not_touched(labelled_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        build(labelled_videos, tmp_path / "home")


def test_videos_that_left_the_source_are_dropped_only_when_told(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    (labelled_videos / "cats" / "0.mp4").unlink()
    with pytest.raises(UserError, match=r"cats/0.mp4: pass --prune"):
        build(labelled_videos, tmp_path / "set")
    assert build(labelled_videos, tmp_path / "set", prune=True).decoded == 0
    assert "cats/0.mp4" not in frames_by_video(tmp_path / "set")


def test_a_shard_that_was_cut_short_or_removed_is_made_again(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    before = set_bytes(tmp_path / "set")
    first, second = sorted((tmp_path / "set").glob("*.tar"))[:2]
    os.truncate(first, 100)
    second.unlink()
    assert build(labelled_videos, tmp_path / "set").shards_written == 2
    assert set_bytes(tmp_path / "set") == before


def test_damaged_frames_are_never_copied(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set", val=0.0)
    shard = next(path for path in sorted((tmp_path / "set").glob("*.tar")) if path.stat().st_size > 20_000)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    (labelled_videos / "cats").rename(labelled_videos / "lions")
    report = build(labelled_videos, tmp_path / "set", val=0.0)
    assert report.decoded > 0
    build(labelled_videos, tmp_path / "fresh", val=0.0)
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")


def test_snapshots_of_a_killed_build_still_serve_and_are_swept(labelled_videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    build(labelled_videos, root)
    expected = set_bytes(root)
    folder = LocalFolder(root)
    for sidecar in scan(folder, SMALL).shards.values():
        snapshot(folder, sidecar)
        (root / sidecar.shard).unlink()
    assert build(labelled_videos, root).decoded == 0
    assert set_bytes(root) == expected
    assert not (root / STALE).exists()


def test_files_of_a_killed_builder_are_swept_those_of_a_living_one_are_not(
    labelled_videos: Path, tmp_path: Path
) -> None:
    build(labelled_videos, tmp_path / "set")
    with LocalFolder(tmp_path / "set").making("train-000000") as mine:
        mine.touch()
        dead = mine.with_name(mine.name.replace(str(os.getpid()), "4194999"))
        dead.touch()
        build(labelled_videos, tmp_path / "set")
        assert mine.exists() and not dead.exists()


def test_identical_files_stay_two_samples_and_are_reported(labelled_videos: Path, tmp_path: Path) -> None:
    shutil.copy(labelled_videos / "cats" / "0.mp4", labelled_videos / "dogs" / "twin.mp4")
    build(labelled_videos, tmp_path / "set")
    summary = summarize(read_set(tmp_path / "set"))
    assert summary["videos"] == 9
    assert summary["same_bytes"] == [["cats/0.mp4", "dogs/twin.mp4"]]


def test_a_sidecar_of_another_recipe_is_refused(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    path = sorted((tmp_path / "set").glob("train-*.json"))[0]
    edit_sidecar(path, fingerprint="0" * 16)
    with pytest.raises(UserError, match="belongs to the recipe"):
        build(labelled_videos, tmp_path / "set")


def test_an_unfinished_set_is_not_read_as_a_whole_one(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set", val=0.0)
    sorted((tmp_path / "set").glob("train-*.json"))[0].unlink()
    with pytest.raises(UserError, match=r"unfinished \(train has 3 of 4 shards\)"):
        read_set(tmp_path / "set")
    assert read_set(tmp_path / "set", whole=False).unfinished


def test_a_video_that_cannot_be_read_for_now_does_not_lose_its_frames(
    labelled_videos: Path, tmp_path: Path
) -> None:
    rows = [f"{path.relative_to(labelled_videos)},{path.parent.name}" for path in labelled_videos.rglob("*.mp4")]
    (labelled_videos / "videos.csv").write_text("\n".join(["path,label", *rows]))
    build(labelled_videos / "videos.csv", tmp_path / "set")
    before = set_bytes(tmp_path / "set")
    (labelled_videos / "cats").rename(tmp_path / "unmounted")
    for prune in (False, True):
        with pytest.raises(UserError, match=r"4 videos of the set cannot be read now.*when they can"):
            build(labelled_videos / "videos.csv", tmp_path / "set", prune=prune)
        assert set_bytes(tmp_path / "set") == before


def test_a_build_that_stopped_marks_the_set_until_one_ends(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.driver.drop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(labelled_videos, tmp_path / "set")
    with pytest.raises(UserError, match=r"unfinished .a build is running, or was stopped"):
        read_set(tmp_path / "set")
    build(labelled_videos, tmp_path / "set")
    assert read_set(tmp_path / "set").unfinished is None


def test_what_another_builder_adds_meanwhile_is_left_alone(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    folder = LocalFolder(tmp_path / "set")
    before = begin(folder)
    (tmp_path / "set" / "test-000000.tar").touch()
    end(folder, before, {Path(name).stem for name in before})
    assert (tmp_path / "set" / "test-000000.tar").exists()


def test_frames_that_vanish_while_they_are_copied_are_decoded(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(labelled_videos, tmp_path / "set")
    (labelled_videos / "cats").rename(labelled_videos / "lions")

    def gone(*_: object) -> None:
        raise UserError("another builder has swept this shard")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shards.webdataset.TarReader.chunks", gone)
        assert build(labelled_videos, tmp_path / "set").decoded == 8
    build(labelled_videos, tmp_path / "fresh")
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")
