"""Several builders of one set: each video decoded once, the same bytes, and nobody harmed when one is killed."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, build, set_bytes, write_video
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import build as build_module
from pipeline.build import Elsewhere, Job, build_shard
from pipeline.driver import Wanted, build_set
from pipeline.errors import UserError
from pipeline.machine import machine
from pipeline.plan import ShardTask, goal
from pipeline.recipe import Recipe
from pipeline.report import no_report
from pipeline.shards import builders
from pipeline.shards.builders import BUILDERS, LEASE, MARK, Crew, lease
from pipeline.shards.directory import BUILDING
from pipeline.shards.folder import LocalFolder, get_folder
from pipeline.shards.index import read_set
from pipeline.sources import Video, list_videos

LOGGED = """
import sys
from pipeline import build
from pipeline.cli import main
log, decode = sys.argv.pop(1), build._Filling._decode_file
def logged(self, video, *rest):
    with open(log, "a") as file:
        file.write(video.id + "\\n")
    decode(self, video, *rest)
build._Filling._decode_file = logged
main()
"""
Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    for number in range(24):
        path = root / "videos" / ("cats", "dogs")[number % 2] / f"{number}.mp4"
        write_video(path, frames=150, size=(160, 120), salt=number)
    build_set(Wanted(root / "videos", Recipe(), per_shard=2), root / "alone")
    return root


def start(videos: Path, out: str, log: Path) -> Process:
    options = ["--out", out, "--workers", "0", "--videos-per-shard", "2", "--json"]
    command = [sys.executable, "-c", LOGGED, str(log), "build-shards", str(videos / "videos"), *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(processes: Sequence[Process]) -> int:
    """How many videos they say that they decoded."""
    decoded = 0
    for process in processes:
        output, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        decoded += json.loads(output)["decoded"]
    return decoded


def contents(out: str) -> dict[str, bytes]:
    folder = get_folder(out)
    if isinstance(folder, LocalFolder):
        return set_bytes(Path(out))
    found = {}
    for name in folder.names():
        with folder.local(name) as path:
            found[name] = path.read_bytes()
    return found


def kill_one(processes: list[Process], out: str, dice: random.Random) -> bool:
    """Kill one of them while it has a shard in hand; whether that came about."""
    victim, folder = dice.choice(processes), get_folder(out)

    def in_hand() -> bool:
        texts = {}
        for name in folder.names(BUILDERS):
            try:
                texts[name] = folder.read(f"{BUILDERS}/{name}")
            except FileNotFoundError:
                continue
        leases = {text for name, text in texts.items() if name.endswith(LEASE)}
        marks = [json.loads(text) for name, text in texts.items() if name.endswith(MARK)]
        return any(mark["pid"] == victim.pid and mark["token"] in leases for mark in marks)

    while victim.poll() is None and not in_hand():
        time.sleep(0.01)
    time.sleep(dice.uniform(0, 0.2))
    victim.kill()
    victim.communicate()
    processes.remove(victim)
    return victim.returncode == -9 and in_hand()


def four_builders(videos: Path, out: str, log: Path, dice: random.Random | None) -> tuple[int, Counter[str], bool]:
    """What they decoded by their own word and by the log, and whether one was killed in the middle of a shard."""
    processes = [start(videos, out, log) for _ in range(4)]
    hit = kill_one(processes, out, dice) if dice else False
    said = finish(processes)
    assert contents(out) == set_bytes(videos / "alone")
    return said, Counter(log.read_text().split()), hit


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_four_builders_decode_each_video_once(videos: Path, bucket: str, tmp_path: Path, place: str) -> None:
    out = str(tmp_path / "set") if place == "folder" else f"{bucket}/four"
    said, decoded, _ = four_builders(videos, out, tmp_path / "log", None)
    assert said == 24 and len(decoded) == 24 and set(decoded.values()) == {1}


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_one_of_four_is_killed(videos: Path, bucket: str, tmp_path: Path, place: str, exhaustive: bool) -> None:
    if not exhaustive and place == "bucket":
        pytest.skip("takes half a minute; --exhaustive kills there, too")
    shard_of = {s.video: item.shard for item in read_set(videos / "alone").sidecars for s in item.samples}
    dice, landed, twice, kills = random.Random(place), 0, 0, 10 if exhaustive else 1
    for attempt in range(3 * kills + 7):  # some are killed too early or too late
        out = str(tmp_path / f"set{attempt}") if place == "folder" else f"{bucket}/killed{attempt}"
        said, decoded, hit = four_builders(videos, out, tmp_path / f"log{attempt}", dice)
        again = {video for video, count in decoded.items() if count > 1}
        assert len(decoded) == 24 and said <= 24 and set(decoded.values()) <= {1, 2}
        assert len({shard_of[video] for video in again}) <= 1  # what the killed one had in hand
        landed, twice = landed + hit, twice + len(again)
        if landed == kills:
            break
    text = f"{place}: {landed} killed with a shard in hand, {twice} of {24 * (attempt + 1)} videos decoded twice"
    sys.stdout.write(text + "\n")
    assert landed == kills


# In one process


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders are of another machine: only the age of their marks tells."""
    monkeypatch.setattr(builders, "machine", lambda: "elsewhere")


def goal_of(videos: Path) -> str:
    from pipeline.plan import assign_splits

    return goal(assign_splits(list_videos(videos), 0.2), SMALL, 2)


def test_a_builder_of_something_else_is_refused_and_told_of_the_first(
    labelled_videos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    build(labelled_videos, root)
    before = set_bytes(root)
    refusal = rf"\(pid {os.getpid()}, since .*other videos or with other options"
    with Crew(str(root), "another goal").joined(), pytest.raises(UserError, match=refusal):
        build(labelled_videos, root)
    with Crew(str(root), goal_of(labelled_videos)).joined():
        with pytest.raises(UserError, match="--overwrite would remove what it makes"):
            build(labelled_videos, root, overwrite=True)
        assert build(labelled_videos, root).shards_written == 0
    assert set_bytes(root) == before


def test_who_joins_does_not_read_what_others_have_made(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    build(labelled_videos, root)
    expected = set_bytes(root)
    for path in list(root.glob("train-*1.*")):
        path.unlink()
    monkeypatch.setattr("pipeline.driver.read_digests", lambda *_: pytest.fail("read the sources"))
    with Crew(str(root), goal_of(labelled_videos)).joined():
        assert build(labelled_videos, root).shards_written > 0
        assert not (root / BUILDING).exists()  # nobody has a shard in hand, and all stand
    assert set_bytes(root) == expected


SAID = {"token": "t", "goal": "g", "host": "h", "pid": 1, "machine": "m", "since": "s"}
NO_MARKS = {
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 200_000,
    "twice": b'{"token": "t", "token": "t"}',
    "of another": json.dumps(SAID).encode(),
    "a list for a token": json.dumps({**SAID, "token": []}).encode(),
    "a number for a host": json.dumps({**SAID, "token": "x", "host": 1}).encode(),
    "a host without end": json.dumps({**SAID, "token": "x", "host": "h" * 1000}).encode(),
    "a process that is none": json.dumps({**SAID, "token": "x", "pid": 0}).encode(),
}


@pytest.mark.parametrize("name", NO_MARKS)
def test_what_is_no_mark_or_lease_is_nobodys(name: str, labelled_videos: Path, tmp_path: Path) -> None:
    crew, root = tmp_path / "set" / BUILDERS, tmp_path / "set"
    crew.mkdir(parents=True)
    (crew / f"x{MARK}").write_bytes(NO_MARKS[name])
    (crew / f"train-000000{LEASE}").write_bytes(NO_MARKS[name])
    assert build(labelled_videos, root).decoded == 8
    assert read_set(root).splits and not crew.exists()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("age", [0, 1000])
def test_a_lease_is_worth_as_much_as_its_builders_sign_of_life(tmp_path: Path, age: int) -> None:
    first, second = Crew(str(tmp_path), "goal"), Crew(str(tmp_path), "goal")
    folder, stack = LocalFolder(tmp_path), ExitStack()
    with second.joined():
        first._renew()
        assert stack.enter_context(lease(folder, "train-000000", first.mark.token))
        path = tmp_path / BUILDERS / f"{first.mark.token}{MARK}"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        held = second.holders(["train-000000", "train-000001"])
        assert list(held.values()) == ([] if age else [first.mark])
        with lease(folder, "train-000000", second.mark.token) as ours:
            assert ours == bool(age)


def test_who_lost_its_lease_throws_its_shard_away(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ShardTask(
        "train", 0, 1, (Video("a", str(labelled_videos / "cats" / "0.mp4"), "cats", "a", "train"),), {}
    )
    add = build_module._Filling.add

    def slept(self: Any, item: Any) -> None:
        add(self, item)
        (tmp_path / "set" / BUILDERS / f"train-000000{LEASE}").write_text("another")

    job = Job(str(tmp_path / "set"), SMALL, builder="me")
    with monkeypatch.context() as patch:
        patch.setattr(build_module._Filling, "add", slept)
        assert build_shard(task, no_report, job) is Elsewhere.IN_HAND
    assert build_shard(task, no_report, job) is Elsewhere.IN_HAND
    assert not list((tmp_path / "set").glob("train*")) and not list((tmp_path / "set").glob(".tmp*"))


def test_what_another_has_finished_meanwhile_is_not_made_again(labelled_videos: Path, tmp_path: Path) -> None:
    task = ShardTask(
        "train", 0, 1, (Video("a", str(labelled_videos / "cats" / "0.mp4"), "cats", "a", "train"),), {}
    )
    assert not isinstance(build_shard(task, no_report, Job(str(tmp_path), SMALL, builder="one")), Elsewhere)
    assert build_shard(task, no_report, Job(str(tmp_path), SMALL, builder="two")) is Elsewhere.DONE


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_set_whose_shards_are_all_there_is_finished_though_another_has_not_left_yet(
    labelled_videos: Path, tmp_path: Path, place: str
) -> None:
    out = str(tmp_path / "set") if place == "folder" else "memory://all-there"
    with Crew(out, goal_of(labelled_videos)).joined():
        build(labelled_videos, out)
        assert get_folder(out).size(BUILDING) is None


def test_without_exclusive_creation_the_set_is_the_same(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(labelled_videos, tmp_path / "alone")
    pipe = MemoryFileSystem.pipe_file

    def knows_no_conditions(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create":
            raise NotImplementedError
        pipe(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", knows_no_conditions)
    assert build(labelled_videos, "memory://no-conditions").decoded == 8
    assert contents("memory://no-conditions") == set_bytes(tmp_path / "alone")


def test_files_have_the_permissions_of_the_sets_folder(labelled_videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    root.chmod(0o770)
    old = os.umask(0o077)
    try:
        build(labelled_videos, root, recipe=Recipe(width=32, height=32, format="zarr"))
    finally:
        os.umask(old)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in root.rglob("*")}
    assert modes == {True: 0o770, False: 0o660}


def test_a_process_of_another_container_is_not_taken_for_a_dead_one_of_this(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    with folder.making("train-000000") as mine:
        theirs = mine.with_name(mine.name.replace(str(os.getpid()), "4194999").replace(machine(), "0" * 12))
        theirs.touch()
        folder.sweep()
        assert theirs.exists()
        os.utime(theirs, (0, 0))
        folder.sweep()
        assert not theirs.exists()
