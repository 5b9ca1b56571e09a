"""Killed or stopped at any moment and run again, a build ends with the bytes of an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import set_bytes, write_video

from pipeline.driver import Wanted, build_set
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set


def start_build(
    source: Path, root: Path, workers: int, *more: str, stderr: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    # Where these tests run in a shell's background, Ctrl-C is ignored, and that is inherited.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "build-shards", str(source)]
    options = ["--out", str(root), "--workers", str(workers), "--videos-per-shard", "4", *more]
    # In a process group of its own, as a shell would start it
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)


def kill_once_it_writes(source: Path, root: Path, workers: int, delay: float) -> bool:
    """Kill a build some time after its first frames; returns whether the set was left unfinished."""
    build = start_build(source, root, workers)
    while build.poll() is None and not any(root.glob(".tmp-*-*@*-0*")):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    return read_set(root, whole=False).unfinished is not None


def stop_once(build: "subprocess.Popen[bytes]", root: Path, pattern: str, delay: float) -> str:
    """What a build says to a Ctrl-C, which a terminal sends to its workers, too."""
    while build.poll() is None and not any(root.glob(pattern)):
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(build.pid, signal.SIGINT)
    _, told = build.communicate()
    assert build.returncode == 128 + signal.SIGINT, told.decode()
    return told.decode()


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


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crash") / "videos"
    for number in range(16):
        path = root / ("cats", "dogs")[number % 2] / f"{number}.mp4"
        write_video(path, frames=300, size=(320, 240), salt=number)
    return root


@pytest.fixture(scope="module")
def expected(videos: Path) -> dict[str, bytes]:
    build_set(Wanted(videos, Recipe(), per_shard=4), videos.parent / "undisturbed")
    return set_bytes(videos.parent / "undisturbed")


def test_killed_builds_go_on_and_end_the_same(videos: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    kill_and_go_on(videos, tmp_path / "set", expected, kills=4, latest=0.1)


# While workers start, which is when they are easily interrupted, and while they decode
@pytest.mark.parametrize(("pattern", "delay"), [(".building", 0.5), (".tmp-*-*@*-0*", 0.02)])
def test_ctrl_c_ends_a_build_and_its_workers_in_one_line_and_it_goes_on(
    videos: Path, tmp_path: Path, expected: dict[str, bytes], pattern: str, delay: float
) -> None:
    build = start_build(videos, tmp_path / "set", 2, stderr=subprocess.PIPE)
    told = stop_once(build, tmp_path / "set", pattern, delay)
    assert "Traceback" not in told and "Aborted" not in told
    assert told.splitlines()[-1] == "Stopped; run the same command again, and it goes on from there"
    assert_it_ends_the_same(videos, tmp_path / "set", expected)


def test_who_stops_an_overwriting_build_is_not_told_to_overwrite_what_is_there_by_then(
    videos: Path, tmp_path: Path
) -> None:
    build = start_build(videos, tmp_path / "set", 0, "--overwrite", stderr=subprocess.PIPE)
    told = stop_once(build, tmp_path / "set", ".tmp-*-*@*-0*", 0)
    assert "run the same command without --overwrite, and it goes on from there" in told


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
