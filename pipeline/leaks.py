"""Copies across splits and labels, found from the cached frames, and the groups that keep them together.

Two videos are an `exact` pair where their sources or all their frames are the same bytes, a `near` pair where some
of the one's frames look and move like the other's (`pipeline.video_hash`): compressed again, scaled, brightened,
cut shorter. Mirrored, rotated or cropped copies are not found.
"""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline import video_hash
from pipeline.errors import UserError
from pipeline.places import is_url
from pipeline.report import Stage, no_stage
from pipeline.shards import get_format
from pipeline.shards.checks import check_sample
from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Sample
from pipeline.sources import Video, is_csv_label
from pipeline.video_hash import Coefficients

FLAT = 1.0  # grey levels: a picture that varies less shows nothing
THRESHOLD = 0.25


@dataclass(frozen=True)
class Seen:
    """One video of a set: where it stands, digests of its source and its frames, and what they look like."""

    id: str
    split: str
    label: str
    group: str
    source: str
    frames: str
    looks: Coefficients

    @property
    def flat(self) -> bool:
        """Whether no frame shows anything, as in a black video."""
        return bool((video_hash.rms(self.looks[:, None]) < FLAT).all())


@dataclass(frozen=True)
class Pair:
    """Two videos, `a` before `b`; `distance`: from 0 (the same) to the threshold; `kind`: exact or near."""

    a: str
    b: str
    splits: tuple[str, str]
    labels: tuple[str, str]
    distance: float
    kind: str

    @property
    def harms(self) -> bool:
        """Whether a score on the set suffers: the pair crosses splits, or labels."""
        return len(set(self.splits)) > 1 or len(set(self.labels)) > 1


@dataclass(frozen=True)
class Leaks:
    """All pairs of a set of `videos`, nearest first, and the videos of which only the bytes could be compared:
    `flat` ones show nothing, `still` ones don't move, `short` ones have less than a window."""

    videos: int
    pairs: tuple[Pair, ...]
    flat: tuple[str, ...]
    still: tuple[str, ...]
    short: tuple[str, ...]


def find_leaks(
    shard_set: ShardSet,
    threshold: float = THRESHOLD,
    stage: Stage = no_stage,
    local: Callable[[str], AbstractContextManager[Path]] | None = None,
) -> Leaks:
    """Compare all videos of a set; reads each frame once. Raises `UserError` for damaged shards.

    `local` gives a shard's path on this machine by its name; without it the set's folder does.
    """
    seen = look_at(shard_set, stage, local or shard_set.folder.local)
    return compare_videos(seen, shard_set.recipe.fps, threshold, stage)


def compare_videos(
    seen: Iterable[Seen], fps: Fraction, threshold: float = THRESHOLD, stage: Stage = no_stage
) -> Leaks:
    """All pairs among videos with `fps` stored frames a second, of one set or of several; no id comes twice."""
    videos = sorted(seen, key=lambda video: video.id)
    length = video_hash.window_frames(fps)
    windows = video_hash.hash_windows([video.looks for video in videos], length)
    moving = {videos[number].id for number in set(windows.video.tolist())}
    rest = [video for video in videos if video.id not in moving]
    flat = [video.id for video in rest if video.flat]
    short = [video.id for video in rest if len(video.looks) < length and not video.flat]
    still = sorted({video.id for video in rest} - {*flat, *short})
    pairs = {(pair.a, pair.b): pair for pair in _exact(videos)}
    for a, b, shift in video_hash.candidates(windows, stage):
        if (videos[a].id, videos[b].id) not in pairs:
            looks_a, looks_b = videos[a].looks, videos[b].looks
            found = min(video_hash.distance(looks_a, looks_b, shift + by, length) for by in (-1, 0, 1))
            if found <= threshold:
                pairs[videos[a].id, videos[b].id] = _pair(videos[a], videos[b], found, "near")
    ordered = sorted(pairs.values(), key=lambda pair: (pair.distance, pair.a, pair.b))
    return Leaks(len(videos), tuple(ordered), tuple(flat), tuple(still), tuple(short))


def look_at(
    shard_set: ShardSet, stage: Stage, local: Callable[[str], AbstractContextManager[Path]]
) -> Iterator[Seen]:
    """Each video of a set; reads each frame once. `local`: see `find_leaks`. Raises `UserError`."""
    step = stage("reading", len({sample.video for sidecar in shard_set.sidecars for sample in sidecar.samples}))
    every = video_hash.frame_step(shard_set.recipe.fps)
    shard_format = get_format(shard_set.recipe.format)
    for sidecar in shard_set.sidecars:
        samples: dict[str, list[Sample]] = defaultdict(list)
        for sample in sidecar.samples:
            samples[sample.video].append(sample)
        if not samples:
            continue
        with (
            local(sidecar.shard) as path,
            shard_format.open(path, shard_set.recipe) as reader,
        ):
            for parts in samples.values():
                digest, looks, seen = hashlib.sha256(), [], 0
                for sample in in_order(parts):
                    check_sample(reader, sample)
                    frames = reader.frames(sample)
                    digest.update(np.ascontiguousarray(frames).data)
                    looks.append(video_hash.coefficients(frames[-seen % every :: every]))
                    seen += len(frames)
                one, stored = parts[0], np.concatenate(looks)
                yield Seen(one.video, sidecar.split, one.label, one.group, one.source, digest.hexdigest(), stored)
                step(1)


def in_order(parts: Iterable[Sample]) -> list[Sample]:
    """The samples of one video as they follow each other: their keys end in `#0000` to `#9999`, `#10000`, …"""
    return sorted(parts, key=lambda part: (len(part.key), part.key))


def _exact(videos: Sequence[Seen]) -> Iterator[Pair]:
    """Pairs of the same source or frames. Each copy is paired with the first in every split and label, so that a
    thousand of them make no half million pairs. Flat videos are all alike: only their sources count."""
    same: dict[str, list[Seen]] = defaultdict(list)
    for video in videos:
        same[video.source].append(video)
        if not video.flat:
            same[video.frames].append(video)
    for copies in same.values():
        firsts: dict[tuple[str, str], Seen] = {}
        for video in copies:
            firsts.setdefault((video.split, video.label), video)
        for video in copies:
            yield from (_pair(first, video, 0.0, "exact") for first in firsts.values() if first.id != video.id)


def _pair(one: Seen, other: Seen, distance: float, kind: str) -> Pair:
    a, b = sorted((one, other), key=lambda video: video.id)
    return Pair(a.id, b.id, (a.split, b.split), (a.label, b.label), round(max(distance, 0.0), 4), kind)


def joined_groups(groups: Mapping[str, str], pairs: Iterable[Pair]) -> dict[str, str]:
    """Video id → its group, where all groups that a pair connects bear the first one's name."""
    leader: dict[str, str] = {}

    def find(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for pair in pairs:
        first, second = sorted((find(groups[pair.a]), find(groups[pair.b])))
        if first != second:
            leader[second] = first
    return {video: find(group) for video, group in groups.items()}


def write_groups(file: Path, shard_set: ShardSet, source: Sequence[Video], pairs: Iterable[Pair]) -> int:
    """Write (or replace) the CSV of `source`, from which the set was built, with copies joined into groups.

    Returns how many videos change their split. Each group stands in the split that has most of it. Paths are
    relative to `file`. Raises `UserError`.
    """
    held = {sample.video: (car.split, sample) for car in shard_set.sidecars for sample in car.samples}
    missing = sorted(held.keys() - {video.id for video in source})
    if missing:
        raise UserError(
            f"--source: {len(missing)} videos of the set are not in it, the first is {missing[0]}; "
            "give the folder or CSV that the set was built from"
        )
    unfit = next((video.label for video in source if not is_csv_label(video.label)), None)
    if unfit is not None:
        raise UserError(
            f"--source: a CSV cannot hold the label {unfit!r} (blanks at an end, control characters, bytes that "
            "are not UTF-8, or more than 200 characters); rename its folder and build the set again"
        )
    own = {video.id: held[video.id][1].group if video.id in held else video.group for video in source}
    groups = joined_groups(own, pairs)
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for video, (split, _) in held.items():
        members[groups[video]][split] += 1
    home = {group: max(sorted(count), key=count.__getitem__) for group, count in members.items()}
    rows = ((video, home.get(groups[video.id], video.split or ""), groups[video.id]) for video in source)
    _write_csv(file, rows)
    return sum(home[groups[video]] != split for video, (split, _) in held.items())


def _write_csv(file: Path, rows: Iterable[tuple[Video, str, str]]) -> None:
    """Each row: a video, its split and its group. Whole or not at all."""
    folder = file.parent.resolve()  # `..` leads out of where a link points to
    partial = file.with_name(f".{file.name}.partial")
    try:
        # File names may hold bytes that are not UTF-8; they are written as they are.
        with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines:
            table = csv.writer(lines)
            table.writerow(("path", "label", "split", "group", "key"))
            for video, split, group in rows:
                path = video.path if is_url(video.path) else os.path.relpath(video.path, folder)
                table.writerow((path, video.label, split, group, video.id))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
