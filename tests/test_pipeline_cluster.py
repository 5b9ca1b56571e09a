"""A cluster that runs already: real scheduler and worker processes on loopback, also when one is killed."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import dask_cluster, set_bytes, write_video

from pipeline import cluster
from pipeline.driver import Wanted, build_set
from pipeline.errors import UserError, WorkFailed
from pipeline.recipe import Recipe
from pipeline.report import Report
from pipeline.shards.index import read_set

SMALL = Recipe(width=32, height=32)
# Workers stand elsewhere: what is sent to them is source, not this file's name.
wait_a_little = eval("lambda seconds, report: __import__('time').sleep(seconds) or seconds")


def test_a_running_scheduler_serves_though_its_workers_stand_elsewhere(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_set(Wanted(labelled_videos, SMALL, per_shard=2), tmp_path / "local")
    monkeypatch.chdir(tmp_path)
    with dask_cluster(tmp_path, workers=1) as (address, _):
        report = build_set(Wanted(Path("videos"), SMALL, per_shard=2), Path("remote"), scheduler=address)
    assert report.decoded == 8
    assert set_bytes(tmp_path / "remote") == set_bytes(tmp_path / "local")


def test_a_worker_that_is_killed_costs_time_and_nothing_else(tmp_path: Path) -> None:
    videos, root = tmp_path / "videos", tmp_path / "remote"
    for number in range(16):
        write_video(videos / "cats" / f"{number}.mp4", frames=300, size=(320, 240), salt=number)
    build_set(Wanted(videos, SMALL, per_shard=2), tmp_path / "local")
    left: list[str | None] = []

    def kill(worker: "subprocess.Popen[bytes]") -> None:
        while not any(root.glob(".tmp-*@train-*")):
            time.sleep(0.002)
        worker.kill()
        worker.wait()
        left.append(read_set(root, whole=False).unfinished)

    with dask_cluster(tmp_path, workers=2) as (address, processes):
        killer = threading.Thread(target=kill, args=(processes[1],))
        killer.start()
        build_set(Wanted(videos, SMALL, per_shard=2), root, scheduler=address)
        killer.join()
    assert left[0] is not None  # it met a build in progress
    assert set_bytes(root) == set_bytes(tmp_path / "local")


def test_more_tasks_than_the_scheduler_is_given_at_once_are_all_done(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WINDOW", 2)
    wanted = Wanted(labelled_videos, SMALL, per_shard=1)
    report = build_set(wanted, tmp_path / "set", workers=1)
    assert report.decoded == 8 and report.shards_written > 4


def test_a_scheduler_that_dies_ends_the_work_with_one_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    with dask_cluster(tmp_path, workers=1) as (address, processes):
        found = cluster.run(wait_a_little, [0, 4], lambda _: None, workers=0, scheduler=address, time_limit=90.0)
        assert next(found) == (0, 0)
        processes[0].kill()
        with pytest.raises(WorkFailed, match=rf"--scheduler {address}: the connection .* goes on from there"):
            next(found)


def test_no_scheduler_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(task: int, report: Report) -> int:
        report(1)
        return task

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="no Dask scheduler answers there"):
        list(cluster.run(work, [1], lambda _: None, workers=0, scheduler="tcp://127.0.0.1:1", time_limit=9.0))


def test_in_process_each_task_yields_its_result_or_its_error() -> None:
    def work(task: int, report: Report) -> float:
        report(1)
        return 1 / task

    steps: list[int] = []
    found = list(cluster.run(work, [1, 0, 2], steps.append, workers=0, time_limit=9.0))
    assert [task for task, _ in found] == [1, 0, 2]
    assert found[0][1] == 1 and isinstance(found[1][1], ZeroDivisionError) and found[2][1] == 0.5
    assert steps == [1, 1, 1]
