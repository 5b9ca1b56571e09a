"""Cross-validation: folds of a split that keep groups whole."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.shards.index import ShardSet, SplitIndex
from train.clips import Ints


def folds_by_group(groups: Sequence[str], label: Ints, folds: int) -> Ints:
    """The fold [n] of each sample, from 0 on: whole groups, every label spread as evenly as they allow.

    The largest groups first, each to the fold that has the least of its commonest label (and of two, the one that
    has the least altogether). Depends on what the groups hold, not on the order of the samples.
    """
    counts: dict[str, Counter[int]] = {}
    for group, number in zip(groups, label.tolist(), strict=True):
        counts.setdefault(group, Counter())[number] += 1
    if not 2 <= folds <= len(counts):
        raise UserError(
            f"{folds} folds of {len(counts)} groups; give --fold or --folds 2 or more, no more than groups"
        )
    members: dict[int, list[str]] = {}
    for group, held in counts.items():
        members.setdefault(min(held, key=lambda number: (-held[number], number)), []).append(group)
    fold_of: dict[str, int] = {}
    total = [0] * folds
    for number in sorted(members):
        heap = [(0, total[fold], fold) for fold in range(folds)]
        heapq.heapify(heap)
        for group in sorted(members[number], key=lambda group: (-counts[group].total(), _digest(group))):
            own, _, fold = heap[0]
            fold_of[group] = fold
            total[fold] += counts[group].total()
            heapq.heapreplace(heap, (own + counts[group][number], total[fold], fold))
    return np.array([fold_of[group] for group in groups], np.int64)


def _digest(group: str) -> bytes:
    return hashlib.sha256(group.encode()).digest()


def split_fold(index: SplitIndex, fold: int, folds: int) -> tuple[SplitIndex, SplitIndex]:
    """What fold `fold` (from 0 on) of `folds` trains on, and what it holds out. Raises `UserError`."""
    if not 0 <= fold < folds:
        raise UserError(f"--fold {fold}/{folds}: folds are numbered from 0 to {folds - 1}")
    held_out = folds_by_group([sample.group for sample in index.samples], index.label, folds) == fold
    return index.select(~held_out), index.select(held_out)


def parse_fold(text: str) -> tuple[int, int]:
    """`2/5` → (2, 5). Raises `UserError`."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal()):
        raise UserError(f"--fold {text}: must be k/K, from 0/K to K-1/K, such as 0/5 (or 0/5,1/4)")
    return int(first), int(second)


def train_and_val(
    shard_set: ShardSet, fold: str | None, leave_out: Collection[str] = ()
) -> tuple[SplitIndex, SplitIndex | None]:
    """What a run trains on, and what it is judged by after each epoch: the set's splits `train` and `val`, or,
    with `fold` k/K, both together less fold k, and fold k. Other splits are never touched.

    `fold` "k/K,j/J" is fold j of J of what fold k of K trains on: an inner fold, to choose settings by, that
    leaves the outer fold untouched. `leave_out`: videos that are not trained on. Raises `UserError`."""
    train, held_out = _sides(shard_set, fold)
    strange = sorted(set(leave_out).difference(train.videos)) if leave_out else []
    if strange:
        raise UserError(f"--leave-out {strange[0]}: is no video of {shard_set.folder} that would be trained on")
    train = without(train, leave_out)
    if not len(train):
        raise UserError(
            f"{shard_set.folder}: --leave-out, or copies of what is held out, leave nothing to train on"
        )
    return train, held_out


def without(index: SplitIndex, videos: Collection[str]) -> SplitIndex:
    """What is left of a split."""
    if not videos:
        return index
    kept = set(index.videos).difference(videos)
    return index.select(np.array([sample.video in kept for sample in index.samples]))


def _sides(shard_set: ShardSet, fold: str | None) -> tuple[SplitIndex, SplitIndex | None]:
    if fold is None:
        return shard_set.split("train"), shard_set.split("val") if "val" in shard_set.splits else None
    shard_set.split("train")
    pool = [sidecar for sidecar in shard_set.sidecars if sidecar.split in ("train", "val")]
    train, held_out = SplitIndex(shard_set, pool), None
    for number, folds in map(parse_fold, fold.split(",")):
        train, held_out = split_fold(train, number, folds)
    return train, held_out
