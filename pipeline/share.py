"""A set from one place to another: `prep push` and `prep pull`.

While it runs, and after it was killed, the target is marked as a set in the making, so that nobody reads half of
it for the whole. Each shard is compared with its sidecar as it comes, and again where it was put; its sidecar
follows.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, WorkFailed
from pipeline.places import is_url, reached
from pipeline.recipe import RECIPE_FILE, Recipe, read_recipe
from pipeline.report import Stage, no_stage
from pipeline.shards.builders import Crew
from pipeline.shards.directory import (
    OWN_SIDECAR,
    SIDECAR,
    begin,
    check_set,
    end,
    is_building,
    open_set,
    sidecar_name,
)
from pipeline.shards.fetch import Fetcher, Wrong, create
from pipeline.shards.folder import Folder, ask_each, get_folder, told, way_out
from pipeline.shards.index import ShardSet, read_set
from pipeline.shards.sidecar import Sidecar, parse_sidecar
from pipeline.summary import digest
from pipeline.verify import damaged, tries

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """Shards that were copied, that stood already, and that were removed; bytes copied."""

    copied: int
    kept: int
    removed: int
    bytes: int


def transfer(
    source: Path | str,
    target: Path | str,
    *,
    jobs: int = 4,
    prune: bool = False,
    check: bool = False,
    stage: Stage = no_stage,
) -> Transferred:
    """Make the set at `target` the same as the one at `source`, with `jobs` shards on the way at a time.

    What stands there already is left alone; with `check` it is read, too, and replaced where it is damaged. Videos
    of the target that the source has not are dropped only with `prune`. Raises `UserError` where the source is not
    whole, or the target holds something else; `WorkFailed` where a shard could not be copied, or the source
    changed meanwhile: what was copied stays, and the same call goes on from there.
    """
    if str(target).startswith(("http://", "https://")):
        raise UserError(f"{target}: a web server is only read from; push to the folder or bucket behind it")
    found, folder = read_set(source), get_folder(target)
    with _told(folder):
        _refuse_another_recipe(folder, found.recipe)
        check_set(folder, found.recipe)
        crew = Crew(str(folder), f"push {digest(found)}")
        with crew.joined():  # so that no build runs into it
            return _transfer(found, source, folder, jobs, stage, prune=prune, check=check)


def _transfer(
    found: ShardSet, source: Path | str, folder: Folder, jobs: int, stage: Stage, *, prune: bool, check: bool
) -> Transferred:
    standing = _texts(folder)
    _refuse_to_drop(found, folder, standing, prune=prune)
    open_set(folder, found.recipe)
    folder.sweep()
    missing = _missing(found, folder, standing, jobs, stage if check else None)
    names = {sidecar_name(sidecar) for sidecar in found.sidecars}
    if not missing and {_name(sidecar) for sidecar in found.sidecars} == set(standing) and not is_building(folder):
        return Transferred(copied=0, kept=len(found.sidecars), removed=0, bytes=0)
    before = begin(folder)
    try:
        _copy_all(found, folder, missing, jobs, stage)
    except UserError as error:
        _check_unchanged(found, source, error)
        raise
    _check_unchanged(found, source)
    _confirm(get_folder(str(folder)), found.sidecars)
    end(folder, before, names)
    return Transferred(
        copied=len(missing),
        kept=len(found.sidecars) - len(missing),
        removed=len({name for name in standing if name.removesuffix(SIDECAR) not in names}),
        bytes=sum(sidecar.bytes for sidecar in missing),
    )


def _check_unchanged(found: ShardSet, source: Path | str, error: Exception | None = None) -> None:
    """Raises `WorkFailed` where the set is no longer the one that was found."""
    if read_set(source, whole=False).sidecars != found.sidecars:
        raise WorkFailed(f"{source}: has changed while it was copied; run the same command again") from error


@contextmanager
def _told(folder: Folder) -> Iterator[None]:
    """What goes wrong with the place is told as a `UserError` that names it."""
    with told(folder), reached(str(folder)) if is_url(str(folder)) else nullcontext():
        yield


def _refuse_another_recipe(folder: Folder, recipe: Recipe) -> None:
    if RECIPE_FILE not in folder.names():
        return  # `open_set` refuses other files
    if differences := recipe.differences(read_recipe(folder)):
        raise UserError(
            f"{folder}: a set of another recipe stands there, this one has {'; '.join(differences)}; give another "
            "place"
        )


def _texts(folder: Folder) -> dict[str, str]:
    """The sidecars that stand in the target, as they are: it may be half copied, or damaged."""

    def read(name: str) -> str:
        try:
            return folder.read(name)
        except (FileNotFoundError, UnicodeDecodeError):
            return ""

    names = [name for name in folder.names() if OWN_SIDECAR.fullmatch(name)]
    return dict(zip(names, ask_each(folder, read, names), strict=True))


def _refuse_to_drop(source: ShardSet, folder: Folder, standing: dict[str, str], *, prune: bool) -> None:
    samples = [sample for sidecar in source.sidecars for sample in sidecar.samples]
    videos, contents = {sample.video for sample in samples}, {sample.source for sample in samples}
    lost: set[str] = set()
    for name, text in standing.items():
        try:
            sidecar = parse_sidecar(text, name)
        except UserError:
            continue  # it is replaced; what it held, nobody can tell
        lost |= {s.video for s in sidecar.samples if s.video not in videos and s.source not in contents}
    if lost and not prune:
        raise UserError(
            f"{folder}: holds {len(lost)} videos that {source.folder} has not, the first is {min(lost)}; pass "
            "--prune to drop them there, or give another place"
        )


def _missing(
    source: ShardSet, folder: Folder, standing: dict[str, str], jobs: int, stage: Stage | None
) -> list[Sidecar]:
    """The shards that do not stand in the target as they should. With a `stage` all bytes that do are read."""
    same = [sidecar for sidecar in source.sidecars if standing.get(_name(sidecar)) == sidecar.text()]
    with _told(folder):
        sizes = list(ask_each(folder, folder.size, [sidecar.shard for sidecar in same]))
    same = [sidecar for sidecar, size in zip(same, sizes, strict=True) if size == sidecar.bytes]
    if stage:
        damage = damaged(folder, same, jobs, stage)
        same = [sidecar for sidecar in same if sidecar.shard not in damage]
    stands = {sidecar.shard for sidecar in same}
    return [sidecar for sidecar in source.sidecars if sidecar.shard not in stands]


def _copy_all(source: ShardSet, folder: Folder, missing: list[Sidecar], jobs: int, stage: Stage) -> None:
    there, back = Fetcher(source.folder, create), Fetcher(folder, create)
    LOG.info("%s: %d shards to copy, of %d", folder, len(missing), len(source.sidecars))
    step = (stage if missing else no_stage)("copying", len(missing))
    with ThreadPoolExecutor(jobs, "transfer") as pool:
        copies = [pool.submit(_copy, there, back, folder, sidecar) for sidecar in missing]
        try:
            for done in as_completed(copies):
                done.result()
                step(1)
        except BaseException:
            there.stop()
            back.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _copy(there: Fetcher, back: Fetcher, folder: Folder, sidecar: Sidecar) -> None:
    """One shard: fetched, checked, put, read back, and then its sidecar."""
    try:
        with folder.making(sidecar.shard) as made:
            there.fetch(sidecar, made)
            back.insist(lambda: _put(back, folder, made, sidecar), tries(folder))
        LOG.info("%s: copied, %d bytes", sidecar.shard, sidecar.bytes)
    except (Wrong, OSError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise WorkFailed(f"{folder}/{sidecar.shard}: could not be put there: {why}; {way_out(error)}") from error


def _put(back: Fetcher, folder: Folder, made: Path, sidecar: Sidecar) -> None:
    with _far(folder):
        folder.remove(_name(sidecar))  # an old one never stands beside a new shard
        folder.put(made, sidecar.shard)
    back.compare(sidecar)
    with _far(folder):
        folder.write(_name(sidecar), sidecar.text())


@contextmanager
def _far(folder: Folder) -> Iterator[None]:
    """What goes wrong far away is worth another try; each file system has exceptions of its own."""
    try:
        yield
    except Exception as error:
        if is_url(str(folder)):
            raise Wrong.of(error) from error
        raise


def _confirm(folder: Folder, sidecars: Sequence[Sidecar]) -> None:
    """Raises `WorkFailed` where somebody has taken away again what was copied."""
    standing = _texts(folder)
    for sidecar in sidecars:
        if standing.get(_name(sidecar)) != sidecar.text():
            raise WorkFailed(
                f"{folder}/{_name(sidecar)}: somebody else changes the set; run the same command again"
            )


def _name(sidecar: Sidecar) -> str:
    return sidecar_name(sidecar) + SIDECAR
