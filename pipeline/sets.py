"""The sets under a folder or bucket, and how two of them differ: `prep list` and `prep diff`."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.places import is_url
from pipeline.recipe import RECIPE_FILE, Recipe
from pipeline.report import Stage, Step, no_stage
from pipeline.shards import get_format
from pipeline.shards.directory import SIDECAR, sidecar_name
from pipeline.shards.folder import Folder, ask_each, get_folder
from pipeline.shards.index import ShardSet, read_set
from pipeline.shards.sidecar import Sample
from pipeline.summary import digest

DEPTH = 4  # folders below the root in which sets are looked for


@dataclass(frozen=True)
class Found:
    """A set under a root: `name` is its path below it. Where it cannot be read, `error` says why and the rest is
    empty. `age`: seconds since something in it was written, None where the place does not tell."""

    name: str
    recipe: Recipe | None = None
    fingerprint: str = ""
    digest: str = ""
    videos: int = 0
    bytes: int = 0
    age: float | None = None
    error: str = ""


def list_sets(root: Path | str) -> list[Found]:
    """The sets at and below a folder or URL, by name. Raises `UserError` where it cannot be reached."""
    folder = get_folder(root, probe=False)
    if not is_url(root) and not Path(root).is_dir():
        raise UserError(f"{root}: is no folder; give one that holds sets")
    return [_found(root, name) for name in _set_names(folder)]


def _set_names(folder: Folder) -> Iterator[str]:
    """What is below a set is its own."""
    level = [""]
    for _ in range(DEPTH):
        below: list[str] = []
        for name in level:
            prefix = f"{name}/" if name else ""
            try:
                folder.read(prefix + RECIPE_FILE)
            except (FileNotFoundError, NotADirectoryError):
                below += [prefix + inside for inside in folder.folders(name)]
            except (OSError, UnicodeDecodeError):
                yield name  # there is one, and it cannot be read
            else:
                yield name
        level = below


def _found(root: Path | str, name: str) -> Found:
    place: Path | str = (f"{root}/{name}" if name else root) if is_url(root) else Path(root, name)
    try:
        shard_set = read_set(place, whole=False)
        unfinished = shard_set.unfinished
    except UserError as error:
        return Found(name or ".", error=str(error).removeprefix(f"{place}/"))
    samples = [sample for sidecar in shard_set.sidecars for sample in sidecar.samples]
    names = [sidecar_name(sidecar) + SIDECAR for sidecar in shard_set.sidecars] or [RECIPE_FILE]
    times = [at for at in ask_each(shard_set.folder, shard_set.folder.modified, names) if at is not None]
    return Found(
        name=name or ".",
        recipe=shard_set.recipe,
        fingerprint=shard_set.recipe.fingerprint,
        digest=digest(shard_set),
        videos=len({sample.video for sample in samples}),
        bytes=sum(sidecar.bytes for sidecar in shard_set.sidecars),
        age=max(0.0, time.time() - max(times)) if times else None,
        error=f"unfinished: {unfinished}" if unfinished else "",
    )


@dataclass(frozen=True)
class Difference:
    """How set B differs from set A. `recipe`: its fields; videos by id, those in both with what A and B say."""

    recipe: list[str]
    only_a: list[str]
    only_b: list[str]
    changed: dict[str, dict[str, list[Any]]]
    frames: list[str]

    def __bool__(self) -> bool:
        return bool(self.recipe or self.only_a or self.only_b or self.changed or self.frames)


def compare_sets(place_a: Path | str, place_b: Path | str, stage: Stage = no_stage) -> Difference:
    """What is in one and not the other, and what differs. Frames are compared where the recipes agree: by their
    checksums, else by reading them. Raises `UserError` where one is no whole set."""
    a, b = read_set(place_a), read_set(place_b)
    here, there = _videos(a), _videos(b)
    both = sorted(here.keys() & there.keys())
    changed, suspects = {}, []
    for video in both:
        mine, theirs = here[video], there[video]
        fields = {name: [mine.about[name], theirs.about[name]] for name in mine.about
                  if mine.about[name] != theirs.about[name]}  # fmt: skip
        if fields:
            changed[video] = fields
        if a.recipe == b.recipe and not _known_same(mine, theirs, a.recipe):
            suspects.append(video)
    step = (stage if suspects else no_stage)("comparing frames", 2 * len(suspects))
    digests = _frames_sha256(a, here, suspects, step), _frames_sha256(b, there, suspects, step)
    frames = [video for video in suspects if digests[0][video] != digests[1][video]]
    return Difference(
        recipe=a.recipe.differences(b.recipe),
        only_a=sorted(here.keys() - there.keys()),
        only_b=sorted(there.keys() - here.keys()),
        changed=changed,
        frames=frames,
    )


@dataclass
class _Video:
    about: dict[str, str | int]
    shard: str
    sha256: str
    samples: list[Sample]


def _videos(shard_set: ShardSet) -> dict[str, _Video]:
    found: dict[str, _Video] = {}
    for sidecar in shard_set.sidecars:
        for sample in sidecar.samples:
            about: dict[str, str | int] = {
                "label": sample.label, "split": sidecar.split, "group": sample.group, "source": sample.source,
            }  # fmt: skip
            video = found.setdefault(sample.video, _Video(about, sidecar.shard, sidecar.sha256, []))
            video.samples.append(sample)
        for broken in sidecar.rejected:
            about = {"label": broken.label, "split": sidecar.split, "group": broken.group,
                     "source": broken.source or "", "rejected": broken.reason}  # fmt: skip
            found.setdefault(broken.video, _Video(about, sidecar.shard, sidecar.sha256, []))
    for video in found.values():
        video.about.setdefault("rejected", "")
        video.about["frames"] = sum(sample.frames for sample in video.samples)
    return found


def _known_same(mine: _Video, theirs: _Video, recipe: Recipe) -> bool:
    """Whether the sidecars alone tell that the frames are the same, or that there are not as many."""
    if mine.about["frames"] != theirs.about["frames"] or mine.sha256 == theirs.sha256:
        return True
    own_chunks = recipe.format == "webdataset"  # a chunk of an array may hold frames of another video, too
    checksums = [[sample.crc32c for sample in video.samples] for video in (mine, theirs)]
    return own_chunks and all(checksums[0]) and checksums[0] == checksums[1]


def _frames_sha256(
    shard_set: ShardSet, videos: Mapping[str, _Video], wanted: Iterable[str], step: Step
) -> dict[str, bytes]:
    """Of the frames of each of these videos. A shard is fetched once."""
    inside: dict[str, list[str]] = {}
    for video in wanted:
        inside.setdefault(videos[video].shard, []).append(video)
    recipe, found = shard_set.recipe, dict[str, bytes]()
    for shard, names in inside.items():
        with shard_set.folder.local(shard) as path, get_format(recipe.format).open(path, recipe) as reader:
            for name in names:
                digest = hashlib.sha256()
                for sample in videos[name].samples:
                    digest.update(np.ascontiguousarray(reader.frames(sample)).data)
                found[name] = digest.digest()
                step(1)
    return found
