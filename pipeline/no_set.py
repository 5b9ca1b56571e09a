"""What to do where a set was looked for and there is none: that depends on what is there."""

import shlex
from difflib import get_close_matches
from pathlib import Path

from pipeline.places import is_url

SIDECARS = "*-[0-9][0-9][0-9][0-9][0-9][0-9].json"
SHOWN = 3


def what_to_do(place: str, mark: str) -> str:
    """Words for the end of an error. `mark`: the file that every set has."""
    name, folder = shlex.quote(place), Path(place)
    if is_url(place):
        return f"check the address; `prep list {name}` says which sets are below it"
    if any(folder.glob(SIDECARS)):
        return f"it is lost: `prep verify {name} --repair --source VIDEOS` finds it again"
    if inside := _sets_in(folder, mark):
        return _did_you_mean(inside)
    if folder.is_file() or any(not path.name.startswith(".") for path in folder.glob("*")):
        return f"if it holds videos, make a shard set of them with `prep build-shards {name} --out data/mine`"
    alike = get_close_matches(folder.name, [path.name for path in _sets_in(folder.parent, mark)])
    hint = f"; {_did_you_mean([folder.parent / other for other in alike])}" if alike else ""
    return f"make a shard set with `prep build-shards VIDEOS --out {name}`{hint}"


def _sets_in(folder: Path, mark: str) -> list[Path]:
    return sorted(found.parent for found in folder.glob(f"*/{mark}"))


def _did_you_mean(sets: list[Path]) -> str:
    more = ", …" if len(sets) > SHOWN else ""
    return f"did you mean {', '.join(map(str, sets[:SHOWN]))}{more}?"
