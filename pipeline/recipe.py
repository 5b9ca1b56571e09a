"""The recipe: everything that decides which pixels a shard set holds. Its fingerprint names the cache."""

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol, Self

from pipeline.errors import UserError
from pipeline.foreign import parse_json
from pipeline.no_set import what_to_do

RECIPE_FILE = "recipe.json"
CONTRACT = 1  # version of docs/format.md; part of the fingerprint
FITS = ("stretch", "crop", "pad")
ON_CORRUPT = ("reject", "keep")
LARGEST_SIDE = 4096  # pixels
MOST = {"width": LARGEST_SIDE, "height": LARGEST_SIDE, "quality": 100, "max_frames": 10**9}
RATE = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?(?:/[0-9]{1,12})?")


@dataclass(frozen=True)
class Recipe:
    """What was asked of every video of a set.

    `fps` is exact (30000/1001 stays that), `width` and `height` are pixels of a stored frame, `quality` is the
    JPEG codec's (no other has one),
    `max_frames` is the longest sample (longer videos become several), and `on_corrupt` says whether a video
    that breaks on the way is rejected whole or keeps the frames that came out.
    """

    fps: Fraction = Fraction(5)
    width: int = 112
    height: int = 112
    fit: str = "stretch"
    decoder: str = "pyav"
    format: str = "webdataset"
    codec: str = "raw"
    quality: int = 90
    max_frames: int = 1024
    on_corrupt: str = "reject"

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON takes it."""
        values = {**asdict(self), "fps": str(self.fps), "contract": CONTRACT}
        if self.codec != "jpeg":
            del values["quality"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The reverse of `as_dict`. Raises `UserError` where a field is missing or of the wrong kind."""
        if values.get("contract") != CONTRACT:
            raise UserError(
                f"{RECIPE_FILE}: contract {values.get('contract')!r}, this release reads {CONTRACT}; "
                "update reelcache, or build the set again"
            )
        try:
            if values["fit"] not in FITS or values["on_corrupt"] not in ON_CORRUPT:
                raise ValueError(f"fit {values['fit']!r} or on_corrupt {values['on_corrupt']!r} is unknown")
            numbers = {name: values.get(name, cls.quality) for name in MOST}
            for name, number in numbers.items():
                if type(number) is not int or not 1 <= number <= MOST[name]:
                    raise ValueError(f"{name} is {number!r}, not a number from 1 to {MOST[name]}")
            return cls(
                **numbers,
                fps=parse_fps(str(values["fps"])),
                fit=str(values["fit"]),
                decoder=str(values["decoder"]),
                format=str(values["format"]),
                codec=str(values["codec"]),
                on_corrupt=str(values["on_corrupt"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{RECIPE_FILE}: not a recipe: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of all fields."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def flags(self) -> str:
        """What `prep build-shards` is told to get it, for a shell; what is the default is left out."""
        usual = {**Recipe().as_dict(), "size": "112x112"}
        mine = {**self.as_dict(), "size": f"{self.width}x{self.height}"}
        told = [
            name for name in mine if name not in ("width", "height", "contract") and mine[name] != usual.get(name)
        ]
        return " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(mine[name]))}" for name in told)

    def differences(self, other: "Recipe") -> list[str]:
        """The fields in which `other` differs, as `name=ours, not theirs`."""
        mine, theirs = self.as_dict(), other.as_dict()
        return [
            f"{name}={mine.get(name)}, not {theirs.get(name)}"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]


def parse_fps(text: str) -> Fraction:
    """`5`, `12.5` or `30000/1001` as an exact rate. Raises `UserError`."""
    try:
        if not RATE.fullmatch(text):  # Fraction would compute 1e999999999
            raise ValueError
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--fps {text}: not a rate; write 5, 12.5 or 30000/1001") from None
    if not 0 < rate <= 1000:
        raise UserError(f"--fps {text}: must be above 0 and at most 1000")
    return rate


def parse_size(text: str) -> tuple[int, int]:
    """`112` or `160x90` as (width, height) in pixels. Raises `UserError`."""
    width, _, height = text.lower().partition("x")
    try:
        size = int(width), int(height or width)
    except ValueError:
        raise UserError(f"--size {text}: not a size; write 112 or 160x90") from None
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(f"--size {text}: sides must be from 1 to {LARGEST_SIDE} pixels")
    return size


class Readable(Protocol):
    """A place with text files: `pipeline.shards.folder.Folder`."""

    def read(self, name: str) -> str:
        """Raises `OSError`."""
        ...


def read_recipe(folder: Readable) -> Recipe:
    """The recipe of the set in the folder. Raises `UserError` where there is none or it is damaged."""
    path = f"{folder}/{RECIPE_FILE}"
    try:
        values = parse_json(folder.read(RECIPE_FILE))
    except (FileNotFoundError, NotADirectoryError):
        advice = what_to_do(str(folder), RECIPE_FILE)
        raise UserError(f"{folder}: no shard set here (no {RECIPE_FILE}); {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a recipe")
    recipe = Recipe.from_dict(values)
    if values.get("fingerprint") != recipe.fingerprint:
        raise UserError(f"{path}: its fingerprint does not fit its fields; the file was changed by hand")
    return recipe


def recipe_text(recipe: Recipe) -> str:
    """What stands in `recipe.json`."""
    return json.dumps({**recipe.as_dict(), "fingerprint": recipe.fingerprint}, indent=2) + "\n"
