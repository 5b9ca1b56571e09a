"""Where things lie: on this machine, or behind a URL that fsspec knows (s3://, gs://, https://, sftp:// …)."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from pipeline.errors import UserError
from pipeline.report import Report, no_report

SILENCE = 30.0  # seconds in which a server must say something; a stream may take as long as it likes
GIVEN_UP = 240.0  # seconds in which a file system that asks again by itself does so: S3_CONFIG
PAUSES = (0.2, 1.0, None)  # seconds between the tries of what is small: an index is many texts, and one may fail
SLOWEST_LINE = 100_000  # bytes a second: an upload may take so long without a word
NAMED = frozenset(["s3", "s3a", "gs", "gcs", "http", "https"])  # where a path alone leads nowhere
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}  # of pyproject.toml
HTTP = frozenset(["http", "https"])
# s3fs asks five times, and each time botocore three, for half of `SILENCE` each: less than four minutes in all.
S3_CONFIG = {"retries": {"mode": "standard", "total_max_attempts": 3}}

AnswerT = TypeVar("AnswerT")


def is_url(place: Path | str) -> bool:
    """Whether fsspec has to be asked. `file://` is a path; see `as_place`."""
    return "://" in str(place)


def as_place(text: str) -> Path | str:
    """A path where it is one, else the URL as it stands (a `Path` would merge its slashes). Raises `UserError`."""
    if text.lower().startswith("file://"):
        return Path(_path_of(text))
    if not is_url(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if not rest.strip("/") or (rest.startswith("/") and scheme.lower() in NAMED):
        raise UserError(f"{text}: names no bucket or host; write {scheme}://NAME/path")
    return text.rstrip("/")


def _path_of(url: str) -> str:
    """The path of a `file://` URL, any %20 in it decoded. A `?` or `#` ends nothing: names may have them."""
    host, slash, path = url[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UserError(f"{url}: names no file of this machine; write file:///path/to/it, or only the path")
    return slash + unquote(path, errors="surrogateescape")


def absolute(text: str) -> str:
    """The place from wherever a program stands: paths resolved, URLs as they are."""
    place = as_place(text)
    return place if isinstance(place, str) else str(place.resolve())


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises `UserError`.

    Credentials and endpoints are where each system's own tools look for them: the environment, ~/.aws,
    ~/.config/fsspec.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **_patience(url))
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(url.partition("://")[0].lower()) if isinstance(error, ImportError) else None
        way_out = (
            f"pip install 'reelcache[{extra}]'" if extra else "fsspec's documentation says what such URLs need"
        )
        raise UserError(f"{url}: {error}; {way_out}") from error
    return system, path


def _patience(url: str) -> dict[str, Any]:
    """Timeouts where fsspec has none that fit: by default a download over HTTP ends after five minutes. A user's
    own `client_kwargs` (S3: `config_kwargs`) in ~/.config/fsspec stay."""
    import fsspec

    scheme = url.partition("://")[0]
    own = fsspec.config.conf.get(scheme, {})
    if scheme in ("s3", "s3a") and "config_kwargs" not in own:
        return {"config_kwargs": {**S3_CONFIG, "connect_timeout": SILENCE / 6, "read_timeout": SILENCE / 2}}
    if scheme not in HTTP or "client_kwargs" in own:
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return {"client_kwargs": {"timeout": timeout}}


@contextmanager
def reached(url: str, *passed: type[Exception]) -> Iterator[None]:
    """Whatever goes wrong at the far end is told as a `UserError` that names the URL, unless it is `passed`."""
    known: tuple[type[Exception], ...] = (UserError, *passed)
    try:
        yield
    except known:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"{url}: cannot be reached: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an exception of a file system says; of a host that does not answer, not in aiohttp's words."""
    from ssl import SSLError

    cause = getattr(error, "os_error", None)
    if not isinstance(cause, OSError) or isinstance(cause, SSLError):
        return str(error) if type(error) is OSError else f"{type(error).__name__}: {error}"
    number = cause.errno or 0
    # Below 0: of a name that nobody knows.
    why = os.strerror(number) if number > 0 else cause.strerror or str(cause)
    return f"nothing answers there ({why}); check the address and the network"


def insist(
    work: Callable[[], AnswerT], *final: type[Exception], heard: Callable[[], float] = lambda: 0.0
) -> AnswerT:
    """What the work gives, tried again where a server stumbles, unless it was silent for long before it did.

    `heard`: when it last said something, by the monotonic clock. Raises what is `final` as it is, and what else
    goes wrong as `OSError`.
    """
    known: tuple[type[Exception], ...] = (FileNotFoundError, PermissionError, *final)
    for pause in PAUSES:
        began = time.monotonic()
        try:
            return work()
        except known:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if pause is None or time.monotonic() - max(began, heard()) > SILENCE:
                raise OSError(_reason(error)) from error
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def protocols(system: Any) -> set[str]:
    """All names that fsspec has for the kind of a file system."""
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


def download(system: Any, path: str, copy: str, report: Report = no_report) -> None:
    """Copy a file of the file system to this machine; `report` hears of every piece. Raises `OSError`."""
    from fsspec import AbstractFileSystem

    # Of the systems that are not asynchronous some fetch a file in one silent call; the plain way reads pieces.
    get = system.get_file if system.async_impl else partial(AbstractFileSystem.get_file, system)
    try:
        if HTTP & protocols(system):  # others ask again by themselves
            last = 0.0

            def noted(done: int, silence: float = 0.0) -> None:
                nonlocal last
                last = time.monotonic()
                report(done, silence)

            insist(lambda: get(path, copy, callback=_telling(noted, SILENCE)), heard=lambda: last)
        else:
            get(path, copy, callback=_telling(report, GIVEN_UP))
    except OSError:
        raise
    except Exception as error:  # a file system's own kind: for a build it is a file that cannot be read
        raise OSError(f"{type(error).__name__}: {error}") from error


def upload(system: Any, file: Path, path: str, report: Report = no_report) -> None:
    """The reverse of `download`. Raises what the file system does."""
    silence = GIVEN_UP + file.stat().st_size / SLOWEST_LINE  # many send such a file in one silent call
    system.put_file(str(file), path, callback=_telling(report, silence))


def _telling(report: Report, silence: float) -> Any:
    """What fsspec calls after each piece: it tells `report`, as this does at once."""
    from fsspec.callbacks import Callback

    report(0, silence)
    return Callback(hooks={"alive": lambda *_, **__: report(0, silence)})


@contextmanager
def local_file(place: str, report: Report = no_report) -> Iterator[str]:
    """A path to the file on this machine: itself, or a copy that is gone afterwards. Raises `OSError`.

    Copied whole: a decoder seeks, and the digest wants every byte anyway. However long that takes, `report` hears
    of every piece.
    """
    if not is_url(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="reelcache-") as folder:
        copy = os.path.join(folder, "video" + os.path.splitext(place)[1])
        try:
            system, path = filesystem(place)
        except UserError as error:  # for a build it is a file that cannot be read
            raise OSError(str(error)) from error
        download(system, path, copy, report)
        yield copy
