"""Shards of a set that lies elsewhere, on this machine: fetched whole, once, checked, ahead of the reader.

A shard is named by its SHA-256, so that sets, jobs and users share equal ones; store.py is the folder. A shard
that does not arrive as its sidecar says is fetched again (fetch.py), and in the end the job ends with its name and
the reason: what `path` gives has the right bytes.
"""

import errno
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import UserError
from pipeline.places import is_url
from pipeline.shards.fetch import Fetcher, GaveUp
from pipeline.shards.folder import Folder, measure
from pipeline.shards.index import ShardSet, SplitIndex
from pipeline.shards.sidecar import Sidecar
from pipeline.shards.store import Store

Local = Callable[[str], AbstractContextManager[Path]]  # a shard's name -> its path on this machine
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def default_cache() -> Path:
    """`~/.cache/reelcache`, or where XDG_CACHE_HOME says."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "reelcache"


def parse_bytes(text: str) -> int:
    """`50GB`, `500 MB`, `1.5TB` (powers of ten) as a number of bytes. Raises `UserError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)b?", text.strip().lower())
    if not match or not (size := round(float(match[1]) * UNITS[match[2]])):
        raise UserError(f"--cache-size {text}: not a size; write 50GB or 500MB")
    return size


def cache_for(
    index: ShardSet | SplitIndex, root: Path | None = None, limit: int | None = None
) -> "ShardCache | None":
    """A cache for the shards of a set or a split in the folder `root`, of at most `limit` bytes.

    None where none is needed: the shards lie on this machine, and no `root` is asked for. Raises `UserError`.
    """
    if root is None and not is_url(str(index.folder)):
        return None
    return ShardCache(index, index.sidecars, root or default_cache(), limit)


@contextmanager
def room_for(
    indices: Sequence[ShardSet | SplitIndex], root: Path | None = None, limit: int | None = None
) -> Iterator[None]:
    """Keep room for the shards of all of these together until the end, while caches of each come and go.

    `root`, `limit`: as in `cache_for`. Raises `UserError` where they do not fit.
    """
    elsewhere = [index for index in indices if root or is_url(str(index.folder))]
    wanted = {cached_name(index.folder, item): item.bytes for index in elsewhere for item in index.sidecars}
    with Store(root or default_cache(), limit).claim(wanted) if wanted else nullcontext():
        yield


def one_at_a_time(shard_set: ShardSet, root: Path | None = None, limit: int | None = None) -> Local:
    """What gives a shard's path on this machine by its name, for work that reads each once: none but that one has
    to fit, and those that are in the cache are found there. `root`, `limit`: as in `cache_for`."""
    if root is None and not is_url(str(shard_set.folder)):
        return shard_set.folder.local
    sidecars = {sidecar.shard: sidecar for sidecar in shard_set.sidecars}

    @contextmanager
    def local(name: str) -> Iterator[Path]:
        with ShardCache(shard_set, [sidecars[name]], root or default_cache(), limit, threads=1) as cache:
            yield cache.path(0)

    return local


def cached_name(folder: Folder, sidecar: Sidecar) -> str:
    """The shard's name in a cache. Raises `UserError`."""
    if not re.fullmatch("[0-9a-f]{64}", sidecar.sha256):  # it becomes the name of a file here
        raise UserError(f"{folder}/{sidecar.shard}: its sidecar's sha256 {sidecar.sha256!r} is none")
    return sidecar.sha256 + Path(sidecar.shard).suffix


class ShardCache:
    """The shards of `sidecars`, numbered as there, in the folder `root` of at most `limit` bytes.

    All of them have to fit: an epoch's order runs over them all, and a cache that holds fewer would fetch each
    many times. Room is kept for them until `close()`, after which no thread is left. `threads` fetch at a time.
    Raises `UserError` where they do not fit, or the folder cannot be used.
    """

    def __init__(
        self,
        shard_set: ShardSet | SplitIndex,
        sidecars: Sequence[Sidecar],
        root: Path | str,
        limit: int | None = None,
        threads: int = 4,
    ) -> None:
        self._folder, self._sidecars = shard_set.folder, sidecars
        self._store = Store(Path(root), limit)
        self._fetcher = Fetcher(self._folder, self._store.create)
        self._queue: deque[int] = deque()
        self._paths: dict[int, Path] = {}  # in the order of their arrival
        self._errors: dict[int, Exception] = {}
        self._busy: set[int] = set()
        self._stopped, self._interrupted = threading.Event(), False
        self._changed = threading.Condition()
        self._count, self._threads = threads, list[threading.Thread]()
        with ExitStack() as claim:
            names = [cached_name(self._folder, sidecar) for sidecar in sidecars]
            claim.enter_context(
                self._store.claim({name: item.bytes for name, item in zip(names, sidecars, strict=True)})
            )
            for shard, (name, sidecar) in enumerate(zip(names, sidecars, strict=True)):
                if found := self._store.find(name, sidecar.bytes):
                    self._paths[shard] = found
            self._claim = claim.pop_all()

    def fetch(self, order: Sequence[int]) -> None:
        """Begin to fetch these shards in this order, after those that were asked for before. Returns at once."""
        with self._changed:
            self._interrupted = False
            self._queue.extend(shard for shard in order if shard not in self._paths)
            self._start()

    def path(self, shard: int) -> Path:
        """Where the shard is on this machine, whole and checked; waits for it, as the next one in turn.

        Raises `UserError` where it cannot be had; asking again tries again. Raises `GaveUp` after `interrupt`.
        """
        asked = False
        with self._changed:
            while shard not in self._paths:
                if self._interrupted:
                    raise GaveUp
                if error := self._errors.pop(shard, None):
                    raise error
                if shard not in self._busy and not (asked and shard in self._queue):
                    self._queue.appendleft(shard)
                    asked = True
                    self._start()
                self._sleep()
            return self._paths[shard]

    def renew(self, shard: int) -> bool:
        """Of a shard that cannot be read: whether it is gone, or has other bytes than it came with.

        Then what is left of it is removed, and `path` fetches it again. Raises `UserError`.
        """
        sidecar, path = self._sidecars[shard], self._paths[shard]
        try:
            whole = measure(path) == (sidecar.bytes, sidecar.sha256)
        except OSError as error:  # it is gone, or the disk fails; but not where no file can be opened
            whole = error.errno in (errno.EMFILE, errno.ENFILE)
        if whole:
            return False
        self._store.remove(path.name)
        with self._changed:
            self._paths.pop(shard, None)
        return True

    def interrupt(self) -> None:
        """End all waiting in `path`, now and until the next `fetch`; what was asked for goes on coming."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def arrived(self) -> list[int]:
        """The shards that are here, in the order in which they came."""
        with self._changed:
            return list(self._paths)

    def wait(self, count: int) -> None:
        """Wait until so many shards are here, of those asked for. Raises `UserError` where one cannot be had."""
        with self._changed:
            while len(self._paths) < count:
                for error in self._errors.values():
                    raise error
                if not (self._queue or self._busy):
                    raise ValueError(f"{count} shards are waited for, {len(self._paths)} were asked for")
                self._sleep()

    def _sleep(self) -> None:
        """Until something changes; called with the lock held."""
        if self._stopped.is_set():
            raise RuntimeError("this cache is closed")
        self._changed.wait()

    def _start(self) -> None:
        """Have threads for what waits; called with the lock held."""
        if self._stopped.is_set():
            raise RuntimeError("this cache is closed")
        while self._queue and len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name="shard-cache", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            found: Path | Exception
            try:
                found = self._bring(self._sidecars[shard])
            except GaveUp:
                return
            except Exception as error:  # whoever wants the shard raises it
                found = error
            with self._changed:
                self._busy.remove(shard)
                if isinstance(found, Path):
                    self._paths[shard] = found
                else:
                    self._errors[shard] = found
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The shard that is the next to fetch, once there is one; None at the end."""
        with self._changed:
            while not self._stopped.is_set():
                asked = bool(self._queue)
                while self._queue:
                    shard = self._queue.popleft()
                    if shard not in self._paths and shard not in self._busy:
                        self._errors.pop(shard, None)
                        self._busy.add(shard)
                        return shard
                if asked:  # all of it was here already: whoever waits for more has to know
                    self._changed.notify_all()
                self._changed.wait()
        return None

    def _bring(self, sidecar: Sidecar) -> Path:
        """The shard in the cache: there already, made by another process meanwhile, or fetched now."""
        name, size = cached_name(self._folder, sidecar), sidecar.bytes
        if found := self._store.find(name, size):
            return found
        with self._store.told(), self._store.turn(name, self._fetcher.wait) as part:
            if found := self._store.find(name, size):
                return found
            self._fetcher.fetch(sidecar, part)
            return self._store.put(part, name)

    def close(self) -> None:
        """Stop fetching, wait for the threads, and let go of the room. Maps of shards that are open stay valid.

        A server that says nothing at all is waited for as long as a request may take.
        """
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        self._fetcher.stop()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._claim.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
