"""Builds that a full disk or a kill meets while they write what is not frames, and that go on afterwards."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, set_bytes

from pipeline.cli import main
from pipeline.shards.folder import LocalFolder
from pipeline.verify import verify_set

# What is written when it happens: a shard in hand, the set in the making, a sidecar.
MOMENTS = ("train-000000.lease", ".building", "train-000000.json", "recipe.json")
OPTIONS = ("--size", "32", "--videos-per-shard", "2", "--workers", "0")
KILLED = """
import os, sys
from pipeline.cli import main
from pipeline.shards.folder import LocalFolder
moment, flushed = sys.argv.pop(1), LocalFolder._flushed
def killed(self, name, text):
    made = flushed(self, name, text)
    if name.endswith(moment):
        made.write_text(text[: len(text) // 2])
        os._exit(9)
    return made
LocalFolder._flushed = killed
main()
"""


def build(videos: Path, root: Path) -> Result:
    return CliRunner().invoke(main, ["build-shards", str(videos), "--out", str(root), *OPTIONS])


def assert_it_goes_on(videos: Path, root: Path) -> None:
    again = build(videos, root)
    assert again.exit_code == 0, again.output
    assert build(videos, alone := videos.parent / "alone").exit_code == 0
    assert set_bytes(root) == set_bytes(alone)
    assert not verify_set(root, deep=True).damage


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    with (filler := disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_fills_up_is_named_and_the_build_goes_on_when_there_is_room(
    labelled_videos: Path, small_disk: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = LocalFolder._flushed

    def full(self: LocalFolder, name: str, text: str) -> Path:
        if name.endswith(moment):
            fill(small_disk)
        return flushed(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "_flushed", full)
        failed = build(labelled_videos, small_disk / "set")
    assert_one_clear_line(failed, 1, "No space left on device")
    assert f"Error: {small_disk}/set" in failed.stderr and "make room there" in failed.stderr
    assert "\\n" not in failed.stderr
    (small_disk / "filler").unlink()
    assert_it_goes_on(labelled_videos, small_disk / "set")


def test_a_disk_that_is_full_from_the_start_is_named(labelled_videos: Path, small_disk: Path) -> None:
    filler = fill(small_disk)
    failed = build(labelled_videos, small_disk / "set")
    assert_one_clear_line(failed, 1, "No space left on device; make room there")
    assert f"Error: {small_disk}/set/" in failed.stderr
    filler.unlink()
    assert_it_goes_on(labelled_videos, small_disk / "set")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_that_is_killed_while_it_writes_goes_on(
    labelled_videos: Path, tmp_path: Path, moment: str
) -> None:
    command = [sys.executable, "-c", KILLED, moment, "build-shards", str(labelled_videos)]
    killed = subprocess.run([*command, "--out", str(tmp_path / "set"), *OPTIONS], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert_it_goes_on(labelled_videos, tmp_path / "set")
