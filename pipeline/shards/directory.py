"""The folder of a shard set: what stands in it, how a shard is committed, how leftovers are swept.

A shard and its sidecar are the unit of commit: written under a temporary name, flushed, renamed, sidecar last.
There is no central mutable file, so any number of builders may fill one set.
"""

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe import RECIPE_FILE, Recipe, read_recipe, recipe_text
from pipeline.shards.sidecar import Broken, Sample, Sidecar, parse_sidecar

SIDECAR = ".json"
TEMPORARY = ".tmp-"
BUILDING = ".building"  # there while a build runs, and after one that was stopped
OWN_FILE = re.compile(r"(?:train|val|test)-[0-9]{6}\.(?:json|tar)")
STALE = ".stale"  # hard links to shards that are rewritten while others still copy from them
ABANDONED_SECONDS = 86_400.0


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Reuse:
    """Frames of the same source bytes that stand already: their samples, in the shard `file` of the set,
    whose bytes have this SHA-256."""

    file: str
    sha256: str
    samples: tuple[Sample, ...]


@dataclass
class Standing:
    """What a set holds already: its whole shards by name, and where the frames of each source's bytes are."""

    shards: dict[str, Sidecar] = field(default_factory=dict)
    frames: dict[str, list[Reuse]] = field(default_factory=dict)
    rejected: dict[str, Broken] = field(default_factory=dict)
    damaged: dict[str, Broken] = field(default_factory=dict)

    def forget_rejected(self) -> None:
        """So that rejected videos are tried again: their shards are no longer as they should be."""
        self.rejected.clear()
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


def open_set(root: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Make the folder a set of this recipe, or check that it is one.

    `overwrite` removes a set that stands there (its own files, nothing else). Raises `UserError` for a set
    of another recipe, and for a folder that holds something else.
    """
    if overwrite and (root / RECIPE_FILE).exists():
        _remove_set(root)
    elif not (root / RECIPE_FILE).exists():
        _refuse_other_files(root)
    root.mkdir(parents=True, exist_ok=True)
    _write_first(root, RECIPE_FILE, recipe_text(recipe))
    _refuse_another_recipe(root, recipe)


def look_at_set(root: Path, recipe: Recipe, *, overwrite: bool = False) -> Standing:
    """What `open_set` and `scan` would find, without making or removing anything. Raises `UserError`."""
    if not (root / RECIPE_FILE).exists():
        _refuse_other_files(root)
        return Standing()
    if overwrite:
        return Standing()
    _refuse_another_recipe(root, recipe)
    return scan(root, recipe)


def _refuse_another_recipe(root: Path, recipe: Recipe) -> None:
    differences = recipe.differences(read_recipe(root))
    if differences:
        raise UserError(
            f"{root} is a set of another recipe: this run asks for {'; '.join(differences)}. Give another "
            "--out to keep both, the same settings to add to it, or --overwrite to build it anew"
        )


def _refuse_other_files(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; --out wants a folder")
    # What another builder of the same set has just made is none of them.
    others = [path.name for path in root.iterdir() if not _is_ours(path.name)] if root.exists() else []
    if others:
        raise UserError(f"{root}: holds other files ({sorted(others)[0]}) and no shard set; give an empty --out")


def _is_ours(name: str) -> bool:
    return bool(OWN_FILE.fullmatch(name)) or name in (RECIPE_FILE, STALE, BUILDING) or name.startswith(TEMPORARY)


def scan(root: Path, recipe: Recipe) -> Standing:
    """What stands in the set and is whole. A shard that is gone or has another length than its sidecar says
    does not exist. Raises `UserError` for a sidecar that is damaged or of another recipe."""
    standing = Standing()
    for sidecar in sidecars(root, recipe):
        if is_whole(root / sidecar.shard, sidecar):
            standing.shards[sidecar_name(sidecar)] = sidecar
            standing.learn(sidecar.shard, sidecar)
    stale = root / STALE
    for sidecar in sidecars(stale, recipe):
        file = sidecar.sha256 + Path(sidecar.shard).suffix
        if is_whole(stale / file, sidecar):
            standing.learn(f"{STALE}/{file}", sidecar)
    return standing


def sidecars(root: Path, recipe: Recipe) -> Iterator[Sidecar]:
    """Every sidecar of the set, by name. Raises `UserError`."""
    for path in sorted(root.glob("*" + SIDECAR)):
        if not OWN_FILE.fullmatch(path.name) and root.name != STALE:
            continue
        try:
            sidecar = parse_sidecar(path.read_text(), str(path))
        except FileNotFoundError:
            continue  # another builder is rewriting this shard
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if sidecar.fingerprint != recipe.fingerprint:
            raise UserError(
                f"{path}: belongs to the recipe {sidecar.fingerprint}, the set to {recipe.fingerprint}; "
                "remove it, or build with --overwrite"
            )
        yield sidecar


def shard_name(split: str, bucket: int) -> str:
    """`train-000003`: the stem of a shard and its sidecar."""
    return f"{split}-{bucket:06d}"


def sidecar_name(sidecar: Sidecar) -> str:
    """The stem that the sidecar's shard has."""
    return shard_name(sidecar.split, sidecar.bucket)


def temporary(root: Path, name: str) -> Path:
    """A path for a file in the making, which tells who makes it."""
    return root / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{socket.gethostname()}@{name}"


def commit(root: Path, made: Path, sidecar: Sidecar) -> None:
    """Put a finished shard in its place, then its sidecar."""
    name = sidecar_name(sidecar) + SIDECAR
    # An old sidecar never stands beside a new shard, not even for a moment.
    (root / name).unlink(missing_ok=True)
    os.replace(made, root / sidecar.shard)
    _write_whole(root, name, sidecar.text())


def snapshot(root: Path, sidecar: Sidecar) -> str:
    """Keep the shard's bytes reachable while it is rewritten; returns the file to copy from."""
    stale = root / STALE
    stale.mkdir(exist_ok=True)
    file = stale / (sidecar.sha256 + Path(sidecar.shard).suffix)
    with suppress(FileExistsError):
        try:
            os.link(root / sidecar.shard, file)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            shutil.copyfile(root / sidecar.shard, file)  # a file system without hard links
    _write_whole(stale, sidecar.sha256 + SIDECAR, sidecar.text())
    return f"{STALE}/{file.name}"


def sweep_abandoned(root: Path) -> None:
    """Remove what killed builders left half-written: theirs on this machine, and anything a day old."""
    for path in root.glob(TEMPORARY + "*"):
        with suppress(FileNotFoundError):
            if _is_abandoned(path):
                path.unlink()


def begin(root: Path) -> set[str]:
    """Mark the set as being built; returns the shards and sidecars that stand in it now."""
    (root / BUILDING).touch()
    return {path.name for path in root.iterdir() if OWN_FILE.fullmatch(path.name)}


def end(root: Path, before: set[str], names: set[str]) -> None:
    """Remove what stood in the set before the build and is no part of it now, and the mark.

    Nothing that another builder has added meanwhile is touched. A sidecar goes before its shard.
    """
    for name in sorted(before, key=lambda name: not name.endswith(SIDECAR)):
        if Path(name).stem not in names:
            (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / STALE, ignore_errors=True)
    (root / BUILDING).unlink(missing_ok=True)


def is_building(root: Path) -> bool:
    """Whether a build runs, or was stopped."""
    return (root / BUILDING).exists()


def _is_abandoned(path: Path) -> bool:
    pid, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    host = rest.partition("-")[2].partition("@")[0]
    if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_whole(path: Path, sidecar: Sidecar) -> bool:
    """Whether the shard is there, with the length that its sidecar says."""
    try:
        return path.stat().st_size == sidecar.bytes
    except FileNotFoundError:
        return False


def _write_whole(root: Path, name: str, text: str) -> None:
    """Write a small file so that it is there whole or not at all, also after a power cut."""
    os.replace(_flushed(root, name, text), root / name)
    _flush_folder(root)


def _write_first(root: Path, name: str, text: str) -> None:
    """Likewise, unless the file is there: of several builders one comes first."""
    made = _flushed(root, name, text)
    try:
        os.link(made, root / name)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not (root / name).exists():
            os.replace(made, root / name)
    finally:
        made.unlink(missing_ok=True)
    _flush_folder(root)


def _flushed(root: Path, name: str, text: str) -> Path:
    made = temporary(root, name)
    with made.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return made


def _flush_folder(root: Path) -> None:
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_set(root: Path) -> None:
    end(root, begin(root), set())
    (root / RECIPE_FILE).unlink()
