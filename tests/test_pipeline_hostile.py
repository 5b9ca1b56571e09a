"""What a stranger's set can do: end in one clear error, with little memory. A row of TABLE a trick."""

import io
import json
import os
import re
import resource
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import google_crc32c
import msgspec
import numcodecs.zstd
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import assert_one_clear_line, edit_sidecar
from fuzz.samples import make_set

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.codec import Jpeg, Zstd, jpeg_size
from pipeline.shards.folder import measure
from pipeline.shards.index import read_set
from pipeline.sources import list_videos
from pipeline.summary import summarize
from pipeline.verify import verify_set
from train.stream import ClipStream

Spoil = Callable[[Path], object]
MEGABYTES = 1024  # more than that a hostile set may not take
STEM, KEY = "train-000000", "train0-mp4-"


def sidecar(**fields: object) -> Spoil:
    """A sidecar with other fields, and a checksum that fits."""
    return lambda root: edit_sidecar(root / f"{STEM}.json", **fields)


def sample(place: int = 0, **fields: object) -> Spoil:
    """A sidecar with other fields of a sample."""

    def spoil(root: Path) -> None:
        samples = json.loads((root / f"{STEM}.json").read_text())["samples"]
        samples[place].update(fields)
        edit_sidecar(root / f"{STEM}.json", samples=samples)

    return spoil


def recipe(**fields: object) -> Spoil:
    """A recipe with other fields."""

    def spoil(root: Path) -> None:
        values = {**json.loads((root / "recipe.json").read_text()), **fields}
        (root / "recipe.json").write_text(json.dumps(values))

    return spoil


def text(name: str, content: str | bytes) -> Spoil:
    """Another text in a file of the set."""
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def replaced(name: str, old: str, new: str) -> Spoil:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def led_out(name: str) -> Spoil:
    """A link to the very same, outside the set."""

    def spoil(root: Path) -> None:
        (root / name).rename(out := root.with_name("elsewhere"))
        (root / name).symlink_to(out)

    return spoil


def longer(name: str) -> Spoil:
    return lambda root: os.truncate(root / name, 10 << 30)


def both(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


def pipe(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return spoil


def npy_header(**about: object) -> Spoil:
    """Another header in the first npy of the tar: of objects, which NumPy would unpickle, or of another shape."""

    def spoil(root: Path) -> None:
        header = io.BytesIO()
        values = {"descr": "|u1", "fortran_order": False, "shape": (20, 8, 8, 3), **about}
        np.lib.format.write_array_header_1_0(header, values)
        with (root / f"{STEM}.tar").open("r+b") as shard:
            shard.seek(512)
            shard.write(header.getvalue())

    return spoil


def description(**fields: object) -> Spoil:
    """Another description of the first sample inside the tar, as long as it was."""

    def spoil(root: Path) -> None:
        data = (root / f"{STEM}.tar").read_bytes()
        with tarfile.open(root / f"{STEM}.tar") as tar:
            member = tar.getmembers()[1]
        place = slice(member.offset_data, member.offset_data + member.size)
        values = {**json.loads(data[place]), "decoder": "", **fields}
        made = (
            json.dumps(values, separators=(",", ":"))
            .replace('"DEEP"', "[" * 40 + "]" * 40)
            .encode()
            .ljust(member.size)
        )
        assert len(made) <= member.size, "the trick is too long"
        (root / f"{STEM}.tar").write_bytes(data[: place.start] + made.ljust(member.size) + data[place.stop :])
        fit(root)

    return spoil


def array(**attributes: object) -> Spoil:
    """Another description of the array: of its shape, or of the first sample in it."""

    def spoil(root: Path) -> None:
        path = root / "frames.zarr" / STEM / "zarr.json"
        values = json.loads(path.read_text())
        values["shape"] = attributes.pop("shape", values["shape"])
        values["attributes"]["samples"][0].update(attributes)
        path.write_text(json.dumps(values))
        fit(root)

    return spoil


def chunk_index(start: int, size: int) -> Spoil:
    """The first entry of the array's index, with a checksum that fits."""

    def spoil(root: Path) -> None:
        path = root / "frames.zarr" / STEM / "c.0.0.0.0"
        data, entries = path.read_bytes(), 2  # 23 frames
        index = np.frombuffer(data[-16 * entries - 4 : -4], "<u8").copy()
        index[:2] = start, size
        checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
        path.write_bytes(data[: -16 * entries - 4] + index.tobytes() + checksum)

    return spoil


def fit(root: Path) -> None:
    """Give the sidecar the length and the digest that its shard has: a stranger can, too."""
    path = root / f"{STEM}.json"
    size, sha256 = measure(root / json.loads(path.read_text())["shard"])
    edit_sidecar(path, bytes=size, sha256=sha256)


def twice(root: Path) -> None:
    path = root / f"{STEM}.json"
    values = json.loads(path.read_text())
    edit_sidecar(path)
    (path.with_name("train-000001.json")).write_text(path.read_text())
    assert values


def nothing(root: Path) -> None:
    """The set was made hostile."""
    assert root.exists()


def bomb_of(size: int) -> bytes:
    return bytes(numcodecs.zstd.compress(bytes(size), 1))


def unsized(frame: bytes) -> bytes:
    """The same zstd frame, without its content size (RFC 8878, 3.1.1.1)."""
    assert frame[4] == 0x80, "four bytes of size behind a window descriptor"
    return frame[:4] + b"\0" + frame[5:6] + frame[10:]


HUGE = b"\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"  # 65500 × 65500
HONEST = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"  # 8 × 8
SCAN = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"  # of all three components
SCAN_OF_ONE = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
JPEGS = {
    "jpeg-huge": b"\xff\xd8" + HUGE + SCAN + b"\xff\xd9",
    # A marker without a length: who thinks that it has one passes over the header that counts.
    "jpeg-hidden": b"\xff\xd8\xff\x01" + HUGE + bytes(65_000) + HONEST + SCAN + b"\xff\xd9",
    "bmp": b"BM" + HONEST + SCAN + bytes(100),
    "scans": b"\xff\xd8" + HONEST + SCAN_OF_ONE * 10_000,
    "more-scans": b"\xff\xd8" + HONEST + SCAN * 10_000,
}
CODECS = {
    "zstd-bomb": ("webdataset-zstd", Zstd, bomb_of(1 << 30)),
    "zstd-unsized-bomb": ("webdataset-zstd", Zstd, unsized(bomb_of(1 << 28))),
    "zarr-bomb": ("zarr-zstd", Zstd, bomb_of(1 << 30)),
    **{name: ("webdataset-jpeg", Jpeg, data) for name, data in JPEGS.items()},
}
TAR, ARRAY = "webdataset-raw", "zarr-raw"
META = f"frames.zarr/{STEM}/zarr.json"
DEEP = "[" * 200_000
MANY = '{"samples":[' + "{}," * 10**7 + "{}]}"
TWICE = '"split": "val", "split"'
# name: (kind of set, trick, what the error says, who says it first: open, load, verify)
TABLE: dict[str, tuple[str, Spoil, str, str]] = {
    "dotted key": (TAR, sample(key="../../evil"), "a sample's key is '../../evil'", "open"),
    "absolute key": (TAR, sample(key="/etc/passwd"), "a sample's key", "open"),
    "dotted shard": (TAR, sidecar(shard="../train-000000.tar"), "is not a file of this set", "open"),
    "absolute shard": (TAR, sidecar(shard="/etc/passwd"), "is not a file of this set", "open"),
    "digest that is a path": (TAR, sidecar(sha256="../../evil"), "sha256", "open"),
    "shard that is a link": (TAR, led_out(f"{STEM}.tar"), "link that leads out", "open"),
    "array that is a link": (ARRAY, led_out(f"frames.zarr/{STEM}"), "link that leads out", "open"),
    "chunks that are a link": (ARRAY, led_out(f"frames.zarr/{STEM}/c.0.0.0.0"), "link that leads out", "open"),
    "sidecar that is a link": (TAR, led_out(f"{STEM}.json"), "link that leads out", "open"),
    "recipe that is a link": (TAR, led_out("recipe.json"), "link that leads out", "open"),
    "shard that is a pipe": (TAR, pipe(f"{STEM}.tar"), "neither a file nor a folder", "open"),
    "recipe that is a pipe": (TAR, pipe("recipe.json"), "neither a file nor a folder", "open"),
    "pickled npy": (TAR, npy_header(descr="|O"), "does not begin as", "load"),
    "npy of a huge shape": (TAR, npy_header(shape=(10**9, 8, 8, 3)), "does not begin as", "load"),
    "negative frames": (TAR, sample(frames=-1), "frames", "open"),
    "no frames": (TAR, sample(frames=0), "frames", "open"),
    "huge frames": (TAR, sample(frames=2**62), "more frames than the recipe's", "open"),
    "negative offset": (TAR, sample(offset=-640), "offset", "open"),
    "offset behind the end": (TAR, sample(offset=2**62), "ends behind the", "open"),
    "overlapping samples": (TAR, sample(1, offset=640 + 100), "begins inside another sample", "open"),
    "overlapping extents": (ARRAY, sample(1, offset=10), "begins inside another sample", "open"),
    "chunks that are not there": ("webdataset-zstd", sample(sizes=[1]), "sizes than chunks", "open"),
    "chunks beyond the shard": ("webdataset-zstd", sample(sizes=[2**62] * 2), "larger than the shard", "open"),
    "checksums of nothing": (TAR, sample(crc32c="0" * 800), "checksums than chunks", "open"),
    "deep sidecar": (TAR, text(f"{STEM}.json", DEEP), "not a sidecar", "open"),
    "deep recipe": (TAR, text("recipe.json", DEEP), "nested too deep", "open"),
    "deep array": (ARRAY, both(text(META, DEEP), fit), "zarr.json", "load"),
    "NaN among the times": (TAR, description(pts=[float("nan")] * 2), "no description behind", "verify"),
    "infinite times": (TAR, description(pts=[1e999] * 2), "no description behind", "verify"),
    "times of 10^30": (TAR, description(pts=[10**30]), "no description behind", "verify"),
    "a time base that never ends": (TAR, description(time_base="1e999999999"), "time_base", "verify"),
    "description of another shape": (TAR, description(pts="DEEP"), "no description behind", "verify"),
    "label that a terminal obeys": (TAR, sample(label="cats\x1b[2J"), "a label is", "open"),
    "label of two lines": (TAR, sample(label="cats\nError: dogs"), "a label is", "open"),
    "10^7 empty samples": (TAR, text(f"{STEM}.json", MANY), "required field", "open"),
    "bytes that lie": (TAR, sidecar(bytes=10**12), "missing or cut short", "open"),
    "digest that lies": (TAR, sidecar(sha256="0" * 64), "its sidecar says 0000", "verify"),
    "another shard's sidecar": (TAR, twice, "is of bucket 0 of 1", "open"),
    "samples of another split": (TAR, sidecar(split="val"), "in val", "open"),
    "2^40 buckets": (TAR, sidecar(buckets=2**40), "buckets", "open"),
    "10^6 buckets": (TAR, sidecar(buckets=10**6), "has 1 of 1000000 shards", "open"),
    "a field twice in the recipe": (TAR, replaced("recipe.json", "{", '{"width": 9,'), "stands twice", "open"),
    "a field twice in a sidecar": (TAR, replaced(f"{STEM}.json", '"split"', TWICE), "damaged", "open"),
    "a sample twice": (ARRAY, sample(1, key="train0-mp4-" + "0" * 16), "not where its sidecar says", "load"),
    "samples of another type": (TAR, sidecar(samples={"a": 1}), "samples", "open"),
    "frames of another type": (TAR, sample(frames="20"), "frames", "open"),
    "sidecar that is not UTF-8": (TAR, text(f"{STEM}.json", b'{"shard": "\xff"}'), "cannot be read", "open"),
    "array of terabytes": (ARRAY, array(shape=[10**9, 8, 8, 3]), "is an array of uint8", "verify"),
    "samples of terabytes": (ARRAY, array(stop=2**60), "its index is damaged", "load"),
    "extents that are no numbers": (ARRAY, array(start=0.5), "zarr.json: cannot be read", "load"),
    "chunk behind the end": ("zarr-zstd", chunk_index(2**63, 2**63), "ends behind the end of the file", "load"),
    "chunk elsewhere": (ARRAY, chunk_index(16, 3072), "do not follow each other", "load"),
    "sidecar without end": (TAR, longer(f"{STEM}.json"), "has more than", "open"),
    "frames of 10^12 pixels": (TAR, recipe(width=10**12), "width is 1000000000000", "open"),
    "frames of no pixels": (TAR, recipe(height=0), "height is 0", "open"),
    "samples without end": (TAR, recipe(max_frames=10**30), "max_frames is", "open"),
    "a rate that never ends": (TAR, recipe(fps="1e999999999"), "not a rate", "open"),
    "another format": (TAR, recipe(format="../evil"), "changed by hand|no shard format", "open"),
    **{name: (kind, nothing, "is damaged", "load") for name, (kind, _, _) in CODECS.items()},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 < before + MEGABYTES


def hostile(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kind, spoil, _, _ = TABLE[name]
    shard_format, _, codec = kind.partition("-")
    with monkeypatch.context() as patch:
        if name in CODECS:
            patch.setattr(CODECS[name][1], "encode", lambda *_: CODECS[name][2])
        made = make_set(root / "set", Recipe(width=8, height=8, format=shard_format, codec=codec, max_frames=32))
    spoil(made)
    return made


def opened(root: Path) -> None:
    summarize(read_set(root, whole=False))
    read_set(root)


def loaded(root: Path) -> None:
    with ClipStream.open(root, frames_per_clip=4, batch_size=2) as stream:
        assert sum(len(batch.labels) for batch in stream.epoch(0)) == 2


def verified(root: Path) -> None:
    if found := verify_set(root, deep=True, jobs=1).damage:
        raise UserError("; ".join(f"{damage.file}: {damage.reason}" for damage in found))


@pytest.mark.parametrize("name", TABLE)
def test_a_strangers_set_ends_in_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = hostile(name, tmp_path, monkeypatch)
    said: dict[str, str] = {}
    for who, look in (("open", opened), ("load", loaded), ("verify", verified)):
        try:
            look(root)
        except UserError as error:
            said[who] = str(error)
    _, _, message, first = TABLE[name]
    assert next(iter(said), "nobody") == first and re.search(message, said[first]), said
    assert "\n" not in said[first] and len(said[first]) < 2000


@pytest.mark.parametrize("shard_format", ["webdataset", "zarr"])
def test_frames_that_a_compressed_sample_only_promises_are_not_made_room_for(
    shard_format: str, tmp_path: Path
) -> None:
    made = make_set(tmp_path / "set", said := Recipe(width=8, height=8, format=shard_format, codec="zstd"))
    (sidecar,) = read_set(made).sidecars
    promise = msgspec.structs.replace(sidecar.samples[0], frames=10**8, sizes=(1,) * (10**8 // 16))
    with (
        get_format(shard_format).open(made / sidecar.shard, replace(said, width=4096, height=4096)) as reader,
        pytest.raises(UserError, match=r"would take .* GB of memory"),
    ):
        reader.frames(promise)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"path,label\na\0.mp4,cats\n", "NUL"),
        (b"path,label\na.mp4,=cmd|' /C calc'!A0\x1b[2J\n", "control characters"),
        (b"path,label\na.mp4,\xff\n", "not UTF-8"),
        (b"path,label\n" + b"a" * 200_000 + b".mp4,cats\n", "field larger than field limit"),
        (b"path,label,label\na.mp4,cats,dogs\n", "same name"),
        (b"path,label\n" + b'"a', "path or label is empty|none of its"),
    ],
)
def test_a_strangers_csv_ends_in_one_clear_error(tmp_path: Path, rows: bytes, message: str) -> None:
    (tmp_path / "videos.csv").write_bytes(rows)
    with pytest.raises(UserError, match=message):
        list_videos(tmp_path / "videos.csv")


def test_a_jpeg_header_that_a_decoder_reads_otherwise_is_none() -> None:
    assert {name: jpeg_size(memoryview(data))[0] for name, data in JPEGS.items()} == {
        "jpeg-huge": (65_500, 65_500), "jpeg-hidden": (0, 0), "bmp": (0, 0), "scans": (0, 0), "more-scans": (8, 8),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dotted key", "shard that is a pipe", "10^7 empty samples", "huge frames"])
def test_prep_says_so_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hostile(name, tmp_path, monkeypatch)
    result = CliRunner().invoke(main, ["inspect", str(root)])
    assert_one_clear_line(result, 2, TABLE[name][2])
