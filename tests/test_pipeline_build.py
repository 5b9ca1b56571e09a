"""Building sets: what is decoded, what is copied, what is rejected, and that nothing is lost."""

import csv
import json
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import replace_packet, set_bytes, write_video

from pipeline.decode import get_decoder
from pipeline.driver import BuildReport, Wanted, build_set
from pipeline.errors import UserError, WorkFailed
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.directory import STALE, begin, end, scan, snapshot, temporary
from pipeline.shards.index import read_set
from pipeline.summary import summarize

SMALL = Recipe(width=32, height=32)


def build(source: Path, root: Path, **options: object) -> BuildReport:
    recipe = options.pop("recipe", SMALL)
    assert isinstance(recipe, Recipe)
    wanted = {"per_shard": 2, **{k: options.pop(k) for k in list(options) if k in Wanted.__dataclass_fields__}}
    return build_set(Wanted(source, recipe, **wanted), root, **options)  # type: ignore[arg-type]


def frames_by_video(root: Path) -> dict[str, bytes]:
    shard_set = read_set(root)
    found: dict[str, bytes] = {}
    for sidecar in shard_set.sidecars:
        with get_format("webdataset").open(root / sidecar.shard, shard_set.recipe) as reader:
            for sample in sidecar.samples:
                found[sample.video] = found.get(sample.video, b"") + reader.frames(sample).tobytes()
    return found


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


def test_bad_videos_are_rejected_with_a_reason_and_not_tried_again(labelled_videos: Path, tmp_path: Path) -> None:
    (labelled_videos / "cats" / "text.mp4").write_text("not a video")
    (labelled_videos / "cats" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    report = build(labelled_videos, tmp_path / "set")
    rejections = summarize(read_set(tmp_path / "set"))["rejections"]
    reasons = {entry["video"]: entry["reason"] for entry in rejections}
    assert reasons["cats/text.mp4"].startswith("cannot be opened as a video")
    assert reasons["cats/gone.mp4"] == "cannot be read: No such file or directory"
    assert (report.decoded, report.rejected) == (8, 2)
    assert build(labelled_videos, tmp_path / "set").shards_written == 0


def test_a_decoder_that_fails_halfway_leaves_no_trace_of_its_video(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyav = type(get_decoder("pyav"))
    decode = pyav.frames

    def fails(self, path, recipe):  # type: ignore[no-untyped-def]
        for number, frame in enumerate(decode(self, path, recipe)):
            if path.endswith("3.mp4") and number == 3:
                raise ZeroDivisionError("a bug in a decoder")
            yield frame

    monkeypatch.setattr(pyav, "frames", fails)
    build(labelled_videos, tmp_path / "set", recipe=replace(SMALL, max_frames=1))
    (rejected,) = summarize(read_set(tmp_path / "set"))["rejections"]
    assert rejected["video"] == "dogs/3.mp4"
    assert "ZeroDivisionError: a bug in a decoder" in rejected["reason"]
    assert rejected["frames"] == 3
    assert "dogs/3.mp4" not in frames_by_video(tmp_path / "set")


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
    for sidecar in scan(root, SMALL).shards.values():
        snapshot(root, sidecar)
        (root / sidecar.shard).unlink()
    assert build(labelled_videos, root).decoded == 0
    assert set_bytes(root) == expected
    assert not (root / STALE).exists()


def test_files_of_a_killed_builder_are_swept_those_of_a_living_one_are_not(
    labelled_videos: Path, tmp_path: Path
) -> None:
    build(labelled_videos, tmp_path / "set")
    mine = temporary(tmp_path / "set", "train-000000")
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
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 16}))
    with pytest.raises(UserError, match="belongs to the recipe"):
        build(labelled_videos, tmp_path / "set")


def test_an_unfinished_set_is_not_read_as_a_whole_one(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set", val=0.0)
    sorted((tmp_path / "set").glob("train-*.json"))[0].unlink()
    with pytest.raises(UserError, match=r"unfinished \(train has 3 of 4 shards\)"):
        read_set(tmp_path / "set")
    assert read_set(tmp_path / "set", whole=False).unfinished


def test_a_full_disk_fails_the_shard_and_blames_no_video(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shards.webdataset.TarWriter.add", full)
        with pytest.raises(WorkFailed, match=r"shards could not be written[\s\S]*No space left"):
            build(labelled_videos, tmp_path / "set")
    build(labelled_videos, tmp_path / "set")
    assert summarize(read_set(tmp_path / "set"))["rejected"] == 0


def broken_video(whole: Path) -> Path:
    """A video with a packet in its middle that no decoder takes."""
    return replace_packet(whole, whole.with_name("broken.mkv"), 60, b"\xff")


def test_a_broken_video_is_rejected_whole_or_kept_as_far_as_it_came(labelled_videos: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", frames=120, codec="libvpx-vp9")
    broken_video(whole).rename(labelled_videos / "cats" / "broken.mkv")
    build(labelled_videos, tmp_path / "rejected")
    build(labelled_videos, tmp_path / "kept", recipe=replace(SMALL, on_corrupt="keep"))
    rejected, kept = (summarize(read_set(tmp_path / name)) for name in ("rejected", "kept"))
    assert (rejected["videos"], kept["videos"]) == (8, 9)
    assert rejected["rejections"] == kept["damaged"]
    (entry,) = kept["damaged"]
    assert entry["video"] == "cats/broken.mkv" and "breaks while decoding" in entry["reason"]
    assert len(frames_by_video(tmp_path / "kept")["cats/broken.mkv"]) == entry["frames"] * 32 * 32 * 3


def test_what_is_known_of_a_damaged_video_goes_with_its_frames(labelled_videos: Path, tmp_path: Path) -> None:
    keep = replace(SMALL, on_corrupt="keep")
    whole = write_video(tmp_path / "whole.mkv", frames=120, codec="libvpx-vp9")
    broken_video(whole).rename(labelled_videos / "cats" / "broken.mkv")
    build(labelled_videos, tmp_path / "set", recipe=keep)
    (labelled_videos / "cats").rename(labelled_videos / "lions")
    assert build(labelled_videos, tmp_path / "set", recipe=keep).decoded == 0
    (entry,) = summarize(read_set(tmp_path / "set"))["damaged"]
    assert entry["video"] == "lions/broken.mkv"


def test_too_many_rejects_stop_the_build_and_keep_what_was_done(labelled_videos: Path, tmp_path: Path) -> None:
    for number in range(6):
        (labelled_videos / "cats" / f"text{number}.mp4").write_text(f"not a video {number}")
    with pytest.raises(WorkFailed, match="--max-rejects is 2"):
        build(labelled_videos, tmp_path / "set", max_rejects=2)
    assert 0 < len(list((tmp_path / "set").glob("*.tar"))) < 8
    build(labelled_videos, tmp_path / "set", max_rejects=6)
    assert summarize(read_set(tmp_path / "set"))["rejected"] == 6


def test_a_video_that_cannot_be_read_for_now_does_not_lose_its_frames(
    labelled_videos: Path, tmp_path: Path
) -> None:
    rows = [f"{path.relative_to(labelled_videos)},{path.parent.name}" for path in labelled_videos.rglob("*.mp4")]
    (labelled_videos / "videos.csv").write_text("\n".join(["path,label", *rows]))
    build(labelled_videos / "videos.csv", tmp_path / "set")
    before = set_bytes(tmp_path / "set")
    (labelled_videos / "cats").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"4 videos of the set are no longer in .* or cannot be read"):
        build(labelled_videos / "videos.csv", tmp_path / "set")
    assert set_bytes(tmp_path / "set") == before


def test_rejected_videos_are_tried_again_when_asked(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.decode.pyav.PyAV.frames", lambda *_: 1 / 0)
        build(labelled_videos, tmp_path / "set")
    assert build(labelled_videos, tmp_path / "set").shards_written == 0
    report = build(labelled_videos, tmp_path / "set", retry_rejected=True)
    assert (report.decoded, report.rejected) == (8, 0)


def test_a_build_that_stopped_marks_the_set_until_one_ends(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.driver.end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(labelled_videos, tmp_path / "set")
    with pytest.raises(UserError, match=r"unfinished .a build is running, or was stopped"):
        read_set(tmp_path / "set")
    build(labelled_videos, tmp_path / "set")
    assert read_set(tmp_path / "set").unfinished is None


def test_what_another_builder_adds_meanwhile_is_left_alone(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    before = begin(tmp_path / "set")
    (tmp_path / "set" / "test-000000.tar").touch()
    end(tmp_path / "set", before, {Path(name).stem for name in before})
    assert (tmp_path / "set" / "test-000000.tar").exists()


def test_frames_that_vanish_while_they_are_copied_are_decoded(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(labelled_videos, tmp_path / "set")
    (labelled_videos / "cats").rename(labelled_videos / "lions")

    def gone(*_: object) -> None:
        raise UserError("another builder has swept this shard")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shards.webdataset.TarReader.frames", gone)
        assert build(labelled_videos, tmp_path / "set").decoded == 8
    build(labelled_videos, tmp_path / "fresh")
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")


def test_each_awkward_file_is_decoded_or_rejected_with_a_reason(awkward_videos: Path, tmp_path: Path) -> None:
    with (awkward_videos / "MANIFEST.tsv").open(newline="") as lines:
        listed = {row["path"]: row for row in csv.DictReader(lines, delimiter="\t")}
    with (tmp_path / "videos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "key"])
        writer.writerows([awkward_videos / path, "awkward", path] for path in listed)
    build(tmp_path / "videos.csv", tmp_path / "set")
    shard_set = read_set(tmp_path / "set")
    decoded = {sample.video for sidecar in shard_set.sidecars for sample in sidecar.samples}
    rejected = {entry["video"]: entry["reason"] for entry in summarize(shard_set)["rejections"]}
    assert len(listed) == 98
    assert decoded | set(rejected) == set(listed)
    assert all(rejected.values())
    # FFmpeg decodes frames of every file but those; one of the rest breaks on the way, and says so.
    empty = {path for path, row in listed.items() if row["frames_decoded_ffmpeg5.1"] in ("-", "0")}
    assert set(set(rejected) - empty) == {"dmlc+decord/tests/test_data/corrupted.mp4"}
