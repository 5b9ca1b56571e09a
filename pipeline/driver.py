"""The whole of `prep build-shards`: from a source of videos to a finished set."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import cluster
from pipeline.build import Built, build_shard
from pipeline.errors import UserError, WorkFailed
from pipeline.estimate import Estimate, estimate
from pipeline.places import is_url, local_file
from pipeline.plan import Plan, ShardTask, assign_splits, lost_videos, plan, redirect, split_warnings
from pipeline.recipe import Recipe
from pipeline.report import Stage, no_stage
from pipeline.shards.directory import Standing, begin, end, look_at_set, open_set, scan, snapshot
from pipeline.shards.folder import Folder, file_sha256, get_folder
from pipeline.sources import Video, list_videos


@dataclass(frozen=True)
class BuildReport:
    """What a build did: videos decoded, copied and rejected in the shards it wrote, shards left alone, and
    what to warn of."""

    decoded: int
    copied: int
    rejected: int
    shards_written: int
    shards_kept: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What a set is to hold: which videos, in which splits and how many to a shard, and what may go.

    `val`, `test`: shares of the groups where the source names no split; `unlabelled`: the source has no labels;
    `prune`: videos that the source no longer has are dropped; `retry_rejected`: those that were rejected are tried
    again.
    """

    source: Path | str
    recipe: Recipe
    val: float = 0.2
    test: float = 0.0
    split_seed: int = 0
    group_by: str | None = None
    unlabelled: bool = False
    per_shard: int = 32
    prune: bool = False
    retry_rejected: bool = False


def build_set(
    wanted: Wanted,
    root: Path | str,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    overwrite: bool = False,
    max_rejects: int | None = None,
    time_limit: float = 120.0,
    stage: Stage = no_stage,
) -> BuildReport:
    """Make the set at `root` hold the videos of its source, and exactly those.

    What stands already is kept: frames whose source bytes are the same are copied, never decoded again.
    A video that crashes its decoder, or gives no frame for `time_limit` seconds, is rejected like any other bad
    one (not with `workers` 0: there is no other process). Raises `UserError` for wrong use, `WorkFailed` where
    shards could not be written, or where more than `max_rejects` videos were rejected: finished shards stay.
    """
    videos, asked = _videos(wanted)
    folder = _folder(root)
    open_set(folder, wanted.recipe, overwrite=overwrite)
    folder.sweep()
    standing = scan(folder, wanted.recipe)
    todo = _plan(wanted, videos, standing, stage)
    before = begin(folder)
    built = _carry_out(todo, standing, folder, wanted.recipe, workers, scheduler, max_rejects, time_limit, stage)
    end(folder, before, set(todo.names))
    folder.sweep()
    return BuildReport(
        decoded=sum(shard.decoded for shard in built),
        copied=sum(shard.copied for shard in built),
        rejected=sum(shard.rejected for shard in built),
        shards_written=len(built),
        shards_kept=len(todo.names) - len(built),
        warnings=tuple(split_warnings(videos, asked)),
    )


def estimate_set(
    wanted: Wanted, root: Path | str, *, workers: int = 0, overwrite: bool = False, stage: Stage = no_stage
) -> Estimate:
    """What `build_set` would make and take. Makes and removes nothing. Raises `UserError` as it does."""
    videos, _ = _videos(wanted)
    standing = look_at_set(_folder(root), wanted.recipe, overwrite=overwrite)
    return estimate(videos, _plan(wanted, videos, standing, stage), wanted.recipe, workers)


def _folder(place: Path | str) -> Folder:
    # Absolute: the workers of a running cluster stand in folders of their own.
    return get_folder(place if is_url(place) else Path(place).absolute())


def _videos(wanted: Wanted) -> tuple[list[Video], dict[str, float]]:
    """The videos, each with a split, and the shares that were asked for where the source names no split."""
    place = wanted.source
    videos = list_videos(
        place if is_url(place) else Path(place).absolute(), wanted.group_by, labelled=not wanted.unlabelled
    )
    asked = {} if any(video.split for video in videos) else {"val": wanted.val, "test": wanted.test}
    return assign_splits(videos, wanted.val, wanted.test, wanted.split_seed), asked


def _plan(wanted: Wanted, videos: list[Video], standing: Standing, stage: Stage) -> Plan:
    # A set that starts from nothing has nothing to compare with: its workers read each source once.
    digests = read_digests(videos, stage) if standing.frames or standing.shards else {}
    lost = lost_videos(videos, digests, standing)
    if lost and not wanted.prune:
        raise UserError(
            f"{len(lost)} videos of the set are no longer in {wanted.source} or cannot be read, the first is "
            f"{lost[0]}: pass --prune to drop them from the set, or give another --out for another set"
        )
    if wanted.retry_rejected:
        standing.forget_rejected()
    return plan(videos, digests, standing, wanted.per_shard)


def read_digests(videos: Sequence[Video], stage: Stage = no_stage) -> dict[str, str]:
    """SHA-256 of every source that can be read, by video id. Threads suffice: hashing releases the GIL."""
    step = stage("hashing", len(videos))

    def digest(video: Video) -> str | None:
        try:
            with local_file(video.path) as path:
                return file_sha256(path)
        except OSError:
            return None  # the worker that decodes it will say why
        finally:
            step(1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(digest, videos)
        return {video.id: sha for video, sha in zip(videos, found, strict=True) if sha}


def _stop_at(max_rejects: int | None, rejected: int) -> None:
    if max_rejects is not None and rejected > max_rejects:
        raise WorkFailed(
            f"stopped: {rejected} videos were rejected, --max-rejects is {max_rejects}; `prep inspect` says which "
            "and why, and the finished shards stay"
        )


def _carry_out(
    todo: Plan,
    standing: Standing,
    folder: Folder,
    recipe: Recipe,
    workers: int,
    scheduler: str | None,
    max_rejects: int | None,
    time_limit: float,
    stage: Stage,
) -> list[Built]:
    if not todo.tasks:
        return []
    moved = {standing.shards[name].shard: snapshot(folder, standing.shards[name]) for name in todo.snapshots}
    tasks = [redirect(task, moved) for task in todo.tasks]
    step = stage("building", sum(len(task.videos) for task in tasks))
    work = partial(build_shard, root=str(folder), recipe=recipe)
    built: list[Built] = []
    failed: dict[str, Exception] = {}
    died: list[ShardTask] = []

    def collect(task: ShardTask, result: Built | Exception) -> None:
        if isinstance(result, Built):
            built.append(result)
            _stop_at(max_rejects, sum(shard.rejected for shard in built))
        else:
            failed[task.name] = result

    where: dict[str, Any] = {"workers": workers, "scheduler": scheduler}
    for task, result in cluster.run(work, tasks, step, **where, time_limit=time_limit):
        if isinstance(result, cluster.WorkerDied):
            died.append(task)
        else:
            collect(task, result)
    if died:
        # One video of these shards ends its worker: each gets a process of its own, and that one is found.
        step = stage("building apart", sum(len(task.videos) for task in died))
        apart = partial(work, time_limit=time_limit)
        for task, result in cluster.run(apart, died, step, **where, time_limit=2 * time_limit):
            collect(task, _died_again(task) if isinstance(result, cluster.WorkerDied) else result)
    if failed:
        reasons = [f"{name}: {type(error).__name__}: {error}" for name, error in failed.items()]
        raise WorkFailed(
            f"{len(failed)} of {len(tasks)} shards could not be written; the others are safe, and the same "
            "command goes on from there\n  " + "\n  ".join(reasons[:10])
        )
    return built


def _died_again(task: ShardTask) -> WorkFailed:
    names = ", ".join(video.id for video in task.videos)
    return WorkFailed(
        "its worker ended twice, the second time with each video decoded in a process of its own: it was out of "
        "memory, or heard nothing from a disk or server for longer than --time-limit; try fewer --workers or a "
        f"longer --time-limit, or take the video that does it out of the source. It holds {names}"
    )
