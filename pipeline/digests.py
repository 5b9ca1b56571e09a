"""SHA-256 of source videos, remembered from build to build: a file that was not touched since is not read again.

A file counts as untouched where its size, inode and both times of change (of its content and of anything about
it, in nanoseconds) are as they were. A file that was still new when it was read is not remembered: another write
in the same tick of its clock could leave all of these as they are (git calls this a racy file).
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.places import is_url, local_file
from pipeline.report import Stage, no_stage
from pipeline.shards.cache import default_cache
from pipeline.shards.folder import file_sha256
from pipeline.sources import Video

SETTLED = 60 * 10**9  # nanoseconds; far above any tick, for clocks of file servers differ from ours


class Known(NamedTuple):
    """What a file was like when its bytes had the digest `sha256`."""

    size: int
    inode: int
    modified: int
    changed: int
    sha256: str


def read_digests(source: Path | str, videos: Sequence[Video], stage: Stage = no_stage) -> dict[str, str]:
    """SHA-256 by video id of every video of `source` that can be read.

    What is known of local files is kept in the user's cache under the name of `source`; nothing else is in it, so
    it may be removed at any time. Threads suffice: hashing releases the GIL.
    """
    step = stage("hashing", len(videos))
    memo = _memo_of(source)
    before = _recall(memo) if memo else {}

    def look(video: Video) -> tuple[str, Known | None] | None:
        try:
            return _look(video, before.get(video.path))
        except OSError:
            return None  # the worker that decodes it will say why
        finally:
            step(1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, videos))
    known = {video.path: it[1] for video, it in zip(videos, found, strict=True) if it and it[1]}
    if memo and known != before:
        _remember(memo, known)
    return {video.id: it[0] for video, it in zip(videos, found, strict=True) if it}


def _look(video: Video, known: Known | None) -> tuple[str, Known | None]:
    """Its digest, and what may be remembered. Raises `OSError`."""
    if is_url(video.path):
        with local_file(video.path) as path:
            return file_sha256(path), None
    began, about = time.time_ns(), _about(video.path)
    if known and known[:-1] == about:
        return known.sha256, known
    sha256 = file_sha256(video.path)
    settled = max(about[2:]) < began - SETTLED and about == _about(video.path)
    return sha256, Known(*about, sha256) if settled else None


def _about(path: str) -> tuple[int, int, int, int]:
    """As in `Known`. No device: a network drive has another one after each mount."""
    found = os.stat(path)
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _memo_of(source: Path | str) -> Path | None:
    """None for a user who has no home, as in some containers."""
    name = hashlib.sha256(os.fsencode(str(source))).hexdigest()[:16]
    try:
        return default_cache() / "sources" / f"{name}.jsonl"
    except RuntimeError:
        return None


def _recall(memo: Path) -> dict[str, Known]:
    """By path; nothing where the file is missing, or not what `_remember` writes: then all is hashed, as ever."""
    try:
        rows = (json.loads(line) for line in memo.read_text().splitlines())
        return {path: Known(size, inode, modified, changed, sha256)
                for path, size, inode, modified, changed, sha256 in rows}  # fmt: skip
    except (OSError, ValueError, TypeError):
        return {}


def _remember(memo: Path, known: dict[str, Known]) -> None:
    made = memo.with_name(f".{memo.name}-{secrets.token_hex(4)}")
    # A disk that is full, or a home that may not be written: the next build hashes again, nothing else.
    with suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        try:
            with made.open("w") as file:
                file.writelines(json.dumps([path, *about]) + "\n" for path, about in known.items())
            os.replace(made, memo)
        finally:
            made.unlink(missing_ok=True)
