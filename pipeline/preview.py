"""`prep preview`: a set as one HTML file to look at. Of a large set it shows a fair sample, and says so."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pipeline.console import human_bytes
from pipeline.histogram import bars, histogram
from pipeline.leaks import Leaks, Pair, find_leaks, in_order
from pipeline.page import html, make_page, shown, web_file
from pipeline.report import Stage, no_stage
from pipeline.shards import ShardReader, get_format
from pipeline.shards.checks import check_sample
from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sprites import MOST_FRAMES, Pixels, Sheet, make_sheet, spread

PICTURES = 9_500_000  # bytes of JPEG in the file; as base64 a third more
MOST_VIDEOS = 2000
BROKEN_SHOWN, PAIRS_SHOWN = 300, 20


@dataclass(frozen=True)
class Clip:
    """One video as the page shows it. `brightness`: mean grey level; `motion`: mean change of the levels from one
    stored frame to the next; `rate`: different pictures a second, less than the set's for slower videos."""

    sidecar: Sidecar
    parts: Sequence[Sample]
    seconds: float
    brightness: float
    motion: float
    rate: float
    sheet: Sheet


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


def make_preview(
    shard_set: ShardSet, *, videos: int = 200, seed: int = 0, leaks: bool = False, stage: Stage = no_stage
) -> str:
    """The page, under 20 MB. `leaks`: look for near copies, too, which reads every frame of the set.

    The same set, options and versions give the same bytes. Raises `UserError` for damaged shards.
    """
    parts: dict[str, list[Sample]] = defaultdict(list)
    home: dict[str, Sidecar] = {}
    for sidecar in shard_set.sidecars:
        for sample in sidecar.samples:
            parts[sample.video].append(sample)
            home[sample.video] = sidecar
    strata = {video: (home[video].split, samples[0].label) for video, samples in parts.items()}
    chosen = fair_sample(strata, min(videos, MOST_VIDEOS), seed)
    found = find_leaks(shard_set, stage=stage) if leaks else None
    pairs = list(found.pairs) if found else _same_bytes(parts, home)
    pairs.sort(key=lambda pair: (not pair.harms, pair.distance, pair.a, pair.b))
    seen = {video for pair in pairs[:PAIRS_SHOWN] for video in (pair.a, pair.b)} | set(chosen)
    clips = {clip.parts[0].video: clip for clip in _look(shard_set, {v: parts[v] for v in seen}, stage)}
    rejected = [("rejected", car.split, broken) for car in shard_set.sidecars for broken in car.rejected]
    damaged = [("damaged", car.split, broken) for car in shard_set.sidecars for broken in car.damaged]
    reasons = {broken.video: broken.reason for _, _, broken in damaged}
    fps = shard_set.recipe.fps
    data = {
        "clips": [
            *(_as_dict(clips[video], reasons.get(video)) for video in chosen),
            *(_broken_dict(*entry) for entry in rejected[:BROKEN_SHOWN]),
        ],
        "pairs": [
            {"a": _as_dict(clips[p.a]), "b": _as_dict(clips[p.b]), "harms": p.harms, "text": _pair_text(p)}
            for p in pairs[:PAIRS_SHOWN]
        ],
    }
    lengths = [sum(sample.frames for sample in samples) / float(fps) for samples in parts.values()]
    body = Template(web_file("preview.html")).substitute(
        title=html(Path(str(shard_set.folder)).name or shard_set.folder),
        about=_about(shard_set),
        facts=_facts(shard_set, len(parts), sum(lengths), len(rejected)),
        sample=_sample_text(len(chosen), len(parts), seed),
        measured=_measured_text(len(chosen), len(parts)),
        figures=_figures(strata, lengths, [clips[video] for video in chosen]),
        copies=_copies_text(pairs, found),
        rejected=_broken_table(rejected, damaged),
    )
    name = shown(Path(str(shard_set.folder)).name, 60)
    return make_page(f"{name}: preview", body, data, scripts=[web_file("preview.js")])


def _look(shard_set: ShardSet, wanted: Mapping[str, Sequence[Sample]], stage: Stage) -> Iterator[Clip]:
    """The wanted videos (id → samples), shard by shard; each shard that holds one is opened once."""
    step = stage("looking", len(wanted))
    budget = PICTURES // max(1, len(wanted) + 2 * PAIRS_SHOWN)
    for sidecar in shard_set.sidecars:
        inside = [wanted[video] for video in dict.fromkeys(s.video for s in sidecar.samples) if video in wanted]
        if not inside:
            continue
        with (
            shard_set.folder.local(sidecar.shard) as path,
            get_format(shard_set.recipe.format).open(path, shard_set.recipe) as reader,
        ):
            for samples in inside:
                yield _clip(sidecar, in_order(samples), reader, shard_set.recipe.fps, budget)
                step(1)


def _clip(sidecar: Sidecar, parts: Sequence[Sample], reader: ShardReader, fps: Fraction, budget: int) -> Clip:
    total = sum(part.frames for part in parts)
    kept: list[Pixels] = []
    change, times = [], []
    places, first = spread(total, MOST_FRAMES), 0
    for part in parts:
        inside = [place - first for place in places if first <= place < first + part.frames]
        meta = reader.meta(part)
        times += [meta["pts"][place] * Fraction(meta["time_base"]) for place in range(part.frames)]
        first += part.frames
        if not inside:
            continue
        check_sample(reader, part)
        frames = reader.frames(part)
        kept += [np.array(frames[place]) for place in inside]
        for place in inside:
            if place + 1 < part.frames:
                change.append(np.abs(frames[place + 1].astype(np.int16) - frames[place]).mean())
    seconds = total / float(fps)
    distinct = sum(after > before for before, after in pairwise(times))
    span = float(times[-1] - times[0])
    return Clip(
        sidecar, parts, seconds,
        brightness=float(np.mean([frame.mean() for frame in kept])),
        motion=float(np.mean(change)) if change else 0.0,
        rate=distinct / span if span > 0 else float("nan"),
        sheet=make_sheet(kept, budget),
    )  # fmt: skip


def _as_dict(clip: Clip, reason: str | None = None) -> dict[str, Any]:
    sample = clip.parts[0]
    return {
        **_names(sample, clip.sidecar.split),
        "state": "kept" if reason is None else "damaged",
        "reason": shown(reason or "", 300),
        "seconds": round(clip.seconds, 3),
        "brightness": round(clip.brightness, 2),
        "motion": round(clip.motion, 3),
        "sheet": clip.sheet.as_dict(clip.seconds),
    }


def _broken_dict(state: str, split: str, broken: Broken) -> dict[str, Any]:
    nothing = dict.fromkeys(("seconds", "brightness", "motion", "sheet"))
    return {**_names(broken, split), **nothing, "state": state, "reason": shown(broken.reason, 300)}


def _names(entry: Sample | Broken, split: str) -> dict[str, str]:
    return {"video": shown(entry.video), "label": shown(entry.label), "group": shown(entry.group), "split": split}


def _same_bytes(parts: Mapping[str, Sequence[Sample]], home: Mapping[str, Sidecar]) -> list[Pair]:
    """Each copy with the first video of the same source."""
    same: dict[str, list[str]] = defaultdict(list)
    for video in sorted(parts):
        same[parts[video][0].source].append(video)
    return [
        Pair(
            first, video, (home[first].split, home[video].split), (parts[first][0].label, parts[video][0].label),
            0.0, "exact",
        )
        for first, *others in same.values() for video in others
    ]  # fmt: skip


def _pair_text(pair: Pair) -> str:
    kind = "the same bytes or frames" if pair.kind == "exact" else f"alike, distance {pair.distance:.3f}"
    across = [name for name, values in (("splits", pair.splits), ("labels", pair.labels)) if len(set(values)) > 1]
    return kind + (f"; across {' and '.join(across)}" if across else "")


def _about(shard_set: ShardSet) -> str:
    recipe = shard_set.recipe
    text = f"{shard_set.folder} · {recipe.width}×{recipe.height} px, {float(recipe.fps):g} frames a second"
    unfinished = shard_set.unfinished
    return html(f"{text} · recipe {recipe.fingerprint}" + (f" · unfinished: {unfinished}" if unfinished else ""))


def _facts(shard_set: ShardSet, videos: int, seconds: float, rejected: int) -> str:
    size = sum(sidecar.bytes for sidecar in shard_set.sidecars)
    groups = {sample.group for sidecar in shard_set.sidecars for sample in sidecar.samples}
    facts = {
        "videos": f"{videos:,}",
        "length": f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min",
        "labels": f"{len(shard_set.labels):,}",
        "splits": f"{len(shard_set.splits)}",
        "groups": f"{len(groups):,}",
        "rejected": f"{rejected:,}",
        "size": human_bytes(size),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{html(value)}</dd></div>" for name, value in facts.items())


def _sample_text(chosen: int, videos: int, seed: int) -> str:
    play = "Point at a clip, or press it, and it plays."
    if chosen == videos:
        return f"All {videos:,} videos. {play}"
    return (
        f"A sample: {chosen:,} of {videos:,} videos, of each split and label as many as its share, drawn with "
        f"seed {seed}. {play}"
    )


def _measured_text(chosen: int, videos: int) -> str:
    if chosen == videos:
        return "Of all videos."
    return f"Length and labels are of all {videos:,} videos; rate, brightness and motion of the {chosen:,} shown."


def _figures(strata: Mapping[str, tuple[str, str]], lengths: Sequence[float], clips: Sequence[Clip]) -> str:
    labels = Counter(label for _, label in strata.values())
    drawn = [
        histogram("Length", "s", lengths),
        bars("Labels", labels),
        bars("Splits and labels", Counter(" ".join(stratum) for stratum in strata.values())),
        histogram("Rate of different pictures", "a second", [clip.rate for clip in clips]),
        histogram("Brightness", "of 255", [clip.brightness for clip in clips]),
        histogram("Motion between stored frames", "of 255", [clip.motion for clip in clips]),
    ]
    return "".join(drawn)


def _copies_text(pairs: Sequence[Pair], found: Leaks | None) -> str:
    harm = sum(pair.harms for pair in pairs)
    what = "copies" if found else "videos with the same bytes"
    text = (
        f"{'1 pair' if len(pairs) == 1 else f'{len(pairs):,} pairs'} of {what}, {harm:,} across splits or labels."
    )
    if len(pairs) > PAIRS_SHOWN:
        text += f" The first {PAIRS_SHOWN} are shown."
    if not found:
        return html(f"{text} Near copies were not looked for: --leaks does it, and reads every frame.")
    unseen = len(found.flat) + len(found.still) + len(found.short)
    return html(
        text + (f" Of {unseen:,} flat, still or short videos only exact copies are found." if unseen else "")
    )


def _broken_table(rejected: Sequence[tuple[str, str, Broken]], damaged: Sequence[tuple[str, str, Broken]]) -> str:
    entries = [*rejected, *damaged]
    if not entries:
        return "<p>Nothing was rejected, and nothing is damaged.</p>"
    rows = "".join(
        f"<tr><td>{html(shown(broken.video))}</td><td>{html(shown(broken.label))}</td><td>{html(split)}</td>"
        f'<td>{state}</td><td class="number">{broken.frames:,}</td><td>{html(shown(broken.reason, 300))}</td></tr>'
        for state, split, broken in entries[:BROKEN_SHOWN]
    )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("video", "label", "split", "state", "frames", "why"))
    text = f"{len(rejected):,} rejected, {len(damaged):,} damaged and kept in part."
    if len(entries) > BROKEN_SHOWN:
        text += f" The first {BROKEN_SHOWN} are shown; prep inspect lists them all."
    return (
        f'<p>{text}</p><div class="scroll" tabindex="0" role="region" aria-label="Rejected and damaged">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
