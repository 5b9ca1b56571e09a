"""What a shard set needs of the place that it stands in, and the folder of a local disk. A bucket: remote.py."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from pipeline.errors import UserError, WorkFailed
from pipeline.foreign import open_plain, read_text
from pipeline.machine import is_gone, machine
from pipeline.places import is_url
from pipeline.report import Report, no_report

TEMPORARY = ".tmp-"
ABANDONED_SECONDS = 86_400.0
AnswerT = TypeVar("AnswerT")


class Folder(Protocol):
    """A place with files of a set. Names are relative, with `/`; a shard is a file, or a folder of files."""

    at_once: int  # how many questions at a time it answers faster than one after the other

    def names(self, under: str = "") -> list[str]:
        """What stands directly below `under`, sorted; nothing where that is missing. A hidden folder is looked at
        afresh each time: in it builders talk to each other."""
        ...

    def folders(self, under: str = "") -> list[str]:
        """The folders directly below `under`, sorted; hidden ones are none of ours."""
        ...

    def modified(self, name: str) -> float | None:
        """When the file was written last, in seconds by the clock of the place; None where it is missing, or the
        place does not say."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or of all files of a folder; None where it is missing."""
        ...

    def read(self, name: str) -> str:
        """A text file. Raises `OSError`, `UnicodeDecodeError`."""
        ...

    def write(self, name: str, text: str) -> None:
        """A text file, whole or not at all, also after a power cut."""
        ...

    def create(self, name: str, text: str) -> bool:
        """Likewise, but only where nothing is: of many who try at once one succeeds, and is told so.

        Where a place cannot promise that, more than one may be told so.
        """
        ...

    def making(self, name: str) -> AbstractContextManager[Path]:
        """A path on this machine at which to make the shard `name`; what is left there afterwards is removed."""
        ...

    def put(self, made: Path, name: str, report: Report = no_report) -> None:
        """Put what was made in its place, instead of what stands there. `report` hears that it goes on."""
        ...

    def keep(self, name: str, other: str) -> None:
        """The same bytes under another name, as cheaply as the place allows, unless they are there."""
        ...

    def remove(self, name: str) -> None:
        """A file or folder; fine where there is none."""
        ...

    def local(self, name: str, report: Report = no_report) -> AbstractContextManager[Path]:
        """A path on this machine at which to read it. `report` hears that it goes on. Raises `OSError`."""
        ...

    def files(self, name: str) -> list[str]:
        """The files of a shard, in the order of their names; nothing where it is missing."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to be read once, from its start. May raise anything, then and while it is read."""
        ...

    def sweep(self) -> None:
        """Remove what killed builders left half-written: theirs on this machine, and anything a day old."""
        ...


def get_folder(place: Path | str, *, probe: bool = True) -> Folder:
    """The folder at a path or URL; it need not exist. Raises `UserError`, where `probe` also for a place that
    cannot be reached."""
    if is_url(place):
        from pipeline.shards.remote import RemoteFolder

        folder = RemoteFolder(str(place))
        if probe:
            folder.probe()
        return folder
    return LocalFolder(Path(place))


def ask_each(folder: Folder, ask: Callable[[str], AnswerT], names: Iterable[str]) -> Iterator[AnswerT]:
    """What `ask`, a method of the folder or a function that calls one, says to each name, in their order."""
    if folder.at_once == 1:
        yield from map(ask, names)
        return
    with ThreadPoolExecutor(folder.at_once, "ask") as pool:
        yield from pool.map(ask, names)


def shard_files(shard: Path) -> list[Path]:
    """The files of a shard in the order of their names: itself, or what is in it; hidden ones are not ours."""
    if not shard.is_dir():
        return [shard]
    return sorted(path for path in shard.rglob("*") if path.is_file() and not path.name.startswith("."))


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes. Raises `OSError`."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(shard: Path, report: Report = no_report) -> tuple[int, str]:
    """Bytes and SHA-256 of a shard on this machine: of all its files, in the order of their names. Raises
    `OSError`."""
    digest, files = hashlib.sha256(), shard_files(shard)
    for path in files:
        with open_plain(path) as file:
            while data := file.read(1 << 20):
                digest.update(data)
                report(0)
    return sum(path.stat().st_size for path in files), digest.hexdigest()


class Foreign(OSError):
    """What stands in a set's folder and is no file of it."""


class LocalFolder:
    """See `Folder`. Files are made beside their place under a name that says who makes them, and renamed."""

    at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self, under: str = "") -> list[str]:
        """See `Folder.names`."""
        try:
            return sorted(os.listdir(self.root / under))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self, under: str = "") -> list[str]:
        """See `Folder.folders`."""
        names = [name for name in self.names(under) if not name.startswith(".")]
        return [name for name in names if (self.root / under / name).is_dir()]

    def modified(self, name: str) -> float | None:
        """See `Folder.modified`."""
        try:
            return (self.root / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """See `Folder.size`."""
        try:
            about = os.lstat(f"{self.root}/{name}")  # no `Path`: asked of every shard of a large set
            if stat.S_ISREG(about.st_mode) and "/" not in name:
                return about.st_size
            return sum(path.stat().st_size for path in self._own_files(name))
        except FileNotFoundError:
            return None
        except Foreign as error:
            raise UserError(f"{self.root}/{name}: {error}") from error

    def read(self, name: str) -> str:
        """See `Folder.read`."""
        return read_text(self._own(name))

    def write(self, name: str, text: str) -> None:
        """See `Folder.write`."""
        os.replace(self._flushed(name, text), self.root / name)
        self._flush()

    def create(self, name: str, text: str) -> bool:
        """See `Folder.create`: a hard link, which shows the whole text or nothing, also over NFS."""
        made = self._flushed(name, text)
        try:
            os.link(made, self.root / name)
        except FileExistsError:
            return made.stat().st_nlink == 2  # over NFS a link may be made, and its answer lost
        except FileNotFoundError:  # who left last has removed the folder
            return self.create(name, text)
        except OSError:  # a file system without hard links
            return self._create_empty(name, text)
        finally:
            made.unlink(missing_ok=True)
        if not _is_hidden(name):
            self._flush()
        return True

    def _create_empty(self, name: str, text: str) -> bool:
        """Likewise, though somebody may see the file before its text."""
        try:
            with (self.root / name).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """See `Folder.making`."""
        made = self._temporary(name)
        try:
            yield made
        finally:
            remove_path(made)

    def put(self, made: Path, name: str, report: Report = no_report) -> None:  # noqa: ARG002
        """See `Folder.put`."""
        place = self.root / name
        self._make_parents(place)
        self._open_up(made)
        while made.is_dir():
            with self.making(name) as old:  # a folder cannot be renamed onto a folder
                with suppress(FileNotFoundError):
                    os.rename(place, old)
                try:
                    os.rename(made, place)
                    return
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    # another builder has put the same shard there at this very moment
        os.replace(made, place)

    def keep(self, name: str, other: str) -> None:
        """See `Folder.keep`: hard links."""
        if (self.root / other).exists():
            return
        source = self.root / name
        with self.making(other) as made:
            for path in shard_files(source):
                copy = made if path == source else made / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, copy)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, copy)
            self.put(made, other)

    def remove(self, name: str) -> None:
        """See `Folder.remove`."""
        remove_path(self.root / name)

    @contextmanager
    def local(self, name: str, report: Report = no_report) -> Iterator[Path]:  # noqa: ARG002
        """See `Folder.local`: the file itself."""
        self._own_files(name)
        yield self.root / name

    def files(self, name: str) -> list[str]:
        """See `Folder.files`."""
        if not (self.root / name).exists():
            return []
        return [path.relative_to(self.root).as_posix() for path in self._own_files(name)]

    def open(self, name: str) -> BinaryIO:
        """See `Folder.open`."""
        return open_plain(self._own(name))

    def sweep(self) -> None:
        """See `Folder.sweep`."""
        for name in self.names():
            with suppress(FileNotFoundError):
                if name.startswith(TEMPORARY) and _is_abandoned(self.root / name):
                    remove_path(self.root / name)

    def _own(self, name: str) -> str:
        """The path of a file or folder of the set. Raises `Foreign` where it is something else, or a link leads
        out of the set; `FileNotFoundError`."""
        path = str(self.root).rstrip("/")  # no `Path` on the way: asked of every sidecar of a large set
        for part in name.split("/"):
            path = f"{path}/{part}"
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                mode = os.stat(path).st_mode
                if not Path(path).resolve().is_relative_to(self.root.resolve()):
                    raise Foreign(f"{part} is a link that leads out of the set; put the file itself there")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Foreign(f"{part} is neither a file nor a folder")
        return path

    def _own_files(self, name: str) -> list[Path]:
        """The files of a shard, all of them of the set. Raises as `_own`."""
        shard = Path(self._own(name))
        return [Path(self._own(path.relative_to(self.root).as_posix())) for path in shard_files(shard)]

    def _temporary(self, name: str) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        owner = f"{os.getpid()}-{secrets.token_hex(4)}-{machine()}"
        return self.root / f"{TEMPORARY}{owner}@{Path(name).name}"

    def _make_parents(self, place: Path) -> None:
        """The folders between the root and the file. They get the root's permissions, as all files do: who may
        write there shares the set, whatever the umask of the one who came first."""
        self.root.mkdir(parents=True, exist_ok=True)
        above = [folder for folder in place.parents if self.root in folder.parents]
        for folder in reversed(above):
            with suppress(FileExistsError):
                folder.mkdir()
                self._open_up(folder)

    def _open_up(self, made: Path) -> None:
        mode = stat.S_IMODE(self.root.stat().st_mode)
        with suppress(OSError):  # a file system without permissions
            for path in [made, *made.rglob("*")] if made.is_dir() else [made]:
                path.chmod(mode if path.is_dir() else mode & 0o666)

    def _flushed(self, name: str, text: str) -> Path:
        self._make_parents(self.root / name)
        made = self._temporary(name)
        try:
            with made.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if not _is_hidden(name):
                    os.fsync(file.fileno())
            self._open_up(made)
        except OSError as error:  # a full disk: nobody sweeps what a living process has left
            made.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.root / name)) from error
        return made

    def _flush(self) -> None:
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def told(folder: Folder) -> Iterator[None]:
    """What this machine refuses (a full disk, another's folder) is told as a `WorkFailed` that names the file."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads what we print
    except OSError as error:
        raise WorkFailed(f"{error.filename or folder}: {error.strerror or error}; {way_out(error)}") from error


def way_out(*errors: BaseException) -> str:
    """What to do where files could not be written for these reasons."""
    full = any(isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) for error in errors)
    return "make room there: " * full + "what is there stays, and the same command goes on from there"


def remove_path(path: Path) -> None:
    """A file or folder; fine where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_hidden(name: str) -> bool:
    """What builders tell each other need not outlive a power cut, as they do not."""
    return name.startswith(".")


def _is_abandoned(path: Path) -> bool:
    pid, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    owner = rest.partition("-")[2].partition("@")[0]
    if pid.isdigit() and is_gone(owner, int(pid)):
        return True
    # A folder's own time stands still while its files grow.
    newest = max(inside.stat().st_mtime for inside in [path, *path.rglob("*")])
    return time.time() - newest > ABANDONED_SECONDS
