"""Videos that cannot be decoded: rejected or kept in part, always with a reason, and nobody else suffers."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL, build, frames_by_video, replace_packet, write_video

from pipeline.decode import get_decoder
from pipeline.decode.truncation import promised_bytes
from pipeline.errors import DecodeError, WorkFailed
from pipeline.shards.index import read_set
from pipeline.summary import summarize


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


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_absurd_picture_sizes_are_rejected_before_anything_is_decoded(
    tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("pipeline.decode.geometry.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DecodeError, match="pictures of 64×48 pixels; more than 3,071"):
        list(get_decoder(decoder).frames(str(path), SMALL))


def test_pictures_that_become_absurd_on_the_way_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write_video(tmp_path / f"{side}.h264", size=(side, side)) for side in (64, 256)]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(list(get_decoder("pyav").frames(str(joined), SMALL))) > 5
    monkeypatch.setattr("pipeline.decode.container.MAX_PIXELS", 200 * 200)
    with pytest.raises(DecodeError, match="breaks while decoding"):
        list(get_decoder("pyav").frames(str(joined), SMALL))


def test_a_full_disk_fails_the_shard_and_blames_no_video(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shards.webdataset.TarWriter.frame", full)
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


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("flv", "flv1"), ("wmv", "wmv2")],
)
def test_a_file_cut_short_is_kept_and_said_to_be_damaged(tmp_path: Path, suffix: str, codec: str) -> None:
    whole = write_video(tmp_path / "in" / "cats" / f"whole.{suffix}", frames=240, codec=codec, options={"g": "12"})
    data = whole.read_bytes()
    assert promised_bytes(data) == len(data)
    whole.with_name(f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    build(tmp_path / "in", tmp_path / "set")
    whole.parent.rename(tmp_path / "in" / "lions")
    assert build(tmp_path / "in", tmp_path / "set").decoded == 0  # what is known goes with the frames
    summary = summarize(read_set(tmp_path / "set"))
    (entry,) = summary["damaged"]
    assert (summary["videos"], summary["rejected"], entry["video"]) == (2, 0, f"lions/cut.{suffix}")
    assert f"is cut short: {len(data) // 2:,} bytes of {len(data):,} that its header promises; " in entry["reason"]
    assert 5 < entry["frames"] < 35


@pytest.mark.parametrize(
    "head", [b"", b"RIFF", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7]
)
def test_a_header_that_tells_no_length_promises_nothing(head: bytes) -> None:
    assert promised_bytes(head) is None


def test_too_many_rejects_stop_the_build_and_keep_what_was_done(labelled_videos: Path, tmp_path: Path) -> None:
    for number in range(6):
        (labelled_videos / "cats" / f"text{number}.mp4").write_text(f"not a video {number}")
    with pytest.raises(WorkFailed, match="--max-rejects is 2"):
        build(labelled_videos, tmp_path / "set", max_rejects=2)
    assert 0 < len(list((tmp_path / "set").glob("*.tar"))) < 8
    build(labelled_videos, tmp_path / "set", max_rejects=6)
    assert summarize(read_set(tmp_path / "set"))["rejected"] == 6


def test_rejected_videos_are_tried_again_when_asked(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.decode.pyav.PyAV.frames", lambda *_: 1 / 0)
        build(labelled_videos, tmp_path / "set")
    assert build(labelled_videos, tmp_path / "set").shards_written == 0
    report = build(labelled_videos, tmp_path / "set", retry_rejected=True)
    assert (report.decoded, report.rejected) == (8, 0)


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
