"""Servers on loopback that serve a set, and go wrong when told to."""

import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline.shards import get_format
from pipeline.shards.cache import ShardCache
from pipeline.shards.index import ShardSet, read_set

FAULTS = ("cut", "500", "short", "flip", "long")
# Below 32768 the system gives nobody a port unasked; each of pytest's processes has a thousand of its own.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
PORTS = iter(range(10_000 + 1_000 * WORKER, 11_000 + 1_000 * WORKER))
AT_RANDOM = ("reset", "stall", "500", "cut", "lost")


class FarServer(ThreadingHTTPServer):
    """Counts GETs by the last part of their path. `faults`: by that name, what goes wrong with each next one.

    `held`: names that end so are answered only after `release` is set. `go_wrong`: any request may.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {}
        self.held: set[str] = set()
        self.release = threading.Event()
        self.done_wrong: Counter[str] = Counter()
        self._dice, self._share = random.Random(0), 0.0
        self.delay = 0.0
        self.listing: int | None = None  # what it answers instead of a list of a folder
        self.now = self.peak = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shards(self) -> dict[str, int]:
        """How often each tar was asked for."""
        return {name: count for name, count in self.counts.items() if name.endswith(".tar")}

    def go_wrong(self, seed: int, share: float) -> None:
        """From now on do this share of all requests wrong, at random: torn down before or (lost) after they were
        done, never answered to the end, refused with 500, answered by half."""
        with self.lock:
            self._dice, self._share = random.Random(seed), share

    def drawn(self) -> str | None:
        """What goes wrong with the next request."""
        with self.lock:
            fault = self._dice.choice(AT_RANDOM) if self._dice.random() < self._share else None
            self.done_wrong.update([fault] if fault else [])
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested here."""


def _fault(handler: BaseHTTPRequestHandler) -> str | None:
    """Note a request, and say what is to go wrong with it. Only GETs are counted."""
    server = handler.server
    assert isinstance(server, FarServer)
    if handler.command != "GET":
        return server.drawn()
    name = handler.path.partition("?")[0].rpartition("/")[2]
    with server.lock:
        server.counts[name] += 1
        server.now += 1
        server.peak = max(server.peak, server.now)
        wrong = server.faults.get(name)
        fault = wrong.pop(0) if wrong else None
    time.sleep(server.delay)
    with server.lock:
        server.now -= 1
    if name in server.held:
        server.release.wait(60)
    return fault or server.drawn()


def _answer(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, fault: str
) -> None:
    """Send the body as the fault has it."""
    server, half = handler.server, len(body) // 2
    assert isinstance(server, FarServer)
    if fault == "flip":
        body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
    if fault == "stall" and not body:
        server.release.wait(60)
    if fault in ("reset", "lost") or (fault in ("stall", "cut") and not body):
        linger = struct.pack("ii", 1, 0)  # the connection is not closed but torn down
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True
        handler.connection.close()
        return
    body = {"short": body[:half], "long": body + b"x" * 70_000, "500": b"oops"}.get(fault, body)
    handler.send_response(500 if fault == "500" else status)
    for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[:half] if fault in ("cut", "stall") else body)
    handler.wfile.flush()
    if fault == "stall":
        server.release.wait(60)


def _files(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            if fault := _fault(self):
                path = Path(self.translate_path(self.path))
                _answer(self, 200, {}, b"a list" if path.is_dir() else path.read_bytes(), fault)
            else:
                super().do_GET()

        def list_directory(self, path: Any) -> Any:
            assert isinstance(self.server, FarServer)
            if self.server.listing is None:
                return super().list_directory(path)
            _answer(self, self.server.listing, {"Content-Type": "text/html"}, b"<html>Welcome</html>", "")
            return None

        def log_message(self, *_: Any) -> None:
            pass

    return Files


def _proxy(upstream: str) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients that send much wait for a 100

        def _forward(self) -> None:
            fault, sent = _fault(self), self._sent()
            if fault in ("reset", "500"):  # nobody hears of the request
                _answer(self, 500, {}, b"", fault)
                return
            kind = {"Content-Type": "application/octet-stream"}  # else urllib calls it a form
            request = urllib.request.Request(upstream + self.path, sent, kind, method=self.command)
            for name, value in self.headers.items():
                if name.lower() not in ("host", "connection", "content-length", "expect"):
                    request.add_header(name, value)
            try:
                with urllib.request.urlopen(request) as got:
                    status, headers, data = got.status, got.headers, got.read()
            except urllib.error.HTTPError as error:
                status, headers, data = error.code, error.headers, error.read()
            dropped = ("content-length", "transfer-encoding", "connection", "date", "server")
            kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
            if self.command == "HEAD" and not fault:
                self.send_response(status)
                length = headers["Content-Length"] or "0"
                for name, value in {**kept, "Content-Length": length, "Connection": "close"}.items():
                    self.send_header(name, value)
                self.end_headers()
            else:
                _answer(self, status, kept, data, fault or "")

        def _sent(self) -> bytes | None:
            """The body of the request, if it has one."""
            length = self.headers.get("Content-Length")
            return self.rfile.read(int(length)) if length else None

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

        def log_message(self, *_: Any) -> None:
            pass

    return Proxy


@contextmanager
def serving(source: Path | str) -> Iterator[FarServer]:
    """A server of a folder's files, or one that stands before another server and passes requests on."""
    server = FarServer(_proxy(source) if isinstance(source, str) else _files(source))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of moto's S3 server, without the buckets of earlier modules: moto keeps them in this process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    yield url
    server.stop()


@contextmanager
def s3_at(url: str, scratch: Path) -> Iterator[None]:
    """`s3://` is at this URL: its address and keys are in the environment, as a user has them."""
    kind: Any = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(scratch / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(scratch / "none"),
        }.items():  # fmt: skip
            environment.setenv(name, value)
        kind.clear_instance_cache()  # fsspec keeps what it has opened, with the address of another module's server
        yield
        kind.clear_instance_cache()


def free_port() -> int:
    """A port that nobody takes before its server does."""
    return next(port for port in PORTS if can_bind(port))


def can_bind(port: int) -> bool:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def nginx(folder: Path, scratch: Path) -> Iterator[str | None]:
    """The URL of an nginx that lists the folder; None where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {scratch}/{kind};\n" for kind in kinds)
    user = "user root;\n" if Path("/proc/self").stat().st_uid == 0 else ""
    site = f"listen 127.0.0.1:{port}; root {folder}; autoindex on;"
    (scratch / "nginx.conf").write_text(
        f"{user}daemon off; pid {scratch}/pid; error_log {scratch}/errors; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ {site} }} }}\n"
    )
    process = subprocess.Popen([program, "-c", str(scratch / "nginx.conf"), "-e", str(scratch / "errors")])
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (scratch / "errors").read_text()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cached(
    url: str, root: Path, limit: int | None = None, threads: int = 4
) -> Iterator[tuple[ShardSet, ShardCache]]:
    found = read_set(url)
    with ShardCache(found, found.sidecars, root, limit, threads) as cache:
        yield found, cache
    assert not [thread for thread in threading.enumerate() if thread.name == "shard-cache"]


def fetch_all(url: str, root: Path, limit: int | None = None) -> dict[str, bytes]:
    """The frames of every sample, by key, read through the cache."""
    frames: dict[str, bytes] = {}
    with cached(url, root, limit) as (found, cache):
        cache.fetch(range(len(found.sidecars)))
        for shard, sidecar in enumerate(found.sidecars):
            with get_format(found.recipe.format).open(cache.path(shard), found.recipe) as reader:
                frames |= {sample.key: reader.frames(sample).tobytes() for sample in sidecar.samples}
        assert sorted(cache.arrived()) == list(range(len(found.sidecars)))
    return frames


def local_frames(root: Path) -> dict[str, bytes]:
    found = read_set(root)
    frames: dict[str, bytes] = {}
    for sidecar in found.sidecars:
        with get_format(found.recipe.format).open(root / sidecar.shard, found.recipe) as reader:
            frames |= {sample.key: reader.frames(sample).tobytes() for sample in sidecar.samples}
    return frames


def largest(root: Path) -> str:
    return max(read_set(root).sidecars, key=lambda sidecar: sidecar.bytes).shard


def contents(root: Path) -> int:
    """Bytes of shards, whole and half made."""
    total = 0
    for path in root.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and path.suffix in (".tar", ".part") else 0
        except FileNotFoundError:
            continue
    return total


def leftovers(root: Path) -> list[str]:
    return [
        path.name
        for path in root.iterdir()
        if path.suffix in (".part", ".lock", ".claim") and path.name != ".lock"
    ]
