"""Whether a file is whole: what its container's own header says of its length, against the bytes there are.

Pure bytes, no library: Matroska and WebM, AVI, ASF (WMV) and FLV, which decode without an error up to where they
were cut. A cut MP4 is noticed by its decoder; Ogg and MPEG streams do not say how long they are.
"""

import struct
from pathlib import Path

HEAD_BYTES = 1 << 16
# No false alarm for what is cut off behind the last frame (an index), or for a header that is a little wrong.
WHOLE_SHARE, LEAST_SECONDS = 0.9, 1.0
UNKNOWN_RIFF = 1 << 31  # what recorders write before they know better, and all above

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # RFC 8794, RFC 9559
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # ASF specification 3.1 and 3.2
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
FLV_SIZE = b"\x00\x08filesize\x00"  # of `onMetaData`; a big-endian double follows


def truncation(path: str, seconds: float) -> str | None:
    """What to tell of a file that is clearly shorter than its header promises; None for all others.

    `seconds`: what was decoded; by them and the share of bytes that is missing, a second or more must be.
    """
    with Path(path).open("rb") as file:
        promised = promised_bytes(file.read(HEAD_BYTES))
    size = Path(path).stat().st_size
    if promised is None or size >= WHOLE_SHARE * promised or seconds * (promised / size - 1) < LEAST_SECONDS:
        return None
    return f"is cut short: {size:,} bytes of {promised:,} that its header promises"


def promised_bytes(head: bytes) -> int | None:
    """The length of the file by its first bytes; None where they do not say."""
    try:
        if head.startswith(EBML):
            return _matroska(head)
        if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
            (length,) = struct.unpack_from("<I", head, 4)
            return 8 + length if 0 < length < UNKNOWN_RIFF else None
        if head.startswith(ASF_HEADER) and (at := head.find(ASF_FILE_PROPERTIES)) > 0:
            length, is_live = struct.unpack_from("<40xQ40xI", head, at)
            return length if length and not is_live & 1 else None
        if head.startswith(b"FLV") and (at := head.find(FLV_SIZE)) > 0:
            (number,) = struct.unpack_from(">d", head, at + len(FLV_SIZE))
            return int(number) if 0 < number < 1 << 53 else None
    except (struct.error, IndexError):
        pass  # too short to say anything
    return None


def _matroska(head: bytes) -> int | None:
    """Where the segment ends; None where that was not known when it was begun."""
    length, at = _element_size(head, len(EBML))
    if length is None or head[at + length : at + length + 4] != SEGMENT:
        return None
    length, at = _element_size(head, at + length + 4)
    return None if length is None else at + length


def _element_size(head: bytes, at: int) -> tuple[int | None, int]:
    """The variable-length number there (RFC 8794, 4), None for "unknown", and where the next thing begins."""
    count = 9 - head[at].bit_length()
    number = int.from_bytes(head[at : at + count]) & ((1 << 7 * count) - 1)
    return (None if number == (1 << 7 * count) - 1 else number), at + count
