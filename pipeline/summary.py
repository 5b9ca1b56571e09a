"""What is in a set, in numbers: `prep inspect`, and the closing table of `prep build-shards`."""

import hashlib
from collections import Counter, defaultdict
from typing import Any

from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Broken


def summarize(shard_set: ShardSet) -> dict[str, Any]:
    """The set as one JSON object. `digest` names its exact bytes: equal digests, equal sets."""
    sidecars = shard_set.sidecars
    samples = [(sidecar.split, sample) for sidecar in sidecars for sample in sidecar.samples]
    rejected = [entry for sidecar in sidecars for entry in sidecar.rejected]
    damaged = [entry for sidecar in sidecars for entry in sidecar.damaged]
    videos = {sample.video: (split, sample) for split, sample in samples}
    groups, sources = defaultdict(set), defaultdict(set)
    for split, sample in videos.values():
        groups[sample.group].add(split)
        sources[sample.source].add(sample.video)
    recipe = shard_set.recipe
    return {
        "videos": len(videos),
        "rejected": len(rejected),
        "frames": sum(sample.frames for _, sample in samples),
        "bytes": sum(sidecar.bytes for sidecar in sidecars),
        "fps": float(recipe.fps),
        "size": [recipe.width, recipe.height],
        "labels": dict(sorted(Counter(sample.label for _, sample in videos.values()).items())),
        "splits": dict(sorted(Counter(split for split, _ in videos.values()).items())),
        "split_labels": {
            split: dict(sorted(Counter(s.label for at, s in videos.values() if at == split).items()))
            for split in shard_set.splits
        },
        "groups": len(groups),
        "groups_across_splits": sorted(group for group, splits in groups.items() if len(splits) > 1),
        "same_bytes": sorted(sorted(names) for names in sources.values() if len(names) > 1),
        "rejections": _reasons(rejected),
        "damaged": _reasons(damaged),
        "unfinished": shard_set.unfinished,
        "fingerprint": recipe.fingerprint,
        "digest": digest(shard_set),
        "shards": len(sidecars),
    }


def digest(shard_set: ShardSet) -> str:
    """16 hex digits that name the exact bytes of all shards: equal digests, equal sets."""
    hashes = "".join(f"{sidecar.shard} {sidecar.sha256}\n" for sidecar in shard_set.sidecars)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _reasons(broken: list[Broken]) -> list[dict[str, Any]]:
    return [{"video": entry.video, "reason": entry.reason, "frames": entry.frames} for entry in broken]
