"""The sidecar of a shard: `train-000003.json`, written last. What has a sidecar is whole.

It says what stands in the shard and where, and which videos were rejected and why, so that an index of a
whole set is made from sidecars alone, without opening a shard.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from pipeline.errors import UserError

SHARD = re.compile(r"(?:train|val|test)-[0-9]{6}\.tar|frames\.zarr/(?:train|val|test)-[0-9]{6}")
CHECKSUM = ',\n "crc32c": "'  # the last field of the file, of all bytes before it


class Sample(NamedTuple):
    """One sample of a shard: at most `max_frames` consecutive kept frames of one video.

    A tuple, because a large set has a million of them: a frozen dataclass takes three times as long to make.

    `video` is the source's identity, `source` the SHA-256 of its bytes, `frames` how many there are, `offset`
    where the first one is (in a tar: bytes from its start; in a zarr array: frames), `sizes` the bytes of each
    chunk, where a tar is compressed, and `crc32c` the checksums of the stored chunks that its frames are in, eight
    hex digits each ("": of an old set).
    """

    key: str
    video: str
    label: str
    group: str
    source: str
    frames: int
    offset: int
    sizes: tuple[int, ...] = ()
    crc32c: str = ""


class Place(NamedTuple):
    """Where a writer has put a sample: see `Sample`."""

    offset: int
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Broken:
    """A video that could not be decoded to its end: the reason, and how many frames came out.

    In `Sidecar.rejected` it gave no sample; in `Sidecar.damaged` its frames were kept (`--on-corrupt keep`, or
    a file cut short, all of which could be decoded).
    """

    video: str
    label: str
    group: str
    source: str | None
    reason: str
    frames: int


@dataclass(frozen=True)
class Sidecar:
    """All that is known of one shard. `bucket` of `buckets`: which of the split's shards it is."""

    shard: str
    fingerprint: str
    split: str
    bucket: int
    buckets: int
    bytes: int
    sha256: str
    samples: tuple[Sample, ...]
    rejected: tuple[Broken, ...]
    damaged: tuple[Broken, ...] = ()

    def text(self) -> str:
        """What stands in the file: a line a sample, so that two sidecars can be compared by eye."""
        fields = asdict(self)
        lists = {name: fields.pop(name) for name in ("samples", "rejected", "damaged")}
        lists["samples"] = [sample._asdict() for sample in self.samples]
        head = json.dumps(fields, indent=1)[:-2]
        rows = ",\n".join(f' "{name}": [{_rows(entries)}]' for name, entries in lists.items())
        return sealed(f"{head},\n{rows}")


def crc32c(data: bytes | memoryview) -> str:
    """CRC-32C (RFC 3720, B.4) of bytes, as eight hex digits."""
    plain = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)  # all that the library takes
    return f"{google_crc32c.value(plain):08x}"


def sealed(body: str) -> str:
    """The JSON object that lacks only its end, with its checksum as the last field."""
    return f'{body}{CHECKSUM}{crc32c(body.encode())}"\n}}\n'


def _rows(entries: Iterable[dict[str, Any]]) -> str:
    optional = Sample._field_defaults
    shown = ({name: value for name, value in entry.items() if value or name not in optional} for entry in entries)
    lines = ",\n".join("  " + json.dumps(entry) for entry in shown)
    return f"\n{lines}\n " if lines else ""


def parse_sidecar(text: str, name: str) -> Sidecar:
    """The reverse of `Sidecar.text`. `name`: the file's, for the error. Raises `UserError`."""
    try:
        fields = json.loads(text)
        samples = tuple(map(_sample, fields.pop("samples")))
        rejected = tuple(map(_broken, fields.pop("rejected")))
        damaged = tuple(map(_broken, fields.pop("damaged")))
        if fields.pop("crc32c", None) is not None and text != sealed(text.rpartition(CHECKSUM)[0]):
            raise ValueError("its checksum does not fit, the file is damaged")
        sidecar = Sidecar(**fields, samples=samples, rejected=rejected, damaged=damaged)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: not a sidecar of a shard: {error}") from error
    if not SHARD.fullmatch(sidecar.shard):
        raise UserError(f"{name}: its shard {sidecar.shard!r} is not a file of this set")
    return sidecar


def _sample(values: dict[str, Any]) -> Sample:
    values["label"] = sys.intern(values["label"])  # one string for all, not one for each
    if values["group"] == values["video"]:
        values["group"] = values["video"]
    if "sizes" in values:
        values["sizes"] = tuple(values["sizes"])
    sample = Sample(**values)
    _, _, _, _, _, frames, offset, sizes, checksums = sample
    if not (isinstance(frames, int) and frames >= 0):
        raise ValueError(f"frames of {sample.video!r} is {frames!r}")
    if not (isinstance(offset, int) and offset >= 0):
        raise ValueError(f"offset of {sample.key!r} is {offset!r}")
    if sizes and not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"sizes of {sample.key!r} are {sizes!r}")
    if not isinstance(checksums, str):
        raise ValueError(f"crc32c of {sample.key!r} is {checksums!r}")
    return sample


def _broken(values: dict[str, Any]) -> Broken:
    broken = Broken(**values)
    if not isinstance(broken.frames, int) or broken.frames < 0:
        raise ValueError(f"frames of {broken.video!r} is {broken.frames!r}")
    return broken
