"""A lost `recipe.json`, told from the shards. Its fingerprint stands in every sidecar, and proves the guess."""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product

from pipeline.decode import DECODERS
from pipeline.errors import UserError
from pipeline.foreign import parse_json
from pipeline.recipe import FITS, ON_CORRUPT, RECIPE_FILE, Recipe, parse_fps, read_recipe, recipe_text
from pipeline.shards import get_format
from pipeline.shards.codec import get_codec, jpeg_size
from pipeline.shards.folder import Folder
from pipeline.shards.sidecar import Sidecar
from pipeline.shards.webdataset import WebDataset, map_file

LOOKED_AT = 8  # shards, of which one must be sound
TRIED = 20_000  # lengths of the longest sample, where no video says: a few seconds
SHAPE = re.compile(rb"'shape': \([0-9]{1,10}, ([0-9]{1,4}), ([0-9]{1,4}), 3\)")
LONGEST_HEAD, BLOCK = 160, 512  # bytes: before a sample in its file, and of a tar header


def restore_recipe(folder: Folder, sidecars: Collection[Sidecar]) -> None:
    """Write the recipe whose fingerprint the sidecars have.

    A zarr set has it twice. Of a tar the first samples tell size, rate and codec, and all that the rest may have
    been is tried. Raises `UserError` where nothing fits.
    """
    wanted = {sidecar.fingerprint for sidecar in sidecars}
    for recipe in _candidates(folder, sidecars):
        if {recipe.fingerprint} == wanted:
            folder.write(RECIPE_FILE, recipe_text(recipe))
            return
    raise UserError(
        f"{folder}/{RECIPE_FILE}: is damaged, and the shards do not tell what it said: bring it from a copy of "
        "the set, or build with the set's options and --overwrite"
    )


def _candidates(folder: Folder, sidecars: Collection[Sidecar]) -> Iterator[Recipe]:
    with suppress(UserError, OSError):
        yield read_recipe(folder)  # the right one, in another spelling
    for name in get_format("zarr").around(Recipe()):
        try:
            yield Recipe.from_dict(parse_json(folder.read(name))["attributes"]["recipe"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            continue  # no zarr set, or damaged, too
    samples = [sample for sidecar in sidecars for sample in sidecar.samples]
    longest = max((sample.frames for sample in samples), default=1)
    cut = {sample.frames for sample in samples if sample.key.endswith("#0000")}  # by the recipe's max_frames
    tars = (sidecar for sidecar in sidecars if sidecar.samples and sidecar.shard.endswith(".tar"))
    for sidecar, _ in zip(tars, range(LOOKED_AT), strict=False):
        try:
            seen = _seen(folder, sidecar)
        except (OSError, ValueError, UserError):
            continue  # a damaged shard
        likely = cut or {seen.max_frames, longest}
        yield from _variants(seen, likely, range(1, 101) if seen.codec == "jpeg" else [seen.quality])
        if not cut:
            yield from _variants(seen, range(longest, longest + TRIED), [seen.quality])


def _variants(seen: Recipe, lengths: Collection[int], qualities: Collection[int]) -> Iterator[Recipe]:
    """All recipes that differ from `seen` in what no frame tells."""
    for fit, decoder, on_corrupt, quality, length in product(FITS, DECODERS, ON_CORRUPT, qualities, lengths):
        yield replace(seen, fit=fit, decoder=decoder, on_corrupt=on_corrupt, quality=quality, max_frames=length)


def _seen(folder: Folder, sidecar: Sidecar) -> Recipe:
    """What the first sample of a tar tells. Raises `OSError`, `ValueError`, `UserError`."""
    sample = sidecar.samples[0]
    with folder.local(sidecar.shard) as path, map_file(path) as tar:
        head = tar[max(0, sample.offset - LONGEST_HEAD) : sample.offset]
        first = tar[sample.offset : sample.offset + sum(sample.sizes[:1])]
        shape = SHAPE.search(head)
        height, width = map(int, shape.groups()) if shape else jpeg_size(memoryview(first))[0]
        for name in WebDataset.codecs:
            recipe = Recipe(width=width, height=height, codec=name)
            start = sample.offset - len(get_codec(recipe).head((1, height, width, 3))) - BLOCK
            member = sample.key + get_codec(recipe).suffix
            if tar[max(0, start) : max(0, start) + len(member)] == member.encode():
                with get_format("webdataset").open(path, recipe) as reader:
                    return replace(recipe, fps=parse_fps(reader.meta(sample)["fps"]))
    raise ValueError(f"{sidecar.shard}: no frames of a known kind")
