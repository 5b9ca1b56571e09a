"""Killed at any moment and run again, a build ends with the bytes of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import set_bytes

from pipeline.driver import build_set
from pipeline.recipe import Recipe


def start_build(source: Path, root: Path, workers: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", str(source)]
    options = ["--out", str(root), "--workers", str(workers), "--videos-per-shard", "4"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_at_random_moments(
    source: Path, root: Path, kills: int, latest: float, expected: dict[str, bytes]
) -> None:
    dice = random.Random(kills)
    for kill in range(kills):
        workers = (0, 2)[kill % 2]
        build = start_build(source, root, workers)
        time.sleep(dice.uniform(0.2, latest))
        os.kill(build.pid, signal.SIGKILL)
        build.wait()
    time.sleep(1)  # orphaned workers notice and go
    last = start_build(source, root, 2)
    assert last.wait() == 0
    assert set_bytes(root) == expected


def test_killed_builds_go_on_and_end_the_same(labelled_videos: Path, tmp_path: Path) -> None:
    build_set(labelled_videos, tmp_path / "undisturbed", Recipe(), per_shard=4, workers=0)
    expected = set_bytes(tmp_path / "undisturbed")
    kill_at_random_moments(labelled_videos, tmp_path / "set", 2, 0.8, expected)


def test_ten_kills_of_a_build_of_the_real_clips(real_clips: Path, tmp_path: Path, exhaustive: bool) -> None:
    source = real_clips / "videos.csv" if exhaustive else real_clips / "fight"
    if not exhaustive:  # a folder of one label's clips: a hundred and fifty are enough for two kills
        source = tmp_path / "videos"
        source.mkdir()
        (source / "fight").symlink_to(real_clips / "fight")
    build_set(source, tmp_path / "undisturbed", Recipe(), per_shard=4, workers=0)
    expected = set_bytes(tmp_path / "undisturbed")
    kills = 10 if exhaustive else 2
    kill_at_random_moments(source, tmp_path / "set", kills, 9.0 if exhaustive else 3.0, expected)
