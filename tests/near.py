"""Streams on loopback: a server that answers as a test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def streaming(answer: Answer) -> Iterator[str]:
    """The address, `http://127.0.0.1:…`, of a server that answers every GET with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # whoever has seen enough hangs up
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def send(request: BaseHTTPRequestHandler, kind: str, body: bytes = b"") -> None:
    """The head of an answer without a length, and the start of its body."""
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.end_headers()
    request.wfile.write(body)
