"""What a fuzzer throws bytes at: every reader of foreign bytes.

A target ends quietly, or with `UserError` (`ValueError` where a reader says so). All else is a finding.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import save, save_file

from fuzz.samples import make_set
from models.origin import read_origin
from models.single_frame import SingleFrame
from models.weights import read_state
from pipeline.errors import UserError
from pipeline.recipe import Recipe, read_recipe, recipe_text
from pipeline.report import no_report
from pipeline.shards import get_format
from pipeline.shards.builders import BUILDERS, LEASE, MARK, Crew, Mark, names_of
from pipeline.shards.checks import check_sample
from pipeline.shards.codec import get_codec
from pipeline.shards.folder import LocalFolder, measure
from pipeline.shards.frame_cache import FrameCache
from pipeline.shards.layout import check_layout, check_place
from pipeline.shards.sidecar import CHECKSUM, Sidecar, parse_sidecar
from pipeline.shards.store import Store
from pipeline.sources import list_videos
from pipeline.verify_deep import look_inside
from train.checkpoint import check_shapes, load_checkpoint, load_weights, read_run

SIDE, RUN_SIDE = 8, 40  # pixels of a set, and of the run, whose model wants more than 32
TARS = ("raw", "zstd", "jpeg")
ARRAYS = ("raw", "zstd")
A_MARK = Mark("x", "goal", "elsewhere", 1, "another machine", "2026-11-23 10:00 UTC")


@dataclass(frozen=True)
class Target:
    """`run` takes the bytes; `seeds`: what we write ourselves; `allowed`: how it may refuse."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = (UserError,)


class Made:
    """A whole set in a folder of its own, of which a target replaces one file."""

    def __init__(self, folder: Path, shard_format: str, codec: str) -> None:
        self.recipe = Recipe(width=SIDE, height=SIDE, format=shard_format, codec=codec, max_frames=32)
        self.root = make_set(folder / f"{shard_format}-{codec}", self.recipe)
        self.text = (self.root / "train-000000.json").read_text()
        self.sidecar: Sidecar = parse_sidecar(self.text, "")
        self.shard = self.root / self.sidecar.shard

    def read(self, _: bytes = b"") -> None:
        """All that anybody reads of the shard: frames, parts of them, checksums, descriptions; then deep."""
        with get_format(self.recipe.format).open(self.shard, self.recipe) as reader:
            for sample in self.sidecar.samples:
                reader.frames(sample)
                reader.clip(sample, 1, np.empty((2, SIDE, SIDE, 3), np.uint8))
                reader.meta(sample)
                check_sample(reader, sample)
        look_inside(self.shard, self.sidecar, self.recipe)


def _file(path: Path, then: Callable[[bytes], object], data: bytes) -> None:
    path.write_bytes(data)
    then(data)


def _spoiled(path: Path, whole: bytes, then: Callable[[bytes], object], data: bytes) -> None:
    """Another target may want the file as it was."""
    try:
        _file(path, then, data)
    finally:
        path.write_bytes(whole)


def _recipe(folder: LocalFolder, data: bytes) -> None:
    _file(folder.root / "recipe.json", lambda _: read_recipe(folder), data)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        recipe_text(Recipe.from_dict(values))


def _sidecar(recipe: Recipe, data: bytes) -> None:
    sidecar = parse_sidecar(data.decode("utf-8", "replace"), "train-000000.json")
    check_place(sidecar, "train-000000", recipe)
    check_layout(sidecar, recipe)
    parse_sidecar(sidecar.text(), "its own text")


def _chunk(recipe: Recipe, data: bytes) -> None:
    get_codec(recipe).decode(memoryview(data), np.empty((get_codec(recipe).chunk, SIDE, SIDE, 3), np.uint8))


def _weights(path: Path, data: bytes) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    path.write_bytes(data)
    for read in (
        lambda: check_shapes(path, lambda: torch.nn.Linear(3, 2), {}),
        lambda: load_weights(path, model),
        lambda: load_checkpoint(path, model, optimizer, ()),
        lambda: read_state(path),
        lambda: read_origin(path),
    ):
        try:
            read()
        except (UserError, ValueError):
            continue


def _run(folder: Path, data: bytes) -> None:
    from train.compute import choose_compute
    from train.trained import load_trained

    _file(folder / "run.json", lambda _: read_run(folder), data)
    load_trained(folder, "best", choose_compute("cpu", "fp32"))


def _claims(root: Path, data: bytes) -> None:
    store = Store(root, None)
    with store.claim({}):
        for path in root.glob("*.claim"):
            path.write_bytes(data)
        with store.claim({"0" * 64 + ".tar": 1}):
            return


def _crew(root: Path, data: bytes) -> None:
    """The bytes as a builder's mark, and as the lease of a shard."""
    (root / BUILDERS).mkdir(parents=True, exist_ok=True)
    for name in (f"x{MARK}", f"train-000000{LEASE}"):
        (root / BUILDERS / name).write_bytes(data)
    crew = Crew(str(root), "goal")
    names_of([*crew.others(), *crew.holders(["train-000000"]).values(), crew.mark])


class Entry:
    """A cache of the team's with one video, and a set that wants its frames."""

    def __init__(self, folder: Path, made: Made) -> None:
        self._made, self._new, sample = made, folder / "new.tar", made.sidecar.samples[0]
        self._source, self._cache = sample.source, FrameCache(str(folder / "entries"), made.recipe)
        self._cache.keep(made.shard, [((sample,), None)], no_report)
        (self.shard,) = folder.glob("entries/*/*/*.tar")
        self.sidecar = self.shard.with_suffix(".json")
        self.whole, self.text = self.shard.read_bytes(), self.sidecar.read_text()

    def told(self, data: bytes) -> None:
        """The bytes as the sidecar."""
        _spoiled(self.sidecar, self.text.encode(), self._copy, data)

    def held(self, data: bytes) -> None:
        """The bytes as the shard, with a sidecar that fits: a stranger can do that, too."""
        self.shard.write_bytes(data)
        size, sha256 = measure(self.shard)
        fits = msgspec.structs.replace(parse_sidecar(self.text, ""), bytes=size, sha256=sha256)
        try:
            self.told(fits.text().encode())
        finally:
            self.shard.write_bytes(self.whole)

    def _copy(self, _: bytes) -> None:
        """What is taken makes a shard like any other."""
        recipe, shard_format = self._made.recipe, get_format(self._made.recipe.format)
        with ExitStack() as copies:
            found = self._cache.fetch(self._source, copies, no_report)
            if self._cache.trouble:
                raise AssertionError(self._cache.trouble)
            if found is None:
                raise UserError("passed over")
            writer, samples = shard_format.create(self._new, recipe), []
            with shard_format.open(found[0], recipe) as reader:
                for old in found[1].samples:
                    place = writer.copy(old.key, reader, old, reader.meta(old))
                    samples.append(msgspec.structs.replace(old, **place._asdict()))
            writer.close()
        whole = [msgspec.structs.replace(sample, crc32c=writer.checksums(sample)) for sample in samples]
        size, sha256 = measure(self._new)
        check_layout(
            msgspec.structs.replace(self._made.sidecar, samples=tuple(whole), bytes=size, sha256=sha256), recipe
        )


def names() -> list[str]:
    """Of all targets; nothing is made."""
    sets = [f"webdataset-{codec}" for codec in TARS] + [f"zarr-{codec}" for codec in ARRAYS]
    shards = [f"shard-{kind}" for kind in sets] + [f"shard-zarr-{codec}-json" for codec in ARRAYS]
    chunks = [f"chunk-{codec}" for codec in TARS[1:]]
    return ["recipe", *(f"sidecar-{kind}" for kind in sets), *shards, *chunks, "csv", "claims", "marks",
            "entry", "entry-shard", "safetensors",
            "pth", "run"]  # fmt: skip


@cache
def targets() -> dict[str, Target]:
    """All targets by name. Their folder lives as long as the process."""
    root = Path(_room().name)
    return dict(_pipeline(root)) | dict(_train(root))


@cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def clear() -> None:
    """Remove the targets' folder, in a process that ends without a word."""
    _room().cleanup()


def _pipeline(root: Path) -> Iterator[tuple[str, Target]]:
    sets = [Made(root, "webdataset", codec) for codec in TARS] + [Made(root, "zarr", codec) for codec in ARRAYS]
    (empty := root / "empty").mkdir()
    recipes = tuple((one.root / "recipe.json").read_bytes() for one in sets)
    yield "recipe", Target(partial(_recipe, LocalFolder(empty)), recipes)
    for one in sets:
        kind = f"{one.recipe.format}-{one.recipe.codec}"
        bare = one.text.rpartition(CHECKSUM)[0] + "\n}\n"
        yield f"sidecar-{kind}", Target(partial(_sidecar, one.recipe), (bare.encode(),))
        files = [one.shard] if one.shard.is_file() else [one.shard / "zarr.json", one.shard / "c.0.0.0.0"]
        for file in files:
            name = f"shard-{kind}" + ("-json" if file.suffix == ".json" else "")
            yield name, Target(partial(_spoiled, file, file.read_bytes(), one.read), (file.read_bytes(),))
    for one in sets[1:3]:
        whole, sizes = one.shard.read_bytes(), one.sidecar.samples[0].sizes
        start = one.sidecar.samples[0].offset
        chunk = whole[start : start + sizes[0]]
        yield f"chunk-{one.recipe.codec}", Target(partial(_chunk, one.recipe), (chunk,), (ValueError,))
    rows = b'path,label,split,group,key\na.mp4,cats,train,g,k\nfile:///b.mp4,dogs,val,,\n"c,\n.mp4",x,,,\n'
    (root / "a.mp4").touch()
    yield "csv", Target(partial(_file, root / "videos.csv", lambda _: list_videos(root / "videos.csv")), (rows,))
    yield "marks", Target(partial(_crew, root / "crew"), (json.dumps(asdict(A_MARK)).encode(), b"x"))
    entry = Entry(root, sets[1])
    bare = entry.text.rpartition(CHECKSUM)[0] + "\n}\n"
    yield "entry", Target(entry.told, (bare.encode(),))
    yield "entry-shard", Target(entry.held, (entry.whole,))
    (root / "store").mkdir()
    yield "claims", Target(partial(_claims, root / "store"), (json.dumps({"1" * 64 + ".tar": 5}).encode(),))


def _train(root: Path) -> Iterator[tuple[str, Target]]:
    model = torch.nn.Linear(3, 2)
    about = {"family": "single_frame", "options": {}, "mean": [0.5] * 3, "std": [0.5] * 3, "grid": [1, 2, 3]}
    tensors = dict(model.state_dict())
    checkpoint = {f"model/{name}": tensor for name, tensor in tensors.items()}
    checkpoint |= {f"optimizer/0/{name}": torch.zeros(2, 3) for name in ("exp_avg", "exp_avg_sq")}
    seeds = save(tensors, {"reelcache": json.dumps(about)}), save(checkpoint, {"state": json.dumps({"epoch": 1})})
    yield "safetensors", Target(partial(_weights, root / "weights.safetensors"), seeds)
    pickled = []
    for zipped in (True, False):
        torch.save({"state_dict": tensors}, root / "seed.pth", _use_new_zipfile_serialization=zipped)
        pickled.append((root / "seed.pth").read_bytes())
    read = partial(_file, root / "weights.pth", lambda _: read_state(root / "weights.pth"))
    yield "pth", Target(read, tuple(pickled), (ValueError,))
    run = root / "run"
    run.mkdir()
    family = SingleFrame(num_classes=2, num_frames=4, size=(RUN_SIDE, RUN_SIDE))
    save_file(dict(family.state_dict()), run / "best.safetensors")
    said = {
        "model": "single_frame", "settings": {"frames": 4, "shards": "set", "input": "rgb", "options": {}},
        "labels": ["cats", "dogs"], "mean": [0.4] * 3, "std": [0.2] * 3, "fingerprint": "f", "shards_digest": "d",
        "sample_frames": 20, "frames_recipe": Recipe(width=RUN_SIDE, height=RUN_SIDE).as_dict(),
    }  # fmt: skip
    yield "run", Target(partial(_run, run), (json.dumps(said).encode(),))
