"""Web servers on loopback, as others run them: no token, no checks."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class _Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, asked: list[str], **more: Any) -> None:
        self._asked = asked
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        self._asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def web_server(
    folder: Path, asked: list[str] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve a folder for the block; yield the URL.  ``asked`` gets the paths that are asked for."""
    with served(partial(_Files, directory=str(folder), asked=[] if asked is None else asked), tls) as url:
        yield url


@contextmanager
def served(
    handler: Callable[..., BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Answer requests for the block; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = True  # those of connections that are kept alive
        server.block_on_close = False
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
