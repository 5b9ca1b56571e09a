"""`prep verify` names what is damaged, and the loader never delivers it."""

import json
import random
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import SMALL, assert_one_clear_line, build, edit_sidecar, set_bytes, write_video
from fuzz.samples import make_set

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from pipeline.verify import verify_set
from train.clips import Clips
from train.stream import ClipStream

FORMATS = [
    ("webdataset", "raw"),
    ("webdataset", "zstd"),
    ("webdataset", "jpeg"),
    ("zarr", "raw"),
    ("zarr", "zstd"),
]


def prep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify") / "videos"
    for number in range(8):
        split, label = ("train", "val")[number % 4 == 0], ("cats", "dogs")[number % 2]
        write_video(root / split / label / f"{number}.mp4", frames=20 + 20 * number, salt=number)
    return root


def made(videos: Path, root: Path, shard_format: str, codec: str) -> Path:
    build(videos, root, recipe=Recipe(width=16, height=16, format=shard_format, codec=codec, max_frames=24))
    return root


def delivered(root: Path) -> dict[str, tuple[bytes, int, bytes]]:
    """By sample, its frames as the loader gives them, in clips of 4, its label and its video."""
    found: dict[str, tuple[bytes, int, bytes]] = {}
    for split in ("train", "val"):
        index = read_set(root).split(split)
        with ClipStream(index, frames_per_clip=4, batch_size=3) as stream:
            numbers = np.arange(len(index))
            for number in numbers:
                starts = np.arange(0, max(1, int(index.frames[number]) - 3), 3)
                clips = Clips(np.full(len(starts), number), starts)
                rows = b"".join(batch.frames.numpy().tobytes() for batch in stream.batches(clips))
                sample = index.samples[number]
                found[sample.key] = (rows, int(index.label[number]), sample.video.encode())
    return found


def flip(path: Path, dice: random.Random) -> bytes:
    """Turn one bit of a file over; returns what it was."""
    before = path.read_bytes()
    data, bit = bytearray(before), dice.randrange(8 * len(before))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    return before


@pytest.mark.parametrize(("shard_format", "codec"), FORMATS)
def test_every_flipped_bit_is_found_and_no_wrong_frame_delivered(
    videos: Path, tmp_path: Path, shard_format: str, codec: str, exhaustive: bool
) -> None:
    root = made(videos, tmp_path / "set", shard_format, codec)
    expected, dice = delivered(root), random.Random(f"{shard_format} {codec}")
    kinds: dict[str, list[Path]] = {"recipe": [], "sidecar": [], "shard": []}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        stem = path.relative_to(root).as_posix()
        described = path.parent == root and path.suffix == ".json"
        kinds["recipe" if stem in ("recipe.json", "frames.zarr/zarr.json") else
              "sidecar" if described else "shard"].append(path)  # fmt: skip
    found = refused = 0
    flips = 200 if exhaustive else 9  # of each format
    for number in range(flips):
        path = dice.choice(kinds[("recipe", "sidecar", "shard")[number % 3]])
        before = flip(path, dice)
        try:
            found += bool(verify_set(root).damage)
            assert delivered(root) == expected
        except UserError:
            refused += 1
        path.write_bytes(before)
    assert found == flips
    assert flips // 3 <= refused <= flips
    assert not verify_set(root, deep=True).damage


@pytest.mark.parametrize(("shard_format", "codec"), FORMATS)
def test_frames_that_changed_on_disk_are_not_delivered(
    videos: Path, tmp_path: Path, shard_format: str, codec: str
) -> None:
    root = made(videos, tmp_path / "set", shard_format, codec)
    index = read_set(root).split("train")
    path = index.shards[0] if shard_format == "webdataset" else index.shards[0] / "c.0.0.0.0"
    data = bytearray(path.read_bytes())
    place = index.samples[0].offset + 5 if shard_format == "webdataset" else 5
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"frames of .* are damaged"):
        delivered(root)


def test_a_set_of_an_older_release_is_read_and_said_to_have_no_checksums(videos: Path, tmp_path: Path) -> None:
    root = made(videos, tmp_path / "set", "webdataset", "raw")
    expected = delivered(root)
    for path in root.glob("*-*.json"):
        values = json.loads(path.read_text())
        del values["crc32c"]
        for sample in values["samples"]:
            del sample["crc32c"]
        path.write_text(json.dumps(values))
    assert delivered(root) == expected
    found = verify_set(root, deep=True)
    assert (found.damage, found.sealed) == ((), 0)
    assert "of an older release" in prep("verify", root).stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "lions"}, "the shard says"),
        ({"frames": 3}, "is not where the sidecar says"),
        ({"source": "0" * 64}, "the shard says"),
        ({"crc32c": "00000000"}, "checksum|damaged"),
        ({"key": "other"}, "members of the tar"),
    ],
)
def test_a_sidecar_that_lies_about_its_shard_is_found_by_looking_inside(
    videos: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    root = made(videos, tmp_path / "set", "webdataset", "raw")
    path = next(path for path in sorted(root.glob("*-*.json")) if json.loads(path.read_text())["samples"])
    samples = json.loads(path.read_text())["samples"]
    edit_sidecar(path, samples=[{**samples[0], **change}, *samples[1:]])
    assert not verify_set(root).damage
    (damage,) = verify_set(root, deep=True).damage
    assert damage.file == f"{path.stem}.tar"
    assert re.search(reason, damage.reason)


def test_verify_names_what_is_damaged_and_repair_makes_just_that_anew(videos: Path, tmp_path: Path) -> None:
    root = made(videos, tmp_path / "set", "webdataset", "raw")
    expected = set_bytes(root)
    tar, sidecar, *_ = sorted(root.glob("train-*.tar"))
    flip(tar, random.Random(1))
    sidecar.with_suffix(".json").write_text("{}")
    (root / "val-000000.tar").unlink()
    times = {path: path.stat().st_mtime_ns for path in root.glob("*.tar") if path not in (tar, sidecar)}
    result = prep("verify", root, "--json")
    assert_one_clear_line(result, 1, f"3 damaged files, the first is {sidecar.stem}.json; ")
    assert f"`prep verify {root} --repair --source VIDEOS`" in result.stderr
    assert f"`prep pull URL {root} --check`" in result.stderr
    assert [found["file"] for found in json.loads(result.stdout)["damage"]] == [
        sidecar.with_suffix(".json").name, tar.name, "val-000000.tar",
    ]  # fmt: skip
    repaired = prep("verify", root, "--repair", "--source", videos, "--workers", 0, "--json")
    assert repaired.exit_code == 0, repaired.output
    assert json.loads(repaired.stdout)["repaired"] == sorted([tar.stem, sidecar.stem, "val-000000"])
    assert set_bytes(root) == expected
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_repair_says_what_it_cannot_do(videos: Path, tmp_path: Path) -> None:
    root = made(videos, tmp_path / "set", "webdataset", "raw")
    assert_one_clear_line(prep("verify", root, "--repair"), 2, "--repair and --source belong together")
    flip(next(path for path in root.glob("train-*.tar") if path.stat().st_size > 2000), random.Random(2))
    only_val = Path(shutil.copytree(videos / "val", tmp_path / "other" / "val")).parent
    assert_one_clear_line(prep("verify", root, "--repair", "--source", only_val), 2, "are not in --source")
    assert_one_clear_line(prep("verify", tmp_path), 2, "no shard set here")


def test_a_set_without_labels_is_repaired_as_it_was_built(tmp_path: Path) -> None:
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=5)
    root = tmp_path / "set"
    build = ("build-shards", tmp_path / "videos", "--unlabelled", "--out", root, "--workers", 0)
    assert prep(*build, "--val", 0).exit_code == 0
    expected = set_bytes(root)
    flip(next(root.glob("train-*.tar")), random.Random(3))
    repair = ("verify", root, "--repair", "--source", tmp_path / "videos", "--workers", 0)
    assert_one_clear_line(prep(*repair), 2, "say --unlabelled")
    assert prep(*repair, "--unlabelled").exit_code == 0 and set_bytes(root) == expected


def test_repair_of_far_more_than_stands_points_to_a_build(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "cats" / "a.mp4", frames=5)
    root = make_set(tmp_path / "set", Recipe(width=8, height=8, max_frames=32))
    edit_sidecar(root / "train-000000.json", buckets=2**13)
    result = prep("verify", root, "--repair", "--source", tmp_path / "videos")
    assert_one_clear_line(result, 2, "many shards of train are missing")
    assert "build-shards" in result.stderr


@pytest.mark.parametrize(("shard_format", "codec"), FORMATS)
def test_a_lost_recipe_is_told_from_the_shards(
    videos: Path, tmp_path: Path, shard_format: str, codec: str
) -> None:
    root = made(videos, tmp_path / "set", shard_format, codec)
    expected = set_bytes(root)
    (root / "recipe.json").write_text("{}")
    (root / "train-000001.json").write_text("{}")
    repaired = prep("verify", root, "--deep", "--repair", "--source", videos, "--workers", 0)
    assert repaired.exit_code == 0, repaired.output
    assert set_bytes(root) == expected


@pytest.mark.parametrize("max_frames", [1024, 160, 183, 100_000])
def test_a_recipe_that_no_video_tells_is_tried_and_proven(
    videos: Path, tmp_path: Path, max_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recover.TRIED", 200)
    said = Recipe(Fraction(15, 2), 24, 16, "pad", codec="zstd", max_frames=max_frames, on_corrupt="keep")
    build(videos, root := tmp_path / "set", recipe=said)
    expected = set_bytes(root)
    (root / "recipe.json").unlink()
    result = prep("verify", root, "--repair", "--source", videos)
    if max_frames == 100_000:
        assert_one_clear_line(result, 2, "bring it from a copy of the set")
    else:
        assert result.exit_code == 0 and set_bytes(root) == expected


def test_a_recipe_in_another_spelling_is_written_anew(videos: Path, tmp_path: Path) -> None:
    build(
        videos,
        root := tmp_path / "set",
        recipe=Recipe(width=24, height=16, codec="jpeg", quality=75, max_frames=300),
    )
    expected = set_bytes(root)
    file = root / "recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=8))
    assert prep("verify", root, "--repair", "--source", videos).exit_code == 0 and set_bytes(root) == expected


def test_missing_shards_are_damage_and_a_running_build_is_not(videos: Path, tmp_path: Path) -> None:
    build(videos, tmp_path / "set", recipe=SMALL)
    (tmp_path / "set" / "train-000001.json").unlink()
    assert [damage.file for damage in verify_set(tmp_path / "set").damage] == ["train-000001.json"]
    (tmp_path / "set" / ".building").write_text("")
    assert not verify_set(tmp_path / "set").damage
