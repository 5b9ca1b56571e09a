"""Whether a score can be called one: videos, groups and copies in both what was learnt and what is judged."""

import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.console import counted
from pipeline.errors import UserError
from pipeline.foreign import MOST_JSON, parse_json, read_text
from pipeline.leaks import THRESHOLD, Pair, find_leaks, joined_groups
from pipeline.report import Stage, no_stage
from pipeline.shards.cache import Local
from pipeline.shards.index import ShardSet
from pipeline.summary import digest
from train.checkpoint import write_json


@dataclass(frozen=True)
class Crossing:
    """What stands on two sides: group names, pairs of videos that are copies of each other, and videos."""

    groups: tuple[str, ...]
    pairs: tuple[Pair, ...]
    videos: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.groups or self.pairs or self.videos)

    def as_dict(self) -> dict[str, Any]:
        """Counts and names, JSON-ready."""
        pairs = [[pair.a, pair.b, pair.kind, pair.distance] for pair in self.pairs]
        count = len(self.groups) + len(self.pairs) + len(self.videos)
        return {"groups": list(self.groups), "pairs": pairs, "videos": list(self.videos), "count": count}

    def refuse(self, place: object, what: str, way_out: str = "") -> None:
        """Raises `UserError`, of the set at `place`, if anything crosses. `way_out`: else than to mend the set."""
        if not self:
            return
        found = []
        if self.videos:
            found.append(f"{counted(len(self.videos), 'video')}, the first is {self.videos[0]}")
        if self.groups:
            found.append(f"{counted(len(self.groups), 'group')}, the first is {self.groups[0]}")
        if self.pairs:
            first = self.pairs[0]
            found.append(f"{counted(len(self.pairs), 'pair')} of copies, the first is {first.a} = {first.b}")
        mend = (
            f"Mend the set with `prep leaks {shlex.quote(str(place))} --group fixed.csv --source VIDEOS` and the "
            "command that it names next"
        )
        raise UserError(
            f"{place}: {what}: {'; '.join(found)}; such a score would be of videos that were learnt. "
            f"{way_out or mend}, or say --allow-leaks"
        )


def crossing(shard_set: ShardSet, side: Mapping[str, str], pairs: tuple[Pair, ...]) -> Crossing:
    """What crosses where `side` says on which side each video stands; a video without one is left out."""
    sides_of = defaultdict(set)
    for sidecar in shard_set.sidecars:
        for sample in sidecar.samples:
            if sample.video in side:
                sides_of[sample.group].add(side[sample.video])
    groups = sorted(group for group, sides in sides_of.items() if len(sides) > 1)
    both = [pair for pair in pairs if pair.a in side and pair.b in side and side[pair.a] != side[pair.b]]
    return Crossing(tuple(groups), (*both, *_by_way_of_others(side, pairs, both)))


def _by_way_of_others(side: Mapping[str, str], pairs: Sequence[Pair], direct: Iterable[Pair]) -> Iterator[Pair]:
    """Of copies that cross, but in no pair with each other, since each is in one with a third: a pair of them."""
    one = _exact_copies((), pairs)
    there: dict[str, dict[str, str]] = defaultdict(dict)  # of each video and its copies the first on each side
    for video in sorted(one.keys() & side.keys()):
        there[one[video]].setdefault(side[video], video)
    known = {id_: (pair.splits[i], pair.labels[i]) for pair in pairs for i, id_ in enumerate((pair.a, pair.b))}
    told = {frozenset((one[pair.a], one[pair.b])) for pair in direct}
    for pair in pairs:
        firsts, others = there[one[pair.a]], there[one[pair.b]]
        found = [(a, b) for side_a, a in firsts.items() for side_b, b in others.items() if side_a != side_b]
        if found and frozenset((one[pair.a], one[pair.b])) not in told:
            told.add(frozenset((one[pair.a], one[pair.b])))
            a, b = sorted(found[0])
            splits, labels = zip(known[a], known[b], strict=True)
            yield Pair(a, b, splits, labels, pair.distance, pair.kind)


def _exact_copies(videos: Iterable[str], pairs: Sequence[Pair]) -> dict[str, str]:
    """Video, of these or of a pair → one name for it and all its exact copies: not each two of them are a pair."""
    itself = {video: video for video in videos} | {v: v for pair in pairs for v in (pair.a, pair.b)}
    return joined_groups(itself, (pair for pair in pairs if pair.kind == "exact"))


def copies_of(held_out: Iterable[str], train: Iterable[str], pairs: Sequence[Pair]) -> list[str]:
    """Those videos of `train` that are copies of a video that is held out, sorted.

    What is merely near to a near copy is none.
    """
    held_out, train = set(held_out), set(train)
    one = _exact_copies(held_out | train, pairs)
    bad = {one[video] for video in held_out}
    near = [{one[pair.a], one[pair.b]} for pair in pairs]
    bad = bad.union(*(both for both in near if both & bad))
    return sorted(video for video in train if one[video] in bad)


def crossing_into(
    shard_set: ShardSet, learnt: Collection[str], judged: Collection[str], pairs: tuple[Pair, ...]
) -> Crossing:
    """What crosses from the videos that were learnt to those that are judged; some may be both."""
    side = {**dict.fromkeys(learnt, "learnt"), **dict.fromkeys(judged, "judged")}
    both = tuple(video for video in judged if video in learnt)
    return replace(crossing(shard_set, side, pairs), videos=both)


def copies(
    shard_set: ShardSet, kept_in: Path, stage: Stage = no_stage, local: Local | None = None
) -> tuple[Pair, ...]:
    """`pipeline.leaks.find_leaks`, once for a set: kept in the folder `kept_in` under the set's digest.

    `local` gives a shard's path on this machine by its name; without it the set's folder does.
    """
    file = kept_in / f"copies-{digest(shard_set)}.json"
    return kept_pairs(file, lambda: find_leaks(shard_set, THRESHOLD, stage, local).pairs)


def kept_pairs(file: Path, find: Callable[[], tuple[Pair, ...]]) -> tuple[Pair, ...]:
    """What `find` gives, found once and kept in the file. Raises `UserError`."""
    if file.exists():
        try:
            kept = parse_json(read_text(file, MOST_JSON))
            if kept["threshold"] == THRESHOLD:
                return tuple(_pair(values) for values in kept["pairs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); remove it, and it is made anew") from error
    pairs = find()
    write_json(file, {"threshold": THRESHOLD, "pairs": [asdict(pair) for pair in pairs]})
    return pairs


def _pair(values: dict[str, Any]) -> Pair:
    first, second = values["splits"]
    one, other = values["labels"]
    return Pair(**{**values, "splits": (first, second), "labels": (one, other)})
