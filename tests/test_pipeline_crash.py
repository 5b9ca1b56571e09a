"""Killed at any moment and run again, a build ends with the bytes of an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import set_bytes, write_video

from pipeline.driver import Wanted, build_set
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set


def start_build(source: Path, root: Path, workers: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", str(source)]
    options = ["--out", str(root), "--workers", str(workers), "--videos-per-shard", "4"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_once_it_writes(source: Path, root: Path, workers: int, delay: float) -> bool:
    """Kill a build some time after its first frames; returns whether the set was left unfinished."""
    build = start_build(source, root, workers)
    while build.poll() is None and not any(root.glob(".tmp-*-*@*-0*")):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    return read_set(root, whole=False).unfinished is not None


def kill_and_go_on(source: Path, root: Path, expected: dict[str, bytes], kills: int, latest: float) -> None:
    dice = random.Random(kills)
    landed = 0
    for attempt in range(2 * kills):  # each is to meet a build that has something left to do
        unfinished = kill_once_it_writes(source, root, (0, 2)[attempt % 2], dice.uniform(0, latest))
        landed += unfinished
        if landed == kills:
            break
        if not unfinished:
            assert_it_ends_the_same(source, root, expected)
            shutil.rmtree(root)
    assert landed == kills
    assert_it_ends_the_same(source, root, expected)


def assert_it_ends_the_same(source: Path, root: Path, expected: dict[str, bytes]) -> None:
    time.sleep(1)  # orphaned workers notice and go
    assert start_build(source, root, 2).wait() == 0
    assert set_bytes(root) == expected


def test_killed_builds_go_on_and_end_the_same(tmp_path: Path) -> None:
    for number in range(16):
        path = tmp_path / "videos" / ("cats", "dogs")[number % 2] / f"{number}.mp4"
        write_video(path, frames=300, size=(320, 240), salt=number)
    build_set(Wanted(tmp_path / "videos", Recipe(), per_shard=4), tmp_path / "undisturbed")
    expected = set_bytes(tmp_path / "undisturbed")
    kill_and_go_on(tmp_path / "videos", tmp_path / "set", expected, kills=4, latest=0.1)


def test_kills_of_a_build_of_the_real_clips(
    real_clips: Path, tmp_path: Path, exhaustive: bool, kills: int
) -> None:
    source = real_clips / "videos.csv"
    if not exhaustive:
        source = tmp_path / "videos"
        (source / "fight").mkdir(parents=True)
        for path in sorted((real_clips / "fight").iterdir())[:40]:
            (source / "fight" / path.name).symlink_to(path)
    build_set(Wanted(source, Recipe(), per_shard=4), tmp_path / "undisturbed")
    expected = set_bytes(tmp_path / "undisturbed")
    kill_and_go_on(source, tmp_path / "set", expected, kills, latest=2.0 if exhaustive else 0.5)
