"""A cache of frames for the team: who builds the same videos decodes nothing, and nobody is harmed by it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import SMALL, build, edit_sidecar, set_bytes, write_video

from pipeline.recipe import Recipe
from pipeline.shards.codec import Zstd
from pipeline.shards.folder import LocalFolder
from pipeline.verify import verify_set

RECIPES = [
    SMALL,
    Recipe(width=32, height=32, format="zarr", codec="zstd"),
    Recipe(width=32, height=32, max_frames=3),
]


@pytest.fixture
def teammate(labelled_videos: Path, tmp_path: Path) -> Path:
    """The same videos under another root."""
    return Path(shutil.copytree(labelled_videos, tmp_path / "elsewhere" / "videos"))


@pytest.mark.parametrize("place", ["folder", "bucket"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_second_build_decodes_nothing_under_any_root_or_name(
    labelled_videos: Path, teammate: Path, bucket: str, tmp_path: Path, place: str, recipe: Recipe
) -> None:
    cache = str(tmp_path / "cache") if place == "folder" else f"{bucket}/cache/{recipe.fingerprint}"
    assert build(labelled_videos, tmp_path / "first", recipe=recipe, cache=cache).decoded == 8
    assert build(teammate, tmp_path / "second", recipe=recipe, cache=cache).decoded == 0
    build(labelled_videos, tmp_path / "alone", recipe=recipe)
    assert set_bytes(tmp_path / "first") == set_bytes(tmp_path / "second") == set_bytes(tmp_path / "alone")
    for path in list(teammate.rglob("*.mp4")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    (teammate / "cats").rename(teammate / "lions")
    report = build(teammate, tmp_path / "renamed", recipe=recipe, cache=cache)
    assert (report.decoded, report.copied) == (0, 8)
    build(teammate, tmp_path / "renamed-alone", recipe=recipe)
    assert set_bytes(tmp_path / "renamed") == set_bytes(tmp_path / "renamed-alone")


def test_another_recipe_finds_nothing_and_harms_nothing(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "first", cache=tmp_path / "cache")
    assert build(labelled_videos, tmp_path / "second", recipe=RECIPES[1], cache=tmp_path / "cache").decoded == 8
    assert build(labelled_videos, tmp_path / "third", cache=tmp_path / "cache").decoded == 0


def test_what_stands_in_it_does_not_say_whose_it_was(
    labelled_videos: Path, teammate: Path, tmp_path: Path
) -> None:
    (teammate / "cats").rename(teammate / "lions")
    build(labelled_videos, tmp_path / "first", cache=tmp_path / "cache")
    build(teammate, tmp_path / "second", cache=tmp_path / "other")
    found = set_bytes(tmp_path / "cache")
    assert found == set_bytes(tmp_path / "other") and len(found) == 2 * 8 + 1
    assert not any(b"cats" in content or b"videos" in content for content in found.values())


@pytest.mark.parametrize("how", ["flipped", "cut", "removed", "sidecar", "of another"])
def test_damaged_entries_are_noticed_and_made_again(labelled_videos: Path, tmp_path: Path, how: str) -> None:
    build(labelled_videos, tmp_path / "alone", cache=tmp_path / "cache")
    sound = set_bytes(tmp_path / "cache")
    first, second = sorted((tmp_path / "cache").rglob("*.tar"))[:2]
    data = first.read_bytes()
    if how == "of another":
        first.write_bytes(second.read_bytes())
        first.with_suffix(".json").write_bytes(second.with_suffix(".json").read_bytes())
    elif how == "sidecar":
        first.with_suffix(".json").write_text("{}")
    elif how == "removed":
        first.unlink()
    else:
        middle = len(data) // 2
        first.write_bytes(data[:middle] + (bytes([data[middle] ^ 1]) + data[middle + 1 :]) * (how == "flipped"))
    assert build(labelled_videos, tmp_path / "set", cache=tmp_path / "cache").decoded == 1
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "alone")
    assert set_bytes(tmp_path / "cache") == sound


def _entries(cache: Path, recipe: Recipe) -> list[Path]:
    """The sidecars, by the source."""
    return sorted((cache / recipe.fingerprint).glob("*/*.json"))


def _overlong(cache: Path, videos: Path, recipe: Recipe) -> None:
    """Each video as one sample, longer than the recipe has them."""
    longer = replace(recipe, max_frames=64)
    build(videos, cache / "set", recipe=longer, cache=cache)
    for entry, other in zip(_entries(cache, recipe), _entries(cache, longer), strict=True):
        shutil.copy(other.with_suffix(".tar"), entry.with_suffix(".tar"))
        shutil.copy(other, entry)
        edit_sidecar(entry, fingerprint=recipe.fingerprint)


def _with_other_checksums(cache: Path, _: Path, recipe: Recipe) -> None:
    for entry in _entries(cache, recipe):
        samples = json.loads(entry.read_text())["samples"]
        edit_sidecar(entry, samples=[{**sample, "crc32c": "0" * 800} for sample in samples])


def _with_other_names(cache: Path, _: Path, recipe: Recipe) -> None:
    for entry in _entries(cache, recipe):
        samples = json.loads(entry.read_text())["samples"]
        edit_sidecar(entry, samples=[{**sample, "video": "\x1b[2J"} for sample in samples])


@pytest.mark.parametrize("spoil", [_overlong, _with_other_checksums, _with_other_names])
def test_an_entry_that_no_build_makes_does_not_come_into_a_set(
    labelled_videos: Path, tmp_path: Path, spoil: Callable[[Path, Path, Recipe], None]
) -> None:
    recipe = Recipe(width=32, height=32, max_frames=3)
    build(labelled_videos, tmp_path / "alone", recipe=recipe, cache=tmp_path / "cache")
    spoil(tmp_path / "cache", labelled_videos, recipe)
    assert build(labelled_videos, tmp_path / "set", recipe=recipe, cache=tmp_path / "cache").decoded == 8
    assert set_bytes(tmp_path / "set") == set_bytes(tmp_path / "alone")
    assert build(labelled_videos, tmp_path / "again", recipe=recipe, cache=tmp_path / "cache").decoded == 0


def test_frames_that_cannot_be_decoded_do_not_come_into_a_set(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(width=32, height=32, codec="zstd")
    with monkeypatch.context() as patch:
        patch.setattr(Zstd, "encode", lambda *_: b"no frames")
        build(labelled_videos, tmp_path / "bad", recipe=recipe, cache=tmp_path / "cache")
    assert build(labelled_videos, tmp_path / "set", recipe=recipe, cache=tmp_path / "cache").decoded == 8
    assert not verify_set(tmp_path / "set", deep=True).damage


def test_a_cache_that_fails_costs_a_warning(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(labelled_videos, tmp_path / "alone")
    put = LocalFolder.put

    def full(self: LocalFolder, made: Path, name: str, *rest: Any) -> None:
        if self.root == tmp_path / "cache":
            raise OSError(28, "No space left on device")
        put(self, made, name, *rest)

    monkeypatch.setattr(LocalFolder, "put", full)
    (warning,) = build(labelled_videos, tmp_path / "set", cache=tmp_path / "cache", val=0.5).warnings[-1:]
    assert "cannot be written: OSError" in warning and "No space left" in warning
    (tmp_path / "file").touch()
    report = build(labelled_videos, tmp_path / "other", cache=tmp_path / "file")
    assert report.decoded == 8 and set_bytes(tmp_path / "other") == set_bytes(tmp_path / "alone")
    assert f"--cache {tmp_path / 'file'}" in report.warnings[-1]


def test_a_bad_video_is_no_part_of_it_and_a_video_cut_short_is(labelled_videos: Path, tmp_path: Path) -> None:
    (labelled_videos / "cats" / "bad.mp4").write_bytes(b"no video")
    whole = write_video(tmp_path / "whole.mkv", frames=90, codec="mpeg4").read_bytes()
    (labelled_videos / "cats" / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    build(labelled_videos, tmp_path / "alone")
    build(labelled_videos, tmp_path / "first", cache=tmp_path / "cache")
    report = build(labelled_videos, tmp_path / "second", cache=tmp_path / "cache")
    assert report.decoded == 0 and report.copied + report.rejected == 10
    assert set_bytes(tmp_path / "alone") == set_bytes(tmp_path / "first") == set_bytes(tmp_path / "second")


def test_other_peoples_files_in_it_stay(labelled_videos: Path, bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("s3").pipe_file("team/shared-cache/thesis.txt", b"mine")
    build(labelled_videos, tmp_path / "set", cache=f"{bucket}/shared-cache")
    assert fsspec.filesystem("s3").cat_file("team/shared-cache/thesis.txt") == b"mine"
