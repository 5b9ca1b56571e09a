"""`prep push`, `pull`, `list`, `verify`, `diff`: sets that people pass around."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_build import group_by_option, set_argument, source_option, unlabelled_option, workers_option
from pipeline.commands import PLACE, apply_options, json_option
from pipeline.console import counted, human_bytes, print_json, print_table, printable, progress, warn
from pipeline.interrupt import resumable
from pipeline.places import is_url

if TYPE_CHECKING:
    from pipeline.sets import Difference, Found
    from pipeline.verify import Verified

SHOWN = 50
AGES = ((86_400, "day"), (3600, "hour"), (60, "minute"))

jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 64), default=4, help="How many at a time: shards on the way."
)


def transfer_options(command: Any) -> Any:
    """The flags of push and pull."""
    options = [
        jobs_option,
        click.option("--prune", is_flag=True, help="Drop videos there that the set has not."),
        click.option("--check", is_flag=True, help="Read what is there already, too; replace what is damaged."),
        json_option,
    ]
    return apply_options(options, command)


@click.command()
@click.argument("shards", metavar="SET", type=PLACE)
@click.argument("target", metavar="URL", type=PLACE)
@transfer_options
def push(shards: Path | str, target: Path | str, **options: Any) -> None:
    """Copy a set to a URL or folder: only what is missing there.

    Every shard of SET is compared with its SHA-256 on the way, and again where it was put. Run it again after any
    crash.

    \b
    Example:
      prep push data/rwf s3://team/rwf-5fps-112
    """
    _transfer(shards, target, **options)


@click.command()
@click.argument("source", metavar="URL", type=PLACE)
@click.argument("folder", metavar="DIR", type=PLACE)
@transfer_options
def pull(source: Path | str, folder: Path | str, **options: Any) -> None:
    """Copy a set from a URL to a folder: only what is missing.

    The reverse of push. A web server will do.

    \b
    Example:
      prep pull https://data.example.org/rwf-5fps-112 data/rwf
    """
    _transfer(source, folder, **options)


def _transfer(source: Path | str, target: Path | str, *, as_json: bool, **options: Any) -> None:
    from pipeline.share import transfer

    with progress("shards") as stage, resumable():
        done = transfer(source, target, stage=stage, **options)
    if as_json:
        print_json(asdict(done))
        return
    click.echo(
        f"{target}: {counted(done.copied, 'shard')} copied ({human_bytes(done.bytes)}), {done.kept:,} were there, "
        f"{done.removed:,} removed"
    )


@click.command("list")
@click.argument("root", metavar="ROOT", type=PLACE)
@json_option
def list_command(root: Path | str, as_json: bool) -> None:
    """Say which shard sets are in a folder or bucket.

    ROOT is searched, and the answer says which sets have the same recipe or the same bytes.

    \b
    Example:
      prep list s3://team
    """
    from pipeline.sets import list_sets

    found = list_sets(root)
    if as_json:
        print_json([_about(one, found) for one in found])
        return
    rows = [
        (one.name, _recipe_text(one), one.fingerprint, f"{one.videos:,}", human_bytes(one.bytes),
         _age_text(one), one.error or _alike_text(_about(one, found)))
        for one in found
    ]  # fmt: skip
    if rows:
        print_table(str(root), rows, ("set", "recipe", "fingerprint", "videos", "bytes", "age", "notes"))
    else:
        click.echo(f"{root}: no shard sets here")


def _about(one: "Found", found: "list[Found]") -> dict[str, Any]:
    """A set, with the others that are like it."""
    others = [other for other in found if other is not one and other.recipe]
    values = {**asdict(one), "recipe": one.recipe.as_dict() if one.recipe else None}
    return {
        **values,
        "same_recipe": [other.name for other in others if other.fingerprint == one.fingerprint],
        "same_bytes": [other.name for other in others
                       if (other.fingerprint, other.digest) == (one.fingerprint, one.digest)],
    }  # fmt: skip


def _recipe_text(one: "Found") -> str:
    recipe = one.recipe
    if recipe is None:
        return ""
    return f"{recipe.fps} fps, {recipe.width}×{recipe.height} {recipe.fit}, {recipe.format} {recipe.codec}"


def _age_text(one: "Found") -> str:
    if one.age is None:
        return "unknown" if one.recipe else ""
    unit, name = next((pair for pair in AGES if one.age >= pair[0]), (1, "second"))
    return counted(round(one.age / unit), name)


def _alike_text(about: dict[str, Any]) -> str:
    same = about["same_bytes"]
    alike = [name for name in about["same_recipe"] if name not in same]
    words = [f"same bytes as {', '.join(same)}"] * bool(same) + [f"same recipe as {', '.join(alike)}"] * bool(
        alike
    )
    return "; ".join(words)


@click.command()
@set_argument
@click.option("--deep", is_flag=True, help="Look inside, too: formats, frames, descriptions, times.")
@click.option("--repair", is_flag=True, help="Build what is damaged again, and nothing else; with --source.")
@source_option("With --repair: ")
@group_by_option
@unlabelled_option
@workers_option(1)
@jobs_option
@json_option
def verify(
    shards: Path | str, deep: bool, repair: bool, source: Path | str | None, group_by: str | None,
    unlabelled: bool, workers: int, jobs: int, as_json: bool,
) -> None:  # fmt: skip
    """Read a whole set, and name every file that is damaged.

    SET (default data/shards) may be a URL. Exits with 1 if any file is damaged. To --repair, videos are decoded
    again: give --source, and --group-by and --unlabelled as they were given to build-shards.

    \b
    Examples:
      prep verify s3://team/rwf-5fps-112
      prep verify data/rwf --deep --repair --source rwf-2000
    """
    from pipeline.errors import UserError, WorkFailed
    from pipeline.recipe import RECIPE_FILE
    from pipeline.verify import verify_set

    if repair != (source is not None):
        raise UserError("--repair and --source belong together: what is damaged is built from the videos of SRC")
    with progress("shards") as stage:
        found = verify_set(shards, deep=deep, jobs=jobs, stage=stage)
    if repair and not found.building and any(damage.file == RECIPE_FILE for damage in found.damage):
        from pipeline.recover import restore_recipe

        _print_damage(found, err=True)
        restore_recipe(found.folder, found.sidecars.values())
        with progress("shards") as stage:  # now it can be told what fits the recipe
            found = verify_set(shards, deep=deep, jobs=jobs, stage=stage)
    repaired: list[str] = []
    if repair and found.damage and source is not None:
        from pipeline.repair import repair_set

        _print_damage(found, err=True)
        with progress("videos") as stage, resumable():
            repaired = repair_set(
                found, source, group_by=group_by, labelled=not unlabelled, workers=workers, stage=stage
            )
        with progress("shards") as stage:
            found = verify_set(shards, deep=deep, jobs=jobs, stage=stage)
    _print_verified(shards, found, repaired, as_json)
    if found.damage:
        count, first = counted(len(found.damage), "damaged file"), found.damage[0].file
        raise WorkFailed(f"{shards}: {count}, the first is {first}; {_mending(shards, found)}")


def _mending(shards: Path | str, found: "Verified") -> str:
    """What to do about the damage."""
    name = shlex.quote(str(shards))
    if found.building:
        return "run the build or the transfer there to its end first"
    if name.startswith(("http://", "https://")):
        return "whoever keeps the set there mends it with `prep verify --repair` or `prep push --check`"
    copied = f"prep push SET {name} --check" if is_url(shards) else f"prep pull URL {name} --check"
    return f"`prep verify {name} --repair --source VIDEOS` builds them anew, `{copied}` takes them from a copy"


def _print_verified(shards: Path | str, found: "Verified", repaired: list[str], as_json: bool) -> None:
    count = len(found.sidecars)
    if as_json:
        damage = [damage._asdict() for damage in found.damage]
        print_json({"shards": count, "bytes": found.bytes, "damage": damage, "repaired": repaired,
                    "without_checksum": count - found.sealed, "building": found.building})  # fmt: skip
        return
    _print_damage(found, err=False)
    damaged, mended = counted(len(found.damage), "damaged file"), counted(len(repaired), "shard")
    click.echo(f"{shards}: {counted(count, 'shard')}, {human_bytes(found.bytes)}; {damaged}, {mended} repaired")
    if count > found.sealed:
        old = counted(count - found.sealed, "sidecar")
        warn(f"{old} of an older release, without a checksum: damage to such goes unseen")
    if found.building:
        warn("a build or a transfer is running there, or was stopped: shards that are missing are not counted")


def _print_damage(found: "Verified", *, err: bool) -> None:
    for damage in found.damage:
        click.echo(printable(f"{damage.file}: {damage.reason}"), err=err)


@click.command()
@click.argument("a", metavar="A", type=PLACE)
@click.argument("b", metavar="B", type=PLACE)
@json_option
@click.pass_context
def diff(context: click.Context, a: Path | str, b: Path | str, as_json: bool) -> None:
    """Say how two sets differ.

    What is other in set B than in set A: recipe, videos, labels, splits, groups, sources, frames. Exits with 1
    where anything is, like diff.

    \b
    Example:
      prep diff data/rwf s3://team/rwf-5fps-112
    """
    from pipeline.sets import compare_sets

    with progress("videos") as stage:
        found = compare_sets(a, b, stage)
    if as_json:
        print_json(asdict(found))
    elif found:
        _print_difference(a, b, found)
    else:
        click.echo(f"{a} and {b} hold the same")
    if found:
        context.exit(1)


def _print_difference(a: Path | str, b: Path | str, found: "Difference") -> None:
    lines = [f"recipe: {difference}" for difference in found.recipe]
    lines += _first(f"only in {a}", found.only_a) + _first(f"only in {b}", found.only_b)
    changed = [
        f"{video}: " + ", ".join(f"{name} {old or '-'} → {new or '-'}" for name, (old, new) in fields.items())
        for video, fields in found.changed.items()
    ]
    lines += _first("changed", changed) + _first("other frames", found.frames)
    for line in lines:
        click.echo(printable(line))


def _first(title: str, entries: list[str]) -> list[str]:
    more = [f"{title}: and {len(entries) - SHOWN} more; --json lists them all"] if len(entries) > SHOWN else []
    return [f"{title}: {entry}" for entry in entries[:SHOWN]] + more


COMMANDS = (push, pull, list_command, verify, diff)
