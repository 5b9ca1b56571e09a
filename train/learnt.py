"""What a run has learnt from, beside a set that it is judged on: the same one, or another with the same videos."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.origin import Lesson
from pipeline.errors import UserError
from pipeline.leaks import THRESHOLD, Pair, Seen, compare_videos, look_at
from pipeline.places import absolute, as_place
from pipeline.report import Stage
from pipeline.shards.cache import Local
from pipeline.shards.index import ShardSet, SplitIndex, read_set
from pipeline.summary import digest
from train.folds import train_and_val
from train.leakage import copies, kept_pairs
from train.lessons import learnt_videos, unknown_lessons
from train.manifest import Side, find_sides

LocalOf = Callable[[ShardSet], Local]  # gives the shards of a set on this machine
Parts = Mapping[str, SplitIndex]  # by the names `train` and `val`


@dataclass(frozen=True)
class Learnt:
    """The set that a run was trained on, as it is now, beside the `judged` one.

    `parts`: what the run had of it as `train` and `val`. `home`: the judged set is the run's, by its bytes or its
    place. `gone`: why the judged set has to stand for the run's. `ancestors`: what its first weights had learnt.

    Where the set is not any more what it was, `parts` are found by the digests that the run has kept, its `sides`,
    and `judged_parts` are those found in the judged set.
    """

    shard_set: ShardSet
    judged: ShardSet
    parts: Parts
    home: bool
    gone: str = ""
    ancestors: tuple[Lesson, ...] = ()
    changed: bool = False
    sides: Mapping[str, Side] = field(default_factory=dict)
    judged_parts: Parts = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        about: Mapping[str, Any],
        judged: ShardSet,
        sides: Mapping[str, Side],
        ancestors: tuple[Lesson, ...] = (),
    ) -> "Learnt":
        """Raises `UserError` where the run's set is gone, or is of another recipe by now, and has no sides."""
        place, settings = absolute(str(judged.folder)), about["settings"]
        home = digest(judged) == about["shards_digest"] or place == settings["shards"]
        own, gone = (judged, "") if home else _own_set(about, judged, required=not sides)
        if digest(own) == about["shards_digest"]:
            train, val = train_and_val(own, settings.get("fold"), tuple(settings.get("leave_out") or ()))
            parts = {"train": train} | ({} if val is None else {"val": val})
            return cls(own, judged, parts, home, ancestors=ancestors)
        parts = find_sides(own, sides)
        again = parts if own is judged else find_sides(judged, sides)
        return cls(own, judged, parts, home, gone, ancestors, changed=True, sides=sides, judged_parts=again)

    @property
    def same(self) -> bool:
        """Whether there is one set, not two."""
        return self.shard_set is self.judged

    def videos(self, names: Iterable[str]) -> set[str]:
        """The videos, as in `pairs`, of these parts."""
        own = {self.name(video) for name in names if name in self.parts for video in self.parts[name].videos}
        return own.union(*(self.judged_parts[name].videos for name in names if name in self.judged_parts))

    def shared_groups(self, names: Iterable[str], index: SplitIndex) -> dict[str, str]:
        """Judged video → its group, of those whose group was in these parts before the set changed."""
        sides = [self.sides[name] for name in names if self.home and name in self.sides]
        return {one.video: one.group for one in index.samples if any(side.has_group(one) for side in sides)}

    def namesakes(self, names: Iterable[str], index: SplitIndex) -> list[str]:
        """Groups of these judged videos that have the name of one in these parts of another set: of the same
        recording, or not."""
        if self.home:
            return []
        sides = [self.sides.get(name) or Side.of(self.parts[name]) for name in names if name in self.parts]
        return sorted({one.group for one in index.samples if any(side.has_group(one) for side in sides)})

    def before(self, *, chosen_by: bool) -> set[str]:
        """The videos, as in `pairs`, that the ancestors have learnt; see `learnt_videos`. Raises `UserError`."""
        own = learnt_videos(self.shard_set, self.ancestors, chosen_by=chosen_by)
        judged = learnt_videos(self.judged, self.ancestors, chosen_by=chosen_by)
        return {*map(self.name, own), *judged}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """What cannot be compared: videos of these parts that are gone, and the ancestors' other sets."""
        there = sum(len(self.sides[name].sources) for name in names if name in self.sides)
        found = sum(len(self._sources(name)) for name in names if name in self.sides)
        why = f" ({self.gone})" if self.gone else ""
        lost = [f"{there - found} videos that are gone from its set{why}"] if found < there else []
        return [*lost, *unknown_lessons(self.ancestors, self.shard_set, self.judged)]

    def name(self, video: str) -> str:
        """What a video is called in `pairs`: not as one of the judged set, which is another video."""
        return video if self.same else f"{self.shard_set.folder}: {video}"

    def chose_by(self, index: SplitIndex) -> bool:
        """Whether some of these judged videos were in what chose the run's best epoch."""
        return not self._sources("val").isdisjoint(sample.source for sample in index.samples)

    def _sources(self, name: str) -> set[str]:
        """What the run had under that name, as far as it is found."""
        indices = [parts[name] for parts in (self.parts, self.judged_parts) if name in parts]
        return {sample.source for index in indices for sample in index.samples}

    def pairs(self, kept_in: Path, stage: Stage, local_of: LocalOf) -> tuple[Pair, ...]:
        """Copies in the judged set and, where that is another one, of what was learnt; kept in `kept_in`."""
        if self.same:
            return copies(self.judged, kept_in, stage, local_of(self.judged))
        file = kept_in / f"copies-{digest(self.shard_set)}-{digest(self.judged)}.json"
        return kept_pairs(file, lambda: self._compare(stage, local_of))

    def _compare(self, stage: Stage, local_of: LocalOf) -> tuple[Pair, ...]:
        def look(shard_set: ShardSet) -> Iterator[Seen]:
            return look_at(shard_set, stage, local_of(shard_set))

        learnt = (replace(seen, id=self.name(seen.id)) for seen in look(self.shard_set))
        # A copy is paired with the first of every split: the two sets must not share one.
        judged = (replace(seen, split=f"judged {seen.split}") for seen in look(self.judged))
        return compare_videos([*learnt, *judged], self.judged.recipe.fps, THRESHOLD, stage).pairs


def _own_set(about: Mapping[str, Any], judged: ShardSet, *, required: bool) -> tuple[ShardSet, str]:
    """The run's set. Where that is gone, or of another recipe by now: the judged one, and why; or, where it is
    `required`, raises `UserError`."""
    try:
        own = read_set(as_place(about["settings"]["shards"]))
        if own.recipe.fingerprint != about["fingerprint"]:
            raise UserError(f"{own.folder}: is of another recipe by now")
    except UserError as error:
        if required:
            raise
        return judged, str(error)
    return own, ""
