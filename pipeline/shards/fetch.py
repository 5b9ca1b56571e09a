"""A shard of a set from afar to this machine: streamed, compared with its sidecar on the way, tried again."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from pipeline.errors import UserError
from pipeline.shards.folder import Folder
from pipeline.shards.sidecar import Sidecar

TRIES = 5
PAUSE = 0.5  # seconds before the second try; each later one waits twice as long
LONG = 60.0  # seconds without a byte in which a file system has asked again by itself: no further try
CHUNK = 1 << 20


class GaveUp(Exception):
    """Nobody wants the shard any more."""


def create(path: Path) -> BinaryIO:
    """A new file to write, in a new folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def place_in(shard: Path, below: str) -> Path:
    """Where a file of a shard is put on this machine: `below` is "", or begins with `/`. Raises `UserError` where
    that is not inside the shard: names come from strangers."""
    head, *parts = below.split("/")
    if head or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise UserError(f"{shard.name}: {below!r} is not the name of a file in it")
    return shard.joinpath(*parts)


class Fetcher:
    """Fetches shards of the set in `folder`, from any number of threads. `create` opens a new file to write."""

    def __init__(self, folder: Folder, create: Callable[[Path], BinaryIO]) -> None:
        self._folder, self._create = folder, create
        self._stopped = threading.Event()
        self._streams: set[BinaryIO] = set()

    def wait(self, seconds: float) -> bool:
        """Sleep; returns whether to give up."""
        return self._stopped.wait(seconds)

    def stop(self) -> None:
        """End all fetching, with `GaveUp`. A silent server is waited for as long as a request may take."""
        self._stopped.set()
        for stream in list(self._streams):  # ends a read that waits for the server
            stream.close()

    def fetch(self, sidecar: Sidecar, part: Path) -> None:
        """Make the shard at `part`, flushed, with the bytes that its sidecar says.

        Raises `UserError` after `TRIES` tries, `OSError` of our own disk, `GaveUp`.
        """
        try:
            self.insist(lambda: self._try(sidecar, part), TRIES)
        except Wrong as error:
            raise UserError(f"{self._folder}/{sidecar.shard}: cannot be fetched: {error}") from error

    def insist(self, work: Callable[[], None], tries: int) -> None:
        """Do the work again until nothing is `Wrong`, so many times at most."""
        for number in range(1, tries + 1):
            if number > 1 and self._stopped.wait(PAUSE * 2 ** (number - 2)):
                raise GaveUp
            try:
                work()
                return
            except Wrong as error:
                if error.final or number == tries:
                    raise Wrong(f"{error} (try {number} of {tries})" if tries > 1 else str(error)) from error

    def _try(self, sidecar: Sidecar, part: Path) -> None:
        check = Check(sidecar)
        for name in self._files(sidecar):
            with self._create(place_in(part, name.removeprefix(sidecar.shard))) as file:
                for data in self._chunks(name):
                    check.take(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        check.end()

    def compare(self, sidecar: Sidecar) -> None:
        """Read the shard once, to nowhere. Raises `Wrong` where its bytes are not those of its sidecar."""
        check = Check(sidecar)
        for name in self._files(sidecar):
            for data in self._chunks(name):
                check.take(data)
        check.end()

    def _files(self, sidecar: Sidecar) -> list[str]:
        try:
            files = self._folder.files(sidecar.shard)
        except Exception as error:
            raise Wrong.of(error) from error
        if not files:
            raise Wrong("it is not there", final=True)
        return files

    def _chunks(self, name: str) -> Iterator[bytes]:
        """The file's bytes as they come. Whatever the far end does wrong, in words."""
        heard = time.monotonic()
        try:
            with self._folder.open(name) as stream:
                self._streams.add(stream)
                try:
                    while data := stream.read(CHUNK):
                        if self._stopped.is_set():
                            raise GaveUp
                        yield data
                        heard = time.monotonic()
                finally:
                    self._streams.discard(stream)
        except GaveUp:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if self._stopped.is_set():
                raise GaveUp from error
            raise Wrong.of(error, final=time.monotonic() - heard > LONG) from error


class Check:
    """The bytes of a shard as they pass, against its sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar, self._digest, self._received = sidecar, hashlib.sha256(), 0

    def take(self, data: bytes) -> None:
        """The next bytes. Raises `Wrong` for more than there should be."""
        self._received += len(data)
        if self._received > self._sidecar.bytes:
            raise Wrong(f"more than the {self._sidecar.bytes} bytes that its sidecar says")
        self._digest.update(data)

    def end(self) -> None:
        """Raises `Wrong` where these were not the right ones."""
        if self._received < self._sidecar.bytes:
            raise Wrong(f"ended after {self._received} of {self._sidecar.bytes} bytes")
        found, wanted = self._digest.hexdigest(), self._sidecar.sha256
        if found != wanted:
            raise Wrong(f"its bytes have the SHA-256 {found}, its sidecar says {wanted}")


class Wrong(Exception):
    """What was wrong with one try; `final` where another one would be no better."""

    def __init__(self, what: str, final: bool = False) -> None:
        super().__init__(what)
        self.final = final

    @classmethod
    def of(cls, error: Exception, final: bool = False) -> Self:
        """What a file system says, in words."""
        final = final or isinstance(error, FileNotFoundError | PermissionError)
        return cls(f"{type(error).__name__}: {error}", final)
