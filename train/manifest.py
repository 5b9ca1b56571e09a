"""Which videos a run was trained on and judged by, as digests: known still when its set is split anew, or gone."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.shards.index import ShardSet, SplitIndex
from pipeline.shards.sidecar import Sample
from train.checkpoint import read_tensors, write_tensors

MANIFEST = "manifest.safetensors"  # 8 bytes a video and 8 a group
SIDES = ("train", "val")


@dataclass(frozen=True)
class Side:
    """What a run had as `train` or `val`: digests of its videos' bytes and of its groups' names."""

    sources: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, index: SplitIndex) -> "Side":
        """The side that these samples are."""
        sources, groups = (one.source for one in index.samples), (one.group for one in index.samples)
        return cls(frozenset(map(_digest, sources)), frozenset(map(_digest, groups)))

    def has_group(self, sample: Sample) -> bool:
        """Whether a group of that name was on this side."""
        return _digest(sample.group) in self.groups


def find_sides(shard_set: ShardSet, sides: Mapping[str, Side]) -> dict[str, SplitIndex]:
    """What the set has of their videos, in whatever split and under whatever name."""
    every = SplitIndex(shard_set, shard_set.sidecars)
    numbers = [_digest(sample.source) for sample in every.samples]
    return {
        name: every.select(np.array([n in side.sources for n in numbers], bool)) for name, side in sides.items()
    }


def write_manifest(run: Path, **sides: SplitIndex | None) -> None:
    """Keep these sides in the run's folder."""
    kept = {name: Side.of(index) for name, index in sides.items() if index is not None}
    parts = {
        f"{name}/{what}": getattr(side, what) for name, side in kept.items() for what in ("sources", "groups")
    }
    tensors = {name: torch.tensor(sorted(numbers), dtype=torch.int64) for name, numbers in parts.items()}
    write_tensors(run / MANIFEST, tensors, {"digests": "the first 60 bits of SHA-256"})


def read_manifest(run: Path) -> dict[str, Side]:
    """The sides that the run has kept; none where it is of a release that kept none. Raises `UserError`."""
    if not (run / MANIFEST).exists():
        return {}
    tensors, _ = read_tensors(run / MANIFEST)
    try:
        kept = {name: frozenset(tensor.tolist()) for name, tensor in tensors.items()}
        return {
            name: Side(kept[f"{name}/sources"], kept[f"{name}/groups"])
            for name in SIDES
            if name == "train" or f"{name}/sources" in kept
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / MANIFEST}: is no manifest of a run: {error!r}") from error


def _digest(text: str) -> int:
    """60 bits, which an int64 holds: that two of a million names have the same is one chance in two million. Names
    of files may hold half characters."""
    return int(sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)
