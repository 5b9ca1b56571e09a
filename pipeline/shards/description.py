"""What a shard itself says of a sample, read into checked fields: docs/format.md explains each."""

import json
from typing import Annotated, Any

import msgspec

from pipeline.foreign import MOST_JSON, MOST_TEXT

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Origin(msgspec.Struct, frozen=True):
    """The source file: SHA-256 and length of its bytes."""

    sha256: str
    bytes: Int64


class Description(msgspec.Struct, frozen=True):
    """Of one sample, as a tar has it beside the frames. Fields that no release writes are left out."""

    key: str
    video: str
    label: str
    group: str
    split: str
    source: Origin
    fps: str
    first: Int64
    time_base: str
    pts: tuple[Int64, ...]
    decoder: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it, and as it stood there."""
        values = msgspec.structs.asdict(self)
        return {**values, "source": msgspec.structs.asdict(self.source), "pts": list(self.pts)}


def decode(data: bytes | memoryview, kind: Any) -> Any:
    """JSON as the struct `kind`; nothing is made of what does not fit it. Raises `ValueError`."""
    if len(data) > MOST_TEXT:
        raise ValueError(f"{len(data)} bytes of JSON, {MOST_TEXT} are read at most")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # msgspec takes no lone surrogates: a file name that is not UTF-8 has them
        if len(data) > MOST_JSON:
            raise
        return msgspec.convert(json.loads(bytes(data)), kind)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
