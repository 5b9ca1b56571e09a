"""`prep preview`: a set as one HTML file to look at. Of a large set it shows a fair sample, and says so."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from pipeline.console import human_bytes
from pipeline.histogram import bars, histogram
from pipeline.leaks import Leaks, Pair, find_leaks
from pipeline.page import as_json, html, make_page, shown, web_file
from pipeline.preview_broken import MOST, broken_text, broken_videos
from pipeline.preview_clips import Clip, as_dict, look, names_of, places
from pipeline.preview_sample import fair_sample
from pipeline.report import Stage, no_stage
from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Sample, Sidecar

LIMIT = 20_000_000  # bytes of the file
FIXED = 600_000  # of it: style, scripts, figures and their names
NUMBERS = 400  # of it, for each clip: what is not text or picture
PICTURES = 9_500_000  # bytes of JPEG in the file; as base64 a third more
MOST_VIDEOS = 2000
PAIRS_SHOWN = 20


def make_preview(
    shard_set: ShardSet,
    *,
    videos: int = 200,
    seed: int = 0,
    leaks: bool = False,
    cache: Path | None = None,
    cache_size: int | None = None,
    stage: Stage = no_stage,
) -> str:
    """The page, under 20 MB. `leaks`: look for near copies, too, which reads every frame of the set.

    Shards of a set behind a URL come to the folder `cache`, of at most `cache_size` bytes. The same set, options
    and versions give the same bytes. Raises `UserError` for damaged shards.
    """
    parts, home = _videos(shard_set)
    strata = {video: (home[video].split, samples[0].label) for video, samples in parts.items()}
    chosen = fair_sample(strata, min(videos, MOST_VIDEOS), seed)
    found = None
    if leaks:
        with places(shard_set, shard_set.sidecars, cache, cache_size) as local:
            found = find_leaks(shard_set, stage=stage, local=local)
    pairs = list(found.pairs) if found else _same_bytes(parts, home)
    pairs.sort(key=lambda pair: (not pair.harms, pair.distance, pair.a, pair.b))
    compared = [video for pair in pairs[:PAIRS_SHOWN] for video in (pair.a, pair.b)]
    rejected, damaged = broken_videos(shard_set)
    reasons = {entry.broken.video: entry.broken.reason for entry in damaged}
    named = [{**names_of(parts[v][0], home[v].split), "reason": reasons.get(v)} for v in (*chosen, *compared)]
    unplayed, table = [entry.as_dict() for entry in rejected[:MOST]], broken_text(rejected, damaged)
    budget = _budget(len(named), len(as_json([named, unplayed]).encode()) + len(table.encode()))
    wanted = {video: parts[video] for video in {*chosen, *compared}}
    inside = [sidecar for sidecar in shard_set.sidecars if any(s.video in wanted for s in sidecar.samples)]
    with places(shard_set, inside, cache, cache_size) as local:
        clips = {
            clip.parts[0].video: clip for clip in look(shard_set.recipe, inside, wanted, budget, stage, local)
        }
    data = {
        "clips": [*(as_dict(clips[video], reasons.get(video)) for video in chosen), *unplayed],
        "pairs": [
            {"a": as_dict(clips[p.a]), "b": as_dict(clips[p.b]), "harms": p.harms, "text": _pair_text(p)}
            for p in pairs[:PAIRS_SHOWN]
        ],
    }
    lengths = [
        sum(sample.frames for sample in samples) / float(shard_set.recipe.fps) for samples in parts.values()
    ]
    body = Template(web_file("preview.html")).substitute(
        title=html(Path(str(shard_set.folder)).name or shard_set.folder),
        about=_about(shard_set),
        facts=_facts(shard_set, len(parts), sum(lengths), len(rejected)),
        sample=_sample_text(len(chosen), len(parts), seed),
        measured=_measured_text(len(chosen), len(parts)),
        figures=_figures(strata, lengths, [clips[video] for video in chosen]),
        copies=_copies_text(pairs, found),
        rejected=table,
    )
    name = shown(Path(str(shard_set.folder)).name, 60)
    return make_page(f"{name}: preview", body, data, scripts=[web_file("preview.js")])


def _videos(shard_set: ShardSet) -> tuple[dict[str, list[Sample]], dict[str, Sidecar]]:
    """The samples of each video, and where it stands."""
    parts: dict[str, list[Sample]] = defaultdict(list)
    home: dict[str, Sidecar] = {}
    for sidecar in shard_set.sidecars:
        for sample in sidecar.samples:
            parts[sample.video].append(sample)
            home[sample.video] = sidecar
    return parts, home


def _budget(sheets: int, texts: int) -> int:
    """Bytes of JPEG for each of so many sheets, beside `texts` bytes that come from whoever named the videos."""
    room = LIMIT - FIXED - NUMBERS * sheets - texts
    return min(PICTURES, room * 3 // 4) // max(1, sheets)


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
    if not videos:
        return "No video was kept."
    play = "Point at a clip, or press it, and it plays."
    if chosen == videos:
        return f"All {videos:,} videos. {play}"
    return (
        f"A sample: {chosen:,} of {videos:,} videos, of each split and label as many as its share, drawn with "
        f"seed {seed}. {play}"
    )


def _measured_text(chosen: int, videos: int) -> str:
    if chosen == videos:
        return "Of all videos." if videos else ""
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
