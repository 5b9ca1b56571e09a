"""Shards that `prep verify` found damaged, made anew from their videos, and no others."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pipeline import cluster
from pipeline.build import Built, Job, build_shard
from pipeline.errors import UserError, WorkFailed
from pipeline.places import is_url
from pipeline.plan import ShardTask, identity
from pipeline.recipe import RECIPE_FILE, read_recipe
from pipeline.report import Stage, no_stage
from pipeline.shards import get_format
from pipeline.shards.directory import SIDECAR
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sources import Video, list_videos
from pipeline.verify import Verified

STEM = re.compile(r"(train|val|test)-([0-9]{6})")


def repair_set(
    found: Verified,
    source: Path | str,
    *,
    group_by: str | None = None,
    labelled: bool = True,
    workers: int = 0,
    time_limit: float = 120.0,
    stage: Stage = no_stage,
) -> list[str]:
    """Build what is damaged again from the videos of `source`; returns the names of the shards.

    Where a sidecar can be read, it says which videos; else those that stand in no other shard and belong here.
    Raises `UserError` where the source has not what is needed, `WorkFailed` where a shard could not be written.
    """
    folder = found.folder
    if found.building:
        raise UserError(f"{folder}: a build is running there, or was stopped; `prep build-shards` finishes it")
    if any(damage.file == RECIPE_FILE for damage in found.damage):
        raise UserError(
            f"{folder}/{RECIPE_FILE}: is damaged: nothing can be built before `pipeline.recover.restore_recipe`"
        )
    recipe = read_recipe(folder)
    around = get_format(recipe.format).around(recipe)
    names = sorted({_stem(damage.file) for damage in found.damage if damage.file not in around})
    place = source if is_url(source) else Path(source).absolute()
    videos = {video.id: video for video in list_videos(place, group_by, labelled=labelled)}
    sound = {name: sidecar for name, sidecar in found.sidecars.items() if name not in names}
    tasks = [_task(name, found, names, sound, videos) for name in names]
    for name, text in around.items():
        folder.write(name, text)
    work = partial(build_shard, job=Job(str(folder), recipe))
    step = stage("building", sum(len(task.videos) for task in tasks))
    for task, result in cluster.run(work, tasks, step, workers=workers, scheduler=None, time_limit=time_limit):
        if not isinstance(result, Built):
            raise WorkFailed(f"{folder}: {task.name} could not be built: {type(result).__name__}: {result}")
    return names


def _stem(file: str) -> str:
    return Path(file).name.removesuffix(SIDECAR).removesuffix(".tar")


def _task(
    name: str, found: Verified, names: list[str], sound: Mapping[str, Sidecar], videos: Mapping[str, Video]
) -> ShardTask:
    match = STEM.fullmatch(name)
    if match is None:  # a split: far more sidecars are missing than stand
        raise UserError(
            f"{found.folder}: so many shards of {name} are missing that they are not named one by one; run "
            "`prep build-shards` with the set's options"
        )
    split, bucket = match[1], int(match[2])
    known = found.sidecars.get(name)
    if known and known.buckets == _buckets(split, sound, known.buckets):
        buckets, members = known.buckets, _listed(found, known, videos)
    else:
        buckets = _buckets(split, sound)
        members = _left_over(split, bucket, buckets, names, found, videos)
    members.sort(key=lambda video: (identity(video.id), video.id))
    return ShardTask(split, bucket, buckets, tuple(members), {})


def _buckets(split: str, sound: Mapping[str, Sidecar], default: int = 1) -> int:
    return max((sidecar.buckets for sidecar in sound.values() if sidecar.split == split), default=default)


def _listed(found: Verified, sidecar: Sidecar, videos: Mapping[str, Video]) -> list[Video]:
    """The videos of a sidecar that is sound, as it has them."""
    entries: list[Sample | Broken] = [*sidecar.samples, *sidecar.rejected]
    said = {entry.video: entry for entry in entries}
    if missing := sorted(said.keys() - videos.keys()):
        raise UserError(
            f"{found.folder}/{sidecar.shard}: {len(missing)} of its videos are not in --source, the first is "
            f"{missing[0]}; give the source that the set was built from"
        )
    return [
        Video(entry.video, videos[entry.video].path, entry.label, entry.group, sidecar.split)
        for entry in said.values()
    ]


def _left_over(
    split: str, bucket: int, buckets: int, names: list[str], found: Verified, videos: Mapping[str, Video]
) -> list[Video]:
    """The videos that no readable sidecar has, and that this bucket wants."""
    standing = found.sidecars.values()
    elsewhere = {entry.video for sidecar in standing for entry in sidecar.samples}
    elsewhere |= {entry.video for sidecar in standing for entry in sidecar.rejected}
    members = []
    for video in videos.values():
        if video.id in elsewhere or identity(video.id) % buckets != bucket or video.split not in (None, split):
            continue
        others = {name.partition("-")[0] for name in names if name not in found.sidecars} - {split}
        if video.split is None and others:
            raise UserError(
                f"{found.folder}: sidecars of {split} and {', '.join(sorted(others))} are lost, and --source does "
                f"not say to which split {video.id} belongs; run `prep build-shards` with the set's options"
            )
        members.append(Video(video.id, video.path, video.label, video.group, split))
    return members
