"""Whether a set is what it says: `prep verify`. Names everything that is damaged, and can build that anew."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.foreign import MOST_JSON, OverlongError, parse_json
from pipeline.places import is_url
from pipeline.recipe import RECIPE_FILE, Recipe, read_recipe, recipe_text
from pipeline.report import Stage, no_stage
from pipeline.shards import get_format
from pipeline.shards.directory import OWN_SIDECAR, SIDECAR, check_listed, is_building, shard_name
from pipeline.shards.fetch import TRIES, Fetcher, Wrong, create
from pipeline.shards.folder import Folder, ask_each, get_folder
from pipeline.shards.layout import check_layout, check_place
from pipeline.shards.sidecar import CHECKSUM, Sidecar, parse_sidecar
from pipeline.verify_deep import look_inside

LOG = logging.getLogger(__name__)
MISSING_SHOWN = 1000  # more than the set has


class Damage(NamedTuple):
    """What is wrong with a file of the set."""

    file: str
    reason: str


@dataclass(frozen=True)
class Verified:
    """What was found. `sidecars`: those that can be read, by the shard's name (`train-000003`); `sealed`: how many
    have a checksum of their own, which sets had not from the start."""

    folder: Folder
    damage: tuple[Damage, ...]
    sidecars: dict[str, Sidecar]
    sealed: int
    building: bool

    @property
    def bytes(self) -> int:
        """Of all shards, as their sidecars say."""
        return sum(sidecar.bytes for sidecar in self.sidecars.values())


def verify_set(place: Path | str, *, deep: bool = False, jobs: int = 4, stage: Stage = no_stage) -> Verified:
    """Read all of the set, `jobs` shards at a time.

    Checksums of recipe and sidecars, what they say of each other, SHA-256 of every shard; with `deep` also
    formats, frames, descriptions and presentation times. Raises `UserError` where there is no set, or it cannot be
    reached.
    """
    folder = get_folder(place)
    damage: list[Damage] = []
    recipe = _recipe(folder, damage)
    sidecars, sealed = _sidecars(folder, recipe, damage)
    if recipe is None and not sidecars:
        read_recipe(folder)  # raises
    if not sidecars:
        check_listed(folder)
    if not (building := is_building(folder)):
        damage += _missing(sidecars, {found.file for found in damage})
    LOG.info("%s: %d shards to read", folder, len(sidecars))
    wrong = damaged(folder, list(sidecars.values()), jobs, stage, recipe if deep else None)
    damage += [Damage(shard, reason) for shard, reason in wrong.items()]
    return Verified(folder, tuple(damage), sidecars, sealed, building)


def _recipe(folder: Folder, damage: list[Damage]) -> Recipe | None:
    """The recipe, where it can be read. Its text follows from its fields, and their digest is one of them."""
    _read(folder, RECIPE_FILE)  # raises where the place cannot be reached
    try:
        recipe = read_recipe(folder)
    except UserError as error:
        damage.append(Damage(RECIPE_FILE, str(error)))
        return None
    for name, text in {RECIPE_FILE: recipe_text(recipe), **get_format(recipe.format).around(recipe)}.items():
        if _read(folder, name) != text:
            damage.append(Damage(name, "is not what the recipe makes it"))
    return recipe


def _read(folder: Folder, name: str) -> str | None:
    """None where the file is missing or damaged: a server that stumbles has damaged nothing."""
    try:
        return folder.read(name)
    except (FileNotFoundError, OverlongError, UnicodeDecodeError):
        return None
    except OSError as error:
        if is_url(str(folder)):
            raise UserError(f"{folder}/{name}: cannot be reached: {error}") from error
        return None


def _sidecars(folder: Folder, recipe: Recipe | None, damage: list[Damage]) -> tuple[dict[str, Sidecar], int]:
    """The sidecars that can be read, by shard, and how many have a checksum."""
    found: dict[str, Sidecar] = {}
    sealed = 0
    names = [name for name in folder.names() if OWN_SIDECAR.fullmatch(name)]
    for name, text in zip(names, ask_each(folder, lambda name: _read(folder, name), names), strict=True):
        try:
            sidecar = parse_sidecar(text or "", name)
            if len(text or "") <= MOST_JSON:
                parse_json(text or "")
            _check_names(sidecar, name.removesuffix(SIDECAR), recipe)
        except (UserError, ValueError) as error:
            damage.append(Damage(name, str(error).removeprefix(f"{name}: ")))
            continue
        found[name.removesuffix(SIDECAR)] = sidecar
        sealed += CHECKSUM in (text or "")
    return found, sealed


def _check_names(sidecar: Sidecar, name: str, recipe: Recipe | None) -> None:
    """Raises `UserError` where a sidecar is not of this shard and this set."""
    if recipe is None:
        return
    if sidecar.fingerprint != recipe.fingerprint:
        raise UserError(f"belongs to the recipe {sidecar.fingerprint}, the set to {recipe.fingerprint}")
    check_place(sidecar, name, recipe)
    check_layout(sidecar, recipe)


def _missing(sidecars: dict[str, Sidecar], known: set[str]) -> Iterator[Damage]:
    """Shards that the others say there are."""
    buckets: dict[str, int] = {}
    for sidecar in sidecars.values():
        buckets[sidecar.split] = max(sidecar.buckets, buckets.get(sidecar.split, 1))
    for split, count in buckets.items():
        missing = 0
        for name in (shard_name(split, bucket) for bucket in range(count)):
            if name in sidecars and sidecars[name].buckets != count:
                yield Damage(name + SIDECAR, f"says that there are {sidecars[name].buckets} buckets, not {count}")
            elif name not in sidecars and name + SIDECAR not in known:
                missing += 1
                if missing <= len(sidecars) + MISSING_SHOWN:
                    yield Damage(name + SIDECAR, "is missing")
        if missing > len(sidecars) + MISSING_SHOWN:
            yield Damage(split, f"{missing} of {count} sidecars are missing, of which not all are named here")


def damaged(
    folder: Folder, sidecars: Sequence[Sidecar], jobs: int, stage: Stage, deep: Recipe | None = None
) -> dict[str, str]:
    """By shard, why it is not what its sidecar says; all are read, `jobs` at a time. With `deep`, the set's
    recipe, what is in them, too."""
    fetcher, step = Fetcher(folder, create), stage("reading", len(sidecars))

    def look(sidecar: Sidecar) -> str | None:
        try:
            if deep is None or not is_url(str(folder)):
                fetcher.insist(lambda: fetcher.compare(sidecar), tries(folder))
            if deep is not None:
                _look_inside(folder, fetcher, sidecar, deep)
        except (Wrong, UserError) as error:
            return str(error)
        finally:
            step(1)
        return None

    with ThreadPoolExecutor(jobs, "verify") as pool:
        try:
            found = list(pool.map(look, sidecars))
        except BaseException:
            fetcher.stop()
            raise
    return {sidecar.shard: why for sidecar, why in zip(sidecars, found, strict=True) if why}


def _look_inside(folder: Folder, fetcher: Fetcher, sidecar: Sidecar, recipe: Recipe) -> None:
    if not is_url(str(folder)):
        look_inside(Path(str(folder), sidecar.shard), sidecar, recipe)
        return
    with folder.making(sidecar.shard) as copy:
        fetcher.fetch(sidecar, copy)
        look_inside(copy, sidecar, recipe)


def tries(folder: Folder) -> int:
    """How often to try there: servers stumble."""
    return TRIES if is_url(str(folder)) else 1
