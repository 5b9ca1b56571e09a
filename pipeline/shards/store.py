"""The folder of a cache on this machine, which any number of processes, jobs and users fill and read at once.

    <sha256>.tar, <sha256>/     whole shards, named by their bytes
    <sha256>.tar.part           in the making; its maker holds a lock on <sha256>.tar.lock
    <pid>-<8 hex digits>.claim  what a running job wants, with bytes; locked for as long as the job lives
    .lock                       held for the moment in which somebody claims or removes

All locks are `flock`, which the kernel releases when a process ends, however it ends. A claim makes room for all
that it names at once, by removing what nobody claims, least recently claimed first. So the bound holds while
shards arrive, and what a living job wants is never removed. Files get the permissions of the folder: who may write
there shares the cache.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from pipeline.console import human_bytes
from pipeline.errors import UserError
from pipeline.foreign import read_text
from pipeline.shards.fetch import GaveUp
from pipeline.shards.folder import remove_path, shard_files
from pipeline.shards.sidecar import Count

OURS = re.compile(r"([0-9a-f]{64}(?:\.tar)?)(\.part|\.lock)?")
CLAIM = re.compile(r"[0-9]+-[0-9a-f]{8}\.claim")
POLL = 0.05  # seconds between two tries to get a lock
READABLE_WITHIN = 2.0  # seconds: another user's new file is theirs alone for a moment


class Store:
    """The shards in `root`, of at most `limit` bytes together (None: as many as come). Raises `UserError`."""

    def __init__(self, root: Path, limit: int | None) -> None:
        self.root, self.limit = root, limit
        with self.told():
            root.mkdir(parents=True, exist_ok=True)
            self._mode = stat.S_IMODE(root.stat().st_mode)

    @contextmanager
    def claim(self, wanted: Mapping[str, int]) -> Iterator[None]:
        """Keep room for these shards (names, with bytes), and keep those that are there, until the end.

        Raises `UserError` where they do not fit beside what other running jobs claim.
        """
        path = self.root / f"{os.getpid()}-{secrets.token_hex(4)}.claim"
        with ExitStack() as end:
            with self.told(), self._locked(self.root / ".lock"):
                self._make_room(dict(wanted), self._claimed())
                lock = self._open(path)
                end.callback(os.close, lock)
                end.callback(path.unlink, missing_ok=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
                path.write_text(json.dumps(dict(wanted)), encoding="utf-8")
            yield
            self._touch(wanted)

    def find(self, name: str, size: int) -> Path | None:
        """Where the shard is, whole. One that lost its length since is not there."""
        path = self.root / name
        with self.told(), suppress(FileNotFoundError):
            if path.exists() and sum(file.stat().st_size for file in shard_files(path)) == size:
                return path
        return None

    def remove(self, name: str) -> None:
        """Remove a shard that lost its bytes."""
        with self.told():
            _remove(self.root / name)

    @contextmanager
    def turn(self, name: str, wait: Callable[[float], bool]) -> Iterator[Path]:
        """Be the only one on this machine who makes the shard; yields where. `put` it, or it is removed.

        `wait` sleeps for so many seconds between two tries, and says whether to give up: `GaveUp`.
        """
        part = self.root / f"{name}.part"
        with self._locked(lock := self.root / f"{name}.lock", wait):
            try:
                _remove(part)  # of one that was killed
                yield part
            finally:
                remove_path(part)
                lock.unlink(missing_ok=True)

    def create(self, path: Path) -> BinaryIO:
        """A new file to write, in a new folder where that is missing."""
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(self._mode)
        file = path.open("wb")
        os.fchmod(file.fileno(), self._mode & 0o666)
        return file

    def put(self, part: Path, name: str) -> Path:
        """Put what was made, and is flushed, in its place."""
        place = self.root / name
        _remove(place)  # one that lost its length
        return part.rename(place)

    def _make_room(self, wanted: dict[str, int], others: dict[str, int]) -> None:
        """Remove what nobody claims: all that is half made, and whole shards until the rest fits, below the limit
        and on the disk."""
        claimed, idle = others | wanted, []
        for entry in os.scandir(self.root):
            match = OURS.fullmatch(entry.name)
            if not match or match[1] in claimed:
                continue
            if match[2]:
                _remove(Path(entry.path))
            else:
                size = sum(file.stat().st_size for file in shard_files(Path(entry.path)))
                idle.append((entry.stat().st_mtime_ns, entry.name, size))
        over = 0
        if self.limit is not None:
            self._check_limit(self.limit, sum(wanted.values()), sum(claimed.values()))
            over = sum(claimed.values()) + sum(size for *_, size in idle) - self.limit
        missing = sum(size for name, size in wanted.items() if not (self.root / name).exists())
        self._check_disk(missing, sum(size for *_, size in idle))
        for _, name, size in sorted(idle):
            if over > 0 or missing > self._free():
                _remove(self.root / name)
                over -= size
        self._check_disk(missing, 0)  # a shard that somebody still has open takes its room
        self._touch(wanted)

    def _free(self) -> int:
        """Bytes that are left on the disk."""
        return shutil.disk_usage(self.root).free

    def _check_disk(self, missing: int, idle: int) -> None:
        """`idle`: bytes that can be removed. Raises `UserError` where what is `missing` does not fit."""
        if missing > (free := self._free()) + idle:
            raise UserError(
                f"{self.root}: {human_bytes(missing)} have to be fetched, and its disk has "
                f"{human_bytes(free)} left; give another --cache, or stream without a cache"
            )

    def _check_limit(self, limit: int, wanted: int, claimed: int) -> None:
        if wanted > limit:
            raise UserError(
                f"{self.root}: the cache may hold {human_bytes(limit)}, the shards of this job are "
                f"{human_bytes(wanted)}; give a larger --cache-size, or stream without a cache"
            )
        if claimed > limit:
            raise UserError(
                f"{self.root}: the cache may hold {human_bytes(limit)}, and other running jobs leave "
                f"{human_bytes(limit - claimed + wanted)} for the {human_bytes(wanted)} of this one; give a "
                "larger --cache-size, or another --cache"
            )

    def _touch(self, names: Mapping[str, int]) -> None:
        """Remember that these were wanted now."""
        for name in names:
            with suppress(FileNotFoundError, PermissionError):
                os.utime(self.root / name)

    def _claimed(self) -> dict[str, int]:
        """What living jobs claim. Claims of dead ones are removed."""
        claimed: dict[str, int] = {}
        for path in self.root.iterdir():
            if not CLAIM.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):  # a job that ends just now
                lock = self._open(path)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    claimed |= _claim(path)
                finally:
                    os.close(lock)
        return claimed

    @contextmanager
    def _locked(self, path: Path, wait: Callable[[float], bool] | None = None) -> Iterator[None]:
        """Hold the lock of that file, which whoever holds it may remove."""
        while True:
            lock = self._open(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if wait else 0))
                if _is_same(lock, path):
                    break
            except BlockingIOError:
                if wait and wait(POLL):
                    os.close(lock)
                    raise GaveUp from None
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        try:
            yield
        finally:
            os.close(lock)

    def _open(self, path: Path) -> int:
        """A file to lock; made, with the folder's permissions, where it is missing."""
        until = time.monotonic() + READABLE_WITHIN
        while True:
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)
                    os.fchmod(made, self._mode & 0o666)
                    return made
            except PermissionError:
                if time.monotonic() > until:  # its maker was killed before it had its permissions
                    path.unlink(missing_ok=True)
                time.sleep(POLL)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong on this machine is told as a `UserError` that names the folder."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.root}: the cache cannot be used: {error}; all who share it must be able to write there "
                "(chmod g+w, no sticky bit), or give another --cache"
            ) from error


def _claim(path: Path) -> dict[str, int]:
    """What a living job has written. Raises `OSError` where it is none: another user's, perhaps."""
    try:
        claim = msgspec.json.decode(read_text(path), type=dict[str, Count])
    except ValueError as error:
        raise OSError(f"{path.name} is no claim: {error}") from error
    return {name: size for name, size in claim.items() if OURS.fullmatch(name)}


def _remove(path: Path) -> None:
    """Raises `OSError` where it stays."""
    remove_path(path)
    if path.exists():
        raise PermissionError(f"{path.name} cannot be removed")


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether the open file still stands under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
