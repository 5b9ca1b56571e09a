"""A shard set behind a URL that fsspec knows: the same set, in a bucket.

Object stores put a file whole or not at all, and need no renaming; elsewhere (sftp, hdfs) a file is put under
another name and moved.
"""

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.places import filesystem, reached
from pipeline.shards.folder import TEMPORARY, shard_files

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory", "oci", "hf"}


class RemoteFolder:
    """See `pipeline.shards.folder.Folder`. Raises `UserError` where the place cannot be reached."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._root = filesystem(url)
        with reached(url):
            self.names()

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Every file with its bytes; listed once, and again after a change."""
        try:
            found: dict[str, dict[str, Any]] = self._system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {path[len(self._root) + 1 :]: int(about["size"] or 0) for path, about in found.items()}

    def _changed(self) -> None:
        self.__dict__.pop("_sizes", None)

    def _inside(self, name: str) -> list[str]:
        """The files of a shard, in the order of their names."""
        return sorted(path for path in self._sizes if path == name or path.startswith(name + "/"))

    def names(self, under: str = "") -> list[str]:
        """See `Folder.names`."""
        prefix = f"{under}/" if under else ""
        below = (path[len(prefix) :] for path in self._sizes if path.startswith(prefix))
        return sorted({rest.partition("/")[0] for rest in below})

    def size(self, name: str) -> int | None:
        """See `Folder.size`."""
        files = self._inside(name)
        return sum(self._sizes[path] for path in files) if files else None

    def sha256(self, name: str) -> str:
        """See `Folder.sha256`."""
        digest = hashlib.sha256()
        self._changed()
        for path in self._inside(name):
            with self._system.open(self._path(path), "rb") as file:
                while data := file.read(1 << 22):
                    digest.update(data)
        return digest.hexdigest()

    def read(self, name: str) -> str:
        """See `Folder.read`."""
        data: bytes = self._system.cat_file(self._path(name))
        return data.decode()

    def write(self, name: str, text: str) -> None:
        """See `Folder.write`."""
        place = self._path(name)
        with reached(self.url):
            if self._puts_whole():
                self._system.pipe_file(place, text.encode())
            else:
                self._make_parents(place)
                self._system.pipe_file(made := self._aside(name), text.encode())
                self._system.mv(made, place)
        self._changed()

    def write_first(self, name: str, text: str) -> None:
        """See `Folder.write_first`; between two builders of the same moment the later one wins."""
        if not self._system.exists(self._path(name)):
            self.write(name, text)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """See `Folder.making`: in this machine's temporary folder."""
        with tempfile.TemporaryDirectory(prefix="reelcache-") as folder:
            yield Path(folder) / Path(name).name

    def put(self, made: Path, name: str) -> None:
        """See `Folder.put`."""
        before = set(self._inside(name))
        for file in shard_files(made):
            inside = name if file == made else f"{name}/{file.relative_to(made).as_posix()}"
            with reached(self.url):
                self._put_file(file, inside)
            before.discard(inside)
        for left in before:
            self.remove(left)
        self._changed()

    def _put_file(self, file: Path, name: str) -> None:
        place = self._path(name)
        if self._puts_whole():
            self._system.put_file(str(file), place)
            return
        self._make_parents(place)
        self._system.put_file(str(file), made := self._aside(name))
        self._system.mv(made, place)

    def keep(self, name: str, other: str) -> None:
        """See `Folder.keep`: copied at the far end."""
        for path in self._inside(name):
            copy = self._path(other + path[len(name) :])
            self._make_parents(copy)
            self._system.copy(self._path(path), copy)
        self._changed()

    def remove(self, name: str) -> None:
        """See `Folder.remove`."""
        with suppress(FileNotFoundError):
            self._system.rm(self._path(name), recursive=True)
        self._changed()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder.local`: a copy in this machine's temporary folder."""
        with self.making(name) as copy:
            for path in self._inside(name):
                place = copy if path == name else copy / path[len(name) + 1 :]
                place.parent.mkdir(parents=True, exist_ok=True)
                self._system.get_file(self._path(path), str(place))
            yield copy

    def sweep(self) -> None:
        """See `Folder.sweep`: an object store has nothing half-written; elsewhere nobody can tell whose it is."""

    def _make_parents(self, place: str) -> None:
        if not self._puts_whole():
            self._system.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _puts_whole(self) -> bool:
        protocol = self._system.protocol
        return bool(OBJECT_STORES & {protocol} if isinstance(protocol, str) else OBJECT_STORES & set(protocol))

    def _aside(self, name: str) -> str:
        return self._path(f"{TEMPORARY}{secrets.token_hex(8)}@{Path(name).name}")
