"""Which videos of a large set `prep preview` shows: a fair sample, the same for the same seed."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping


def fair_sample(strata: Mapping[str, tuple[str, str]], count: int, seed: int) -> list[str]:
    """`count` of the videos, from each stratum as many as its share (largest remainders), and one at least where
    they are enough for that. `strata`: video → split and label. Which ones is drawn by hash, so that the same seed
    gives the same videos, whatever their order."""
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for video, stratum in strata.items():
        members[stratum].append(video)
    drawn = []
    for stratum, quota in _quotas({name: len(videos) for name, videos in members.items()}, count).items():
        drawn += sorted(members[stratum], key=lambda video: _draw(seed, video))[:quota]
    return sorted(drawn)


def _quotas(sizes: Mapping[tuple[str, str], int], count: int) -> dict[tuple[str, str], int]:
    total = sum(sizes.values())
    if count >= total:
        return dict(sizes)
    first = 1 if count >= len(sizes) else 0
    spare, rest = count - first * len(sizes), total - first * len(sizes)
    exact = {name: (size - first) * spare / rest for name, size in sizes.items()}
    quotas = {name: first + int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _draw(seed: int, video: str) -> bytes:
    return hashlib.sha256(f"{seed} {video}".encode("utf-8", "surrogateescape")).digest()
