"""A set as its readers see it: recipe and sidecars, checked for completeness, and its samples as columns."""

import gc
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.recipe import Recipe, read_recipe
from pipeline.shards.directory import check_listed, is_building, sidecars
from pipeline.shards.folder import Folder, ask_each, get_folder
from pipeline.shards.sidecar import Sample, Sidecar

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardSet:
    """A shard set: where it is, what was asked for, and its sidecars by name."""

    folder: Folder
    recipe: Recipe
    sidecars: tuple[Sidecar, ...]
    building: bool = False

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels of the set, sorted: a class's number is its place here."""
        return tuple(sorted({sample.label for sidecar in self.sidecars for sample in sidecar.samples}))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that have samples."""
        return tuple(sorted({sidecar.split for sidecar in self.sidecars if sidecar.samples}))

    @property
    def unfinished(self) -> str | None:
        """Why the set is not whole: a build that still runs or was stopped, a shard that is gone."""
        if self.building:
            return "a build is running, or was stopped"
        sizes = ask_each(self.folder, self.folder.size, [sidecar.shard for sidecar in self.sidecars])
        for sidecar, size in zip(self.sidecars, sizes, strict=True):
            if size != sidecar.bytes:
                return f"{sidecar.shard} is missing or cut short"
        buckets: dict[str, Counter[int]] = {}
        for sidecar in self.sidecars:
            buckets.setdefault(sidecar.split, Counter())[sidecar.buckets] += 1
        for split, counts in buckets.items():
            wanted, found = max(counts), counts[max(counts)]
            if len(counts) > 1 or found != wanted:
                return f"{split} has {found} of {wanted} shards"
        keys = [sample.key for sidecar in self.sidecars for sample in sidecar.samples]
        if len(set(keys)) < len(keys):
            return f"{Counter(keys).most_common(1)[0][0]} stands in two shards"
        return None

    def split(self, name: str) -> "SplitIndex":
        """The samples of one split. Raises `UserError` where it has none."""
        if name not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise UserError(f"{self.folder}: no split {name!r} with videos; there are {there}")
        return SplitIndex(self, [sidecar for sidecar in self.sidecars if sidecar.split == name])


class SplitIndex:
    """The samples of one split as columns: number i is the same sample in each.

    shard [n] (place in `shards`), frames [n], label [n] (class number), video [n].
    """

    def __init__(self, shard_set: ShardSet, inside: Sequence[Sidecar]) -> None:
        self.recipe = shard_set.recipe
        self.labels = shard_set.labels
        self.folder, self.sidecars = shard_set.folder, inside
        root = Path(str(shard_set.folder))
        self.shards = [root / sidecar.shard for sidecar in inside]
        self.samples: list[Sample] = [sample for sidecar in inside for sample in sidecar.samples]
        number_of = {label: number for number, label in enumerate(self.labels)}
        self.shard: NDArray[np.int32] = np.repeat(
            np.arange(len(inside), dtype=np.int32), [len(sidecar.samples) for sidecar in inside]
        )
        self.frames = np.array([sample.frames for sample in self.samples], np.int64)
        self.label = np.array([number_of[sample.label] for sample in self.samples], np.int64)

    @cached_property
    def _numbered(self) -> tuple[NDArray[np.int64], list[str]]:
        """`video` and `videos`: made when they are first asked for, as training does not need them."""
        number_of = defaultdict[str, int](itertools.count().__next__)  # a number for each name that is new
        numbers = np.array([number_of[sample.video] for sample in self.samples], np.int64)
        return numbers, list(number_of)

    @property
    def video(self) -> NDArray[np.int64]:
        """[n], the number of the source video: the same for all samples cut from it."""
        return self._numbered[0]

    @property
    def videos(self) -> list[str]:
        """The identity of each source video, by its number."""
        return self._numbered[1]

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, chosen: NDArray[np.bool_]) -> "SplitIndex":
        """Only the samples where `chosen` [n] is true, and their videos; shards and labels keep their numbers."""
        part = copy(self)
        places = np.flatnonzero(chosen)
        part.samples = [self.samples[place] for place in places]
        part.shard, part.frames, part.label = self.shard[places], self.frames[places], self.label[places]
        numbers, video = np.unique(self.video[places], return_inverse=True)
        part._numbered = video, [self.videos[number] for number in numbers]
        return part


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look at a million samples again and again, and find nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_set(place: Path | str, *, whole: bool = True) -> ShardSet:
    """The set at a path or URL. Raises `UserError` where there is none, it is damaged, or (`whole`) unfinished."""
    folder = get_folder(place)
    recipe = read_recipe(folder)
    with _uncollected():
        shard_set = ShardSet(folder, recipe, tuple(sidecars(folder, recipe)), is_building(folder))
    if not shard_set.sidecars:
        check_listed(folder)
    LOG.info("%s: %d shards, recipe %s", folder, len(shard_set.sidecars), recipe.fingerprint)
    if whole and not shard_set.splits:
        rejected = sum(len(sidecar.rejected) for sidecar in shard_set.sidecars)
        if rejected and not shard_set.building:
            raise UserError(
                f"{folder}: the set has no samples, for all its {rejected} videos were rejected; "
                f"`prep inspect {folder}` says why"
            )
        raise UserError(f"{folder}: the set has no samples; run `prep build-shards --out {folder}` to its end")
    if whole and shard_set.unfinished:
        raise UserError(
            f"{folder}: the set is unfinished ({shard_set.unfinished}); run the same `prep build-shards` again, "
            "it goes on from there"
        )
    return shard_set
