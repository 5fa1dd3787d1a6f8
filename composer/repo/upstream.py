"""A repo on a web server, by requests: one session kept alive, retries, resumed downloads, client
certificates, and the proxy variables of the environment (http_proxy, https_proxy, no_proxy)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from composer.deadline import Deadline
from composer.errors import BadInput, ComposerError, DeadlineExpired, NoSpace
from composer.recipe.values import host_behind_login
from composer.repo.local import mode_of

_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_RETRIES = 5
# Who is wrong about the address is to hear so in seconds.
_CONNECT_RETRIES = 3
_RESUMES = 5
_BACKOFF_SECONDS = 0.15
_CHUNK = 2**18
_LARGEST_TEXT = 2**20
_CONNECTIONS = 16
# A mirror that answers so is busy now and will serve in a moment.
_BUSY = (429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_MOVES = 10
# The most that is read of a body that nobody wants, to keep its connection.
_SHORT = 2**16
# What reading from a connection raises: requests' own, urllib3's where nothing of requests is in between.
_BROKEN = (requests.RequestException, HTTPError, OSError)


@dataclass(frozen=True)
class Tls:
    """How to prove who we are, and whom to believe: PEM files; ``ca`` None means the system's own."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None


def is_url(source: str) -> bool:
    """Whether a repo is named by its URL rather than by its folder."""
    return source.startswith(("http://", "https://"))


class _Patient(Retry):
    """Retries that end with a deadline: urllib3 knows none, and would sleep beyond it."""

    def __init__(self, *args: Any, deadline: Deadline, **more: Any) -> None:
        super().__init__(*args, **more)
        self._deadline = deadline

    def new(self, **more: Any) -> Self:
        """Return the retries that are left after one of them."""
        return super().new(**{"deadline": self._deadline, **more})

    def sleep(self, _response: BaseHTTPResponse | None = None) -> None:
        """Wait before the next one; DeadlineExpired if there is no time for it."""
        _pause(self.get_backoff_time(), "a server that cannot be reached", self._deadline)


class _Session(requests.Session):
    """Follows no redirect: requests would read the whole body of each, however long, without a deadline."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no address, which means that an answer is no redirect."""


class Upstream:
    """A remote repo; close it with `close`.  Many threads may ask at once.

    BadInput where the URL has a user's name or password, which would end up in manifests and logs.
    """

    def __init__(self, url: str, tls: Tls, deadline: Deadline) -> None:
        host = host_behind_login(url)
        if host is not None:
            raise BadInput(
                f"the URL of the repo on {host} has a user's name or password in it",
                hint="give the URL without them; in ~/.netrc, readable by you alone (chmod 600), a line: "
                "machine HOST login NAME password PASSWORD",
            )
        self.url = url.rstrip("/")
        self._deadline = deadline
        self._session = _Session()
        retry = _Patient(
            deadline=deadline,
            total=_RETRIES,
            connect=_CONNECT_RETRIES,
            backoff_factor=0.3,
            status=0,  # `_get` asks again: urllib3 would read the body first, however long
            respect_retry_after_header=False,  # it may ask for hours, which know of no deadline
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=_CONNECTIONS)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        if tls.certificate is not None:
            pair = (str(tls.certificate), str(tls.key)) if tls.key else str(tls.certificate)
            self._session.cert = pair
        self._verify = str(tls.ca) if tls.ca else None

    def close(self) -> None:
        """End its connections."""
        self._session.close()

    def check(self) -> None:
        """Raise BadInput where nothing answers there, or what answers is no repo."""
        config = self.text("config")
        if config is None:
            raise BadInput(
                f"{self.url} is no OSTree repo: it has no file 'config'", hint=f"curl -f {self.url}/config"
            )
        mode_of(config, self.url)

    def text(self, path: str) -> str | None:
        """Return a small file, or None where the server has none; BadInput where it cannot be reached."""
        try:
            with self._get(path) as answer:
                if answer.status_code in (404, 410):
                    return None
                self._check_status(answer, path)
                text = bytearray()
                for piece in self._pieces(answer, path):
                    text += piece
                    if len(text) > _LARGEST_TEXT:
                        raise ComposerError(f"{self.url}/{path} is larger than a file of that kind can be")
                return text.decode("utf-8", "replace")
        except _BROKEN as error:
            raise BadInput(f"the repo {self.url} cannot be reached: {_cause(error)}") from error

    def download(self, path: str, target: Path, largest: int) -> bool:
        """Bring a file of at most ``largest`` bytes to ``target``; return False if the server has none.

        After a broken connection the download is resumed.  Raises ComposerError if that does not help, or if
        the file is larger.
        """
        # Threads may want the same object at once; each writes its own, and the last rename wins.
        part = target.with_name(f"{target.name}.{threading.get_ident()}.part")
        try:
            for attempt in range(_RESUMES):
                try:
                    if not self._append(path, part, largest):
                        return False
                except _BROKEN as error:
                    if isinstance(error, OSError) and (full := NoSpace.told_by(error)):
                        raise full from error
                    if attempt == _RESUMES - 1 or self._deadline.expired:
                        raise ComposerError(f"{self.url}/{path} breaks off: {_cause(error)}") from error
                else:
                    part.replace(target)
                    return True
            raise AssertionError("the last attempt returns or raises")
        finally:
            with suppress(FileNotFoundError):
                part.unlink()

    def _append(self, path: str, part: Path, largest: int) -> bool:
        """Get the rest of a file; one of _BROKEN if that breaks off."""
        have = part.stat().st_size if part.exists() else 0
        with self._get(path, {"Range": f"bytes={have}-"} if have else {}) as answer:
            if answer.status_code in (404, 410):
                return False
            if answer.status_code == 416:  # there is no rest, or it is another file by now
                part.unlink()
                raise OSError("the server's file changed meanwhile")
            self._check_status(answer, path)
            resumed = answer.status_code == 206
            with part.open("ab" if resumed else "wb") as file:
                wanted = _length(answer)
                got = 0
                for piece in self._pieces(answer, path):
                    got += len(piece)
                    if file.tell() + len(piece) > largest:
                        raise ComposerError(f"{self.url}/{path} is larger than a file of that kind can be")
                    file.write(piece)
            if wanted >= 0 and got < wanted:
                raise OSError(f"{got} of {wanted} bytes came")
        return True

    def _pieces(self, answer: requests.Response, path: str) -> Iterator[bytes]:
        """Yield what comes as it comes: who says a byte now and then would never fill a larger piece."""
        while piece := _read(answer):
            yield piece
            self._deadline.check(f"{self.url}/{path}")

    def _get(self, path: str, more: Mapping[str, str] | None = None) -> requests.Response:
        # identity: offsets are those of the file, and what is packed may unpack to nothing for ever.
        headers = {"Accept-Encoding": "identity", **(more or {})}
        url = f"{self.url}/{path}"
        refusals = moves = 0
        while True:
            answer = self._ask(url, headers)
            if answer.status_code in _BUSY and refusals < _RETRIES:
                self._drop(answer, path)
                refusals += 1
                seconds = _BACKOFF_SECONDS * 2**refusals
                _pause(seconds, "a server that answers with errors", self._deadline)
            elif answer.status_code in _MOVED:
                self._drop(answer, path)
                moves += 1
                if moves > _MOVES:
                    raise ComposerError(
                        f"{self.url}/{path}: the server redirects it more than {_MOVES} times"
                    )
                url = moved(url, answer.headers.get("Location", ""))
            else:
                return answer

    def _ask(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        left = self._deadline.left() + 1
        seconds = (min(_CONNECT_SECONDS, left), min(_ANSWER_SECONDS, left))
        # verify: a session's own would be overridden by REQUESTS_CA_BUNDLE (psf/requests#3829).
        return self._session.get(url, headers=headers, timeout=seconds, stream=True, verify=self._verify)

    def _drop(self, answer: requests.Response, path: str) -> None:
        """Read the rest of an answer if it is short, which keeps its connection; else close that."""
        with answer:
            if 0 <= _length(answer) <= _SHORT:
                for _ in self._pieces(answer, path):
                    pass

    def _check_status(self, answer: requests.Response, path: str) -> None:
        if not answer.ok:
            raise ComposerError(f"{self.url}/{path}: the server answers {answer.status_code} {answer.reason}")
        packed = answer.headers.get("Content-Encoding", "identity")
        if packed != "identity":
            raise ComposerError(
                f"{self.url}/{path}: the server packs it ({packed[:20]}), which it was asked not to"
            )


def _pause(seconds: float, awaited: str, deadline: Deadline) -> None:
    """Sleep; DeadlineExpired at once if there is no time for it."""
    if seconds >= deadline.left():
        raise DeadlineExpired(f"gave up waiting for {awaited}")
    time.sleep(seconds)


def moved(url: str, location: str) -> str:
    """Return the address to which ``url`` is redirected.

    Raises ComposerError for what is no address of a web server, and for one that leaves TLS.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        known = location and parts.scheme in ("http", "https") and parts.hostname
    except ValueError:  # brackets that hold no address
        known = None
    if not known:
        raise ComposerError(f"{url}: the server redirects it to {location[:200]!r}, which is no address")
    if host_behind_login(target) is not None:
        raise ComposerError(f"{url}: the server redirects it to an address with a user's name or password")
    if url.startswith("https://") and parts.scheme == "http":
        raise ComposerError(f"{url}: the server redirects it to {parts.hostname}, without TLS")
    return target


def _read(answer: requests.Response) -> bytes:
    """Return what has come, and wait for the first byte of it; one of _BROKEN if that breaks off."""
    try:
        return answer.raw.read1(_CHUNK, decode_content=False)
    except ValueError as error:  # urllib3 passes on a chunk's length of less than nothing (http.client)
        raise OSError("the server's answer is no HTTP") from error


def _length(answer: requests.Response) -> int:
    """Return how many bytes an answer announces; -1 if it names no number."""
    said = answer.headers.get("Content-Length", "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 20 else -1


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a requests error, which wraps several."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error)[:200]
