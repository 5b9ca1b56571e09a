"""Every format with every codec: the same frames, read by us and by plain tools; the same bytes every time."""

import io
import json
import mmap
import subprocess
import tarfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from conftest import SMALL, build, frames_by_video, set_bytes
from numpy.typing import NDArray

from pipeline.driver import Wanted, build_set
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.codec import get_codec, jpeg_size
from pipeline.shards.index import read_set
from pipeline.shards.webdataset import will_need

LOSSLESS = [("webdataset", "zstd"), ("zarr", "raw"), ("zarr", "zstd")]
ALL = [("webdataset", "raw"), *LOSSLESS, ("webdataset", "jpeg")]


def recipe_of(shard_format: str, codec: str) -> Recipe:
    return replace(SMALL, format=shard_format, codec=codec)


@pytest.mark.parametrize(("shard_format", "codec"), LOSSLESS)
def test_lossless_sets_hold_the_same_frames(
    labelled_videos: Path, tmp_path: Path, shard_format: str, codec: str
) -> None:
    build(labelled_videos, tmp_path / "raw")
    build(labelled_videos, tmp_path / "set", recipe=recipe_of(shard_format, codec))
    assert frames_by_video(tmp_path / "set") == frames_by_video(tmp_path / "raw")


@pytest.mark.parametrize(("shard_format", "codec"), [*LOSSLESS, ("webdataset", "jpeg")])
def test_relabelling_and_growing_copy_frames_and_give_the_bytes_of_a_fresh_build(
    labelled_videos: Path, tmp_path: Path, shard_format: str, codec: str
) -> None:
    recipe = recipe_of(shard_format, codec)
    build(labelled_videos, tmp_path / "set", recipe=recipe)
    (labelled_videos / "cats").rename(labelled_videos / "lions")
    assert build(labelled_videos, tmp_path / "set", recipe=recipe, per_shard=1).decoded == 0
    build(labelled_videos, tmp_path / "fresh", recipe=recipe, per_shard=1)
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "fresh")


@pytest.mark.parametrize(("shard_format", "codec"), ALL)
def test_a_clip_is_a_slice_of_the_sample(
    labelled_videos: Path, tmp_path: Path, shard_format: str, codec: str
) -> None:
    recipe = replace(recipe_of(shard_format, codec), fps=Recipe().fps * 6)
    build(labelled_videos, tmp_path / "set", recipe=recipe)
    shard_set = read_set(tmp_path / "set")
    for sidecar in shard_set.sidecars:
        with get_format(shard_format).open(tmp_path / "set" / sidecar.shard, recipe) as reader:
            for sample in sidecar.samples:
                frames = reader.frames(sample)
                assert reader.meta(sample)["video"] == sample.video
                for first, length in [(0, 16), (3, 16), (sample.frames - 2, 2), (0, sample.frames)]:
                    out = np.empty((length, 32, 32, 3), np.uint8)
                    reader.clip(sample, first, out)
                    assert np.array_equal(out, frames[first : first + length])


@pytest.mark.parametrize(("shard_format", "codec"), ALL)
def test_expected_is_what_a_clip_is_read_from_and_a_lie_does_no_harm(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_format: str, codec: str
) -> None:
    recipe = recipe_of(shard_format, codec)
    build_set(Wanted(labelled_videos, recipe), tmp_path / "set")
    expected: list[bytes] = []

    def remember(data: mmap.mmap, start: int, stop: int) -> None:
        will_need(data, start, stop)
        expected.append(data[start:stop])

    monkeypatch.setattr(f"pipeline.shards.{shard_format}.will_need", remember)
    for sidecar in read_set(tmp_path / "set").sidecars:
        with get_format(shard_format).open(tmp_path / "set" / sidecar.shard, recipe) as reader:
            for sample in sidecar.samples:
                reader.expect(sample, 0, sample.frames)
                chunks = -(-(sample.frames + reader.skipped(sample)) // get_codec(recipe).chunk)
                assert all(bytes(reader.stored(sample, number)) in expected[-1] for number in range(chunks))
                reader.expect(sample, sample.frames - 1, 1)
                last = reader.frames(sample)[-1] if codec == "raw" else reader.stored(sample, chunks - 1)
                assert bytes(last) in expected[-1]
                reader.expect(msgspec.structs.replace(sample, offset=2**62), 0, 2**62)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_plain_zarr_and_dask_read_a_zarr_set(labelled_videos: Path, tmp_path: Path, codec: str) -> None:
    build(labelled_videos, tmp_path / "raw")
    build(labelled_videos, tmp_path / "set", recipe=recipe_of("zarr", codec))
    zarr: Any = pytest.importorskip("zarr")
    dask_array: Any = pytest.importorskip("dask.array")
    group = zarr.open_group(tmp_path / "set" / "frames.zarr", mode="r")
    assert group.attrs["recipe"]["fps"] == "5"
    found: dict[str, bytes] = defaultdict(bytes)
    for name, array in group.arrays():
        lazy = dask_array.from_zarr(str(tmp_path / "set" / "frames.zarr" / name))
        assert np.array_equal(lazy.compute(), array[:])
        for sample in array.attrs["samples"]:
            found[sample["video"]] += array[sample["start"] : sample["stop"]].tobytes()
    assert found == frames_by_video(tmp_path / "raw")


def members(root: Path, suffix: str) -> dict[str, bytes]:
    found = {}
    for shard in root.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                body = tar.extractfile(member)
                if body is not None and member.name.endswith(suffix):
                    found[member.name.removesuffix(suffix)] = body.read()
    return found


def test_the_zstd_tool_turns_a_compressed_member_into_a_npy(labelled_videos: Path, tmp_path: Path) -> None:
    if subprocess.run(["which", "zstd"], capture_output=True, check=False).returncode:
        pytest.skip("needs the zstd command line tool")
    build(labelled_videos, tmp_path / "raw")
    build(labelled_videos, tmp_path / "set", recipe=recipe_of("webdataset", "zstd"))
    plain = members(tmp_path / "raw", ".frames.npy")
    for key, body in members(tmp_path / "set", ".frames.npy.zst").items():
        unpacked = subprocess.run(["zstd", "-d", "-c"], input=body, capture_output=True, check=True).stdout
        assert np.array_equal(np.load(io.BytesIO(unpacked)), np.load(io.BytesIO(plain[key])))


def test_a_jpeg_member_is_a_row_of_pictures_near_the_frames(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "raw")
    build(labelled_videos, tmp_path / "set", recipe=recipe_of("webdataset", "jpeg"))
    plain = members(tmp_path / "raw", ".frames.npy")
    for key, body in members(tmp_path / "set", ".frames.mjpeg").items():
        pictures = [np.frombuffer(b"\xff\xd8" + rest, np.uint8) for rest in body.split(b"\xff\xd8")[1:]]
        frames = [np.asarray(cv2.imdecode(picture, cv2.IMREAD_COLOR)) for picture in pictures]
        error = np.abs(np.stack(frames)[..., ::-1].astype(int) - np.load(io.BytesIO(plain[key])))
        assert error.mean() < 4


def test_quality_is_part_of_a_jpeg_recipe_and_of_no_other() -> None:
    jpeg, raw = replace(SMALL, codec="jpeg"), SMALL
    assert replace(jpeg, quality=50).fingerprint != jpeg.fingerprint
    assert replace(raw, quality=50).fingerprint == raw.fingerprint
    assert Recipe.from_dict(replace(jpeg, quality=50).as_dict()).quality == 50


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_a_damaged_chunk_is_an_error_that_names_shard_and_sample(
    labelled_videos: Path, tmp_path: Path, codec: str
) -> None:
    recipe = recipe_of("webdataset", codec)
    build(labelled_videos, tmp_path / "set", recipe=recipe)
    sidecar = next(sidecar for sidecar in read_set(tmp_path / "set").sidecars if sidecar.samples)
    sample, path = sidecar.samples[0], tmp_path / "set" / sidecar.shard
    data = bytearray(path.read_bytes())
    data[sample.offset : sample.offset + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{sidecar.shard}: {sample.key} is damaged"):
        get_format("webdataset").open(path, recipe).frames(sample)


def test_a_jpeg_that_is_cut_or_has_a_second_scan_is_an_error() -> None:
    codec, frame = get_codec(replace(SMALL, codec="jpeg")), np.full((1, 64, 64, 3), 255, np.uint8)
    data = codec.encode(frame)
    (_, pixels), out = jpeg_size(memoryview(data)), np.empty_like(frame)
    scan = data[data.rindex(b"\xff\xda", 0, pixels) : -2]
    codec.decode(memoryview(data), out)
    assert np.array_equal(out, frame)
    for damaged in (data[:pixels], data[: pixels + 8], data[:-2] + scan + data[-2:]):
        with pytest.raises(ValueError, match="a JPEG that cannot be decoded"):
            codec.decode(memoryview(damaged), out)


def test_a_jpeg_that_claims_another_size_is_never_decoded() -> None:
    codec = get_codec(replace(SMALL, codec="jpeg"))
    large: NDArray[np.uint8] = np.zeros((1, 64, 64, 3), np.uint8)
    data = memoryview(codec.encode(large))
    assert jpeg_size(data)[0] == (64, 64)
    known = memoryview(codec.encode(large[:, :32, :32]))
    codec.decode(known, np.empty((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="no JPEG of 32×32"):
        codec.decode(data, np.empty((1, 32, 32, 3), np.uint8))


def test_a_zarr_array_that_was_cut_or_swapped_is_named(labelled_videos: Path, tmp_path: Path) -> None:
    recipe = recipe_of("zarr", "zstd")
    build(labelled_videos, tmp_path / "set", recipe=recipe)
    sidecar = next(sidecar for sidecar in read_set(tmp_path / "set").sidecars if sidecar.samples)
    shard = tmp_path / "set" / sidecar.shard
    about = json.loads((shard / "zarr.json").read_text())
    about["attributes"]["samples"][0]["start"] += 1
    (shard / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is not where its sidecar says"):
        get_format("zarr").open(shard, recipe).frames(sidecar.samples[0])
    (shard / "c.0.0.0.0").write_bytes(bytes(100))
    with pytest.raises(UserError, match="its index is damaged"):
        get_format("zarr").open(shard, recipe)
    with pytest.raises(UserError, match="is missing or cut short"):
        read_set(tmp_path / "set")


def test_a_rejected_video_leaves_no_trace_in_a_zarr_array(labelled_videos: Path, tmp_path: Path) -> None:
    recipe = recipe_of("zarr", "raw")
    build(labelled_videos, tmp_path / "good", recipe=recipe, val=0.0, per_shard=8)
    for name in ("cats/9.mp4", "dogs/91.mp4"):
        whole = (labelled_videos / "cats" / "0.mp4").read_bytes()
        (labelled_videos / name).write_bytes(whole[: len(whole) // 2])
    assert build(labelled_videos, tmp_path / "set", recipe=recipe, val=0.0, per_shard=8).rejected == 2
    assert frames_by_video(tmp_path / "set") == frames_by_video(tmp_path / "good")


def test_the_same_frames_in_every_lossless_format_on_real_clips(
    real_clips: Path, tmp_path: Path, exhaustive: bool
) -> None:
    source = real_clips / "videos.csv"
    if not exhaustive:
        lines = source.read_text().splitlines()
        rows = [line.replace(line, f"{real_clips}/{line}") for line in lines[1::40]]
        source = tmp_path / "some.csv"
        source.write_text("\n".join([lines[0], *rows]))
    found = []
    for shard_format, codec in ALL:
        root = tmp_path / f"{shard_format}-{codec}"
        build_set(Wanted(source, Recipe(format=shard_format, codec=codec)), root, workers=2 if exhaustive else 0)
        found.append(frames_by_video(root))
    assert len(found[0]) == (300 if exhaustive else 8)
    assert found[0] == found[1] == found[2] == found[3]
    errors = [
        np.abs(np.frombuffer(found[0][key], np.uint8).astype(int) - np.frombuffer(near, np.uint8)).mean()
        for key, near in found[4].items()
    ]
    assert max(errors) < 5 and float(np.mean(errors)) < 2.5  # docs/format.md states them
