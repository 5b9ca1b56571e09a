"""A shard set in its folder: what stands in it, how a shard is committed, how leftovers are swept.

A shard and its sidecar are the unit of commit: made aside, put in place, sidecar last. There is no central
mutable file, so any number of builders may fill one set; builders.py is how they share the work.
"""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.foreign import MOST_TEXT
from pipeline.recipe import RECIPE_FILE, Recipe, read_recipe, recipe_text
from pipeline.report import Report, no_report
from pipeline.shards import FORMATS, get_format
from pipeline.shards.builders import BUILDERS
from pipeline.shards.folder import TEMPORARY, Folder, ask_each
from pipeline.shards.layout import check_place, find_impossible
from pipeline.shards.sidecar import SHARD, Broken, Sample, Sidecar, parse_sidecar

SIDECAR = ".json"
BUILDING = ".building"  # there while a build runs, and after one that was stopped
OWN_SIDECAR = re.compile(r"(?:train|val|test)-[0-9]{6}\.json")
CHECKED_AT_ONCE = 64  # sidecars
STALE = ".stale"  # shards that are rewritten while others still copy from them, by SHA-256


@dataclass(frozen=True)
class Reuse:
    """Frames of the same source bytes that stand already: their samples, in the shard `file` of the set,
    whose bytes have this SHA-256."""

    file: str
    sha256: str
    samples: tuple[Sample, ...]


@dataclass
class Standing:
    """What a set holds already: its whole shards by name, and where the frames of each source's bytes are.

    `forgotten`: SHA-256 of shards that stand, and are to be made again all the same.
    """

    shards: dict[str, Sidecar] = field(default_factory=dict)
    frames: dict[str, list[Reuse]] = field(default_factory=dict)
    rejected: dict[str, Broken] = field(default_factory=dict)
    damaged: dict[str, Broken] = field(default_factory=dict)
    forgotten: dict[str, str] = field(default_factory=dict)

    def stood(self, name: str) -> str | None:
        """SHA-256 of the shard that stands under that name."""
        return self.shards[name].sha256 if name in self.shards else self.forgotten.get(name)

    def forget_rejected(self) -> None:
        """So that rejected videos are tried again: their shards are no longer as they should be."""
        self.rejected.clear()
        self.forgotten = {name: sidecar.sha256 for name, sidecar in self.shards.items() if sidecar.rejected}
        self.shards = {name: sidecar for name, sidecar in self.shards.items() if not sidecar.rejected}

    def learn(self, file: str, sidecar: Sidecar) -> None:
        """Remember where the frames in the shard `file` (relative to the set) come from."""
        videos: dict[tuple[str, str], list[Sample]] = {}
        for sample in sidecar.samples:
            videos.setdefault((sample.source, sample.video), []).append(sample)
        for (source, _), samples in videos.items():
            self.frames.setdefault(source, []).append(Reuse(file, sidecar.sha256, tuple(samples)))
        for known, found in ((self.rejected, sidecar.rejected), (self.damaged, sidecar.damaged)):
            known.update({broken.source: broken for broken in found if broken.source})


def check_set(folder: Folder, recipe: Recipe, *, overwrite: bool = False) -> bool:
    """Whether a set stands there already. Makes and removes nothing.

    Raises `UserError` for a set of another recipe (unless `overwrite`), and for a folder that holds something
    else.
    """
    if RECIPE_FILE not in folder.names():
        _refuse_other_files(folder)
        return False
    if not overwrite:
        _refuse_another_recipe(folder, recipe)
    return True


def open_set(folder: Folder, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Make the folder a set of this recipe, or check that it is one.

    `overwrite` removes a set that stands there (its own files, nothing else). Raises `UserError` as `check_set`.
    """
    if check_set(folder, recipe, overwrite=overwrite) and overwrite:
        _remove_set(folder)
    folder.create(RECIPE_FILE, recipe_text(recipe))
    _refuse_another_recipe(folder, recipe)
    for name, text in get_format(recipe.format).around(recipe).items():
        folder.create(name, text)


def look_at_set(folder: Folder, recipe: Recipe, *, overwrite: bool = False) -> Standing:
    """What `open_set` and `scan` would find, without making or removing anything. Raises `UserError`."""
    stands = check_set(folder, recipe, overwrite=overwrite)
    return scan(folder, recipe) if stands and not overwrite else Standing()


def _refuse_another_recipe(folder: Folder, recipe: Recipe) -> None:
    differences = recipe.differences(read_recipe(folder))
    if differences:
        raise UserError(
            f"{folder} is a set of another recipe: this run asks for {'; '.join(differences)}. Give another "
            "--out to keep both, the same settings to add to it, or --overwrite to build it anew"
        )


def _refuse_other_files(folder: Folder) -> None:
    if Path(str(folder)).is_file():
        raise UserError(f"{folder}: is a file; a set wants a folder")
    # What another builder of the same set has just made is none of them.
    ours = {RECIPE_FILE, STALE, BUILDING, BUILDERS, *_tops()}
    others = [
        name
        for name in folder.names()
        if name not in ours and not OWN_SIDECAR.fullmatch(name) and not SHARD.fullmatch(name)
        and not name.startswith(TEMPORARY)
    ]  # fmt: skip
    if others:
        raise UserError(f"{folder}: holds other files ({others[0]}) and no shard set; give an empty folder")


def _tops() -> set[str]:
    """Names that a set of any format may have beside its shards and sidecars."""
    return {name.partition("/")[0] for kind in FORMATS for name in get_format(kind).around(Recipe())}


def scan(folder: Folder, recipe: Recipe) -> Standing:
    """What stands in the set and is whole. A shard that is gone or has another length than its sidecar says
    does not exist. Raises `UserError` for a sidecar that is damaged or of another recipe."""
    standing = Standing()
    for sidecar in sidecars(folder, recipe):
        if is_whole(folder, sidecar.shard, sidecar):
            standing.shards[sidecar_name(sidecar)] = sidecar
            standing.learn(sidecar.shard, sidecar)
    for sidecar in sidecars(folder, recipe, STALE):
        if is_whole(folder, stale := _stale(sidecar), sidecar):
            standing.learn(stale, sidecar)
    return standing


def sidecars(folder: Folder, recipe: Recipe, under: str = "") -> Iterator[Sidecar]:
    """Every sidecar of the set, by name. Raises `UserError`."""
    found = folder.names(under)
    names = [name for name in found if (name.endswith(SIDECAR) if under else OWN_SIDECAR.fullmatch(name))]
    paths = [f"{under}/{name}" if under else name for name in names]

    def read(path: str) -> str | None:
        try:
            return folder.read(path)
        except FileNotFoundError:
            return None  # another builder is rewriting this shard
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder}/{path}: cannot be read: {error}") from error

    texts = zip(paths, ask_each(folder, read, paths), strict=True)
    parsed = ((path, _parse(folder, path, text, recipe)) for path, text in texts if text is not None)
    while some := dict(itertools.islice(parsed, CHECKED_AT_ONCE)):
        if impossible := find_impossible(list(some.values()), recipe):
            raise UserError(f"{folder}/{list(some)[impossible[0]]}: {impossible[1]}")
        yield from some.values()


def _parse(folder: Folder, path: str, text: str, recipe: Recipe) -> Sidecar:
    """The sidecar at that path, one of a set of this recipe. Raises `UserError`."""
    sidecar = parse_sidecar(text, f"{folder}/{path}")
    if sidecar.fingerprint != recipe.fingerprint:
        raise UserError(
            f"{folder}/{path}: belongs to the recipe {sidecar.fingerprint}, the set to {recipe.fingerprint}; "
            "remove it, or build with --overwrite"
        )
    if "/" not in path:  # a stale one has another name
        try:
            check_place(sidecar, path.removesuffix(SIDECAR), recipe)
        except UserError as error:
            raise UserError(f"{folder}/{path}: {error}") from error
    return sidecar


def check_listed(folder: Folder) -> None:
    """Raises `UserError` for a web server that gives away the files of a set and does not say which there are."""
    if RECIPE_FILE not in folder.names():
        raise UserError(
            f"{folder}: {RECIPE_FILE} is there, and the server lists no files; it must list its folders (nginx: "
            "autoindex on)"
        )


def standing_shard(folder: Folder, recipe: Recipe, name: str) -> Sidecar | None:
    """The sidecar of the shard `name` (`train-000003`), where it stands now and is whole."""
    try:
        sidecar = parse_sidecar(folder.read(name + SIDECAR), name)
    except (OSError, UserError, UnicodeDecodeError):
        return None
    is_ours = sidecar.fingerprint == recipe.fingerprint and sidecar_name(sidecar) == name
    return sidecar if is_ours and is_whole(folder, sidecar.shard, sidecar) else None


def all_there(folder: Folder, names: Collection[str]) -> bool:
    """Whether each of these shards has its sidecar by now."""
    return {name + SIDECAR for name in names} <= set(folder.names())


def shard_name(split: str, bucket: int) -> str:
    """`train-000003`: the stem of a shard and its sidecar."""
    return f"{split}-{bucket:06d}"


def sidecar_name(sidecar: Sidecar) -> str:
    """The stem that the sidecar's shard has."""
    return shard_name(sidecar.split, sidecar.bucket)


def commit(folder: Folder, made: Path, sidecar: Sidecar, report: Report = no_report) -> None:
    """Put a finished shard in its place, then its sidecar."""
    name, text = sidecar_name(sidecar) + SIDECAR, sidecar.text()
    if len(text) > MOST_TEXT:
        raise UserError(f"{folder}/{name}: would be of {len(text)} bytes; give a smaller --videos-per-shard")
    # An old sidecar never stands beside a new shard, not even for a moment.
    folder.remove(name)
    folder.put(made, sidecar.shard, report)
    folder.write(name, text)


def snapshot(folder: Folder, sidecar: Sidecar) -> str:
    """Keep the shard's bytes reachable while it is rewritten; returns the shard to copy from.

    That is not there if another builder rewrites it already, and had no need of it.
    """
    stale = _stale(sidecar)
    try:
        folder.keep(sidecar.shard, stale)
    except FileNotFoundError:
        return stale
    folder.write(f"{STALE}/{sidecar.sha256}{SIDECAR}", sidecar.text())
    return stale


def _stale(sidecar: Sidecar) -> str:
    return f"{STALE}/{sidecar.sha256}{Path(sidecar.shard).suffix}"


def begin(folder: Folder) -> set[str]:
    """Mark the set as being built; returns the shards and sidecars that stand in it now."""
    folder.write(BUILDING, "")
    found = folder.names()
    found += [f"{top}/{name}" for top in _tops() for name in folder.names(top)]
    return {name for name in found if OWN_SIDECAR.fullmatch(name) or SHARD.fullmatch(name)}


def end(folder: Folder, before: set[str], names: Collection[str]) -> None:
    """The set is whole, and nobody else builds it."""
    drop(folder, before, names)
    unmark(folder)


def drop(folder: Folder, before: set[str], names: Collection[str]) -> None:
    """Remove what stood in the set before the build and is no part of it now.

    Nothing that another builder has added meanwhile is touched. A sidecar goes before its shard.
    """
    for name in sorted(before, key=lambda name: not name.endswith(SIDECAR)):
        if Path(name).stem not in names:
            folder.remove(name)


def unmark(folder: Folder) -> None:
    """The set is whole: readers may have it, and nobody copies from its old shards any longer."""
    folder.remove(STALE)
    folder.remove(BUILDING)


def is_building(folder: Folder) -> bool:
    """Whether a build runs, or was stopped."""
    return folder.size(BUILDING) is not None


def is_whole(folder: Folder, name: str, sidecar: Sidecar) -> bool:
    """Whether the shard is there, with the length that its sidecar says."""
    return folder.size(name) == sidecar.bytes


def _remove_set(folder: Folder) -> None:
    end(folder, begin(folder), set())
    for top in _tops():
        folder.remove(top)
    folder.remove(RECIPE_FILE)
