"""A video as `prep preview` shows it: its sheet of frames, and what was measured of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.leaks import in_order
from pipeline.page import shown
from pipeline.places import is_url
from pipeline.recipe import Recipe
from pipeline.report import Stage
from pipeline.shards import ShardReader, get_format
from pipeline.shards.cache import ShardCache, default_cache
from pipeline.shards.checks import check_sample
from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sprites import MOST_FRAMES, Pixels, Sheet, make_sheet, spread

Local = Callable[[str], AbstractContextManager[Path]]  # from a shard's name to where it is on this machine


@dataclass(frozen=True)
class Clip:
    """One video as the page shows it. `brightness`: mean grey level; `motion`: mean change of the levels from one
    stored frame to the next; `rate`: different pictures a second, the set's, or less for slower videos."""

    sidecar: Sidecar
    parts: Sequence[Sample]
    seconds: float
    brightness: float
    motion: float
    rate: float
    sheet: Sheet


@contextmanager
def places(
    shard_set: ShardSet, sidecars: Sequence[Sidecar], cache: Path | None, cache_size: int | None
) -> Iterator[Local]:
    """Where these shards are: where they stand, or in a cache, where one is asked for or they lie behind a URL."""
    if cache is None and not is_url(str(shard_set.folder)):
        yield shard_set.folder.local
        return
    number_of = {sidecar.shard: number for number, sidecar in enumerate(sidecars)}
    with closing(ShardCache(shard_set, sidecars, cache or default_cache(), cache_size)) as kept:
        yield lambda name: nullcontext(kept.path(number_of[name]))


def look(
    recipe: Recipe,
    sidecars: Sequence[Sidecar],
    wanted: Mapping[str, Sequence[Sample]],
    budget: int,
    stage: Stage,
    local: Local,
) -> Iterator[Clip]:
    """The wanted videos (id → samples) of these shards, each opened once, where `local` says, with `budget` bytes
    of JPEG each. Raises `UserError` for damaged shards."""
    step = stage("looking", len(wanted))
    for sidecar in sidecars:
        inside = [wanted[video] for video in dict.fromkeys(s.video for s in sidecar.samples) if video in wanted]
        with (
            local(sidecar.shard) as path,
            get_format(recipe.format).open(path, recipe) as reader,
        ):
            for samples in inside:
                yield _clip(sidecar, in_order(samples), reader, recipe.fps, budget)
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
    distinct = sum(after > before for before, after in pairwise(times))
    return Clip(
        sidecar, parts,
        seconds=total / float(fps),
        brightness=float(np.mean([frame.mean() for frame in kept])),
        motion=float(np.mean(change)) if change else 0.0,
        rate=float(fps) * distinct / (total - 1) if total > 1 else float("nan"),
        sheet=make_sheet(kept, budget),
    )  # fmt: skip


def as_dict(clip: Clip, reason: str | None = None) -> dict[str, Any]:
    """What the page takes of it; `reason`: why it is damaged."""
    sample = clip.parts[0]
    return {
        **names_of(sample, clip.sidecar.split),
        "state": "kept" if reason is None else "damaged",
        "reason": shown(reason or "", 300),
        "seconds": round(clip.seconds, 3),
        "brightness": round(clip.brightness, 2),
        "motion": round(clip.motion, 3),
        "sheet": clip.sheet.as_dict(clip.seconds),
    }


def names_of(entry: Sample | Broken, split: str) -> dict[str, str]:
    """The texts by which a video is found."""
    return {"video": shown(entry.video), "label": shown(entry.label), "group": shown(entry.group), "split": split}
