"""The whole of `prep build-shards`: from a source of videos to a finished set."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import cluster
from pipeline.build import Built, Elsewhere, Job, build_shard
from pipeline.digests import read_digests
from pipeline.errors import UserError, WorkFailed
from pipeline.estimate import Estimate, estimate
from pipeline.places import absolute, is_url
from pipeline.plan import (
    Plan,
    ShardTask,
    assign_splits,
    goal,
    group_warnings,
    lost_videos,
    plan,
    plan_to_join,
    redirect,
    split_warnings,
)
from pipeline.recipe import Recipe
from pipeline.report import Stage, Step, no_stage
from pipeline.shards.builders import Crew, names_of
from pipeline.shards.directory import (
    Standing,
    all_there,
    begin,
    check_set,
    drop,
    look_at_set,
    open_set,
    scan,
    snapshot,
    standing_shard,
    unmark,
)
from pipeline.shards.folder import Folder, get_folder, told, way_out
from pipeline.shards.frame_cache import FrameCache
from pipeline.sources import Video, list_videos

LOG = logging.getLogger(__name__)
POLL_SECONDS = 1.0  # between two looks at what other builders have in hand


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
    cache: Path | str | None = None,
    stage: Stage = no_stage,
) -> BuildReport:
    """Make the set at `root` hold the videos of its source, and exactly those.

    What stands already is kept: frames whose source bytes are the same are copied, never decoded again.
    Any number of builders may do so at once, if they want the same; `shards.builders` says how. `cache`: where
    frames of the same source bytes and recipe are looked for, and put.
    A video that crashes its decoder, or gives no frame for `time_limit` seconds, is rejected like any other bad
    one (not with `workers` 0: there is no other process). Raises `UserError` for wrong use, `WorkFailed` where
    shards could not be written, or where more than `max_rejects` videos were rejected: finished shards stay.
    """
    videos, asked = _videos(wanted)
    folder, recipe = _folder(root), wanted.recipe
    check_set(folder, recipe, overwrite=overwrite)
    place = absolute(str(cache)) if cache else None
    if place:
        FrameCache(place, recipe).begin()
    crew = Crew(str(folder), goal(videos, recipe, wanted.per_shard))
    job = Job(str(folder), recipe, crew.mark.token, place)
    with told(folder), crew.joined(alone=overwrite):
        open_set(folder, recipe, overwrite=overwrite)
        folder.sweep()
        standing, others = scan(folder, recipe), crew.others()
        todo = (plan_to_join(videos, standing, wanted.per_shard) if others else None) or _plan(
            wanted, videos, standing, stage
        )
        LOG.info("%d videos; %d shards to write, of %d", len(videos), len(todo.tasks), len(todo.names))
        before = begin(folder)
        where = {"workers": workers, "scheduler": scheduler}
        running = _Running(folder, crew, job, where, max_rejects, time_limit, stage)
        running.carry_out(_tasks(todo, standing, folder, apart=bool(others)))
        drop(folder, before, todo.names)
        with crew.gate():
            now = get_folder(str(folder), probe=False)  # sees what others have put there since the build began
            if not crew.others() or all_there(now, todo.names):
                unmark(folder)
        folder.sweep()
    built = running.built
    return BuildReport(
        decoded=sum(shard.decoded for shard in built),
        copied=sum(shard.copied for shard in built),
        rejected=sum(shard.rejected for shard in built),
        shards_written=len(built),
        shards_kept=len(todo.names) - len(built),
        warnings=(*_warnings(wanted, videos, asked), *_troubles(built)),
    )


def estimate_set(
    wanted: Wanted, root: Path | str, *, workers: int = 0, overwrite: bool = False, stage: Stage = no_stage
) -> Estimate:
    """What `build_set` would make and take. Makes and removes nothing. Raises `UserError` as it does."""
    videos, asked = _videos(wanted)
    standing = look_at_set(_folder(root), wanted.recipe, overwrite=overwrite)
    found = estimate(videos, _plan(wanted, videos, standing, stage), wanted.recipe, workers)
    return replace(found, warnings=_warnings(wanted, videos, asked))


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


def _warnings(wanted: Wanted, videos: list[Video], asked: dict[str, float]) -> tuple[str, ...]:
    return *split_warnings(videos, asked), *group_warnings(videos, wanted.group_by, drawn=bool(asked))


def _plan(wanted: Wanted, videos: list[Video], standing: Standing, stage: Stage) -> Plan:
    # A set that starts from nothing has nothing to compare with: its workers read each source once.
    digests = (
        read_digests(absolute(str(wanted.source)), videos, stage) if standing.frames or standing.shards else {}
    )
    lost, listed = lost_videos(videos, digests, standing), {video.id for video in videos}
    if unread := [video for video in lost if video in listed]:
        raise UserError(
            f"{len(unread)} videos of the set cannot be read now, the first is {unread[0]}: run the same command "
            f"when they can, or take them out of {wanted.source} and pass --prune"
        )
    if lost and not wanted.prune:
        raise UserError(
            f"{len(lost)} videos of the set are no longer in {wanted.source}, the first is {lost[0]}: pass "
            "--prune to drop them from the set, or give another --out for another set"
        )
    if wanted.retry_rejected:
        standing.forget_rejected()
    return plan(videos, digests, standing, wanted.per_shard)


def _stop_at(max_rejects: int | None, rejected: int) -> None:
    if max_rejects is not None and rejected > max_rejects:
        raise WorkFailed(
            f"stopped: {rejected} videos were rejected, --max-rejects is {max_rejects}; `prep inspect` says which "
            "and why, and the finished shards stay"
        )


def _tasks(todo: Plan, standing: Standing, folder: Folder, *, apart: bool) -> list[ShardTask]:
    """The plan's tasks, with what they copy from kept for as long as they need it. `apart`: begin anywhere, since
    others have begun at the front."""
    if not todo.tasks:
        return []
    moved = {standing.shards[name].shard: snapshot(folder, standing.shards[name]) for name in todo.snapshots}
    tasks = [redirect(task, moved) for task in todo.tasks]
    first = secrets.randbelow(len(tasks)) if apart else 0
    return tasks[first:] + tasks[:first]


def _troubles(built: Sequence[Built]) -> list[str]:
    """What to say of a cache that was of no use: the first reason, and for how many shards."""
    reasons = [shard.trouble for shard in built if shard.trouble]
    return [f"{reasons[0]} ({len(reasons)} of {len(built)} shards)"] if reasons else []


class _Running:
    """A plan being carried out, by this builder and others. `where`: `cluster.run`'s `workers` and `scheduler`."""

    def __init__(
        self,
        folder: Folder,
        crew: Crew,
        job: Job,
        where: Mapping[str, Any],
        max_rejects: int | None,
        time_limit: float,
        stage: Stage,
    ) -> None:
        self._folder, self._crew, self._job, self._where = folder, crew, job, where
        self._max_rejects, self._time_limit, self._stage = max_rejects, time_limit, stage
        self.built: list[Built] = []
        self._failed: dict[str, Exception] = {}
        self._waiting: list[ShardTask] = []  # in the hands of others

    def carry_out(self, tasks: Sequence[ShardTask]) -> None:
        """Have every task done, by whomever. Raises `WorkFailed`."""
        self._round(tasks)
        while self._waiting:
            self._round(self._wait())
        if self._failed:
            reasons = [f"{name}: {type(error).__name__}: {error}" for name, error in self._failed.items()]
            raise WorkFailed(
                f"{self._folder}: {len(self._failed)} of {len(tasks)} shards could not be written; "
                f"{way_out(*self._failed.values())}. {'; '.join(reasons[:10])}"
            )

    def _round(self, tasks: Sequence[ShardTask]) -> None:
        """Try each task once; one whose worker died twice, with each video in a process of its own."""
        if not tasks:
            return
        died: list[ShardTask] = []
        step = self._stage("building", sum(len(task.videos) for task in tasks))
        work = partial(build_shard, job=self._job)
        for task, result in cluster.run(work, tasks, step, **self._where, time_limit=self._time_limit):
            if isinstance(result, cluster.WorkerDied):
                LOG.info("%s: its worker died", task.name)
                died.append(task)
            else:
                self._collect(task, result)
        if died:
            # One video of these shards ends its worker: each gets a process of its own, and that one is found.
            step = self._stage("building apart", sum(len(task.videos) for task in died))
            work, limit = (
                partial(build_shard, job=replace(self._job, time_limit=self._time_limit)),
                self._time_limit,
            )
            for task, result in cluster.run(work, died, step, **self._where, time_limit=2 * limit):
                self._collect(task, _died_again(task) if isinstance(result, cluster.WorkerDied) else result)

    def _collect(self, task: ShardTask, result: Built | Elsewhere | Exception) -> None:
        if isinstance(result, Built):
            LOG.info(
                "%s: decoded %d, copied %d, rejected %d", task.name, result.decoded, result.copied, result.rejected
            )
            self.built.append(result)
            _stop_at(self._max_rejects, sum(shard.rejected for shard in self.built))
        elif result is Elsewhere.IN_HAND:
            LOG.info("%s: another builder has it", task.name)
            self._waiting.append(task)
        elif isinstance(result, Exception):
            self._failed[task.name] = result

    def _wait(self) -> list[ShardTask]:
        """Wait until others have done what they have in hand; the tasks that they let go of, if any."""
        tasks, self._waiting = self._waiting, []
        step: Step | None = None
        while tasks:
            held = self._crew.holders([task.name for task in tasks])
            let_go = [task for task in tasks if task.name not in held]
            folder = get_folder(str(self._folder), probe=False)  # sees the set as it is now
            done = [task for task in let_go if task.is_done(standing_shard(folder, self._job.recipe, task.name))]
            tasks = [task for task in tasks if task.name in held]
            if step:
                step(sum(len(task.videos) for task in done))
            if len(done) < len(let_go):
                self._waiting = tasks
                return [task for task in let_go if task not in done]
            if tasks and not step:
                step = self._stage(
                    f"waiting for {names_of(held.values())}", sum(len(task.videos) for task in tasks)
                )
            if tasks:
                time.sleep(POLL_SECONDS)
        return []


def _died_again(task: ShardTask) -> WorkFailed:
    names = ", ".join(video.id for video in task.videos)
    return WorkFailed(
        "its worker ended twice, the second time with each video decoded in a process of its own: it was out of "
        "memory, or heard nothing from a disk or server for longer than --time-limit; try fewer --workers or a "
        f"longer --time-limit, or take the video that does it out of the source. It holds {names}"
    )
