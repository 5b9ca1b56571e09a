"""What a run has learnt from, beside a set that it is judged on: the same one, or another with the same videos."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from train.folds import train_and_val, without
from train.leakage import copies, kept_pairs
from train.lessons import learnt_videos, unknown_lessons

LocalOf = Callable[[ShardSet], Local]  # gives the shards of a set on this machine


@dataclass(frozen=True)
class Learnt:
    """The set that a run was trained on, beside the `judged` one.

    `same`: they are one, or stand at one place; `changed`: it is not any more what it was then, and is taken as it
    is now. `ancestors`: what the weights that the run started from had learnt.
    """

    shard_set: ShardSet
    judged: ShardSet
    fold: str | None
    leave_out: tuple[str, ...]
    same: bool
    changed: bool
    ancestors: tuple[Lesson, ...] = ()

    @classmethod
    def of(cls, about: Mapping[str, Any], judged: ShardSet, ancestors: tuple[Lesson, ...] = ()) -> "Learnt":
        """Raises `UserError` where that set is gone, or is of another recipe by now."""
        place = about["settings"]["shards"]
        same = digest(judged) == about["shards_digest"] or absolute(str(judged.folder)) == place
        own = judged if same else read_set(as_place(place))
        if own.recipe.fingerprint != about["fingerprint"]:
            raise UserError(f"{own.folder}: is of another recipe by now")
        changed = digest(own) != about["shards_digest"]
        leave_out = tuple(about["settings"].get("leave_out") or ())
        return cls(own, judged, about["settings"].get("fold"), leave_out, same, changed, ancestors)

    def split(self, name: str) -> SplitIndex | None:
        """What the run had as `train` or `val`, if it had that. A fold of a set that has changed is not known any
        more: as all folds together are both splits, these are it."""
        if self.changed:
            there = name in self.shard_set.splits
            return without(self.shard_set.split(name), self.leave_out) if there else None
        train, val = train_and_val(self.shard_set, self.fold, self.leave_out)
        return train if name == "train" else val

    def before(self, *, chosen_by: bool) -> set[str]:
        """The videos, as in `pairs`, that the ancestors have learnt; see `learnt_videos`. Raises `UserError`."""
        own = learnt_videos(self.shard_set, self.ancestors, chosen_by=chosen_by)
        judged = learnt_videos(self.judged, self.ancestors, chosen_by=chosen_by)
        return {*map(self.name, own), *judged}

    def unknown(self) -> list[str]:
        """What the ancestors have learnt from other sets."""
        return unknown_lessons(self.ancestors, self.shard_set, self.judged)

    def name(self, video: str) -> str:
        """What a video is called in `pairs`: not as one of the judged set, which is another video."""
        return video if self.same else f"{self.shard_set.folder}: {video}"

    def chose_by(self, index: SplitIndex) -> bool:
        """Whether some of these judged videos were in what chose the run's best epoch."""
        val = self.split("val")
        return val is not None and not {s.source for s in val.samples}.isdisjoint(s.source for s in index.samples)

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
