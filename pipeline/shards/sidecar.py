"""The sidecar of a shard: `train-000003.json`, written last. What has a sidecar is whole.

It says what stands in the shard and where, and which videos were rejected and why, so that an index of a
whole set is made from sidecars alone, without opening a shard.
"""

import json
import re
import sys
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import google_crc32c
import msgspec
import numpy as np
from msgspec.structs import asdict, force_setattr

from pipeline.errors import UserError
from pipeline.foreign import CONTROL

SHARD = re.compile(r"(?:train|val|test)-[0-9]{6}\.tar|frames\.zarr/(?:train|val|test)-[0-9]{6}")
CHECKSUM = ',\n "crc32c": "'  # the last field of the file, of all bytes before it
MOST_BUCKETS = 10**6  # a name has six digits for them
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Buckets = Annotated[int, msgspec.Meta(ge=1, le=MOST_BUCKETS)]
Split = Annotated[str, msgspec.Meta(pattern=r"\A(?:train|val|test)\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # it becomes the name of a file
KEY_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_#-"
HEX_BYTES = b"abcdef0123456789"


class Sample(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One sample of a shard: at most `max_frames` consecutive kept frames of one video.

    A struct, because a large set has a million of them: JSON is checked and made into them in a quarter of the
    time that `json` and a tuple take, and the garbage collector never looks at them.

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
    frames: Size
    offset: Count
    sizes: tuple[Size, ...] = ()
    crc32c: str = ""


class Place(NamedTuple):
    """Where a writer has put a sample: see `Sample`."""

    offset: int
    sizes: tuple[int, ...] = ()


class Broken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A video that could not be decoded to its end: the reason, and how many frames came out.

    In `Sidecar.rejected` it gave no sample; in `Sidecar.damaged` its frames were kept (`--on-corrupt keep`, or
    a file cut short, all of which could be decoded).
    """

    video: str
    label: str
    group: str
    source: str | None
    reason: str
    frames: Count


class Sidecar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is known of one shard. `bucket` of `buckets`: which of the split's shards it is; `crc32c`: what the
    file has as its own checksum, None before it is written, and in old sets."""

    shard: str
    fingerprint: str
    split: Split
    bucket: Count
    buckets: Buckets
    bytes: Count
    sha256: Digest
    samples: tuple[Sample, ...]
    rejected: tuple[Broken, ...]
    damaged: tuple[Broken, ...] = ()
    crc32c: str | None = None

    def text(self) -> str:
        """What stands in the file: a line a sample, so that two sidecars can be compared by eye."""
        fields = asdict(self)
        del fields["crc32c"]
        lists = {name: fields.pop(name) for name in ("samples", "rejected", "damaged")}
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


def _rows(entries: Iterable[Sample | Broken]) -> str:
    optional = ("sizes", "crc32c")
    entries_shown = (asdict(entry).items() for entry in entries)
    shown = ({name: value for name, value in entry if value or name not in optional} for entry in entries_shown)
    lines = ",\n".join("  " + json.dumps(entry) for entry in shown)
    return f"\n{lines}\n " if lines else ""


_DECODER = msgspec.json.Decoder(Sidecar)


def parse_sidecar(text: str, name: str) -> Sidecar:
    """The reverse of `Sidecar.text`. `name`: the file's, for the error. Raises `UserError`."""
    try:
        sidecar = _decode(text)
        if sidecar.crc32c is not None and text != sealed(text.rpartition(CHECKSUM)[0]):
            raise ValueError("its checksum does not fit, the file is damaged")
        _check_names(sidecar)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not a sidecar of a shard: {error}") from error
    if not SHARD.fullmatch(sidecar.shard):
        raise UserError(f"{name}: its shard {sidecar.shard!r} is not a file of this set")
    for sample in sidecar.samples:  # one string for all equal ones: half of a large index is its strings
        force_setattr(sample, "label", sys.intern(sample.label))
        if sample.group == sample.video:
            force_setattr(sample, "group", sample.video)
    return sidecar


def _check_names(sidecar: Sidecar) -> None:
    """Names that become files elsewhere, or are printed, are nothing else. Raises `ValueError`."""
    for field, names, allowed in (
        ("key", [sample.key for sample in sidecar.samples], KEY_BYTES),
        ("crc32c", [sample.crc32c for sample in sidecar.samples], HEX_BYTES),
    ):
        # All at once: a large index has a million of them.
        rest = "".join(names).encode("utf-8", "surrogateescape").translate(None, allowed)
        if rest or (field == "key" and not all(names)):
            wrong = next(
                name for name in names if not name or name.encode("utf-8", "replace").translate(None, allowed)
            )
            raise ValueError(f"a sample's {field} is {wrong[:80]!r}")
    entries: tuple[Sample | Broken, ...] = (*sidecar.samples, *sidecar.rejected, *sidecar.damaged)
    labels = {entry.label for entry in entries}
    if "" in labels or CONTROL.search("".join(labels)):
        wrong = next(label for label in labels if not label or CONTROL.search(label))
        raise ValueError(f"a label is {wrong[:80]!r}")


def _decode(text: str) -> Sidecar:
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # msgspec takes no lone surrogates: a file name that is not UTF-8 has them
        return msgspec.convert(json.loads(text), Sidecar)
