"""Bytes from strangers: files that are no files, texts without end, JSON that is a trap.

What is read of a set, a run or a cache goes through here, so that memory follows what a file holds, never what it
promises. `models` has its own checks, as it knows nothing of this room.
"""

import json
import os
import re
import stat
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MOST_TEXT = 1 << 27  # bytes of a sidecar, or of an array's description; both are read into checked structs
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
MOST_JSON = 1 << 24  # bytes of any other JSON: `[[],[],…` takes 24 times its length as Python objects


class OverlongError(OSError):
    """A text of more bytes than any such file needs."""


def open_plain(path: Path | str) -> BufferedReader:
    """A file to read, which is one: a pipe would be waited for, a device never ends. Raises `OSError`."""
    descriptor, _ = _opened(path)
    try:
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _opened(path: Path | str) -> tuple[int, int]:
    """The descriptor of a plain file, and how many bytes it has. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path} is no plain file")
        return descriptor, about.st_size
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path | str, most: int = MOST_TEXT) -> str:
    """A text as it is: no newline is made another one. Raises `OSError`, also where it is longer than `most`
    bytes, and `UnicodeDecodeError`."""
    descriptor, size = _opened(path)  # no file object: making one takes as long as reading a sidecar
    try:
        data, room = b"", min(size, most) + 1  # memory for `most` would be got, and given back
        while len(data) < room and (more := os.read(descriptor, room - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return limited(data, str(path), most).decode()


def limited(data: bytes, name: str, most: int = MOST_TEXT) -> bytes:
    """The bytes, at most so many. Raises `OSError`."""
    if len(data) > most:
        raise OverlongError(f"{name} has more than {most} bytes, and no such file needs them")
    return data


@cache
def memory() -> int:
    """Bytes of memory that this machine has, or the container that this process is in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        with suppress(OSError, ValueError):  # no container, or one without a limit
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(found)


def check_room(size: int, what: str, way_out: str) -> None:
    """Before `size` bytes are asked for. Raises `UserError` where the machine has not so many: asking would end
    the process, now or when they are written."""
    if size > memory():
        there = f"this machine has {memory() / 1e9:,.0f} GB"
        raise UserError(f"{what}: would take {size / 1e9:,.0f} GB of memory, and {there}; {way_out}")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, but no name twice in an object, and nothing that nests or grows without end. Raises
    `ValueError`."""
    if len(text) > MOST_JSON:
        raise ValueError(f"{len(text)} bytes of JSON, {MOST_JSON} are read at most")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return values
