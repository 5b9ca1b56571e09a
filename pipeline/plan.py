"""videos + recipe + what stands → shard tasks. Pure: no file is touched, no worker asked.

Videos go to shards by the hash of their identity, into a power-of-two number of buckets: shards come out
shuffled, the same video always lands in the same place, and adding one rewrites one shard.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.recipe import Recipe
from pipeline.shards.directory import Reuse, Standing, shard_name
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sources import SPLITS, Video


@dataclass(frozen=True, slots=True)
class Item:
    """One video of a shard to be written: reused, known to be rejected, or (neither) to be decoded.

    `source`: SHA-256 of its bytes, None where they were not read yet or cannot be. `damaged`: what is known of
    the break behind the frames in `reuse`.
    """

    video: Video
    source: str | None = None
    reuse: Reuse | None = None
    rejected: Broken | None = None
    damaged: Broken | None = None


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to be written, from its videos in order. `known`: by id, those of them of which something is known
    beforehand; in a set that starts from nothing there are none, and ten million videos fit into memory. `stood`:
    SHA-256 of the shard that stood under its name when the plan was made."""

    split: str
    bucket: int
    buckets: int
    videos: tuple[Video, ...]
    known: Mapping[str, Item]
    stood: str | None = None

    def is_done(self, sidecar: Sidecar | None) -> bool:
        """Whether another builder has written the shard since the plan was made: `sidecar` is what stands now."""
        if sidecar is None or sidecar.sha256 == self.stood:
            return False
        sources = {id_: item.source for id_, item in self.known.items() if item.source}
        return _holds(sidecar, self.buckets, self.videos, sources if self.known else None)

    @property
    def items(self) -> tuple[Item, ...]:
        """Its videos in order, each with what is known of it."""
        return tuple(self.known.get(video.id) or Item(video) for video in self.videos)

    @property
    def name(self) -> str:
        """`train-000003`."""
        return shard_name(self.split, self.bucket)


@dataclass(frozen=True)
class Plan:
    """`tasks` to do; `names` of all shards that the finished set has; `snapshots`: shards that one task
    rewrites (or the sweep removes) while another copies from them."""

    tasks: tuple[ShardTask, ...]
    names: frozenset[str]
    snapshots: tuple[str, ...]


def identity(video_id: str) -> int:
    """64 bits of the SHA-256 of a video's id: its place among the shards and inside one."""
    return int.from_bytes(_sha256(video_id)[:8], "big")


def sample_key(video_id: str) -> str:
    """The name of a video's sample in a tar: readable, unique, and safe in any file system."""
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", video_id).strip("-")[-60:].strip("-")
    return f"{readable}-{_sha256(video_id).hex()[:16]}" if readable else _sha256(video_id).hex()[:16]


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def assign_splits(videos: list[Video], val: float, test: float = 0.0, seed: int = 0) -> list[Video]:
    """Give a split to every video whose source names none; in the list itself, which comes back: ten million
    videos need not stand in memory twice.

    A group with a video in a named split follows it; else the hash of the group decides, so that a recording
    never stands on both sides and never changes sides as data grows. `val`, `test`: shares to aim at.
    """
    named = {v.group: v.split for v in sorted((v for v in videos if v.split), key=lambda v: v.id)}
    for place, video in enumerate(videos):
        if not video.split:
            split = named.get(video.group) or _draw(video.group, val, test, seed)
            videos[place] = Video(video.id, video.path, video.label, video.group, split)
    return videos


def _draw(group: str, val: float, test: float, seed: int) -> str:
    share = int.from_bytes(_sha256(f"{seed}:{group}")[:8], "big") / 2**64
    if share < val:
        return "val"
    return "test" if share < val + test else "train"


def bucket_count(videos: int, per_shard: int) -> int:
    """The power of two that leaves at most `per_shard` videos in a shard, on average."""
    buckets = 1
    while buckets * per_shard < videos:
        buckets *= 2
    return buckets


def goal(videos: Iterable[Video], recipe: Recipe, per_shard: int) -> str:
    """What two builders must agree on to fill one set: recipe, videos (sorted by id, each with a split), and how
    many go to a shard."""
    digest = hashlib.sha256(f"{recipe.fingerprint} {per_shard}\n".encode())
    for video in videos:
        line = f"{video.id}\0{video.label}\0{video.group}\0{video.split}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def plan_to_join(videos: Sequence[Video], standing: Standing, per_shard: int) -> Plan | None:
    """The plan of a builder that comes when others are at work towards the same goal: what stands is theirs, so it
    need not be compared with the sources. None where frames would have to be copied: those are found by content.
    """
    todo = plan(videos, None, standing, per_shard)
    files = {sidecar.shard for sidecar in standing.shards.values()}
    others = any(place.file not in files for places in standing.frames.values() for place in places)
    if others or any(task.stood for task in todo.tasks) or not todo.names.issuperset(standing.shards):
        return None
    return todo


def plan(videos: Sequence[Video], digests: Mapping[str, str] | None, standing: Standing, per_shard: int) -> Plan:
    """What has to be written so that the set holds exactly `videos` (each with a split).

    `digests`: SHA-256 of the source bytes by video id, as far as they were read; None: what stands is taken to be
    of the right bytes. A shard that holds already what it should is left alone.
    """
    by_split: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_split[video.split or "train"].append(video)
    tasks, names = [], set()
    for split, members in sorted(by_split.items()):
        buckets = bucket_count(len(members), per_shard)
        shards: list[list[Video]] = [[] for _ in range(buckets)]
        for video in members:
            shards[identity(video.id) % buckets].append(video)
        for bucket, inside in enumerate(shards):
            name = shard_name(split, bucket)
            names.add(name)
            if not _holds(standing.shards.get(name), buckets, inside, digests):
                inside.sort(key=lambda video: (identity(video.id), video.id))
                known = {video.id: _item(video, digests[video.id], name, standing)
                         for video in inside if digests and video.id in digests}  # fmt: skip
                tasks.append(ShardTask(split, bucket, buckets, tuple(inside), known, standing.stood(name)))
    return Plan(tuple(tasks), frozenset(names), _snapshots(tasks, names, standing))


def _holds(
    sidecar: Sidecar | None, buckets: int, videos: Sequence[Video], digests: Mapping[str, str] | None
) -> bool:
    if sidecar is None or sidecar.buckets != buckets:
        return False
    entries: list[Sample | Broken] = [*sidecar.samples, *sidecar.rejected]
    if digests is None:
        names = {entry.video: (entry.label, entry.group) for entry in entries}
        return names == {video.id: (video.label, video.group) for video in videos}
    stands = {entry.video: (entry.label, entry.group, entry.source) for entry in entries}
    return stands == {video.id: (video.label, video.group, digests.get(video.id)) for video in videos}


def _item(video: Video, source: str, name: str, standing: Standing) -> Item:
    places = standing.frames.get(source, [])
    if places:
        own = standing.shards[name].shard if name in standing.shards else ""
        place = min(places, key=lambda place: (place.file != own, place.file))
        return Item(video, source, reuse=place, damaged=standing.damaged.get(source))
    return Item(video, source, rejected=standing.rejected.get(source))


def _snapshots(tasks: list[ShardTask], names: set[str], standing: Standing) -> tuple[str, ...]:
    changing = {task.name for task in tasks} | (set(standing.shards) - names)
    file_of = {standing.shards[name].shard: name for name in changing if name in standing.shards}
    copied_by_others = {
        file_of[item.reuse.file]
        for task in tasks
        for item in task.known.values()
        if item.reuse and file_of.get(item.reuse.file, task.name) != task.name
    }
    return tuple(sorted(copied_by_others))


def redirect(task: ShardTask, moved: Mapping[str, str]) -> ShardTask:
    """The task, copying from `moved[file]` instead of `file`; its own old shard stays where it is."""
    redirected = {
        id_: replace(item, reuse=replace(item.reuse, file=moved[item.reuse.file]))
        for id_, item in task.known.items()
        if item.reuse and item.reuse.file in moved
    }
    return replace(task, known={**task.known, **redirected}) if redirected else task


def lost_videos(videos: Sequence[Video], digests: Mapping[str, str], standing: Standing) -> list[str]:
    """Videos whose frames stand in the set and whose source cannot be read any longer: neither its id nor, under
    another id, its bytes."""
    readable, contents = {video.id for video in videos if video.id in digests}, set(digests.values())
    return sorted(
        {
            sample.video
            for sidecar in standing.shards.values()
            for sample in sidecar.samples
            if sample.video not in readable and sample.source not in contents
        }
    )


def split_warnings(videos: Sequence[Video], asked: Mapping[str, float]) -> list[str]:
    """What a user should know of the splits: shares far from those asked for, labels that are missing in one,
    groups that the source itself puts on both sides."""
    warnings = []
    splits = Counter(video.split for video in videos)
    for split, share in asked.items():
        got = splits[split] / len(videos)
        if share and abs(got - share) > max(0.05, share / 4):
            warnings.append(
                f"{split} got {got:.0%} of the videos, {share:.0%} was asked for: a hash of few or uneven groups "
                "cannot hit a share; try another --seed, or give a split column"
            )
    labels = {video.label for video in videos}
    for split in sorted(filter(None, splits)):
        missing = labels - {video.label for video in videos if video.split == split}
        if missing:
            warnings.append(f"{split} has no video labelled {', '.join(sorted(missing))}")
    crossing = groups_across_splits(videos)
    if crossing:
        warnings.append(
            f"{len(crossing)} groups stand in more than one split, the first is {crossing[0]}: "
            "scores on such a split are flattered"
        )
    return warnings


def group_warnings(videos: Sequence[Video], group_by: str | None, *, drawn: bool) -> list[str]:
    """Groups that put no two videos together protect from nothing, and nobody would see it.

    `drawn`: the splits are ours. A source that names them, or groups other than the videos' own names, has thought
    of it.
    """
    if len({video.group for video in videos}) < len(videos):
        return []
    if group_by:
        found = "it matches no path, or something else in each (`prep preview` shows them)"
        return [f"--group-by {group_by}: no two videos share a group: {found}"]
    splits = [split for split in SPLITS if any(video.split == split for video in videos)]
    if not drawn or len(splits) < 2 or any(video.group != video.id for video in videos):
        return []
    return [
        f"every video is its own group, so clips of one recording may stand in {' and in '.join(splits)}; "
        "if there are such clips, say what belongs together with a column group or --group-by"
    ]


def groups_across_splits(videos: Iterable[Video]) -> list[str]:
    """Groups with videos in two splits or more, which only a source that names the splits can make."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for video in videos:
        splits[video.group].add(video.split)
    return sorted(group for group, found in splits.items() if len(found) > 1)
