"""Shards read by others: plain webdataset, plain tarfile and NumPy, no code of ours. And damage."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.shards import get_format
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import CHECKSUM, parse_sidecar, sealed


def our_frames(root: Path) -> dict[str, NDArray[np.uint8]]:
    shard_set, found = read_set(root), {}
    for sidecar in shard_set.sidecars:
        reader = get_format("webdataset").open(root / sidecar.shard, shard_set.recipe)
        found.update({sample.key: reader.frames(sample) for sample in sidecar.samples})
    return found


def test_plain_tarfile_and_numpy_read_the_shards(small_set: Path) -> None:
    ours, theirs = our_frames(small_set), {}
    for shard in small_set.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                body = tar.extractfile(member)
                assert body is not None
                if member.name.endswith(".frames.npy"):
                    theirs[member.name.removesuffix(".frames.npy")] = np.load(io.BytesIO(body.read()))
                else:
                    assert json.load(body)["key"] + ".json" == member.name
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_plain_webdataset_reads_the_shards(small_set: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, small_set.glob("*.tar")))
    ours = our_frames(small_set)
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert {sample["__key__"] for sample in samples} == set(ours)
    for sample in samples:
        assert np.array_equal(sample["frames.npy"], ours[sample["__key__"]])
        assert sample["json"]["label"] in ("cats", "dogs")


def test_frames_are_views_of_the_file_not_copies(small_set: Path) -> None:
    assert all(
        not frames.flags.owndata and not frames.flags.writeable for frames in our_frames(small_set).values()
    )


def test_the_index_has_every_sample_once_and_videos_in_one_split(small_set: Path) -> None:
    shard_set = read_set(small_set)
    train, val = shard_set.split("train"), shard_set.split("val")
    assert (len(train), len(val)) == (16, 8)
    assert not set(train.videos) & set(val.videos)
    assert train.labels == ("cats", "dogs")
    assert [train.labels[number] for number in train.label] == [sample.label for sample in train.samples]


def test_an_unknown_split_names_those_that_are(small_set: Path) -> None:
    with pytest.raises(UserError, match="no split 'test' with videos; there are train, val"):
        read_set(small_set).split("test")


def test_a_shard_that_ends_early_is_named(set_copy: Path) -> None:
    shard_set = read_set(set_copy)
    sidecar = next(sidecar for sidecar in shard_set.sidecars if sidecar.samples)
    os.truncate(set_copy / sidecar.shard, 2_000)
    reader = get_format("webdataset").open(set_copy / sidecar.shard, shard_set.recipe)
    with pytest.raises(UserError, match=f"{sidecar.shard}: .* ends behind the end of the file"):
        reader.frames(sidecar.samples[-1])


def test_an_empty_or_missing_shard_is_named(set_copy: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tar: cannot be read"):
        get_format("webdataset").open(set_copy / "none.tar", read_set(set_copy).recipe)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", "../../etc/passwd"), ("samples", 3), ("samples", [{"key": "a"}]), ("surprise", 1)],
)
def test_a_sidecar_from_a_stranger_is_checked(small_set: Path, field: str, value: object) -> None:
    path = sorted(small_set.glob("train-*.json"))[0]
    text = json.dumps({**json.loads(path.read_text()), field: value})
    with pytest.raises(UserError, match=r"a\.json: "):
        parse_sidecar(text, "a.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("offset", -5), ("offset", 2**63), ("frames", -1), ("frames", "many"), ("frames", True), ("sizes", [0])],
)
def test_offsets_and_lengths_in_a_sidecar_are_checked(small_set: Path, field: str, value: object) -> None:
    path = sorted(small_set.glob("train-*.json"))[0]
    values = json.loads(path.read_text())
    values["samples"][0][field] = value
    with pytest.raises(UserError, match=field):
        parse_sidecar(json.dumps(values), "a.json")


def test_a_sidecar_survives_the_round_trip(small_set: Path) -> None:
    for path in small_set.glob("train-*.json"):
        assert parse_sidecar(path.read_text(), "").text() == path.read_text()


def test_a_sidecar_may_name_files_that_are_not_utf8(small_set: Path) -> None:
    path = sorted(small_set.glob("train-*.json"))[0]
    text = sealed(path.read_text().rpartition(CHECKSUM)[0].replace("cats/", r"c\udce4ts/"))
    sidecar = parse_sidecar(text, "")
    assert sidecar.text() == text != path.read_text()
    with pytest.raises(UserError, match=r"a\.json: .*frames"):
        parse_sidecar(text.replace('"frames": ', '"frames": -'), "a.json")


def test_a_recipe_changed_by_hand_is_refused(set_copy: Path) -> None:
    path = set_copy / "recipe.json"
    path.write_text(path.read_text().replace('"fps": "5"', '"fps": "6"'))
    with pytest.raises(UserError, match="changed by hand"):
        read_set(set_copy)


def test_a_shard_that_was_rewritten_under_a_reader_gives_an_error_not_other_frames(set_copy: Path) -> None:
    shard_set = read_set(set_copy)
    one, two = [sidecar for sidecar in shard_set.sidecars if sidecar.samples][:2]
    (set_copy / one.shard).write_bytes((set_copy / two.shard).read_bytes())
    reader = get_format("webdataset").open(set_copy / one.shard, shard_set.recipe)
    with pytest.raises(UserError, match=r"is not where its sidecar says|behind the end"):
        list(map(reader.frames, one.samples))


def test_a_set_with_a_shard_gone_or_short_is_unfinished(set_copy: Path) -> None:
    first, second = sorted(set_copy.glob("*.tar"))[:2]
    os.truncate(first, 5)
    with pytest.raises(UserError, match=f"{first.name} is missing or cut short"):
        read_set(set_copy)
    first.unlink()
    second.unlink()
    with pytest.raises(UserError, match=f"{first.name} is missing or cut short"):
        read_set(set_copy)
