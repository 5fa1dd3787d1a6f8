"""A repo over HTTP, read-only, for the length of one pull.

It knows only the paths that an archive repo has (repo/paths.py) and follows no link.  Programs of the host
reach it on loopback behind a random token; a helper VM through connections that the shell into it hands
over, so the helper needs no network, and nothing of the host can be reached from it but this.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Protocol

from composer.deadline import Deadline
from composer.errors import ComposerError
from composer.repo.paths import is_repo_path
from composer.store.files import open_beneath

# A repo's own config may hold credentials of its remotes; the guest needs to know the mode alone.
_CONFIG = b"[core]\nrepo_version=1\nmode=archive-z2\n"
Fill = Callable[[str], None]
_IDLE_SECONDS = 60
# One pull of ostree has eight at most; each takes a thread.
_MOST_CONNECTIONS = 64
_REMEMBERED = 1000
_END_SECONDS = 5.0
_CHUNK = 2**18


class Counter:
    """How much was served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files = 0
        self.bytes = 0
        self.refused: dict[str, str] = {}

    def add(self, size: int) -> None:
        """Count one file."""
        with self._lock:
            self.files += 1
            self.bytes += size

    def refuse(self, path: str, why: str) -> None:
        """Remember why a path could not be served; programs that pull tell no more than the status."""
        with self._lock:
            if len(self.refused) < _REMEMBERED:
                self.refused[path] = why


class Connection(Protocol):
    """What a handler needs of a connection: a part of what a socket has."""

    def makefile(self, mode: Literal["rb", "wb"], buffering: int, /) -> Any:
        """Return it as a file."""

    def settimeout(self, seconds: float, /) -> None:
        """Limit each wait on it."""

    def setsockopt(self, level: int, option: int, value: bool, /) -> None:
        """Set an option, where it has any."""

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more comes from here, or that nothing more is read either."""

    def close(self) -> None:
        """End it."""


class HttpExport:
    """A running export, and what was taken from it."""

    def __init__(self, server: _Server, root: Path, token: str, served: Counter) -> None:
        self.root = root
        self._server = server
        self.port: int = server.server_address[1]
        self.token = token
        self.served = served

    @property
    def url(self) -> str:
        """The repo's URL on the host."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return the repo's URL for whoever reaches it at ``port`` of his own loopback."""
        return f"http://127.0.0.1:{port}/{self.token}"

    def serve(self, connection: Connection) -> None:
        """Serve a connection that came by another way than the port, in a thread of its own."""
        self._server.process_request(connection, ("tunnel", 0))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, root: int, token: str, served: Counter, fill: Fill | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # In the order they came, and whether one is being answered now.
        self._connections: dict[Connection, bool] = {}
        self._changing = threading.Lock()
        self.root = root
        self.prefix = f"/{token}/"
        self.served = served
        self.fill = fill

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, and remember it until it ends."""
        with self._changing:
            if len(self._connections) >= _MOST_CONNECTIONS:
                self._make_way()
            self._connections[request] = False
        super().process_request(request, client_address)

    def _make_way(self) -> None:
        """End the oldest connection that is not being answered, or else the oldest: it may only stall."""
        idle = [connection for connection, busy in self._connections.items() if not busy]
        oldest = next(iter(idle or self._connections))
        del self._connections[oldest]
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)

    def answering(self, connection: Connection, *, now: bool) -> None:
        """Note whether a connection is being answered."""
        with self._changing:
            if connection in self._connections:
                self._connections[connection] = now

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that ends."""
        with self._changing:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """End the connections that clients keep open, and wait for their handlers."""
        with self._changing:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = Deadline.after(_END_SECONDS)
        while self._connections and not deadline.expired:
            time.sleep(0.01)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Drop a client that went away; there is nobody to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    # Header and content leave in one segment where they fit one: many small objects are the rule.
    wbufsize = 2**16
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Serve one path of the repo."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Tell whether a path is there."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.server.answering(self.request, now=True)
        try:
            self._serve(with_body=with_body)
        finally:
            self.server.answering(self.request, now=False)

    def _serve(self, *, with_body: bool) -> None:
        prefix = self.server.prefix
        # compare_digest: the time an answer takes must not tell how much of the token is right.
        given = self.path[: len(prefix)].encode("utf-8", "replace")
        if not secrets.compare_digest(given, prefix.encode()):
            return self._refuse(HTTPStatus.FORBIDDEN)
        path = self.path[len(prefix) :]
        if path == "config":
            return self._send_bytes(_CONFIG, with_body)
        if not is_repo_path(path):
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            if self.server.fill is not None:
                self.server.fill(path)
        except ComposerError as error:
            self.server.served.refuse(path, error.message)
            return self._refuse(HTTPStatus.BAD_GATEWAY)
        try:
            descriptor = open_beneath(self.server.root, path)
        except OSError as error:
            self.server.served.refuse(path, error.strerror or "it cannot be read")
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return self._refuse(HTTPStatus.NOT_FOUND)
            return self._send_file(descriptor, status.st_size, with_body)
        finally:
            os.close(descriptor)

    def _headers(self, status: HTTPStatus, length: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, status: HTTPStatus) -> None:
        self._headers(status, 0)

    def _send_bytes(self, content: bytes, with_body: bool) -> None:
        self._headers(HTTPStatus.OK, len(content))
        if with_body:
            self.wfile.write(content)

    def _send_file(self, descriptor: int, size: int, with_body: bool) -> None:
        self._headers(HTTPStatus.OK, size)
        if not with_body:
            return
        left = size
        while left:
            chunk = os.read(descriptor, min(left, _CHUNK))
            if not chunk:  # cut off while we served it; the length we promised cannot be kept
                self.close_connection = True
                return
            self.wfile.write(chunk)
            left -= len(chunk)
        self.server.served.add(size)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Keep quiet: the token is in each path."""


@contextmanager
def http_export(root: Path, fill: Fill | None = None) -> Iterator[HttpExport]:
    """Serve the archive repo in ``root`` for the block.

    ``fill`` is called before a path is looked for and may put it there; a ComposerError of it is
    answered with 502.
    """
    token = secrets.token_urlsafe(24)
    served = Counter()
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _Server(folder, token, served, fill) as server:
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="http-export", daemon=True
            )
            thread.start()
            try:
                yield HttpExport(server, root, token, served)
            finally:
                server.shutdown()
                thread.join()
                server.end_connections()
    finally:
        os.close(folder)
