"""A shard set behind a URL that fsspec knows: the same set, in a bucket.

Object stores put a file whole or not at all, and need no renaming; elsewhere (sftp, hdfs) a file is put under
another name and moved. An HTTP server is read only, and has to list its folders (nginx: `autoindex on`).
"""

import errno
import re
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.foreign import MOST_TEXT, OverlongError, limited
from pipeline.places import HTTP, download, filesystem, insist, protocols, reached, upload
from pipeline.report import Report, no_report
from pipeline.shards.fetch import place_in
from pipeline.shards.folder import TEMPORARY, shard_files
from pipeline.shards.zarr import CHUNKS, META

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory", "oci", "hf"}
REFUSED = set(range(400, 500)) - {408, 429}  # answers of a web server that will be no other in a moment
AT_ONCE = 32
READ = 1 << 23  # bytes asked for at a time, where a file is not streamed
FILES = ("", f"/{META}", f"/{CHUNKS}")  # of a shard, behind its name: a tar is itself; no other name is believed
LISTED = re.compile(
    r"[\w.-]+/?"
)  # a link of an HTTP listing that may be a file of ours: no query, no other folder


class RemoteFolder:
    """See `pipeline.shards.folder.Folder`. Raises `UserError` where the place cannot be reached."""

    at_once = AT_ONCE

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._root = filesystem(url)
        self._http = bool(HTTP & protocols(self._system))

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def probe(self) -> None:
        """Raises `UserError` where the place cannot be reached."""
        self.names()

    @cached_property
    def _sizes(self) -> dict[str, int | None]:
        """Every file with its bytes, None where only asking tells; listed once, and again after a change."""
        if self._http:
            return dict.fromkeys(self._linked())
        return self._find("")

    def _find(self, name: str) -> dict[str, int | None]:
        """Every file of the folder `name`, or the file itself."""
        found: dict[str, dict[str, Any]] = {}
        with reached(self.url), suppress(FileNotFoundError):
            found = self._system.find(self._path(name), detail=True)
        # A folder that somebody makes between two requests of one listing is listed as if it were a file.
        files = {path: about for path, about in found.items() if about.get("type") != "directory"}
        return {path[len(self._root) + 1 :]: int(about["size"] or 0) for path, about in files.items()}

    def _linked(self) -> list[str]:
        """Every file that an HTTP server lists, folder by folder."""
        files, folders = [], [""]
        with ThreadPoolExecutor(AT_ONCE, "list") as pool:
            while folders:
                found = [name for names in pool.map(self._links, folders) for name in names]
                files += [name for name in found if not name.endswith("/")]
                folders = [name for name in found if name.endswith("/")]
        return sorted(files)

    def _links(self, under: str) -> list[str]:
        """What an HTTP server lists in a folder, which is "" or ends with `/`; hidden names are not ours."""
        url = f"{self._root}/{under}"
        links: list[str] = []
        with reached(self.url), suppress(FileNotFoundError):
            links = insist(lambda: self._asked_for_links(url))
        names = (link.removeprefix(url) for link in links if link.startswith(url))
        return [under + name for name in names if LISTED.fullmatch(name) and not name.startswith(".")]

    def _asked_for_links(self, url: str) -> list[str]:
        try:
            links: list[str] = self._system.ls(url, detail=False)
        except Exception as error:
            if getattr(error, "status", None) in REFUSED:
                return []  # it may give away the files all the same: `check_listed` says what to do
            raise
        return links

    def _changed(self) -> None:
        self.__dict__.pop("_sizes", None)

    def _inside(self, name: str) -> list[str]:
        """The files of a shard, in the order of their names."""
        return sorted(self._sizes_inside(name))

    def _sizes_inside(self, name: str) -> dict[str, int | None]:
        """The files of a shard with their bytes. Nothing else is listed, unless everything is already: a worker
        asks for its own shard of a million."""
        if "_sizes" not in self.__dict__ and not self._http:
            found = self._find(name)
        elif name in self._sizes:
            return {name: self._sizes[name]}
        else:
            found = self._sizes
        files = [name] if name in found else [name + file for file in FILES]
        return {path: found[path] for path in files if path in found}

    def names(self, under: str = "") -> list[str]:
        """See `Folder.names`."""
        prefix = f"{under}/" if under else ""
        hidden = under.startswith(".") and not self._http
        below = (path[len(prefix) :] for path in (self._find(under) if hidden else self._sizes)
                 if path.startswith(prefix))  # fmt: skip
        return sorted({rest.partition("/")[0] for rest in below})

    def folders(self, under: str = "") -> list[str]:
        """See `Folder.folders`."""
        prefix = f"{under}/" if under else ""
        found: list[str] = []
        if self._http:
            found = [name for name in self._links(prefix) if name.endswith("/")]
        else:
            with reached(self.url), suppress(FileNotFoundError):
                entries = self._system.ls(self._path(under), detail=True)
                found = [entry["name"] for entry in entries if entry["type"] == "directory"]
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        return sorted(name for name in names if not name.startswith("."))

    def modified(self, name: str) -> float | None:
        """See `Folder.modified`."""
        with reached(self.url), suppress(FileNotFoundError, NotImplementedError):
            found: datetime = self._system.modified(self._path(name))
            return found.timestamp()
        return None

    def size(self, name: str) -> int | None:
        """See `Folder.size`."""
        # A server may keep hidden files from its lists.
        files = self._sizes_inside(name) or (dict.fromkeys([name]) if self._http else {})
        sizes = [size if size is not None else self._asked(path) for path, size in files.items()]
        known = [size for size in sizes if size is not None]
        return sum(known) if files and len(known) == len(files) else None

    def _asked(self, path: str) -> int | None:
        def ask() -> int | None:
            try:
                size: int | None = self._system.info(self._path(path))["size"]
            except FileNotFoundError as error:
                why = error.__cause__  # fsspec says that a file is not there whatever is wrong with a web server
                if why is not None and getattr(why, "status", None) not in REFUSED:
                    raise OSError(f"{type(why).__name__}: {why}") from why
                return None
            return size

        with reached(self.url):
            return insist(ask)

    def read(self, name: str) -> str:
        """See `Folder.read`."""
        return insist(lambda: limited(self._taken(name), name).decode(), UnicodeDecodeError, OverlongError)

    def _taken(self, name: str) -> bytes:
        """The bytes of a text; of a web server, which may send without end, no more than are refused."""
        if not self._http:
            data: bytes = self._system.cat_file(self._path(name))
            return data
        pieces, size = list[bytes](), 0
        with self.open(name) as stream:
            while size <= MOST_TEXT and (piece := stream.read(READ)):
                pieces.append(piece)
                size += len(piece)
        return b"".join(pieces)

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

    def create(self, name: str, text: str) -> bool:
        """See `Folder.create`: a conditional request (S3: `If-None-Match`). Over sftp and the like, and on stores
        that know no conditions, two of the same moment may both be told that they succeeded."""
        place, data = self._path(name), text.encode()
        with reached(self.url):
            self._make_parents(place)
            try:
                self._system.pipe_file(place, data, mode="create")
            except FileExistsError:
                return False
            except (OSError, NotImplementedError) as error:
                if self._system.exists(place) or getattr(error, "errno", None) == errno.EBUSY:
                    return False  # some stores do not say why they refuse; busy: another creates it right now
                if not isinstance(error, NotImplementedError) and error.errno != errno.ENOSYS:
                    raise
                self._system.pipe_file(place, data)
        self._changed()
        return True

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """See `Folder.making`: in this machine's temporary folder."""
        with tempfile.TemporaryDirectory(prefix="reelcache-") as folder:
            yield Path(folder) / Path(name).name

    def put(self, made: Path, name: str, report: Report = no_report) -> None:
        """See `Folder.put`."""
        before = set(self._inside(name))
        for file in shard_files(made):
            inside = name if file == made else f"{name}/{file.relative_to(made).as_posix()}"
            with reached(self.url):
                self._put_file(file, inside, report)
            before.discard(inside)
        for left in before:
            self.remove(left)
        self._changed()

    def _put_file(self, file: Path, name: str, report: Report) -> None:
        place = self._path(name)
        if self._puts_whole():
            upload(self._system, file, place, report)
            return
        self._make_parents(place)
        upload(self._system, file, made := self._aside(name), report)
        self._system.mv(made, place)

    def keep(self, name: str, other: str) -> None:
        """See `Folder.keep`: copied at the far end."""
        for path in self._inside(name):
            copy = self._path(other + path[len(name) :])
            with reached(self.url, FileNotFoundError):
                self._make_parents(copy)
                self._system.copy(self._path(path), copy)
        self._changed()

    def remove(self, name: str) -> None:
        """See `Folder.remove`."""
        with reached(self.url), suppress(FileNotFoundError):
            self._system.rm(self._path(name), recursive=True)
        self._changed()

    @contextmanager
    def local(self, name: str, report: Report = no_report) -> Iterator[Path]:
        """See `Folder.local`: a copy in this machine's temporary folder."""
        with self.making(name) as copy:
            for path in self._inside(name):
                place = place_in(copy, path[len(name) :])
                place.parent.mkdir(parents=True, exist_ok=True)
                download(self._system, self._path(path), str(place), report)
            yield copy

    def files(self, name: str) -> list[str]:
        """See `Folder.files`."""
        return self._inside(name)

    def open(self, name: str) -> BinaryIO:
        """See `Folder.open`: one request over HTTP; elsewhere as many as the file has `READ` bytes."""
        if self._http:  # any size keeps fsspec from asking for it
            stream = self._system.open(self._path(name), "rb", block_size=0, size=1, read_bufsize=READ)
        else:
            stream = self._system.open(self._path(name), "rb", block_size=READ, cache_type="readahead")
        opened: BinaryIO = stream
        return opened

    def sweep(self) -> None:
        """See `Folder.sweep`: an object store has nothing half-written; elsewhere nobody can tell whose it is."""

    def _make_parents(self, place: str) -> None:
        if not self._puts_whole():
            self._system.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _puts_whole(self) -> bool:
        return bool(OBJECT_STORES & protocols(self._system))

    def _aside(self, name: str) -> str:
        return self._path(f"{TEMPORARY}{secrets.token_hex(8)}@{Path(name).name}")
